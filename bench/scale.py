"""
What many disks and long chains cost: ``python -m bench.scale``.

Whole processes are measured, all in one run on the same images: a plan with
nothing to do, without and with state files, beside a plain loop of ``qemu-img
info --backing-chain``; a check of the spec alone; one disk, beside the start of
an interpreter; and one chain of hundreds of images that keeps both ends.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.measure import Failed
from bench.merges import VIRT_CHAIN
from bench.plans import IMPORTS
from bench.table import Table, Target
from tests.many import CLUSTER, Base, Many, Overlays, Specs, Tree, make, sample

PARTS = ("disks", "start", "chains")
DISKS = (100, 1000, 10_000)
QUICK_DISKS = (20, 200)
LAYERS = (100, 200, 400)
"""Images of the long chain."""
FORMS: tuple[tuple[Tree, Base], ...] = (
    ("flat", "shared"),
    ("folders", "shared"),
    ("folders", "own"),
)
PATIENCE = 120.0
"""Seconds after which a command is ended; its time is then told as more than that."""
ASKED = 500
"""Most disks that qemu-img is asked about; the time for more is scaled."""
STARTS = 9
"""Repetitions of what takes less than a second."""

MOST_PLAN = {1000: 2.0, 10_000: 15.0}
"""Seconds."""
MOST_OF_LOOP = {1000: 1 / 5, 10_000: 1 / 10}
MOST_MEMORY = 500.0
"""MiB, for the most disks."""
MOST_GROWTH = 1.1
MOST_CHAIN = 2.0
"""Seconds for the longest chain."""
MOST_START = 1.5
MOST_VALIDATE = 5.0
"""Seconds for the most disks."""
Row = tuple[str, Target]
"""A target, and the unit of its figures."""


@dataclass(frozen=True, slots=True)
class Spent:
    """
    One process with all its children.

    Attributes:
        seconds: Wall time; infinite where it was ended, or left out.
        memory: Most MiB that it, or one of its children, had in memory.
    """

    seconds: float = math.inf
    memory: float = math.nan


def spend(argv: Sequence[str], folder: Path, patience: float = PATIENCE) -> Spent:
    """
    What *argv*, run in *folder*, cost; after *patience* seconds it is ended.

    Raises:
        Failed: It ended with an error; the message is what it said.
    """
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(
            argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(patience, end)
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        if late.is_set():
            return Spent()
        if child.returncode:
            said.seek(0)
            raise Failed(f"{' '.join(argv)}: {said.read().decode(errors='replace')}")
    return Spent(seconds, usage.ru_maxrss / 1024)


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans of *disks* disks with nothing to do."""

    what: str
    disks: int
    plan: Spent
    loop: float
    validate: Spent


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 where no target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--disks", help="numbers of disks, as 100,1000,10000")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--quick", action="store_true", help="few disks; judges no target")
    parser.add_argument("--scratch", type=Path, help="where images are made (default: TMPDIR)")
    asked = parser.parse_args(argv)
    numbers = [int(one) for one in asked.disks.split(",")] if asked.disks else None
    parts = (asked.only,) if asked.only else PARTS
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="virt-chain-bench-", dir=asked.scratch) as name:
        tables, targets = scale_tables(Path(name), numbers, parts, quick=asked.quick)
    print("\n".join(table.as_text() for table in tables))
    missed = [target for target in targets if target.verdict == "MISSED"]
    print(f"{len(missed)} of {len(targets)} targets are missed.")
    return int(bool(missed))


def scale_tables(
    scratch: Path,
    numbers: Sequence[int] | None = None,
    parts: Sequence[str] = PARTS,
    *,
    quick: bool = False,
) -> tuple[list[Table], list[Target]]:
    """
    All tables, and the targets that they are judged by.

    Args:
        numbers: Of disks; None: the usual ones.
        parts: Those of PARTS that are measured.
    """
    disks = tuple(sorted(numbers or (QUICK_DISKS if quick else DISKS)))
    judged = not quick
    plans = list(_plans(scratch, disks)) if "disks" in parts else []
    rows: list[Row] = list(_judged_plans(plans, judged)) if plans else []
    if "start" in parts:
        rows += _start_row(scratch, judged)
    if "chains" in parts:
        rows += _chain_rows(scratch, [n // 10 for n in LAYERS] if quick else LAYERS, judged)
    cells = tuple(
        (target.what, _said(target.ratio, unit), _said(target.most, unit), target.verdict)
        for unit, target in rows
    )
    note = (
        f"A command is ended after {PATIENCE:.0f} s, and one that takes longer for fewer disks is "
        f"left out. The loop asks qemu-img about {ASKED} disks at most, scaled to all of them."
    )
    table = Table("Many disks, long chains", note, ("what", "measured", "at most", "target"), cells)
    return [*([_plan_table(plans)] if plans else []), table], [target for _, target in rows]


def _plans(scratch: Path, disks: Sequence[int]) -> Iterator[Plans]:
    late: set[str] = set()
    for number in disks:
        for tree, base in FORMS:
            root = scratch / f"{tree}-{base}"
            _tell(f"{number} disks, {tree}, base {base}")
            many = make(root, number, tree, base)
            loop = _loop(many)
            for kind in ("one", "each"):
                form = f"{tree}, {base} base, {'a spec for each' if kind == 'each' else 'one spec'}"
                yield from _planned(many, kind, form, loop, late)
            shutil.rmtree(root)


def _planned(many: Many, kind: Specs, form: str, loop: float, late: set[str]) -> Iterator[Plans]:
    """Both plans of one spec; *late* gathers those that no larger number will be asked of."""
    spec, count = many.spec(kind), len(many.actives)
    state = ["--state-dir", f"state-{kind}"]
    plan = [VIRT_CHAIN, "plan", *state, str(spec)]
    validate = spend([VIRT_CHAIN, "validate", str(spec)], many.root)
    for known in (False, True):
        name = f"{form}, {'with' if known else 'no'} state"
        spent = Spent()
        if form not in late and (not known or _recorded(many, state, spec)):
            spent = spend(plan, many.root)
        if spent.seconds == math.inf:
            late.add(form)
        yield Plans(name, count, spent, loop, validate)


def _recorded(many: Many, state: Sequence[str], spec: Path) -> bool:
    """Let virt-chain record every disk, and wait until files can be relied on; False: too slow."""
    done = spend([VIRT_CHAIN, "apply", "-y", *state, str(spec)], many.root)
    time.sleep(1.1)
    return done.seconds < math.inf


def _loop(many: Many) -> float:
    """Seconds of a plain loop of qemu-img over all disks."""
    asked = list(sample(many.actives, ASKED))
    info = "qemu-img info -U --backing-chain --output=json -f qcow2"
    script = "\n".join(f"{info} '{active}'" for active in asked)
    (many.root / "loop.sh").write_text(script)
    spent = spend(["sh", "-e", "loop.sh"], many.root)
    return spent.seconds * len(many.actives) / len(asked)


def _judged_plans(plans: Sequence[Plans], judged: bool) -> Iterator[Row]:
    most = max(one.disks for one in plans)
    for one in plans:
        what = f"{one.disks} disks, {one.what}"
        if (limit := MOST_PLAN.get(one.disks)) is not None:
            yield "s", Target(f"plan: {what}", one.plan.seconds, limit, judged)
            share = one.plan.seconds / one.loop
            yield "", Target(f"plan / loop: {what}", share, MOST_OF_LOOP[one.disks], judged)
        if one.disks == max(MOST_PLAN):
            memory = one.plan.memory if one.plan.memory == one.plan.memory else math.inf
            yield "MiB", Target(f"memory: {what}", memory, MOST_MEMORY, judged)
    for what in dict.fromkeys(one.what for one in plans):
        for few, more in pairwise(one for one in plans if one.what == what):
            growth = _growth(few.plan.seconds, more.plan.seconds, more.disks / few.disks)
            name = f"growth from {few.disks} to {more.disks}: {what}"
            yield "", Target(name, growth, MOST_GROWTH, judged)
    slowest = max(one.validate.seconds for one in plans if one.disks == most)
    yield "s", Target(f"validate: {most} disks, the slowest", slowest, MOST_VALIDATE, judged)


def _growth(few: float, more: float, times: float) -> float:
    """How much dearer one of many is than one of few; infinite where nobody knows."""
    return more / (times * few) if few < math.inf else math.inf


def _start_row(scratch: Path, judged: bool) -> Iterator[Row]:
    """One disk with nothing to do, against what it cannot do without."""
    _tell("one disk")
    many = make(scratch / "single", 1, "folders", "own")
    plan = [VIRT_CHAIN, "plan", "--state-dir", "state", str(many.spec("one"))]
    info = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(many.actives[0])]
    spend(plan, many.root)
    spend(IMPORTS, many.root)
    turns = [
        [spend(one, many.root).seconds for one in (plan, IMPORTS, info)] for _ in range(STARTS)
    ]
    ours, bare, look = (median(turn[at] for turn in turns) for at in range(3))
    what = f"one disk: {ours:.3f} s, against imports {bare:.3f} s + qemu-img {look:.3f} s"
    yield "", Target(what, ours / (bare + look), MOST_START, judged)


def _chain_rows(scratch: Path, lengths: Sequence[int], judged: bool) -> Iterator[Row]:
    """A plan that drops all but both ends of a chain, by its length."""
    _tell("long chains")
    times = {}
    for length in lengths:
        folder = scratch / f"chain{length}"
        make_chain(folder, length)
        plan = [VIRT_CHAIN, "plan", "--state-dir", "state", "vm.toml"]
        runs = [spend(plan, folder).seconds for _ in range(3)]
        times[length] = median(runs)
        limit = MOST_CHAIN
        yield "s", Target(f"plan: keep both ends of {length} images", times[length], limit, judged)
    growth = _growth(times[lengths[0]], times[lengths[-1]], lengths[-1] / lengths[0])
    what = f"growth from {lengths[0]} to {lengths[-1]} images"
    yield "", Target(what, growth, MOST_GROWTH, judged)


def make_chain(folder: Path, length: int) -> None:
    """One chain of *length* images with data in each, and a spec that keeps both ends."""
    folder.mkdir(parents=True)
    overlays = Overlays()
    (folder / "0.qcow2").write_bytes(overlays.base)
    for level in range(1, length):
        (folder / f"{level}.qcow2").write_bytes(overlays.on("0.qcow2"))
    # written while each still stands on the base, so that no deep chain has to be opened
    writes = "\n".join(
        f"qemu-io -f qcow2 -c 'write -P 1 {level % 256 * 4}k 4k' {level}.qcow2 >/dev/null"
        for level in range(length)
    )
    subprocess.run(["sh", "-e"], input=writes.encode(), cwd=folder, check=True)
    for level in range(1, length):
        below = f"{level - 1}.qcow2"
        head = overlays.on(below)[:CLUSTER]
        with (folder / f"{level}.qcow2").open("r+b") as image:
            image.write(head)
    (folder / "vm.toml").write_text(
        'version = 1\ndefaults.directory = "."\n[domains.vm.disks.vda]\n'
        f'chain = ["0.qcow2", "{length - 1}.qcow2"]\n'
    )


def _plan_table(plans: Sequence[Plans]) -> Table:
    rows = tuple(
        (
            one.what,
            str(one.disks),
            _said(one.plan.seconds, "s"),
            "-" if one.plan.memory != one.plan.memory else f"{one.plan.memory:.0f}",
            f"{one.loop:.2f}",
            _said(one.validate.seconds, "s"),
        )
        for one in plans
    )
    note = (
        "Seconds, and MiB of the largest process. loop: qemu-img info --backing-chain on each disk."
    )
    head = ("plan with nothing to do", "disks", "plan", "memory", "loop", "validate")
    return Table("Plans of many disks", note, head, rows)


def _said(value: float, unit: str) -> str:
    if value == math.inf:
        return f">{PATIENCE:.0f} s" if unit == "s" else "unknown"
    return f"{value:.2f} {unit}".strip()


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
