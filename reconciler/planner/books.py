"""
Snapshots in libvirt's books, and what a plan leaves true of them.

libvirt's external snapshot S means the state *below* the overlay that its
creation made: the view of the image that was active then.  The books are let
go before that view is: whoever reads them never finds a state that reads
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.model.domain import Saved
from reconciler.model.image import Image, short_name
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Attach, Commit, Forget, Remove, Rename
from reconciler.model.units import human_size
from reconciler.planner.task import Task


def with_forgets(
    task: Task, kept: Iterable[Path], planned: Iterable[PlannedStep]
) -> tuple[PlannedStep, ...]:
    """
    *planned*, and the steps that drop libvirt's metadata of states that end.

    Each comes before the step that ends its state, in one group with it, so
    that they are finished together after an interruption.

    Args:
        kept: Restore points whose views every step of the plan keeps.
    """
    steps, still = list(planned), frozenset(kept)
    for name, saved in sorted(task.snapshots.items()):
        image = next((i for i in task.chain if saved.image in (i.path, i.second)), None)
        if image is None:
            continue
        at = next((n for n, one in enumerate(steps) if _ends(one, saved, image, still)), None)
        if at is not None:
            _insert(steps, at, Forget(name), saved)
    return tuple(steps)


def _ends(one: PlannedStep, saved: Saved, image: Image, kept: frozenset[Path]) -> bool:
    """True where *one* takes the state away that *saved* means, or the name that it has."""
    path = image.path
    match one.step:
        case Remove(gone):
            return gone == saved.image
        case Rename(source, _, False) if source == saved.image:
            return True
    if path in kept or path not in one.before:
        return False
    match one.step:
        case Commit(top, base):
            written = (one.before.image(base), *one.before.between(base, top))
            return any(each.path == path for each in written)
        case Rename(source, target):
            return target == path and image.second != source
        case Attach(active):
            return active == path != one.before.images[-1].path
        case _:
            return False


def _insert(steps: list[PlannedStep], at: int, step: Forget, saved: Saved) -> None:
    """Put *step* before the group of the step *at*, or before a removal by itself."""
    ending = steps[at]
    group = ending.group
    if not isinstance(ending.step, Remove):
        if group is None:
            group = max((one.group for one in steps if one.group is not None), default=-1) + 1
            steps[at] = replace(ending, group=group)
        at = next(n for n, one in enumerate(steps) if one.group == group)
    first = steps[at]
    why = f"the state of {short_name(saved.image)}, which it means, is given up"
    chain, waits = first.before, first.deferred
    steps.insert(at, PlannedStep(step, chain, chain, why, deferred=waits, group=group))


def memory_note(name: str, saved: Saved) -> str | None:
    """What becomes of the memory that was saved with the snapshot *name*; None: none was."""
    if saved.memory is None:
        return None
    size = "" if saved.memory_size is None else f" ({human_size(saved.memory_size)})"
    return (
        f"{saved.memory}{size}: the guest's memory of libvirt's snapshot {name}; it can no longer "
        "be restored, and stays on disk until you remove it"
    )


def notes(task: Task, planned: Iterable[PlannedStep]) -> Iterator[str]:
    """What else the reader has to know of the snapshots that are forgotten."""
    for one in planned:
        if isinstance(one.step, Forget):
            note = memory_note(one.step.snapshot, task.snapshots[one.step.snapshot])
            if note is not None:
                yield note
