"""Which image of a chain provides which bytes of a view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """
    A run of bytes of a view that one image provides.

    Attributes:
        start, length: In bytes, from the beginning of the disk.
        depth: The image that provides it: 0 the top of the chain, 1 its
            backing file, and so on.
        zero: The run reads as zeroes and has no data of its own.
        present: Some image allocates it; False: nobody does, zeroes.
        offset: Where the run lies in the file of that image; None: only QEMU
            can read it (compressed clusters).

    Source: ``qemu-img map --output=json``.
    """

    start: int
    length: int
    depth: int
    zero: bool = False
    present: bool = True
    offset: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def data(self) -> bool:
        """True where bytes lie on the disk, so that a copy costs something."""
        return self.present and not self.zero


Extents = tuple[Extent, ...]
Range = tuple[int, int]
"""Start and end of a run of bytes; the end is excluded."""


def ranges(extents: Iterable[Extent]) -> tuple[Range, ...]:
    """The runs that *extents* cover, in order, neighbours joined."""
    return join((extent.start, extent.end) for extent in extents)


def join(runs: Iterable[Range]) -> tuple[Range, ...]:
    """*runs* in order, with those that touch or overlap joined."""
    joined: list[Range] = []
    for start, end in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


def rounded(runs: Iterable[Range], unit: int, size: int) -> tuple[Range, ...]:
    """*runs* grown to whole units of *unit* bytes, cut at *size*."""
    return join((start // unit * unit, min(-(-end // unit) * unit, size)) for start, end in runs)


def total(runs: Iterable[Range]) -> int:
    """Bytes in *runs*."""
    return sum(end - start for start, end in runs)
