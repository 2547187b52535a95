"""Whether this user may do what a plan does now: asked when planning, and before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from reconciler.backends.offline import is_relative
from reconciler.engine.tasks import Look
from reconciler.model.errors import Refused
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import Commit, Create, Remove, Rename, rewritten
from reconciler.tools import permissions, quarantine

Check = Callable[[], None]


def require(plan: DiskPlan, found: Look, *, stopped: bool = False) -> None:
    """
    See that nothing of *plan* ends in "Permission denied" after something else was done.

    Args:
        stopped: The guest will be off by then, as it is for a plan that restarts it: what QEMU
            writes while it runs is written by this user.

    Raises:
        Refused: This user may not change a folder or an image that the plan changes.
    """
    on = found.domain is not None and found.domain.on
    for check in _checks(plan, found, live=on and not (stopped or plan.restart)):
        check()


def notes(plan: DiskPlan, found: Look) -> Iterator[str]:
    """What keeps this user from applying *plan*; another one may."""
    try:
        require(plan, found)
    except Refused as error:
        yield f"apply will be refused: {error}"


def _checks(plan: DiskPlan, found: Look, *, live: bool) -> Iterator[Check]:
    folders: dict[Path, None] = {}
    others: list[Check] = []
    for planned in plan.now:
        names = tuple(_names(planned, live=live))
        folders.update(dict.fromkeys(path.parent for path in names))
        others += (partial(permissions.require_name, path) for path in names)
        others += _images(planned, live=live, begins=found.resumed is None)
        if isinstance(planned.step, Remove) and _is_kept(planned.step.image, plan, found):
            folders[planned.step.image.parent / quarantine.FOLDER] = None
    yield from (partial(permissions.require_folder, folder) for folder in folders)
    yield from others


def _names(planned: PlannedStep, *, live: bool) -> Iterator[Path]:
    """Names that come, go, or mean another file afterwards."""
    match planned.step:
        case Create(image) | Remove(image):
            yield image
        case Rename(source, target):
            yield target
            yield source
    if not live:
        # names that QEMU had while it ran go with the first step
        yield from (image.second for image in planned.before if image.second)


def _images(planned: PlannedStep, *, live: bool, begins: bool) -> Iterator[Check]:
    """Images that are written to, each with what that takes."""
    step, chain = planned.step, planned.before
    written: list[Path] = []
    match step:
        case Commit(top, _, relink) if not live:
            above = chain.overlay_of(top) if relink and top in chain else None
            written = [top, *((above.path,) if above else ())]
        case Rename(source, target) if not live and source in chain and target not in chain:
            above = chain.overlay_of(source)
            moved = source.parent != target.parent and is_relative(chain.image(source))
            written = [*((above.path,) if above else ()), *((source,) if moved else ())]
            if above is not None:
                yield partial(permissions.require_link, source)
        case Rename(source) if live:
            yield partial(permissions.require_link, source)
    for path in rewritten(step):
        # while the guest runs, QEMU writes: only the time of the file is set here
        yield partial(permissions.require_image, path, owned=begins, written=not live)
    for path in written:
        yield partial(permissions.require_image, path, owned=False, written=True)


def _is_kept(path: Path, plan: DiskPlan, found: Look) -> bool:
    """True where the image goes to the quarantine."""
    if found.task is None:
        return False
    left = {one.path for one in found.state.every_leftover if one.discarded}
    discarded = path in plan.restore_points.discarded or path in left
    return bool(found.task.keep_discarded if discarded else found.task.keep_merged)
