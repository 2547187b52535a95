"""
What a merge costs: the bytes that are not yet in the image that survives.

Let a run of neighbours become one image, U the clusters allocated in any of
them, W(k) those whose topmost allocation is in image k.  Keeping the file of
k costs |U| - |W(k)|.  Source: FIELD_NOTES §3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from reconciler.model.extents import Extents, Range, join, ranges, rounded, total

METADATA = 0.02
"""Part of the copied bytes that tables and reference counts need on top."""
SLACK = 4 * 1024 * 1024
"""Bytes of one step that headers, tables and rounding may take beyond that."""


def room(copied: int) -> int:
    """Bytes that a step which copies *copied* bytes needs on its filesystem, at most."""
    return int(copied * (1 + METADATA)) + SLACK


def moved(extents: Extents, depths: range, cluster: int, size: int) -> int:
    """
    Bytes that are written when the data of the layers *depths* is copied.

    Args:
        extents: The map of the view of the top of the run.
        depths: Layers whose visible data moves, counted from that top.
        cluster: Unit of allocation of the image that takes them, in bytes.
        size: Virtual size of the merged image, in bytes.
    """
    runs = ranges(one for one in extents if one.data and one.depth in depths)
    return total(rounded(runs, max(cluster, 1), size))


@dataclass(frozen=True, slots=True)
class Moves:
    """
    What is copied, by the depth of the image that survives, in bytes.

    Attributes:
        down: From the images above it, by a commit: as `moved` of their depths.
        up: From the images below it in the run, by a pull.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]


def moves(extents: Extents, count: int, cluster: int, size: int) -> Moves:
    """
    The price of every survivor of a run of *count* images, in one pass.

    A unit of allocation is copied once, by a commit if any image above the
    survivor provides a part of it, and by a pull if any below does: what counts
    is the least and the greatest depth of each unit.

    Args:
        extents, cluster, size: As `moved` has them.
    """
    unit = max(cluster, 1)
    least, greatest = [0] * count, [0] * count
    done, low, high = 0, 0, 0  # the end of what is counted, and the depths of its last unit
    for one in sorted(extents, key=lambda extent: extent.start):
        if not one.data or one.depth >= count:
            continue
        start = one.start // unit * unit
        end = min(-(-one.end // unit) * unit, size)
        if start < done:  # the last unit has a part of this run, too
            shared = done - start
            least[low] -= shared
            greatest[high] -= shared
            low, high = min(low, one.depth), max(high, one.depth)
            least[low] += shared
            greatest[high] += shared
            start = done
        if start < end:
            least[one.depth] += end - start
            greatest[one.depth] += end - start
            done, low, high = end, one.depth, one.depth
    above = accumulate(least, initial=0)
    up_to = accumulate(greatest)
    return Moves(tuple(above)[:count], tuple(sum(greatest) - here for here in up_to))


def at_most_differing(
    own: range, left: range, mine: Extents, new: range, theirs: Extents
) -> tuple[Range, ...]:
    """
    Runs that a rebase onto a foreign image may have to copy up.

    What both views read from the same image is equal and stays.

    Args:
        own: Depths in *mine* that the rebased image holds itself.
        left: Depths in *mine* of images that only the old chain has.
        mine: The map of the view that is rebased.
        new: Depths in *theirs* of images that only the new chain has.
        theirs: The map of the view of the new backing file.
    """
    either = join(
        [
            *ranges(one for one in mine if one.present and one.depth in left),
            *ranges(one for one in theirs if one.present and one.depth in new),
        ]
    )
    # beyond the end of a short image one view has zeroes where the other may have data
    here, there = (ranges(o for o in view if o.present) for view in (mine, theirs))
    either = join([*either, *subtract(here, there), *subtract(there, here)])
    return subtract(either, ranges(o for o in mine if o.present and o.depth in own))


def subtract(runs: Sequence[Range], away: Sequence[Range]) -> tuple[Range, ...]:
    """The parts of *runs* outside *away*; both in order and without overlap."""
    left: list[Range] = []
    cut = 0
    for start, end in runs:
        at = start
        while cut < len(away) and away[cut][1] <= at:
            cut += 1
        here = cut
        while here < len(away) and away[here][0] < end:
            if away[here][0] > at:
                left.append((at, away[here][0]))
            at = away[here][1]
            here += 1
        if at < end:
            left.append((at, end))
    return tuple(left)
