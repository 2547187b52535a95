"""File names that look mistyped: what they would cost, said before it is paid."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from reconciler.model.image import Image
from reconciler.planner.layout import Layout, describe, restore_points
from reconciler.planner.task import Task, Wanted

SEVERAL = 2
"""One new name in the place of an image is what a snapshot by hand looks like."""
ALIKE = 0.6
"""How alike two names are where one may be the other mistyped; ``tue`` and ``teu`` are 0.67."""


def doubts(task: Task, layout: Layout) -> tuple[str, ...]:
    """
    Why the spec may not mean what it says: it lists several images that do not exist.

    An image in the place of a mistyped one is new, and the one that was meant
    is dropped.  Only above the highest kept image can that happen: below, a
    missing image is refused.
    """
    missing = [slot.wanted for slot in layout.slots if slot.kept is None]
    if len(missing) < SEVERAL:
        return ()
    highest = max((slot.kept for slot in layout.slots if slot.kept is not None), default=-1)
    gone = layout.chain.images[max(highest + 1, layout.start, task.frozen) :]
    points = restore_points(task, layout)
    own = [image for image in task.chain.images[task.frozen :] if image.path in points.kept]
    all_go = len(points.dropped) >= SEVERAL and not own
    meant = list(_meant(missing, gone))
    alike = len(meant) == len(missing) and len(gone) >= len(missing)
    if not (alike or all_go):
        return ()
    names = ", ".join(wanted.name for wanted in missing)
    lost = tuple(image for image in task.chain if image.path in points.dropped)
    cost = f"restore points that would go: {describe(lost)}" if lost else "they would be new"
    said = "; ".join(_did_you_mean(wanted, image) for wanted, image in meant)
    return (f"ARE THESE NAMES RIGHT? {names} do not exist; {cost}" + (f"; {said}" if said else ""),)


def _did_you_mean(wanted: Wanted, image: Image) -> str:
    if wanted.path.name == image.path.name:  # the folder is another one
        return f"{wanted.path}: did you mean {image.path}?"
    return f"{wanted.name}: did you mean {image.path.name}?"


def _meant(missing: list[Wanted], gone: tuple[Image, ...]) -> Iterator[tuple[Wanted, Image]]:
    """Each image whose name looks like that of an image which goes, in the order of the chain."""
    rest = list(gone)
    for wanted in missing:
        names = [image.path.name for image in rest]
        near = difflib.get_close_matches(wanted.path.name, names, n=1, cutoff=0)
        for name in near:
            image = rest[names.index(name)]
            # what all names have in common says nothing
            one, other = wanted.path.stem, image.path.stem
            if difflib.SequenceMatcher(None, one, other).ratio() >= ALIKE:
                yield wanted, image
                del rest[: names.index(name) + 1]
