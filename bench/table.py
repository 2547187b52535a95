"""Tables in plain columns for a terminal, with bars between them for markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.scenes import MIB


@dataclass(frozen=True, slots=True)
class Target:
    """
    A ratio and the most it may be.

    Attributes:
        judged: False in a quick run, where fixed costs rule.
    """

    what: str
    ratio: float
    most: float
    judged: bool = True

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED``, or a dash where it is not judged."""
        if not self.judged:
            return "-"
        return "ok" if self.ratio <= self.most else "MISSED"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column is set left, all others right."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_text(self) -> str:
        """Plain columns."""
        return "\n".join([self.title, *self._lines("  ", "", ""), "", self.note, ""])

    def as_markdown(self) -> str:
        """The same, as a markdown table."""
        head, *rows = self._lines(" | ", "| ", " |")
        rule = "|".join(["", " --- ", *(" ---: " for _ in self.head[1:]), ""])
        return "\n".join([f"## {self.title}", "", head, rule, *rows, "", self.note, ""])

    def _lines(self, between: str, left: str, right: str) -> list[str]:
        every = [self.head, *self.rows]
        widths = [max(len(row[column]) for row in every) for column in range(len(self.head))]
        return [left + between.join(_set(row, widths)) + right for row in every]


def _set(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def as_mib(count: int) -> str:
    """*count* bytes in MiB, with one digit."""
    return f"{count / MIB:.1f}"


def as_ratio(ratio: float) -> str:
    """Two digits, as the targets have."""
    return f"{ratio:.2f}"
