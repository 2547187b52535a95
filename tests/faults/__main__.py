"""``python -m tests.faults``: see the package."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.faults.campaign import Order, be_worker, play, repeat
from tests.faults.kinds import KINDS
from tests.faults.report import Tally, line, page
from tests.faults.runs import Result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--report", type=Path, help="a section is added to this file")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--repeat", metavar="ID", help="play one run once more")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        be_worker(given.worker)
        return 0
    tally = Tally()

    def told(result: Result) -> None:
        tally.add(result)
        if result.problems:
            print(line(result), flush=True)
        elif given.repeat:
            print(f"{result.id}: struck {result.struck or 'nothing'}, and all holds")
            if result.refused:
                print(f"refused: {result.refused}")

    if given.repeat:
        died = repeat([given.repeat], told)
    else:
        until = time.monotonic() + given.minutes * 60
        order = Order(given.seed, step=given.jobs, until=until, kinds=tuple(given.kinds))
        died = play([replace(order, first=given.first + n) for n in range(given.jobs)], told)
        print(tally.table())
        if given.report:
            date = time.strftime("%Y-%m-%d %H:%M")
            with given.report.open("a", encoding="utf-8") as file:
                file.write(page(tally, given.seed, given.minutes, date) + "\n")
    for why in died:
        print(f"a worker died:\n{why}", file=sys.stderr)
    return 1 if died or tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
