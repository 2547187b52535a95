"""Mistakes on the command line: one clear message, exit code 1, and nothing changed."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler import __version__
from reconciler.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a test, with one disk that has an overlay to be made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIRT_CHAIN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = signal.getsignal(signal.SIGTERM)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "4M"], check=True)
    Path("spec.toml").write_text(
        'version = 1\n[domains.web.disks.vda]\nchain = ["base.qcow2", "web.qcow2"]\n'
    )
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def call(capsys: Captured, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code = run(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }


MISTAKES = [
    # id, words, what is said on stderr
    (
        "unknown option",
        "plan --frob",
        "Usage: virt-chain plan [OPTIONS] [SPEC]...\nvirt-chain: No such option '--frob'.\n",
    ),
    (
        "unknown command",
        "frob",
        "Usage: virt-chain [OPTIONS] COMMAND [ARGS]...\nvirt-chain: No such command 'frob'.\n",
    ),
    (
        "option without its value",
        "plan --target",
        "virt-chain: Option '--target' requires an argument.\n",
    ),
    (
        "unknown verification",
        "apply -y --verify some",
        (
            "Usage: virt-chain apply [OPTIONS] [PLANFILE] [SPEC]...\n"
            "virt-chain: Invalid value for '--verify': 'some' is not one of "
            "'none', 'moved', 'full'.\n"
        ),
    ),
    (
        "unknown target",
        "plan --target db",
        "virt-chain: --target db names no disk of the spec; it has web:vda\n",
    ),
    (
        "unknown targets",
        "show --target db:* --target web:vdb",
        "virt-chain: --target db:* web:vdb names no disk of the spec; it has web:vda\n",
    ),
    (
        "unknown target to apply",
        "apply -y --target db",
        "virt-chain: --target db names no disk of the spec; it has web:vda\n",
    ),
    (
        "no rate",
        "apply -y --bandwidth fast",
        (
            "virt-chain: --bandwidth fast: 'fast' is no rate; write bytes or a unit, such as "
            "10G or 512M\n"
        ),
    ),
    (
        "no rate at all",
        "apply -y --bandwidth 0",
        "virt-chain: --bandwidth 0: '0' is out of range; write bytes a second, such as 100M\n",
    ),
    (
        "an endless rate",
        f"apply -y --bandwidth {'9' * 5000}",
        (
            f"virt-chain: --bandwidth {'9' * 5000}: '{'9' * 77}'... is no rate; write bytes or a "
            "unit, such as 10G or 512M\n"
        ),
    ),
    (
        "no time to wait for a lock",
        "apply -y --lock-timeout nan",
        "virt-chain: --lock-timeout nan: write seconds, such as 60\n",
    ),
    (
        "no end of the wait for a lock",
        "apply -y --lock-timeout inf",
        "virt-chain: --lock-timeout inf: write seconds, such as 60\n",
    ),
    (
        "an interval of millennia",
        "watch --interval 999999w",
        (
            "virt-chain: --interval: '999999w' is more than ten years; write a shorter time, such "
            "as 520w\n"
        ),
    ),
    (
        "a hold for millennia",
        "hold web --reason why --until 999999w",
        (
            "virt-chain: --until: '999999w' is more than ten years; write a shorter time, such as "
            "520w\n"
        ),
    ),
    (
        "a hold until the end of time",
        "hold web --reason why --until 0001-01-01T00:00+14:00",
        (
            "virt-chain: --until 0001-01-01T00:00+14:00: write how long, such as 2h or 7d, or "
            "when: 2030-01-31T18:00\n"
        ),
    ),
    (
        "a missing spec",
        "plan gone.toml",
        "gone.toml:1:1: spec: there is no such file or folder; name a spec that exists\n",
    ),
    (
        "no terminal to ask on",
        "apply",
        (
            "virt-chain: nothing was done: there is no terminal to ask on; say -y, or apply "
            "a saved plan (virt-chain plan -o FILE)\n"
        ),
    ),
    (
        "a plan to a folder that is missing",
        "plan -o gone/plan.json",
        "virt-chain: gone/plan.json cannot be written: No such file or directory\n",
    ),
]


@pytest.mark.parametrize(
    ("words", "said"), [pytest.param(*case, id=name) for name, *case in MISTAKES]
)
def test_a_mistake_is_told_and_nothing_is_done(capsys, folder, words, said):
    before = snapshot(folder)

    code, _, err = call(capsys, *words.split())

    assert (code, err, snapshot(folder)) == (1, said, before)


def test_every_problem_of_a_spec_has_its_place(capsys):
    Path("bad.toml").write_text(
        "version = 1\n"
        "[domains.web.disks.vda]\n"
        'chain = ["base.qcow2", { file = "web.qcow2", formt = "raw" }]\n'
        "[domains.db.disks.vda]\n"
        'chain = ["db.qcow2"]\n'
        "remove_base = 1\n"
    )

    code, out, err = call(capsys, "validate", "bad.toml")

    assert (code, out) == (1, "")
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["bad.toml:3:46", "web.vda"],
        ["bad.toml:6:1", "db.vda"],
    ]


def test_a_spec_that_is_no_toml_is_told(capsys):
    Path("bad.toml").write_text("version = \n")

    code, _, err = call(capsys, "plan", "bad.toml")

    assert (code, err.startswith("bad.toml:1:11: ")) == (1, True)


def test_no_name_of_a_spec_reaches_a_terminal_raw(capsys):
    Path("\x1b[31m.toml").write_text("version = 1\n")

    code, _, err = call(capsys, "validate", "\x1b[31m.toml")

    assert (code, "\x1b" in err, "\\x1b[31m.toml" in err) == (1, False, True)


def test_apply_without_a_terminal_shows_the_plan_and_changes_nothing(capsys, folder):
    before = snapshot(folder)

    code, out, err = call(capsys, "apply", "spec.toml")

    assert (code, snapshot(folder)) == (1, before)
    assert "create  web on base" in out
    assert err.startswith("virt-chain: nothing was done: ")


def test_apply_for_programs_asks_nobody(capsys, folder):
    before = snapshot(folder)

    code, out, err = call(capsys, "apply", "--json")

    assert (code, out, snapshot(folder)) == (1, "", before)
    assert err.startswith("virt-chain: nothing was done: ")


@pytest.mark.parametrize("answer", ["n", ""])
def test_who_is_asked_may_say_no(capsys, folder, monkeypatch, answer):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    before = snapshot(folder)

    code, _, err = call(capsys, "apply")

    assert (code, err, snapshot(folder)) == (
        1,
        "Apply this? [y/N]: virt-chain: nothing was done\n",
        before,
    )


def test_a_broken_plan_file_is_told(capsys, folder):
    Path("plan.json").write_text("{")
    before = snapshot(folder)

    code, _, err = call(capsys, "apply", "plan.json")

    assert (code, err, snapshot(folder)) == (
        1,
        (
            "virt-chain: plan.json: no plan file: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)\n"
        ),
        before,
    )


def test_a_damaged_state_file_is_told(capsys, folder):
    (folder / "state").mkdir()
    (folder / "state" / "web.toml").write_text("version = 7\n")

    code, out, _ = call(capsys, "plan")

    assert (code, "its version is 7, this program has 2" in out) == (1, True)


@pytest.mark.parametrize("words", ["plan", "show", "apply -y", "adopt web:vda base.qcow2 -y"])
def test_a_spec_that_has_the_name_of_a_state_file_stays(
    capsys: Captured, folder: Path, words: str
) -> None:
    Path("spec.toml").rename("web.toml")
    before = snapshot(folder)
    act, *rest = words.split()

    code, out, err = call(capsys, "--state-dir", ".", act, *rest)

    told = " ".join((out + err).split())
    assert (code, told.count(f"{folder}/web.toml is a spec")) == (1, 1)
    assert f"the state directory, {folder}, has to be another folder" in told
    assert "mv " not in told
    assert "guest is off" not in told
    assert {name: text for name, text in snapshot(folder).items() if name in before} == before


COMMANDS = [
    "",
    "validate",
    "show",
    "plan",
    "apply",
    "snapshot",
    "drop",
    "rollback",
    "import",
    "fmt",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(capsys, command, option):
    code, out, err = call(capsys, *command.split(), option)

    assert (code, err, "Usage: virt-chain" in out) == (0, "", True)


def test_the_version_is_told(capsys):
    assert call(capsys, "--version") == (0, f"virt-chain {__version__}\n", "")


def test_without_arguments_the_commands_are_told(capsys):
    code, out, err = call(capsys)

    said = out + err
    assert code in (0, 1)
    assert [name for name in COMMANDS if name not in said] == []
    assert "virt-chain: \n" not in said


def test_validate_looks_at_no_image(capsys, folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (folder / "base.qcow2").unlink()

    assert call(capsys, "validate") == (0, "1 disk: the spec is valid.\n", "")


@pytest.mark.parametrize(("words", "code"), [("plan", 0), ("plan --detailed-exitcode", 2)])
def test_changes_are_an_exit_code_where_that_is_asked_for(capsys, words, code):
    assert call(capsys, *words.split())[0] == code


def test_nothing_to_do_is_no_change(capsys):
    Path("spec.toml").write_text('version = 1\n[domains.web.disks.vda]\nchain = ["base.qcow2"]\n')

    assert call(capsys, "plan", "--detailed-exitcode") == (
        0,
        "Nothing to do: 1 disk is as the spec says.\n",
        "",
    )


@pytest.mark.parametrize("words", ["plan --json", "show --json", "apply -y --json"])
def test_one_document_for_programs_is_all_there_is(capsys, words):
    code, out, err = call(capsys, *words.split())

    assert (code, json.loads(out)["format_version"], err) == (0, 1, "")


TARGETS = ["web", "web:vda", "w*", "*:vda", "web:vd?", "*"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_names_disks_by_domain_disk_or_glob(capsys, target):
    code, out, _ = call(capsys, "plan", "--target", target, "--json")

    assert (code, json.loads(out)["summary"]["create"]) == (0, 1)


def test_the_command_that_applies_a_plan_can_be_pasted(capsys):
    Path("my spec.toml").write_text(Path("spec.toml").read_text())

    _, out, _ = call(capsys, "plan", "my spec.toml", "--target", "web:*")

    assert out.splitlines()[-1] == (
        "Apply it with: virt-chain apply 'my spec.toml' --target 'web:*'"
    )


def test_of_thousands_of_mistakes_a_hundred_are_told(capsys: Captured, folder: Path):
    disks = "".join(f"[domains.vm{number}.disks.vda]\nchian = []\n" for number in range(1000))
    Path("spec.toml").write_text(f"version = 1\n{disks}")

    code, out, err = call(capsys, "validate", "spec.toml")

    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].startswith("spec.toml:2:")
    assert len(lines) == 101
    assert re.fullmatch(r"and \d+ more problems", lines[-1])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_too_little_memory_is_told_in_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def app(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("reconciler.cli.main.app", app)

    code, _, said = call(capsys, "plan")
    assert code == 1
    assert said.startswith("virt-chain: not enough memory")
    assert said.endswith("nothing is lost: virt-chain apply continues\n")


@pytest.mark.parametrize(
    "words",
    ["--state-dir named apply -y", "apply -y --state-dir named"],
    ids=["before the command", "after it"],
)
def test_a_state_directory_that_an_option_names_wins_over_the_environment(
    words: str, capsys: Captured, folder: Path
) -> None:
    code, _, _ = call(capsys, *words.split())

    assert code == 0
    assert (folder / "named" / "web.toml").exists()
    assert not (folder / "state").exists()
