"""A group of steps: remember it, do each step between two looks, remember that it is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from reconciler.engine.apply import recovery, snapshots
from reconciler.engine.apply.disk_run import DiskRun, Going, identities_of
from reconciler.engine.disk_state import Leftover, OldLink, Unfinished, begun
from reconciler.model.errors import Busy, ReconcilerError, StaleChain
from reconciler.model.image import Chain
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Commit, Forget, Pull, Remove, Rename, Step, rewritten, touched
from reconciler.planner.price import room
from reconciler.tools import files, images

log = logging.getLogger(__name__)


def carry_out(disk: DiskRun, unit: tuple[PlannedStep, ...]) -> Going:
    """Do the steps of *unit*, of which either all or none lead anywhere."""
    resumed = disk.resumed
    if disk.number and resumed is None:
        _still_alone(disk, unit)
    unfinished = resumed or _unfinished(disk, unit)
    rewritten = [path for path in _rewritten(unfinished.steps) if path in unit[0].before]
    for path in rewritten:
        if not disk.backend.live and files.written_by_other(path):
            raise Busy(f"{path} is open for writing; close it, then apply again")
    disk.remember(begun(disk.now(), unfinished))
    if resumed is None:
        for path in rewritten:
            files.touch(path)
    for planned in unit:
        yield from _step(disk, planned, again=resumed is not None)
    left = tuple(_as_left(disk, one) for one in unfinished.remove)
    # what is in the chain again, under its old name, is no leftover
    chain = disk.backend.observe(disk.active)
    leftovers = tuple(one for one in (*disk.state.leftovers, *left) if one.path not in chain)
    if not disk.backend.live:
        _drop_names(disk, chain)
    disk.remember(replace(disk.now(settled=True), leftovers=leftovers))


def _unfinished(disk: DiskRun, unit: tuple[PlannedStep, ...]) -> Unfinished:
    before, after = unit[0].before, unit[-1].after
    gone = [
        image
        for image in reversed(before.images)
        if image.path not in after and any(one.step == Remove(image.path) for one in disk.plan.now)
    ]
    second = [replace(image, path=image.second) for image in gone if image.second]
    return Unfinished(
        steps=tuple(one.step for one in unit),
        remove=tuple(
            Leftover(image.path, who, image.path in disk.plan.restore_points.discarded)
            for image in (*gone, *second)
            if (who := files.durable_id(image.path)) is not None
        ),
        links=tuple(
            OldLink(i.path, i.recorded, i.recorded_format, files.durable_id(i.path)) for i in before
        ),
        live=disk.found.domain is not None and disk.found.domain.state == "running",
    )


def _still_alone(disk: DiskRun, unit: tuple[PlannedStep, ...]) -> None:
    """Raises StaleChain where somebody has come to use what *unit* writes to."""
    written = _rewritten(one.step for one in unit)
    if not written:
        return
    fresh = disk.looking.again(disk.found.desired)
    if fresh.task is None:
        raise StaleChain(fresh.error or "the disk cannot be read")
    before = disk.found.task.users if disk.found.task else {}
    for path in written:
        if new := set(fresh.task.users.get(path, ())) - set(before.get(path, ())):
            raise StaleChain(f"{', '.join(sorted(new))} uses {path} by now; plan again")


def _as_left(disk: DiskRun, left: Leftover) -> Leftover:
    """
    *left*, as it is now that its data is merged.

    A file that was written to, or replaced, since its data was read is left as it was
    known: it is never removed.
    """
    known = disk.merged_at.get(left.path) or left.file
    who = files.durable_id(left.path)
    return replace(left, file=who if who and who.has_same_content(known) else known)


def _drop_names(disk: DiskRun, chain: Chain) -> None:
    """Second names that QEMU had while it ran, and that no header has any more, go."""
    for second in [path for path in disk.names if not any(i.second == path for i in chain)]:
        there = images.identity(second)
        if second not in chain and any(image.identity == there for image in chain):
            files.remove(second)
        del disk.names[second]


def _step(disk: DiskRun, planned: PlannedStep, *, again: bool) -> Going:
    step = planned.step
    with disk.reported(planned):
        log.info("%s: %s", disk.plan.label, step)
        chain = disk.backend.observe(disk.active)
        if again:
            disk.backend.settle()
        done = again and recovery.was_done(disk, step, chain)
        if again:
            disk.backend.mend(step, chain)
        if done:
            if isinstance(step, Commit) and step.top.exists():
                disk.merged_at[step.top] = files.durable_id(step.top)
            disk.follow(step)
            disk.identities = {}
        else:
            # looking at what was done may have put a header back
            chain = disk.backend.observe(disk.active) if again else chain
            yield from _do(disk, planned, chain, again)
        if again or disk.backend.live or not isinstance(step, Commit | Pull):
            # offline merges are checked before their header is written
            disk.written.update(dict.fromkeys(touched(step)))


def _do(disk: DiskRun, planned: PlannedStep, chain: Chain, again: bool) -> Going:
    """Look, act, look again."""
    step = planned.step
    if not again and chain.paths != planned.before.paths:
        raise StaleChain(f"the chain is {chain} now, not {planned.before}")
    _same_files(disk, chain)
    _room(planned)
    sources = {path: files.file_id(path) for path in disk.backend.read_sources(step, chain)}
    with ExitStack() as held:
        if isinstance(step, Rename) and step.target in disk.merged_at:
            held.enter_context(files.guarded(step.target))
            _unchanged(disk, step)
        together = disk.backend.run(step, chain)
    if together is not None:
        try:
            yield together
        except ReconcilerError:
            _refused(disk, step, chain)
            raise
    if isinstance(step, Forget):
        snapshots.tell_of_memory(disk, step.snapshot)
    for path, known in sources.items():
        if not files.is_as_it_was(path, known):
            raise StaleChain(f"{path} was written to while it was being merged")
    disk.merged_at.update(sources)
    if isinstance(step, Commit):
        disk.merged_at[step.top] = files.durable_id(step.top)  # a guest may have written to it
    disk.follow(step)
    after = disk.backend.observe(disk.active)
    _same_files(disk, after, touched(step))
    disk.identities = identities_of(after)
    if not again and after.paths != planned.after.paths:
        raise StaleChain(f"the chain is {after} after it, not {planned.after}")


def _refused(disk: DiskRun, step: Step, chain: Chain) -> None:
    """Forget a group of steps whose first one libvirt refused, and left nothing of."""
    unfinished = disk.state.unfinished
    if unfinished is None or unfinished.steps[0] != step:
        return
    if disk.backend.taken_back(step, chain):
        disk.remember(replace(disk.now(), unfinished=None))


def _same_files(disk: DiskRun, chain: Chain, renamed: Sequence[Path] = ()) -> None:
    """A file that somebody has put in the place of an image that was looked at is no image."""
    for image in chain:
        known = disk.identities.get(image.path, image.identity)
        if known != image.identity and image.path not in renamed:
            raise StaleChain(f"{image.path} is another file now than when the plan was made")


def _room(planned: PlannedStep) -> None:
    if planned.room:
        folder = touched(planned.step)[0].parent
        free = files.free_bytes(folder)
        if room(planned.room) > free:
            raise StaleChain(f"{folder} has {free} bytes free, and the step needs more")


def _unchanged(disk: DiskRun, step: Step) -> None:
    """What a rename replaces is as it was when its data was merged."""
    merged = disk.merged_at.get(step.target) if isinstance(step, Rename) else None
    if isinstance(step, Rename) and merged and not files.is_as_it_was(step.target, merged):
        raise StaleChain(f"{step.target} was written to while it was being merged")


def _rewritten(steps: Iterable[Step]) -> dict[Path, None]:
    """Images whose data *steps* write in place: from here on nobody takes them for untouched."""
    return dict.fromkeys(path for step in steps for path in rewritten(step))
