"""
What a merge costs: the bytes that are not yet in the image that survives.

Let a run of neighbours become one image, U the clusters allocated in any of
them, W(k) those whose topmost allocation is in image k.  Keeping the file of
k costs |U| - |W(k)|.  Source: FIELD_NOTES §3.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.model.extents import Extents, Range, join, ranges, rounded, total


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
