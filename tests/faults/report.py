"""What a campaign has found, as text for people."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.kinds import KINDS
from tests.faults.runs import Result

PROBLEMS = ("losses", "stuck", "untidy", "leaks")
COLUMNS = ("kind", "runs", "struck", "at once", "later", "refused", *PROBLEMS)
REFUSALS = 12
"""Refusals that are quoted."""


@dataclass(slots=True)
class Tally:
    """Counts of runs by kind, and every run that had a problem."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[Result] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    first_refused: dict[str, str] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Count one run."""
        counts = self.counts.setdefault(result.kind, Counter())
        counts["runs"] += 1
        counts["struck"] += bool(result.struck.strip("; "))
        counts["at once"] += result.applies == 1
        counts["later"] += result.applies > 1
        counts["refused"] += bool(result.refused)
        worst = worst_of(result)
        if worst:
            counts[{"loss": "losses"}.get(worst, worst)] += 1
            self.problems.append(result)
        if result.refused:
            text = _general(result.refused)
            self.refusals[text] += 1
            self.first_refused.setdefault(text, result.id)

    def total(self, column: str) -> int:
        return sum(counts[column] for counts in self.counts.values())

    def rows(self) -> list[tuple[str, ...]]:
        order = ["undisturbed", *KINDS]
        names = sorted(self.counts, key=order.index)
        rows = [(n, *(str(self.counts[n][c]) for c in COLUMNS[1:])) for n in names]
        return [*rows, ("all", *(str(self.total(c)) for c in COLUMNS[1:]))]

    def table(self) -> str:
        """The counts as a Markdown table."""
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = [
            "| " + " | ".join(w.ljust(n) for w, n in zip(r, widths, strict=True)) + " |"
            for r in rows
        ]
        return "\n".join(
            [lines[0], "|" + "|".join("-" * (n + 2) for n in widths) + "|", *lines[1:]]
        )


def worst_of(result: Result) -> str:
    """``loss``, ``stuck``, ``untidy``, ``leaks``, or nothing."""
    kinds = {kind for kind, _ in result.problems}
    return next((kind for kind in ("loss", "stuck", "untidy", "leaks") if kind in kinds), "")


def line(result: Result) -> str:
    """A run with a problem, with the command that repeats it."""
    told = "; ".join(f"{kind}: {text}" for kind, text in result.problems)
    struck = f" (struck {result.struck})" if result.struck else ""
    how = f"python -m tests.faults --repeat '{result.id}'"
    return f"{worst_of(result).upper()} {result.id}{struck}: {told}\n    {how}"


def _general(text: str) -> str:
    """A refusal without what differs from run to run."""
    import re

    last = [one for one in text.splitlines() if one.strip()][:]
    said = next((one for one in last if "virt-chain:" in one or "error" in one), last[0])
    said = re.sub(r"/\S*/", "", said)
    return re.sub(r"\bi\d(\.qcow2)?|\bnewer?(\.qcow2)?|\d{4,}\S*", "_", said).strip()[:300]


def page(tally: Tally, seed: int, minutes: float, date: str) -> str:
    """One campaign as a section of a Markdown page."""
    count = tally.total
    qemu = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True)
    parts = [
        f"## {date}, seed {seed}",
        "",
        f"{qemu.stdout.splitlines()[0]}; kernel {os.uname().release}; {minutes:.0f} minutes.",
        ", ".join(f"{count(one)} {one}" for one in ("runs", "struck", *PROBLEMS)) + ".",
        "",
        tally.table(),
        "",
    ]
    if tally.problems:
        parts += ["### Problems", "", *(f"- {line(one)}" for one in tally.problems), ""]
    if tally.refusals:
        parts += ["### Refusals, by what they say", ""]
        for text, times in tally.refusals.most_common(REFUSALS):
            parts.append(f"- {times}x {text} (`{tally.first_refused[text]}`)")
        parts.append("")
    return "\n".join(parts)
