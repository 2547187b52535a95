"""Merges: bytes against the least possible, time against experts and habits."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import chains
from bench.measure import Cost, run, seconds
from bench.scenes import Scene
from bench.table import Table, Target, as_mib, as_ratio

MOST_WRITTEN = 1.10
MOST_UNVERIFIED = 1.15
MOST_DEFAULT = 1.5

VIRT_CHAIN = os.fspath(Path(sys.executable).parent / "virt-chain")
BARE = "apply --verify none"
DEFAULT = "apply"


@dataclass(frozen=True, slots=True)
class Measured:
    """All costs of all contenders on one scene."""

    scene: Scene
    costs: dict[str, list[Cost]]

    @property
    def expert(self) -> str:
        """The fastest of all hand-written sequences, those of today too: each is correct."""
        by_hand = [name for name in self.costs if name not in (BARE, DEFAULT)]
        return min(by_hand, key=lambda name: seconds(self.costs[name]))


def contenders(scene: Scene) -> dict[str, list[str]]:
    """Command lines by name, to be run in a folder with the images and the spec."""
    ours = [VIRT_CHAIN, "apply", "-y", "--state-dir", "state"]
    found = {BARE: [*ours, "--verify", "none", chains.SPEC], DEFAULT: [*ours, chains.SPEC]}
    for number, script in enumerate(scene.experts, start=1):
        found[f"expert {number}"] = ["sh", "-ec", script]
    for name, script in scene.today:
        found[f"today: {name}"] = ["sh", "-ec", script]
    return found


def measure(
    scene: Scene,
    scratch: Path,
    repetitions: int,
    fewest: int,
    until: float,
    only: Sequence[str] | None = None,
) -> Measured:
    """
    Run every contender *repetitions* times in turn, each on a fresh copy.

    Every contender's first result is compared with the original chain.

    Args:
        fewest: Repetitions that are enough on a machine too slow for all of them.
        until: When, on the monotonic clock, it is known to be too slow.
        only: Names of contenders; None: all.
    """
    master = chains.make(scene, scratch / "master")
    costs: dict[str, list[Cost]] = {}
    for repetition in range(repetitions):
        if repetition >= fewest and time.monotonic() > until:
            break
        for name, argv in contenders(scene).items():
            if only is not None and name not in only:
                continue
            folder = chains.fresh_copy(scene, master, scratch / "copy")
            costs.setdefault(name, []).append(run(argv, folder))
            if repetition == 0:
                chains.confirm(scene, master, folder)
    shutil.rmtree(scratch)
    return Measured(scene, costs)


def written_table(measured: Sequence[Measured], *, judged: bool) -> tuple[Table, list[Target]]:
    """Bytes written by ``apply``, against the least possible."""
    rows, targets = [], []
    for one in measured:
        cost, bound = one.costs[DEFAULT][0], one.scene.bound()
        target = Target(f"bytes: {one.scene.name}", cost.written / bound, MOST_WRITTEN, judged)
        targets.append(target)
        rows.append(
            (
                one.scene.name,
                str(len(one.scene.layers)),
                as_mib(one.scene.bytes),
                as_mib(bound),
                as_mib(cost.written),
                as_mib(cost.dirtied),
                as_ratio(target.ratio),
                target.verdict,
            )
        )
    note = (
        "MiB. least: what has to be copied whatever the way, |U| - |W(k)|. written: all that the "
        "process tree gave to write(2), data, metadata and pipes; dirtied: pages made dirty in "
        f"files. ratio: written / least, at most {MOST_WRITTEN:.2f}."
    )
    head = ("bytes written by apply", "layers", "data", "least", "written", "dirtied")
    return Table("Bytes", note, (*head, "ratio", "target"), tuple(rows)), targets


def expert_table(
    measured: Sequence[Measured], start: float, *, judged: bool
) -> tuple[Table, list[Target]]:
    """
    Wall time of ``apply``, against the fastest expert.

    Args:
        start: Seconds of a bare interpreter that imports typer and jsonschema.
    """
    rows, targets = [], []
    for one in measured:
        best = one.costs[one.expert]
        for name, most in ((BARE, MOST_UNVERIFIED), (DEFAULT, MOST_DEFAULT)):
            costs = one.costs[name]
            ratio = seconds(costs) / seconds(best)
            started = (seconds(costs) - start) / seconds(best)
            target = Target(f"time: {name}: {one.scene.name}", ratio, most, judged)
            targets.append(target)
            rows.append(
                (
                    one.scene.name,
                    name,
                    str(len(costs)),
                    f"{seconds(costs):.2f}",
                    f"{seconds(best):.2f}",
                    one.expert,
                    as_ratio(ratio),
                    as_ratio(started),
                    f"{most:.2f}",
                    target.verdict,
                )
            )
    note = (
        "Seconds, medians of interleaved repetitions on fresh copies. expert: the fastest "
        "hand-written correct sequence (bench/timed.py), ended by sync of what it wrote. "
        f"started: the ratio without the {start:.2f} s that a bare interpreter takes to import "
        "typer and jsonschema; the targets are for the whole."
    )
    head = ("merge", "command", "runs", "virt-chain", "expert", "which", "ratio", "started")
    return Table("Time against an expert", note, (*head, "most", "target"), tuple(rows)), targets


def today_table(measured: Sequence[Measured]) -> Table:
    """Wall time and bytes of what people do today, against ``apply``."""
    rows = []
    for one in measured:
        ours = one.costs[DEFAULT]
        for name, costs in one.costs.items():
            if not name.startswith("today: "):
                continue
            rows.append(
                (
                    one.scene.name,
                    name.removeprefix("today: "),
                    f"{seconds(costs):.2f}",
                    f"{seconds(ours):.2f}",
                    as_ratio(seconds(costs) / seconds(ours)),
                    as_mib(costs[0].written),
                    as_mib(ours[0].written),
                    as_ratio(costs[0].written / ours[0].written),
                )
            )
    note = "Seconds and MiB written; gained: how many times less virt-chain apply (default) takes."
    head = ("merge", "today", "today s", "apply s", "gained", "today MiB", "apply MiB", "gained")
    return Table("Against what people do today", note, head, tuple(rows))
