"""
Power loss, for real: every write of a filesystem is logged, and the device is
built again as it may have been when the power went.

    python -m tests.faults.power --seed 1 --minutes 10 --report FILE

The power goes at random moments of many scenarios, on ext4 and XFS, with the
state directory among the images and on a filesystem of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.power_device import after, prepare, record, require, rooms_for
from tests.faults.power_log import Cut, Filesystem, Recording, cut
from tests.images.cases import B, Case, P, X
from tests.images.disks import Disk, assert_quiet, folder_facts, process
from tests.images.test_interruptions import BEGUN, SCENARIOS, assert_converges, broken_promises


def scattered(letter: str, count: int, *, every: int, first: int = 0) -> str:
    """*count* clusters of 4 KiB; each *every*-th has data, the others leave it below."""
    return " ".join(f"4k:{letter if n % every == first else '-'}" for n in range(count))


SMALL = {"cluster_size": "4k"}
CASES: tuple[Case, ...] = (
    *SCENARIOS,
    Case("flatten", {"b": B, "p": P, "x": X}, "x", [], gone=["p"], untouched=["b"]),
    Case(
        "scattered clusters up",
        {
            "b": "2M:A",
            "p": scattered("P", 512, every=3),
            "q": scattered("Q", 512, every=2),
            "x": scattered("X", 512, every=5),
        },
        "b <- q <- x",
        [],
        gone=["p"],
        build=SMALL,
        untouched=["b", "x"],
    ),
    Case(
        "scattered clusters down, in place",
        {
            "b": "2M:A",
            "p": "2M:P",
            "q": scattered("Q", 512, every=8),
            "x": scattered("X", 512, every=8, first=4),
        },
        "b <- p",
        [],
        gone=["q", "x"],
        build=SMALL,
        untouched=["b"],
    ),
    Case(
        "scattered clusters up through a short image",
        {
            "b": "2M:A",
            "p": scattered("P", 256, every=3),
            "x": scattered("X", 512, every=5),
        },
        "b <- x",
        [],
        gone=["p"],
        build=SMALL,
        untouched=["b"],
    ),
    Case(
        "scattered clusters onto another base",
        {"b": "2M:A", "x": scattered("X", 512, every=5)},
        "c <- x",
        [],
        beside={"c": (None, "1M:C 256k:A 768k:C")},
        build=SMALL,
        untouched=["b", "c"],
    ),
)


MAY_GO_BACK = (*BEGUN, *(case for case in CASES if case.name.startswith("scattered clusters ")))[
    :-1
]
"""Scenarios after which the spec may ask for everything back before it asks for the end again."""


@dataclass(frozen=True, slots=True)
class World:
    """
    How a scenario is run.

    Attributes:
        apart: The state directory has a filesystem of its own.
        verify: As ``apply --verify`` takes it; empty: the default.
        restless: See `record`.
        moved: See `after`.
    """

    filesystem: Filesystem
    apart: bool = False
    verify: str = ""
    restless: bool = False
    moved: bool = False

    def __str__(self) -> str:
        words = [self.filesystem, "state apart" if self.apart else "", self.verify]
        words += ["restless" if self.restless else "", "moved" if self.moved else ""]
        return ", ".join(word for word in words if word)


Run = Callable[[Disk], None]


def by_virt_chain(verify: str) -> Run:
    """``virt-chain apply -y``, as the user runs it."""

    def run(disk: Disk) -> None:
        words = ["--verify", verify] if verify else []
        outcome = process("apply", "-y", *words, "--state-dir", disk.state, disk.spec_file)
        assert outcome.code == 0, outcome

    return run


@contextmanager
def scene(
    work: Path, case: Case, world: World, run: Run | None = None
) -> Iterator[tuple[Disk, Recording]]:
    """The disk of *case*, and the recording of *run* (left out: of virt-chain) on it."""
    disk = Disk(work / "disk")
    rooms = rooms_for(disk.root, world.filesystem, apart=world.apart)

    def fill() -> None:
        disk.images.mkdir()
        case.prepare(disk)

    prepare(work / "base", rooms, fill)
    act = run or by_virt_chain(world.verify)
    recording = record(
        work / "log", work / "base", rooms, lambda: act(disk), restless=world.restless
    )
    yield disk, recording


def looks_right(disk: Disk, case: Case) -> list[str]:
    """What is wrong with the images as the power loss left them, in words."""
    try:
        wrong = broken_promises(disk, case)
    except AssertionError as error:
        wrong = [f"an image cannot be read: {error}"]
    for name in sorted(folder_facts(disk.images)):
        if name.endswith(".qcow2"):
            argv = ["qemu-img", "check", "-q", "-f", "qcow2", os.fspath(disk.images / name)]
            said = subprocess.run(argv, capture_output=True, text=True)
            if said.returncode not in (0, 3):  # 3: leaks, which the next run mends
                wrong.append(f"check of {name}: {said.stdout}{said.stderr}")
    return wrong


def recovers(disk: Disk, case: Case) -> list[str]:
    """What is wrong after the next runs, in words; the second one has nothing to do."""
    wrong = []
    case.write_spec(disk, case.chain)
    looks: dict[str, Callable[[], None]] = {
        "the next run": lambda: assert_converges(disk, case),
        "the run after that": lambda: assert_quiet(disk),
    }
    for name, look in looks.items():
        try:
            look()
        except AssertionError as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{name}: {error} ({last.name}: {last.line})")
    return wrong


OVERWRITTEN = re.compile(r"^  (.*): overwritten by|create  (\S+) on", re.MULTILINE)
"""Where a plan names images that have no view of their own any more."""


def takes_back(disk: Disk, case: Case) -> list[str]:
    """
    What is wrong, in words, when the spec now wants every image of the old chain.

    Any image whose view is gone is told as overwritten, or apply refuses.
    """
    case.write_spec(disk, " <- ".join(case.images))
    back = disk.apply()
    wrong = broken_promises(disk, case)
    if "Traceback" in back.err:
        wrong.append(back.err)
    if back.code == 0:
        told = {
            name for one in OVERWRITTEN.findall(back.out) for name in ", ".join(one).split(", ")
        }
        last = case.chain.split(" <- ")[-1]
        changed = {name for name in case.images if disk.read(name) != disk.golden[name]}
        if silent := sorted(changed - told - {last}):
            wrong.append(f"{', '.join(silent)} reads otherwise, and nothing tells so: {back.out}")
    return [f"all wanted back: {one}" for one in wrong]


def lose_power(
    disk: Disk, case: Case, recording: Recording, seed: int, work: Path, *, moved: bool = False
) -> tuple[Cut, list[str]]:
    """Cut the power once, look, and apply again; the cut, and what is wrong, in words."""
    one = cut(recording, seed)
    with after(recording, one, work / "rebuilt", moved=moved):
        wrong = looks_right(disk, case)
        if not wrong and case in MAY_GO_BACK and seed % 3 == 0:
            wrong = takes_back(disk, case)
        return one, wrong or recovers(disk, case)


# The campaign

FILESYSTEMS: tuple[Filesystem, ...] = ("ext4", "xfs")


def worlds() -> list[World]:
    """Every world that the campaign goes through, most different first."""
    return [
        World(filesystem, apart, verify, restless, moved)
        for moved in (False, True)
        for verify in ("", "none")
        for restless in (False, True)
        for apart in (False, True)
        for filesystem in FILESYSTEMS
    ]


def campaign(seed: int, minutes: float, report: Path | None, cuts: int, only: str) -> int:
    """Cut the power for *minutes*; the number of findings."""
    require()
    until = time.monotonic() + minutes * 60
    dice = random.Random(seed)
    figures: Counter[tuple[str, str]] = Counter()
    findings = 0
    rounds = [
        (case, world)
        for world in worlds()
        for case in CASES
        if re.search(only, f"{world}: {case.name}")
    ]
    dice.shuffle(rounds)
    for case, world in rounds:
        if time.monotonic() > until:
            break
        with tempfile.TemporaryDirectory(prefix="power-") as name:
            work = Path(name)
            with scene(work, case, world) as (disk, recording):
                for _ in range(cuts):
                    if time.monotonic() > until:
                        break
                    at = dice.randrange(1 << 32)
                    try:
                        one, wrong = lose_power(disk, case, recording, at, work, moved=world.moved)
                    except (OSError, AssertionError, subprocess.SubprocessError):
                        one, wrong = cut(recording, at), [traceback.format_exc()]
                    figures[str(world), case.name] += 1
                    if wrong:
                        findings += 1
                        told = {
                            "case": case.name,
                            "world": str(world),
                            "seed": at,
                            "point": one.point,
                            "ended": recording.ended,
                            "events": len(recording.events),
                            "lost": one.lost,
                            "wrong": wrong,
                        }
                        _say(report, json.dumps(told))
        count = figures[str(world), case.name]
        _say(None, f"{world}: {case.name}: {len(recording.events)} events, {count} cuts")
    for (where, what), count in sorted(figures.items()):
        _say(report, json.dumps({"world": where, "case": what, "cuts": count}))
    _say(report, json.dumps({"cuts": sum(figures.values()), "findings": findings}))
    return findings


def _say(report: Path | None, line: str) -> None:
    print(line, flush=True)
    if report:
        with report.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def main() -> int:
    """The command line of the campaign."""
    parser = argparse.ArgumentParser(description="Cut the power under virt-chain, and look.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--report", type=Path, help="a file for findings and figures, JSON lines")
    parser.add_argument("--cuts", type=int, default=10, help="for each recorded run")
    parser.add_argument("--only", default="", help="a pattern in world: scenario")
    said = parser.parse_args()
    return 1 if campaign(said.seed, said.minutes, said.report, said.cuts, said.only) else 0


if __name__ == "__main__":
    sys.exit(main())
