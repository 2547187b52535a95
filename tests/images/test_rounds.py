"""What is asked before each round of an apply, and what a saved plan may say."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from reconciler.tools import qemuimg
from tests.images.cases import B, P, Q, X
from tests.images.disks import EXECUTABLE, Disk, Outcome, command, folder_facts

KILLS = "kill -9 $PPID; sleep 5"
"""What a tool does that takes virt-chain with it."""
WAITS = "sleep 60"


def tools(disk: Disk, instead: str) -> dict[str, str]:
    """An environment with other tools: they do *instead* what would move data."""
    folder = disk.root / "bin"
    folder.mkdir()
    for name, when in (("qemu-img", "commit|rebase"), ("qemu-storage-daemon", "*")):
        real = shutil.which(name)
        text = f'#!/bin/sh\ncase "$1" in {when}) {instead};; esac\nexec {real} "$@"\n'
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def interrupted(disk: Disk) -> None:
    """An apply of the spec that was killed in the middle of its merge."""
    words = [EXECUTABLE, "apply", "-y", "--state-dir", disk.state, disk.spec_file]
    ended = subprocess.run(words, env=tools(disk, KILLS), capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended
    assert "unfinished" in (disk.state / "vm.toml").read_text()


def save(disk: Disk, *words: str | Path) -> Path:
    file = disk.root / "plan.json"
    assert command("plan", "-o", file, "--state-dir", disk.state, *words).code == 0
    return file


def apply_file(disk: Disk, file: Path, *words: str | Path) -> Outcome:
    return command("apply", "--state-dir", disk.state, file, *words)


def history(disk: Disk) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = command("history", "--json", "--state-dir", disk.state).data[
        "history"
    ]
    return found


@pytest.fixture
def merging(disk: Disk) -> Disk:
    """A merge of q was interrupted; now the spec drops p, too."""
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- p <- x")
    interrupted(disk)
    disk.spec("b <- x")
    return disk


# Rounds


def test_the_round_after_an_interrupted_merge_counts_its_drops(merging: Disk) -> None:
    done = merging.apply("--max-drops", "0")

    assert done.code == 1
    assert "1 restore points would go, and -y alone takes away at most 0" in done.err
    assert (merging.path("q").exists(), merging.path("p").exists()) == (False, True)
    assert merging.read("x") == merging.golden["x"]
    assert merging.apply().code == 0
    assert not merging.path("p").exists()


def test_done_counts_the_steps_of_all_rounds(merging: Disk) -> None:
    done = merging.apply()

    assert done.code == 0, done
    assert done.out.count("Plan: ") == 2
    said = next(line for line in done.out.splitlines() if line.startswith("Done: "))
    [record] = history(merging)
    assert "2 removes" in said, said
    assert len(record["steps"]) == sum(
        int(word) for word in said.split(";")[0].split() if word.isdigit()
    )
    assert record["seconds"] >= 0


def test_every_round_asks_on_a_terminal(merging: Disk) -> None:
    """Yes to what was interrupted, no to the rest."""
    terminal, other = os.openpty()
    words = [EXECUTABLE, "apply", "--state-dir", merging.state, merging.spec_file]
    apply = subprocess.Popen(
        words, stdin=other, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(other)
    os.write(terminal, b"y\nn\n")
    _, err = apply.communicate(timeout=60)
    os.close(terminal)

    assert apply.returncode == 1
    assert ("Apply this? [y/N]" in err, "Apply this, too? [y/N]" in err) == (True, True), err
    assert "not confirmed; virt-chain apply asks again" in err
    assert (merging.path("q").exists(), merging.path("p").exists()) == (False, True)


# Acts: what a round finishes that was interrupted before is none of theirs


@pytest.fixture
def finishing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A merge of q was interrupted, and the host lets no restore point go without a person."""
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- p <- x")
    interrupted(disk)
    config = disk.root / "config.toml"
    config.write_text("max_drops = 0\n")
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(config))
    return disk


def answers(monkeypatch: pytest.MonkeyPatch, *each: bool | type[Exception]) -> None:
    """A terminal, and what is said there to each question."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    left = list(each)

    def confirm(*_: object, **__: object) -> bool:
        answer = left.pop(0)
        if isinstance(answer, bool):
            return answer
        raise answer

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr(sys, "stdin", Terminal())


@pytest.mark.parametrize("end", ["max_drops", "no", "Ctrl-C", "a full filesystem"])
def test_an_act_of_which_only_an_interrupted_merge_was_done_is_taken_back(
    finishing: Disk, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its `discard` would throw away what the guest has written until a later apply."""
    disk, words = finishing, ["-y"] if end == "max_drops" else []
    if end == "a full filesystem":
        answers(monkeypatch, True, True)
        monkeypatch.setattr(qemuimg, "create_on", lambda *_: ["false"])
    elif end != "max_drops":
        answers(monkeypatch, True, typer.Abort if end == "Ctrl-C" else False)
    text = disk.spec_file.read_text()
    words = ["rollback", "vm", "--to", "b", *words, "--spec", str(disk.spec_file)]
    done = command(*words, "--state-dir", disk.state)

    assert done.code != 0
    assert f"nothing of this was done to vm:vda; {disk.spec_file} is as it was" in done.err
    assert disk.spec_file.read_text() == text
    assert disk.stack("x") == "b <- p <- x"
    assert disk.read("x") == disk.golden["x"]


# Saved plans


def test_a_saved_plan_does_what_it_shows_and_stops(merging: Disk) -> None:
    file = save(merging, merging.spec_file)

    done = apply_file(merging, file, merging.spec_file)

    assert done.code == 0, done
    assert "more steps are left; the rest needs a new plan" in done.err
    assert done.out.count("Plan: ") == 1
    assert (merging.path("q").exists(), merging.path("p").exists()) == (False, True)
    assert merging.read("x") == merging.golden["x"]


@pytest.fixture
def drop(disk: Disk) -> Disk:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- x")
    return disk


def test_a_plan_file_does_not_choose_its_spec(drop: Disk) -> None:
    file = save(drop, drop.spec_file)
    before = folder_facts(drop.images)

    done = apply_file(drop, file)

    assert (done.code, folder_facts(drop.images)) == (1, before)
    assert f"say virt-chain apply {file} {drop.spec_file}" in done.err
    assert apply_file(drop, file, drop.spec_file).code == 0


def test_a_plan_of_another_spec_than_the_named_one_is_refused(drop: Disk) -> None:
    file = save(drop, drop.spec_file)
    other = drop.root / "other.toml"
    other.write_text(drop.spec_file.read_text())

    done = apply_file(drop, file, other)

    assert done.code == 1
    assert f"it was not made from {other}; it was made from {drop.spec_file}" in done.err


@pytest.mark.parametrize("spec", [".", "chain.toml"])
def test_a_plan_of_the_current_folder_needs_no_other_word(
    drop: Disk, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(drop.root)
    file = save(drop, spec)

    assert apply_file(drop, file).code == 0


def test_the_host_names_specs_that_plans_may_be_made_from(
    drop: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = drop.root / "config.toml"
    config.write_text(f'specs = ["{drop.root}"]\n')
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(config))
    file = save(drop, drop.spec_file)

    assert apply_file(drop, file).code == 0


def test_a_plan_file_does_not_choose_its_connection(drop: Disk) -> None:
    file = save(drop, drop.spec_file)
    data = json.loads(file.read_text())
    data["domains"][0]["connection"] = "qemu:///system"
    file.write_text(json.dumps(data))

    done = apply_file(drop, file, drop.spec_file)

    assert done.code == 1
    assert "it was made for vm on qemu:///system, and the spec has it as plain images" in done.err
    assert "say -c qemu:///system, or plan again" in done.err


@pytest.mark.parametrize("how", ["file", "mode", "folder", "owner of the folder", "link"])
def test_a_plan_file_that_others_could_have_written_is_refused(drop: Disk, how: str) -> None:
    file = save(drop, drop.spec_file)
    folder = drop.root / "plans"
    folder.mkdir()
    file = Path(shutil.copy2(file, folder))
    assert file.stat().st_mode & 0o777 == 0o600
    match how:
        case "file":
            os.chown(file, 65534, 0)
        case "mode":
            file.chmod(0o666)
        case "folder":
            folder.chmod(0o777)
        case "owner of the folder":
            os.chown(folder, 65534, 0)
        case "link":
            link = drop.root / "link.json"
            link.symlink_to(file)
            os.chown(link, 65534, 0, follow_symlinks=False)
            file = link
    before = folder_facts(drop.images)

    done = apply_file(drop, file, drop.spec_file)

    assert (done.code, folder_facts(drop.images)) == (1, before), done
    assert done.err.startswith(f"virt-chain: {file}: ")


# Many disks, and signals


def two(disk: Disk, chains: Sequence[str]) -> None:
    text = f'version = 1\n[defaults]\ndirectory = "{disk.images}"\n'
    for name, chain in zip("ac", chains, strict=True):
        text += f"[domains.{name}.disks.vda]\nchain = [{chain}]\n"
    disk.spec_file.write_text(text)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_one_busy_disk_leaves_the_others_running(disk: Disk, jobs: str) -> None:
    disk.add("a", B)
    disk.add("c", B)
    two(disk, ['"a.qcow2"', '"c.qcow2", "y.qcow2"'])
    lock = disk.state / "locks" / "a:vda"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = disk.apply("-j", jobs, "--lock-timeout", "0", "--json")

    assert done.code == 1
    found = {one["domain"]: one["status"] for one in json.loads(done.out)["results"]}
    assert found == {"a": "failed", "c": "applied"}
    assert disk.path("y").exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_second_signal_ends_also_what_waits_for_tools(disk: Disk, jobs: str) -> None:
    for name in "ac":
        disk.chain({name: B, f"{name}p": P, f"{name}x": X})
    two(disk, ['"a.qcow2", "ax.qcow2"', '"c.qcow2", "cx.qcow2"'])
    words = ["apply", "-y", "-j", jobs, "--json", "--state-dir", disk.state, disk.spec_file]
    env = tools(disk, WAITS)
    apply = subprocess.Popen(
        [EXECUTABLE, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while not list(disk.state.glob("*.toml")) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)
    apply.send_signal(signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    apply.send_signal(signal.SIGINT)
    out, err = apply.communicate(timeout=30)

    assert (apply.returncode, time.monotonic() - began < 10) == (130, True), err
    assert "domains" in json.loads(out)
    assert disk.apply("-j", jobs).code == 0
    assert [disk.path(name).exists() for name in ("ap", "cp")] == [False, False]


# The history


def test_the_history_has_the_steps_that_were_done_before_one_failed(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.backends.offline import Offline
    from reconciler.model.errors import ToolFailed
    from reconciler.model.steps import Remove

    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- p <- x", active="x.qcow2")
    run = Offline.run

    def broken(self: Offline, step: Any, chain: Any) -> Any:
        if isinstance(step, Remove):
            raise ToolFailed(["rm"], 1, "no")
        return run(self, step, chain)

    monkeypatch.setattr(Offline, "run", broken)
    done = disk.apply()
    monkeypatch.undo()

    [record] = history(disk)
    assert (done.code, record["status"]) == (1, "failed")
    assert record["steps"] == ["pull up into x down to p"]
    assert disk.apply().code == 0


def test_a_damaged_line_of_the_history_is_told(drop: Disk) -> None:
    assert drop.apply().code == 0
    with (drop.state / "history.jsonl").open("a") as file:
        file.write('{"time": 5}\n{"cut')

    done = command("history", "--json", "--state-dir", drop.state)

    assert (done.code, len(done.data["history"])) == (0, 1)
