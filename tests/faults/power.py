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
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.power_device import after, prepare, record, require, rooms_for
from tests.faults.power_log import Filesystem, Recording, cut, rebuild
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
        twice: The power goes for the second time, while the first loss is made good.
    """

    filesystem: Filesystem
    apart: bool = False
    verify: str = ""
    restless: bool = False
    moved: bool = False
    twice: bool = False

    def __str__(self) -> str:
        words = [self.filesystem, "state apart" if self.apart else "", self.verify]
        words += ["restless" if self.restless else "", "moved" if self.moved else ""]
        words += ["twice" if self.twice else ""]
        return ", ".join(word for word in words if word)


Run = Callable[[Disk], None]


def by_virt_chain(verify: str) -> Run:
    """``virt-chain apply -y``, as the user runs it."""

    def run(disk: Disk) -> None:
        words = ["--verify", verify] if verify else []
        outcome = process("apply", "-y", *words, "--state-dir", disk.state, disk.spec_file)
        assert outcome.code == 0, outcome

    return run


def scene(
    work: Path, case: Case, world: World, *, run: Run | None = None, seed: int = 0
) -> tuple[Disk, Recording]:
    """
    The disk of *case*, and the recording of *run* (left out: of virt-chain) on it.

    Args:
        seed: For the first power loss of a world that loses it twice.
    """
    disk = Disk(work / "disk")
    rooms = rooms_for(disk.root, world.filesystem, apart=world.apart)

    def fill() -> None:
        disk.images.mkdir()
        case.prepare(disk)

    def act() -> None:
        (run or by_virt_chain(world.verify))(disk)

    base = work / "base"
    prepare(base, rooms, fill)
    recording = record(work / "log", base, rooms, act, restless=world.restless)
    if world.twice:
        middle = random.Random(seed).randint(recording.ended // 4, recording.ended * 3 // 4)
        again = work / "again"
        rebuild(recording, cut(recording, seed, middle), again)
        recording = record(work / "log2", again, rooms, act, restless=world.restless)
    return disk, recording


def looks_right(disk: Disk, case: Case) -> list[str]:
    """What is wrong with the images as the power loss left them, in words."""
    try:
        wrong = broken_promises(disk, case)
    except AssertionError as error:
        wrong = [f"an image cannot be read: {error}"]
    for name in sorted(folder_facts(disk.images)):
        if name.endswith(".qcow2"):
            file = {"driver": "file", "filename": os.fspath(disk.images / name)}
            # an image that is being thrown away may have lost its backing file already
            alone = "json:" + json.dumps({"driver": "qcow2", "file": file, "backing": None})
            said = subprocess.run(
                ["qemu-img", "check", "-q", alone], capture_output=True, text=True
            )
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
    disk: Disk,
    case: Case,
    recording: Recording,
    seed: int,
    *,
    point: int | None = None,
    moved: bool = False,
    back: bool = False,
) -> list[str]:
    """
    Cut the power once, look, and apply again; what is wrong, in words.

    Args:
        point: After how many events; left out: at a random moment.
        moved: See `after`.
        back: The spec asks for the old chain first, see `takes_back`.
    """
    one = cut(recording, seed, point)
    with after(recording, one, disk.root.with_name("rebuilt"), moved=moved):
        wrong = looks_right(disk, case)
        if back and not wrong:
            wrong = takes_back(disk, case)
        return wrong or recovers(disk, case)


# The campaign

FILESYSTEMS: tuple[Filesystem, ...] = ("ext4", "xfs")


def worlds() -> list[World]:
    """Every world that the campaign goes through."""
    return [
        World(filesystem, apart, verify, restless, moved, twice)
        for moved, twice in ((False, False), (False, True), (True, False))
        for verify in ("", "none")
        for restless in (False, True)
        for apart in (False, True)
        for filesystem in FILESYSTEMS
    ]


@dataclass(slots=True)
class Campaign:
    """
    Power losses in many scenarios and worlds, until the time is over.

    Attributes:
        until: The end, in seconds of the monotonic clock.
        report: Gets findings and figures, as JSON lines.
        cuts: Power losses for each recorded run.
    """

    dice: random.Random
    until: float
    report: Path | None
    cuts: int
    figures: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: int = 0

    def run(self, only: str) -> None:
        """Go through all scenarios in all worlds whose names match *only*, in random order."""
        rounds = [(case, world) for world in worlds() for case in CASES]
        self.dice.shuffle(rounds)
        for case, world in rounds:
            if time.monotonic() < self.until and re.search(only, f"{world}: {case.name}"):
                with tempfile.TemporaryDirectory(prefix="power-") as work:
                    self.round(Path(work), case, world)
        for (where, what), count in sorted(self.figures.items()):
            self.say({"world": where, "case": what, "cuts": count})
        self.say({"cuts": sum(self.figures.values()), "findings": self.findings})

    def round(self, work: Path, case: Case, world: World) -> None:
        """One scenario in one world."""
        seed = self.dice.randrange(1 << 32)
        try:
            disk, recording = scene(work, case, world, seed=seed)
        except AssertionError as error:
            self.found(case, world, {"seed": seed, "wrong": [f"the run itself: {error}"]})
            return
        for _ in range(self.cuts):
            if time.monotonic() > self.until:
                return
            seed = self.dice.randrange(1 << 32)
            back = case in MAY_GO_BACK and not world.twice and seed % 3 == 0
            try:
                wrong = lose_power(disk, case, recording, seed, moved=world.moved, back=back)
            except (OSError, AssertionError, subprocess.SubprocessError):
                wrong = [traceback.format_exc()]
            self.figures[str(world), case.name] += 1
            if wrong:
                point, ended = cut(recording, seed).point, recording.ended
                where = {"seed": seed, "point": point, "ended": ended}
                self.found(case, world, {**where, "wrong": wrong})

    def found(self, case: Case, world: World, told: Mapping[str, object]) -> None:
        """Tell a finding."""
        self.findings += 1
        self.say({"world": str(world), "case": case.name, **told})

    def say(self, told: Mapping[str, object]) -> None:
        """Print a line, and add it to the report."""
        line = json.dumps(told)
        print(line, flush=True)
        if self.report:
            with self.report.open("a", encoding="utf-8") as file:
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
    require()
    # whoever ends it finds no mounts and daemons left behind
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    until = time.monotonic() + said.minutes * 60
    campaign = Campaign(random.Random(said.seed), until, said.report, said.cuts)
    campaign.run(said.only)
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
