"""Images in quarantine that a plan leaves without what they stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.image import Identity
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import Commit, Remove, Rename
from reconciler.planner.task import Task
from reconciler.tools import images, quarantine
from reconciler.tools.lookups import Lookups
from reconciler.tools.quarantine import Kept


def notes(plan: DiskPlan, task: Task) -> Iterator[str]:
    """
    Which images that could be put back from quarantine cannot be used any more after *plan*.

    The quarantine is looked at only for plans with steps that change or take away a view.
    """
    lookups = Lookups()
    lost = {who: path for path in _lost(plan, task) if (who := images.identity(path)) is not None}
    if not lost:
        return
    kept = list(quarantine.kept({path.parent for path in plan.observed.paths}))
    places = {str(one.was): one for one in kept}
    for one in kept:
        below = _stands_on(one, lost, places, lookups)
        if below is not None and one.until > datetime.now(UTC):
            yield (
                f"{one.was.name}, in quarantine until {one.until:%Y-%m-%d}, stands on "
                f"{below.name} and cannot be used any more after this"
            )


def _lost(plan: DiskPlan, task: Task) -> set[Path]:
    """Images that read differently under their names after *plan*, or are not there any more."""
    steps = [one.step for one in plan.steps]
    found: set[Path] = set()
    for step in steps:
        match step:
            case Commit(_, base):
                found.add(base)
            case Rename(source):
                found.add(source)
            case Remove(image):
                discarded = image in plan.restore_points.discarded
                if not (task.keep_discarded if discarded else task.keep_merged):
                    found.add(image)
    # what takes the name of an image by a merge has the view of that image
    return found - {step.target for step in steps if isinstance(step, Rename)}


def _stands_on(
    one: Kept, lost: Mapping[Identity, Path], places: Mapping[str, Kept], lookups: Lookups
) -> Path | None:
    """
    The highest of the *lost* images below *one*, were it put back; None: there is none.

    Args:
        places: What else could be put back, by its old name.
    """
    file, name = str(one.path), str(one.was)
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        try:
            below = images.named_by(name, images.look_at(file, lookups))
        except ObserveError:
            return None
        if below is None:
            return None
        name = lookups.real(below)
        there = images.identity_at(Path(name), lookups)
        if there is not None and there in lost:
            return lost[there]
        if there is None and name not in places:
            return None
        file = name if there is not None else str(places[name].path)
    return None
