"""``python -m bench``: measure, print, and write ``bench-results.md``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.facts import facts
from bench.guests import guest_tables
from bench.merges import DEFAULT, Measured, expert_table, measure, today_table, written_table
from bench.plans import plan_table, start_time
from bench.scenes import Scene
from bench.table import Table, Target, as_ratio
from bench.timed import timed_scenes, written_scenes

RESULTS = Path(__file__).resolve().parent.parent / "bench-results.md"
REPETITIONS = 5
QUICK_REPETITIONS = 3
MANY = 100
"""Disks of the large spec."""
QUICK_SHRINK = 16
"""A quick run divides all chains by this."""
BUDGET = 390.0
"""Seconds for everything but guests; on a slow machine the last repetitions are left out."""
QUICK_BUDGET = 40.0
"""The same for a quick run."""
GUESTS = 3
"""Repetitions with running guests."""
GUESTS_BUDGET = 140.0
"""Seconds after which no further one begins; each takes 45 to 60."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 where no target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small chains, in about two minutes")
    parser.add_argument("--scratch", type=Path, help="where images are made (default: TMPDIR)")
    asked = parser.parse_args(argv)
    # an installed virt-chain has its byte code; compiling it at each start would take 0.1 s
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="virt-chain-bench-", dir=asked.scratch) as name:
        tables, targets, about = _measure_all(Path(name), quick=asked.quick)
    _report(tables, targets, about)
    return int(any(target.verdict == "MISSED" for target in targets))


def _measure_all(scratch: Path, *, quick: bool) -> tuple[list[Table], list[Target], dict[str, str]]:
    began = time.monotonic()
    about = facts(scratch)
    shrink = QUICK_SHRINK if quick else 1
    repetitions = QUICK_REPETITIONS if quick else REPETITIONS
    _tell("running guests")  # first: what they lack is said at once
    until = began + GUESTS_BUDGET
    guests = guest_tables(scratch, 1 if quick else GUESTS, until, judged=not quick)
    _tell("plan")
    many = MANY // 5 if quick else MANY
    budget = QUICK_BUDGET if quick else BUDGET
    end = time.monotonic() + budget
    plans = plan_table(scratch, (1, many), repetitions, budget / 9, judged=not quick)
    small = list(_each(written_scenes(shrink), scratch, end, 1, only=[DEFAULT]))
    timed = list(_each(timed_scenes(shrink), scratch, end, repetitions))
    written = written_table([*timed, *small], judged=not quick)
    experts = expert_table(timed, start_time(scratch, repetitions), judged=not quick)
    about["took"] = f"{time.monotonic() - began:.0f} s{', quick' if quick else ''}"
    tables = [written[0], experts[0], today_table(timed), plans[0], *guests[0]]
    return tables, [*written[1], *experts[1], *plans[1], *guests[1]], about


def _each(
    scenes: Sequence[Scene],
    scratch: Path,
    end: float,
    repetitions: int,
    only: Sequence[str] | None = None,
) -> Iterable[Measured]:
    """Every scene measured, each within its share of the time that is left until *end*."""
    for number, scene in enumerate(scenes):
        _tell(scene.name)
        now = time.monotonic()
        until = now + (end - now) / (len(scenes) - number)
        fewest = 1 if now > end else 1 + repetitions // 3
        yield measure(scene, scratch / "scene", repetitions, fewest, until, only)


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def _report(tables: Iterable[Table], targets: Sequence[Target], about: dict[str, str]) -> None:
    tables = list(tables)
    missed = [target for target in targets if target.verdict == "MISSED"]
    machine = "; ".join(f"{key} {value}" for key, value in about.items())
    said = [f"MISSED  {one.what}: {as_ratio(one.ratio)}, at most {one.most:.2f}" for one in missed]
    if any(target.verdict == "-" for target in targets):
        said = ["A quick run judges no target: fixed costs rule on small chains."]
    closing = said or [f"All {len(targets)} targets are met."]
    print("\n".join([machine, "", *(table.as_text() for table in tables), *closing]))
    pages = [f"# Measured\n\n{machine}\n", *(table.as_markdown() for table in tables)]
    RESULTS.write_text("\n".join([*pages, *(f"{line}\n" for line in closing)]))


if __name__ == "__main__":
    sys.exit(main())
