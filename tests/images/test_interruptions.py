"""
Whatever fails, the promise holds, and running `apply` again ends in the desired chain.

Every scenario is killed after each effect, killed in the middle of each copy,
and has each call fail; after each of these the kept views, the current state and
all foreign files are compared, then `apply` runs again and everything is compared.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconciler.tools import files
from tests.images.cases import BIG_P, BIG_Q, BIG_X, B, Case, P, Q, R, X
from tests.images.disks import (
    EXECUTABLE,
    KIB,
    MIB,
    Disk,
    Outcome,
    assert_done,
    assert_quiet,
    assert_untouched,
    differing,
    folder_facts,
    process,
    short,
    size_of,
    tool,
    view,
    write,
)
from tests.images.faults import Crash, Faults, Kind

SCENARIOS = [
    Case("a new overlay", {"b": B, "p": P}, "b <- p <- x", [], untouched=["b", "p"]),
    Case("a new disk", {"t": B}, "t <- x", [], spec={"templates": ["t"]}, untouched=["t"]),
    Case(
        "commit, pull and rename to the active image",
        {"b": B, "p": P, "q": Q, "r": "192k:- 256k:R 64k:-", "x": X},
        "b <- p <- x",
        [],
        gone=["q", "r"],
        untouched=["b", "p"],
    ),
    Case(
        "pull into an image in the middle",
        {"b": B, "p": P, "q": BIG_Q, "x": X},
        "b <- q <- x",
        [],
        gone=["p"],
        untouched=["b", "x"],
    ),
    Case(
        "commit and rename in the middle",
        {"b": B, "p": BIG_P, "q": Q, "x": X},
        "b <- q <- x",
        [],
        gone=["p"],
        untouched=["b", "x"],
    ),
    Case(
        "the two highest committed into p",
        {"b": B, "p": P, "q": Q, "x": X},
        "b <- p",
        [],
        gone=["q", "x"],
        untouched=["b"],
    ),
    Case(
        "pulled into the dropped active image, which takes p's name",
        {"b": B, "p": "64k:- 64k:P 256k:- 64k:P 64k:-", "x": BIG_X},
        "b <- p",
        [],
        gone=["x"],
        untouched=["b"],
    ),
    Case(
        "roll back, merge below, new top",
        {"b": B, "p": P, "q": BIG_Q, "x": X},
        "b <- q <- y",
        [],
        gone=["p", "x"],
        current="q",
        spec={"discard": ["x"]},
        untouched=["b"],
    ),
    Case(
        "another base and a dropped image",
        {"b": B, "p": P, "q": BIG_Q, "x": X},
        "c <- q <- x",
        [],
        gone=["p"],
        beside={"c": (None, "256k:C 256k:A")},
        untouched=["b", "c", "x"],
    ),
    Case(
        "the base used up",
        {"b": B, "p": P, "x": X},
        "p <- x",
        [],
        gone=["b"],
        spec={"remove_base": True},
        untouched=["x"],
    ),
    Case(
        "q relinked after it went down into p",
        {"b": "4M:A", "p": "2M:- 1M:P 1M:-", "q": "3M:- 64k:Q 960k:-", "x": "4k:X 4092k:-"},
        "b <- ~p <- x",
        [],
        gone=["q"],
        build={"x": {"cluster_size": "2M"}},
        untouched=["b"],
    ),
    Case(
        "the active image moves to a new name and grows",
        {"b": B, "p": P, "x": X},
        "b <- p <- y",
        [],
        gone=["x"],
        spec={"sizes": {"y": "1M"}},
        untouched=["b", "p"],
        size="1M",
    ),
    Case(
        "unrecorded formats, and everything into a raw base",
        {"b.raw": B, "p": BIG_P, "x": X},
        "b.raw",
        [],
        gone=["p", "x"],
        build={"b.raw": {"raw": True}, "record_format": False},
        spec={"formats": {"b.raw": "raw"}},
    ),
    Case(
        "a short image in the middle",
        {"b": B, "p": "64k:- 64k:P", "q": "64k:- 128k:Q 320k:-", "x": "64k:X 256k:- 192k:X"},
        "b <- x",
        [],
        gone=["p", "q"],
        untouched=["b"],
    ),
    Case(
        "two merges and a new top",
        {"b": B, "p": P, "q": Q, "r": R, "s": "256k:- 64k:S 192k:-", "x": X},
        "b <- q <- s <- x <- y",
        [],
        gone=["p", "r"],
        untouched=["b", "x"],
    ),
]

COPYING = [SCENARIOS[n] for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14)]
"""Scenarios in which data moves."""
DROP = SCENARIOS[4]
COMMIT_PULL_RENAME = SCENARIOS[2]


def kept(case: Case, chain: str = "") -> list[str]:
    """Restore points that both the observed chain and the desired one have."""
    words = (chain or case.chain).split(" <- ")[:-1]
    return [word for word in words if not word.startswith("~") and word in case.images]


def broken_promises(disk: Disk, case: Case) -> list[str]:
    """What of DESIGN §2 does not hold right now, in words."""
    wrong = []
    for name in kept(case):
        if said := differing(disk.read(name), disk.golden[name]):
            wrong.append(f"the restore point {name} reads {said}")
    if said := wrong_current_state(disk, case):
        wrong.append(said)
    try:
        assert_untouched(disk, *case.untouched)
    except AssertionError:
        wrong.append("a foreign file was changed")
    return wrong


def wrong_current_state(disk: Disk, case: Case) -> str:
    """What the guest would read wrong if it were started now, in words; empty: nothing."""
    active = disk.active()
    if active is None:  # a new disk that is not there yet
        return "" if case.top in case.spec.get("templates", ()) else "there is no active image"
    name = short(active)
    now = view(active, disk.formats.get(name, "qcow2"))
    # until the guest goes back, it is where it was
    current = name if name in case.spec.get("discard", ()) else case.current or case.top
    golden = disk.golden[current]
    if now == golden.ljust(size_of(case.size or 0), b"\0"):
        return ""
    said = differing(now, golden)
    return f"the current state, in {name}, reads {said}" if said else ""


def struck(disk: Disk, kind: Kind, at: int) -> tuple[Faults, Outcome | None]:
    """Apply with the fault number *at*; its outcome, or None where it was killed."""
    faults = Faults(kind, at)
    with pytest.MonkeyPatch.context() as patch:
        faults.install(patch)
        try:
            return faults, disk.apply()
        except Crash:
            return faults, None


def every_fault(disk: Disk, case: Case, kind: Kind, follow: Callable[[Faults], None]) -> int:
    """
    Run *follow* after each fault of *kind*; the number of faults there were.

    All faults are tried, and all that went wrong is told at the end.
    """
    disk.save()
    wrong: list[str] = []
    at = 0
    while True:
        at += 1
        if at > 1:
            disk.restore()
            case.write_spec(disk, case.chain)
        faults, outcome = struck(disk, kind, at)
        if not faults.struck:
            break
        where = f"{kind} {at}: {faults.acts[-1]}"
        try:
            if kind == "failed":
                assert outcome is not None
                assert (outcome.code, "Traceback" in outcome.err) == (1, False), outcome
                assert outcome.out + outcome.err, "an error without a message"
            follow(faults)
        except AssertionError as error:
            wrong.append(f"{where}\n{error}")

    assert not wrong, "\n\n".join(wrong)
    return at - 1


def assert_converges(disk: Disk, case: Case) -> None:
    """The next `apply` ends in the desired chain."""
    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, case.chain, current=case.current or case.top, gone=case.gone, size=case.size)
    assert_untouched(disk, *case.untouched)


def named(cases: Sequence[Case]) -> list[Any]:
    """*cases* as parameters with their names."""
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.mark.parametrize("case", named(SCENARIOS))
def test_killed_after_any_effect_apply_converges(disk: Disk, case: Case) -> None:
    case.prepare(disk)

    def follow(_: Faults) -> None:
        assert broken_promises(disk, case) == []
        assert_converges(disk, case)

    count = every_fault(disk, case, "killed after", follow)

    assert count >= 4


@pytest.mark.parametrize("case", named(COPYING))
def test_killed_in_the_middle_of_a_copy_apply_converges(disk: Disk, case: Case) -> None:
    case.prepare(disk)

    def follow(_: Faults) -> None:
        assert broken_promises(disk, case) == []
        assert_converges(disk, case)
        assert_quiet(disk)

    count = every_fault(disk, case, "killed halfway in", follow)

    assert count >= 1


@pytest.mark.parametrize("case", named([SCENARIOS[n] for n in (0, 2, 8)]))
def test_any_tool_or_file_operation_may_fail(disk: Disk, case: Case) -> None:
    """Reading tools may fail as well; the disk keeps its promises and apply converges."""
    case.prepare(disk)

    def follow(_: Faults) -> None:
        assert broken_promises(disk, case) == []
        assert_converges(disk, case)

    count = every_fault(disk, case, "failed", follow)

    assert count >= 8


@pytest.mark.parametrize("kind", ["killed after", "killed halfway in"])
@pytest.mark.parametrize(
    ("case", "other"),
    [
        pytest.param(DROP, "b <- x", id="the new spec drops q as well"),
        pytest.param(DROP, "b <- q <- x <- y", id="the new spec wants a new top"),
        pytest.param(COMMIT_PULL_RENAME, "b <- x", id="the new spec drops p as well"),
        pytest.param(COMMIT_PULL_RENAME, "b <- p <- x <- y", id="a new top over three merged"),
    ],
)
def test_killed_and_then_the_spec_changes(disk: Disk, case: Case, other: str, kind: Kind) -> None:
    """What had begun is finished, then the new spec is applied; all it keeps reads the same."""
    case.prepare(disk)

    def follow(_: Faults) -> None:
        case.write_spec(disk, other)
        outcome = disk.apply()

        assert outcome.code == 0, outcome
        gone = [name for name in case.images if name not in other.split(" <- ")]
        assert_done(disk, other, current=case.top, gone=gone)

    count = every_fault(disk, case, kind, follow)

    assert count >= 1


BEGUN = [DROP, COMMIT_PULL_RENAME, SCENARIOS[5], SCENARIOS[9]]


@pytest.mark.parametrize("case", named(BEGUN))
def test_killed_and_then_the_spec_wants_everything_back(disk: Disk, case: Case) -> None:
    """
    What the output does not call merged, overwritten or created reads as it did.

    With the first spec back in place apply converges.
    """
    case.prepare(disk)
    everything = " <- ".join(case.images)
    last = case.chain.split(" <- ")[-1]

    def follow(_: Faults) -> None:
        case.write_spec(disk, everything)
        back = disk.apply()
        assert broken_promises(disk, case) == []
        assert (back.code in (0, 1), "Traceback" in back.err) == (True, False), back
        if back.code == 0:
            told = re.findall(r"^  (.*): overwritten by|create  (\S+) on", back.out, re.MULTILINE)
            gone = {name for one in told for name in ", ".join(one).split(", ")} | {last}
            changed = {n for n in case.images if disk.read(n) != disk.golden[n]}
            assert changed - gone == set(), back
        else:
            assert any(name in back.err + back.out for name in case.images), back
        case.write_spec(disk, case.chain)
        assert_converges(disk, case)

    count = every_fault(disk, case, "killed after", follow)

    assert count >= 4


@pytest.mark.parametrize("case", named(BEGUN))
def test_killed_before_the_first_byte_and_then_the_spec_wants_everything_back(
    disk: Disk, case: Case
) -> None:
    """No image was written yet: the spec gets every restore point it asks for."""
    case.prepare(disk)
    everything = " <- ".join(case.images)
    faults, _ = struck(disk, "killed after", 1)
    assert faults.acts == ["rename_over vm.toml"]
    assert folder_facts(disk.images) == disk.before

    case.write_spec(disk, everything)
    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, everything, current=case.top)


@pytest.mark.parametrize("kind", ["killed after", "killed halfway in"])
@pytest.mark.parametrize("case", named([COPYING[n] for n in (0, 2, 3, 4, 8)]))
def test_killed_and_then_the_guest_writes(disk: Disk, case: Case, kind: Kind) -> None:
    """The guest may start from what `show` calls active; what it writes survives."""
    case.prepare(disk)
    current = case.current or case.top
    golden = disk.golden[current]

    def follow(_: Faults) -> None:
        active = disk.active()
        assert active
        write(active, "32k:- 96k:G")
        guest = bytearray(golden)
        guest[32 * KIB : 128 * KIB] = b"G" * 96 * KIB
        disk.golden[current] = bytes(guest)
        try:
            free = [name for name in case.untouched if disk.path(name) != disk.active()]
            outcome = disk.apply()

            assert outcome.code == 0, outcome
            assert_done(disk, case.chain, current=current, gone=case.gone, size=case.size)
            assert_untouched(disk, *(name for name in free if name != case.top))
        finally:
            disk.golden[current] = golden

    count = every_fault(disk, case, kind, follow)

    assert count >= 1


WRAPPER = """#!/bin/sh
n=$(($(cat {count}) + 1))
echo $n > {count}
if [ $n -eq {at} ] && [ {when} = before ]; then kill -9 $PPID; exit 1; fi
{real} "$@"
code=$?
if [ $n -eq {at} ] && [ {when} = after ]; then kill -9 $PPID; fi
exit $code
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_process_is_killed_around_every_qemu_img(disk: Disk, when: str) -> None:
    """A real SIGKILL of a process of its own, before or after the n-th qemu-img."""
    case = DROP
    case.prepare(disk)
    disk.save()
    real = shutil.which("qemu-img")
    assert real
    folder = disk.root / "bin"
    folder.mkdir()
    count, wrapper = disk.root / "count", folder / "qemu-img"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    killed = 0
    for at in range(1, 100):
        disk.restore()
        count.write_text("0")
        wrapper.write_text(WRAPPER.format(count=count, at=at, when=when, real=real))
        wrapper.chmod(0o755)
        outcome = process(
            "apply",
            "-y",
            "--state-dir",
            disk.state,
            disk.spec_file,
            environment={**os.environ, "PATH": path},
        )
        if outcome.code == 0:
            break
        killed += 1

        assert outcome.code == -signal.SIGKILL, outcome
        assert broken_promises(disk, case) == []
        assert_converges(disk, case)
    assert killed >= 5


def test_the_process_is_killed_while_data_moves(disk: Disk) -> None:
    """SIGKILL at five moments of a slow commit, pull and rename."""
    case = Case(
        "slow",
        {
            "b": "2M:A",
            "p": "2M:-",
            "q": "512k:Q 1536k:-",
            "r": "512k:- 1M:R 512k:-",
            "x": "1536k:- 512k:X",
        },
        "b <- p <- x",
        [],
        gone=["q", "r"],
        untouched=["b", "p"],
    )
    case.prepare(disk)
    disk.save()
    began = []
    for moment in range(5):
        disk.restore()
        child = subprocess.Popen(
            [
                EXECUTABLE,
                "apply",
                "-y",
                "--bandwidth",
                "1M",
                "--state-dir",
                disk.state,
                disk.spec_file,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while not list(disk.state.glob("*.toml")) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moment * 0.25)
        child.kill()
        began.append(child.wait())

        assert broken_promises(disk, case) == []
        assert_converges(disk, case)
    assert began[0] == -signal.SIGKILL


@contextmanager
def little_room(folder: Path, size: int) -> Iterator[None]:
    """A filesystem of *size* bytes on *folder*."""
    tool("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield
    finally:
        tool("umount", "-l", folder)


def may_mount(folder: Path) -> bool:
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", os.fspath(folder)], capture_output=True, check=False
    )
    if tried.returncode == 0:
        tool("umount", folder)
    return tried.returncode == 0


@pytest.mark.parametrize("case", named([SCENARIOS[n] for n in (2, 3, 5, 8)]))
def test_no_space_in_the_middle_of_a_step(
    disk: Disk, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tools meet a full disk, as somebody else filled it; with more room apply converges."""
    big = Case(
        case.name,
        {name: f"{text} 2M:-" for name, text in case.images.items()},
        case.chain,
        [],
        gone=case.gone,
        beside={name: (on, f"{text} 2M:-") for name, (on, text) in case.beside.items()},
        untouched=case.untouched,
    )
    if not may_mount(disk.images):
        limit_file_size(disk, big)
        return
    with little_room(disk.images, 32 * MIB):
        big.prepare(disk)
        fill = disk.images / "filler"
        room = os.statvfs(disk.images)
        fill.write_bytes(bytes(room.f_bavail * room.f_frsize - 16 * KIB))
        disk.before = folder_facts(disk.images)
        with monkeypatch.context() as patch:
            patch.setattr(files, "free_bytes", lambda _: 1 << 40)
            outcome = disk.apply()

        assert (outcome.code, "No space left" in outcome.err) == (1, True), outcome
        assert broken_promises(disk, big) == []
        fill.unlink()
        del disk.before["filler"]
        assert_converges(disk, big)


def limit_file_size(disk: Disk, case: Case) -> None:
    """Where nothing may be mounted: no file may grow beyond what the images have."""
    case.prepare(disk)
    most = max(disk.path(name).stat().st_size for name in list(case.images)[1:])
    outcome = process(
        "apply",
        "-y",
        "--state-dir",
        disk.state,
        disk.spec_file,
        limits={resource.RLIMIT_FSIZE: most},
    )

    assert outcome.code == 1, outcome
    assert broken_promises(disk, case) == []
    assert_converges(disk, case)


def test_files_that_may_not_grow(disk: Disk) -> None:
    """A limit on the size of files strikes in the middle of the copy."""
    limit_file_size(
        disk,
        Case(
            "limit",
            {"b": "1M:A 1M:-", "p": "1M:- 256k:P 768k:-", "x": "1792k:- 256k:X"},
            "b <- p",
            [],
            gone=["x"],
            untouched=["b"],
        ),
    )
