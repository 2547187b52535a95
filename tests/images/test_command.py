"""The command line on real images: plans as files, exit codes, options, the state file."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.images.cases import BIG_P, B, P, Q, X
from tests.images.disks import (
    Disk,
    Outcome,
    assert_done,
    assert_quiet,
    command,
    folder_facts,
    process,
    write,
)

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "schemas" / "plan.schema.json").read_text(encoding="utf-8")
)


@pytest.fixture
def drop(disk: Disk) -> Disk:
    """A chain whose p the spec drops."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- x")
    return disk


def save(disk: Disk) -> Path:
    """A plan of *disk*, saved."""
    file = disk.root / "plan.json"
    outcome = command("plan", "-o", file, "--state-dir", disk.state, disk.spec_file)
    assert outcome.code == 0, outcome
    return file


def apply_file(disk: Disk, file: Path) -> Outcome:
    return command("apply", "--state-dir", disk.state, file, disk.spec_file)


def test_a_saved_plan_is_applied_without_asking(drop: Disk) -> None:
    outcome = apply_file(drop, save(drop))

    assert outcome.code == 0, outcome
    assert_done(drop, "b <- x", current="x", gone=["p"])
    assert_quiet(drop)


def test_a_saved_plan_is_stale_when_the_images_changed(drop: Disk) -> None:
    file = save(drop)
    drop.add("y", P, on="x")
    drop.spec("b <- x <- y")
    before = folder_facts(drop.images)

    outcome = apply_file(drop, file)

    assert (outcome.code, "stale" in outcome.err + outcome.out) == (1, True)
    assert "plan again" in outcome.err + outcome.out
    assert folder_facts(drop.images) == before


def test_a_saved_plan_is_stale_once_it_was_applied(drop: Disk) -> None:
    file = save(drop)
    assert apply_file(drop, file).code == 0
    before = drop.everything()

    outcome = apply_file(drop, file)

    assert (outcome.code, "stale" in outcome.err + outcome.out) == (1, True)
    assert drop.everything() == before


def test_a_saved_plan_is_stale_when_the_spec_changed(drop: Disk) -> None:
    file = save(drop)
    drop.spec("b <- p <- x")

    outcome = apply_file(drop, file)

    assert (outcome.code, "stale" in outcome.err + outcome.out) == (1, True)


@pytest.mark.parametrize("edit", ["step", "fingerprint", "version", "cut", "extra removal"])
def test_an_edited_plan_file_is_refused(drop: Disk, edit: str) -> None:
    file = save(drop)
    data: Any = json.loads(file.read_text())
    disk = data["domains"][0]["disks"][0]
    match edit:
        case "step":
            disk["steps"][0]["base"] = None
        case "fingerprint":
            disk["fingerprint"] = "sha256:" + "0" * 64
        case "version":
            data["format_version"] = 2
        case "extra removal":
            disk["steps"].append({**disk["steps"][-1], "image": str(drop.path("b"))})
    text = json.dumps(data)
    file.write_text(text[:-20] if edit == "cut" else text)
    before = folder_facts(drop.images)

    outcome = apply_file(drop, file)

    assert outcome.code == 1, outcome
    assert "plan again" in outcome.err + outcome.out or "no plan file" in outcome.err
    assert "Traceback" not in outcome.err
    assert folder_facts(drop.images) == before


def two_disks(disk: Disk) -> None:
    """`vm:vda` drops p, `other:vda` wants a new overlay; images in the same folder."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.add("c", B)
    disk.keep()
    disk.spec("b <- x", more='[domains.other.disks.vda]\nchain = ["c.qcow2", "d.qcow2"]')


def test_one_stale_disk_leaves_the_other_to_be_applied(disk: Disk) -> None:
    two_disks(disk)
    file = save(disk)
    write(disk.path("p"), "256k:- 64k:N")
    disk.golden["x"] = disk.read("x")

    outcome = apply_file(disk, file)

    assert (outcome.code, "vm:vda" in outcome.out + outcome.err) == (1, True)
    assert disk.stack("d") == "c <- d"
    assert disk.stack("x") == "b <- p <- x"


@pytest.mark.parametrize(
    ("target", "changed"),
    [("vm", "x"), ("vm:vda", "x"), ("oth*", "d"), ("*:vda", "both"), ("other:vda", "d")],
)
def test_target_narrows(disk: Disk, target: str, changed: str) -> None:
    two_disks(disk)

    outcome = disk.apply("--target", target)

    assert outcome.code == 0, outcome
    assert disk.path("d").exists() == (changed in ("d", "both"))
    assert disk.stack("x") == ("b <- x" if changed in ("x", "both") else "b <- p <- x")


def test_a_target_that_names_nothing(disk: Disk) -> None:
    two_disks(disk)

    outcome = disk.apply("--target", "nobody")

    assert (outcome.code, outcome.out) == (1, "")
    assert "nobody names no disk" in outcome.err


def test_one_bad_disk_does_not_stop_the_other(disk: Disk) -> None:
    two_disks(disk)
    disk.path("b").unlink()

    outcome = disk.apply()

    assert outcome.code == 1
    assert "1 disk not as the spec says" in outcome.err
    assert disk.stack("d") == "c <- d"


def test_detailed_exit_codes(drop: Disk) -> None:
    changes = drop.plan("--detailed-exitcode")
    drop.apply()
    nothing = drop.plan("--detailed-exitcode")
    drop.path("b").unlink()
    broken = drop.plan("--detailed-exitcode")

    assert (changes.code, nothing.code, broken.code) == (2, 0, 1)


def test_json_keeps_to_its_schema(disk: Disk) -> None:
    disk.chain({"b": B, "p": BIG_P, "q": Q, "x": X})
    disk.spec(
        "b <- q <- y",
        active="x.qcow2",
        sizes={"y": "1M"},
        more='[domains.bad.disks.vda]\nchain = ["missing.qcow2"]',
    )

    planned = disk.plan()
    applied = disk.apply("--json")
    again = disk.plan()

    for outcome in (planned, applied, again):
        jsonschema.validate(outcome.data, SCHEMA)
    assert planned.steps == [
        "commit q into p, 64k",
        "rename p to q",
        "rename x to y",
        "resize y to 1024k",
    ]
    assert planned.data["summary"] == {
        "create": 0, "commit": 1, "pull": 0, "rebase": 0, "rename": 2, "resize": 1,
        "attach": 0, "remove": 0, "bytes_to_copy": 65536, "deferred": 0, "errors": 1,
    }  # fmt: skip
    assert [one["status"] for one in applied.data["results"]] == ["applied", "error"]
    assert applied.err == ""
    assert again.steps == []


def test_planning_and_showing_write_nothing(drop: Disk) -> None:
    before = drop.everything()
    drop.plan()
    drop.show()
    command("validate", drop.spec_file)

    assert drop.everything() == before
    assert not drop.state.exists()


def test_apply_without_a_terminal_is_refused(drop: Disk) -> None:
    before = drop.everything()

    inside = command("apply", "--state-dir", drop.state, drop.spec_file)
    outside = process("apply", "--state-dir", drop.state, drop.spec_file)

    assert (inside.code, outside.code) == (1, 1)
    assert "say -y" in outside.err
    assert "say -y" in inside.err
    assert drop.everything() == before


def test_nothing_to_do_needs_no_terminal(drop: Disk) -> None:
    drop.apply()

    outcome = command("apply", "--state-dir", drop.state, drop.spec_file)

    assert outcome == Outcome(0, "Nothing to do: 1 disk is as the spec says.\n", "")


@pytest.mark.parametrize("verify", ["full", "moved", "none"])
@pytest.mark.parametrize("p", [P, BIG_P], ids=["pull", "commit"])
def test_every_way_to_verify(disk: Disk, verify: str, p: str) -> None:
    disk.chain({"b": B, "p": p, "x": X})
    disk.spec("b <- x")

    outcome = disk.apply("--verify", verify)

    assert outcome.code == 0, outcome
    assert outcome.err.count("reads as before, sha256") == (2 if verify == "full" else 0)
    assert_done(disk, "b <- x", current="x", gone=["p"])


def test_full_verification_of_a_roll_back_and_of_a_grown_disk(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- p <- y", active="x.qcow2", discard=["x"], sizes={"y": "1M"})

    outcome = disk.apply("--verify", "full")

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- p <- y", current="p", gone=["x"], size="1M")


@pytest.mark.parametrize("way", ["commit", "pull"])
def test_bandwidth_slows_the_copy(disk: Disk, way: str) -> None:
    """1 MiB at 1 MiB a second takes a second, less what one slice lets through at once."""
    big = "64k:- 1M:P 960k:-"
    if way == "commit":
        disk.chain({"b.raw": "2M:A", "x": big}, **{"b.raw": {"raw": True}})
        disk.spec("b.raw", active="x.qcow2", formats={"b.raw": "raw"})
    else:
        disk.chain({"b": big, "x": "64k:X 1984k:-"})
        disk.spec("x")
    began = time.monotonic()

    outcome = disk.apply("--bandwidth", "1M")

    assert outcome.code == 0, outcome
    assert time.monotonic() - began > 0.7
    chain, gone = ("b.raw", ["x"]) if way == "commit" else ("x", [])
    assert_done(disk, chain, current="x", gone=gone)


def test_a_rate_that_is_none(drop: Disk) -> None:
    outcome = drop.apply("--bandwidth", "fast")

    assert (outcome.code, outcome.out) == (1, "")
    assert "fast" in outcome.err


def test_a_lost_state_file_loses_nothing(disk: Disk) -> None:
    """The chain is found again by the spec, and the next merge works."""
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- q <- x")
    assert disk.apply().code == 0
    shutil.rmtree(disk.state)

    assert disk.plan().steps == []
    disk.spec("b <- x")
    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- x", current="x", gone=["p", "q"])
    assert_quiet(disk)


def test_the_state_file_knows_the_active_image(disk: Disk) -> None:
    """Once applied, the active image is dropped without `active` in the spec."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- p <- x")
    assert disk.apply().code == 0
    disk.spec("b <- p")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- p", current="x", gone=["x"])


def test_a_damaged_state_file_is_told(drop: Disk) -> None:
    drop.apply()
    file = drop.state / "vm.toml"
    file.write_text("version = 1\n[disks.vda\n")

    outcome = drop.plan()

    assert outcome.code == 1
    assert str(file) in str(outcome.error)
    assert "move the file away" in str(outcome.error)


@pytest.mark.parametrize("texts", [(P, X), (BIG_P, X), ("64k:- 64k:P", X)])
def test_without_the_storage_daemon(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, str]
) -> None:
    """qemu-img alone does the same."""
    only = disk.root / "bin"
    only.mkdir()
    found = shutil.which("qemu-img")
    assert found
    (only / "qemu-img").symlink_to(found)
    disk.chain({"b": B, "p": texts[0], "q": Q, "x": texts[1]})
    disk.spec("b <- q <- x")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(only))
        outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])
    assert_quiet(disk)


def test_without_qemu_img_the_package_is_named(drop: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(drop.root))
        outcome = drop.plan()

    assert outcome.code == 1
    assert "qemu-img is not installed" in str(outcome.error)
    assert "qemu-utils" in str(outcome.error)


def test_the_executable_does_the_whole_job(disk: Disk) -> None:
    """validate, show, plan, apply, apply again: as a user runs them in the spec's folder."""
    disk.chain({"b": B, "p": BIG_P, "q": Q, "x": X})
    disk.spec("b <- q <- x")
    environment = {**os.environ, "VIRT_CHAIN_STATE_DIR": str(disk.state)}

    def run(*words: str) -> Outcome:
        return process(*words, cwd=disk.root, env=environment)

    valid, shown, planned = run("validate"), run("show"), run("plan", "--detailed-exitcode")
    applied, again = run("apply", "-y"), run("apply")

    assert valid == Outcome(0, "1 disk: the spec is valid.\n", "")
    assert (shown.code, shown.err, "drift" in shown.out) == (0, "", True)
    assert (planned.code, planned.err) == (2, "")
    assert "  1  commit  q down into p  64 KiB" in planned.out
    assert "keeps the restore points b, q; drops p" in planned.out
    assert (applied.code, "vm:vda  b <- q <- x*" in applied.out) == (0, True)
    assert again == Outcome(0, "Nothing to do: 1 disk is as the spec says.\n", "")
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])


def test_two_applies_at_once_do_the_work_once(disk: Disk) -> None:
    """The second waits for the first, and finds nothing left."""
    import subprocess

    from tests.images.disks import EXECUTABLE

    disk.chain({"b": B, "p": BIG_P, "q": Q, "x": X})
    disk.spec("b <- x")
    words = [str(EXECUTABLE), "apply", "-y", "--state-dir", str(disk.state), str(disk.spec_file)]
    both = [
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    codes = sorted(child.wait(60) for child in both)
    errors = [child.communicate()[1] for child in both]

    assert codes == [0, 0], errors
    assert not any("Traceback" in error for error in errors), errors
    assert_done(disk, "b <- x", current="x", gone=["p", "q"])
    assert_quiet(disk)


def test_a_plan_as_markdown_is_a_table_that_no_name_breaks(disk: Disk) -> None:
    disk.chain({"b": "512k:A", "p|*_<i>": "64k:P 448k:-", "x": "64k:- 64k:X 384k:-"})
    disk.spec("b <- x")

    told = command(
        "plan", "--format", "markdown", "--state-dir", disk.state, disk.spec_file
    ).out.splitlines()

    assert told[0] == "## virt-chain plan"
    assert "### vm:vda (offline)" in told
    assert r"now: b \<- p\|\*\_\<i\> \<- x\*" in told
    rows = [line for line in told if re.match(r"\| \d+ \|", line)]
    assert [row.split(" | ")[1] for row in rows] == ["pull", "remove"]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert told[-1] == r"- keeps the restore point b; drops p\|\*\_\<i\>"


def test_markdown_of_an_error_and_of_nothing_to_do(disk: Disk) -> None:
    disk.chain({"b": "512k:A", "x": "64k:- 64k:X 384k:-"})
    disk.spec("b <- x")
    words = ("plan", "--format", "markdown", "--state-dir", disk.state, disk.spec_file)
    quiet = command(*words)
    assert quiet.out == "## virt-chain plan\n\nNothing to do: 1 disk is as the spec says.\n"
    disk.spec("gone <- b <- x")

    broken = command(*words)

    assert broken.code == 1
    assert "> **error:** " in broken.out
