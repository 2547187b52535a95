"""Whether this user may do what a plan does now: asked when planning, and before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from reconciler.backends.offline import is_relative
from reconciler.engine.disk_state import Leftover
from reconciler.engine.tasks import Look
from reconciler.model.errors import Refused
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import Commit, Create, Remove, Rename, rewritten
from reconciler.planner.task import Task
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
    kept_in: dict[Path, None] = {}
    others: list[Check] = []
    for planned in plan.now:
        if isinstance(planned.step, Remove) and _is_old(planned.step.image, found):
            continue  # it may stay
        names = tuple(_names(planned, live=live))
        folders.update(dict.fromkeys(path.parent for path in names))
        others += (partial(permissions.require_name, path) for path in names)
        others += _images(planned, live=live, begins=found.resumed is None)
        if isinstance(planned.step, Remove) and _is_kept(planned.step.image, plan, found):
            kept_in[planned.step.image.parent] = None
    yield from (partial(quarantine.require_usable, folder) for folder in kept_in)
    folders.update(dict.fromkeys(folder / quarantine.FOLDER for folder in kept_in))
    yield from (partial(permissions.require_folder, folder) for folder in folders)
    yield from others


def why_it_stays(left: Leftover, task: Task) -> str | None:
    """Why this user cannot remove a leftover, and what to do about it; None: it can go."""
    folder = left.path.parent
    try:
        permissions.require_folder(folder)
        permissions.require_name(left.path)
        if task.keep_discarded if left.discarded else task.keep_merged:
            quarantine.require_usable(folder)
            permissions.require_folder(folder / quarantine.FOLDER)
    except Refused as error:
        return str(error)
    return None


def _is_old(path: Path, found: Look) -> bool:
    """True for an image that was merged or discarded before, or by steps that were interrupted."""
    resumed = found.resumed
    lefts = (*found.state.leftovers, *(resumed.remove if resumed else ()))
    return any(left.path == path for left in lefts)


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
    discarded = path in plan.restore_points.discarded
    return bool(found.task.keep_discarded if discarded else found.task.keep_merged)
