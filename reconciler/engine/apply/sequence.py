"""The order of one disk's plan: early removals, groups of steps, a look, a start, removals."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from reconciler.engine.apply import groups, recovery, removal, snapshots, verification
from reconciler.engine.apply.disk_run import DiskRun, Going
from reconciler.engine.disk_state import now
from reconciler.model.errors import ReconcilerError, StepFailed
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Create, Forget, Remove
from reconciler.tools import files, images


def run(disk: DiskRun) -> Going:
    """Each step in turn; yields what has to be done together with other disks."""
    recovery.correct_definition(disk)
    if disk.resumed is None:
        recovery.tidy(disk.found.state.unfinished)
    views_before = verification.digests(disk)
    early = [one for one in disk.plan.now if _is_old_leftover(disk, one)]
    later = [one for one in disk.plan.now if one not in early]
    removal.remove_all(disk, early, old=True)
    changes = [one for one in later if not _is_last(one)]
    for _, unit in groupby(
        changes, key=lambda one: one.group if one.group is not None else id(one)
    ):
        yield from groups.carry_out(disk, tuple(unit))
        thrown = [one for one in later if _is_discarded(disk, one)]
        if thrown and not disk.plan.restart:
            # they stand on images that the next steps may rename
            images.confirm(disk.backend.observe(disk.active))
            removal.remove_all(disk, thrown)
            later = [one for one in later if one not in thrown]
    verification.look_again(disk, views_before)
    if disk.plan.restart:
        yield from _started(disk)
    snapshots.forget_all(
        disk, (one for one in later if isinstance(one.step, Forget) and _is_last(one))
    )
    removals = [one for one in later if isinstance(one.step, Remove)]
    removal.remove_all(disk, removals, old=disk.resumed is not None)
    disk.remember(replace(disk.now(settled=True), applied=now()))


def _started(disk: DiskRun) -> Going:
    """Start the guest before anything is removed; put its disk back where it does not start."""
    from reconciler.backends.together import Together  # for libvirt alone

    host, domain, before = disk.found.host, disk.found.domain, disk.found.chain.active
    assert host is not None
    assert domain is not None
    assert before is not None
    assert disk.active is not None
    target = disk.plan.target
    try:
        yield Together("start", host, domain.name, target, disk.active)
    except ReconcilerError as error:
        yield Together("attach", host, domain.name, target, before.path, before.format)
        for planned in disk.plan.now:
            if isinstance(planned.step, Create):
                files.remove(planned.step.image)
        disk.active = before.path
        disk.remember(replace(disk.now(settled=True), leftovers=()))
        why = f"{error}; the domain has {before} as its disk again"
        raise StepFailed(f"start {domain.name}", disk.number, why) from error


def _is_old_leftover(disk: DiskRun, planned: PlannedStep) -> bool:
    step = planned.step
    return isinstance(step, Remove) and any(
        left.path == step.image for left in disk.found.state.leftovers
    )


def _is_discarded(disk: DiskRun, planned: PlannedStep) -> bool:
    """True where *planned* removes an image that was discarded by the steps so far."""
    step = planned.step
    return isinstance(step, Remove) and any(
        left.path == step.image and left.discarded for left in disk.state.leftovers
    )


def _is_last(planned: PlannedStep) -> bool:
    """True for what comes after all changes of the chain, each by itself."""
    forgets = isinstance(planned.step, Forget) and planned.group is None
    return forgets or isinstance(planned.step, Remove)
