"""Removing what is no longer needed, once no header can name it any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from reconciler.engine import planning
from reconciler.engine.apply import snapshots
from reconciler.engine.apply.disk_run import DiskRun
from reconciler.engine.disk_state import Leftover
from reconciler.model.errors import StaleChain, StepFailed, worded
from reconciler.model.image import Chain
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Remove, touched
from reconciler.tools import files, images, quarantine
from reconciler.tools.overlays import Overlays


def remove_all(disk: DiskRun, removals: Sequence[PlannedStep], *, old: bool = False) -> None:
    """
    Remove files, after a fresh look at every header that could name one of them.

    Args:
        old: An earlier apply has left them: one that cannot go stays for a later one.
    """
    if not removals:
        return
    overlays = disk.looking.overlays(disk.found.desired)
    # what stands below one that stays, stays with it
    gone = list(takewhile(lambda one: _remove(disk, one, overlays, old=old), removals))
    removed = {path for planned in gone for path in touched(planned.step)}
    left = tuple(one for one in disk.state.leftovers if one.path not in removed)
    disk.state = replace(disk.state, leftovers=left)  # files that are gone are no leftovers


def _remove(disk: DiskRun, planned: PlannedStep, overlays: Overlays, *, old: bool) -> bool:
    """False where it cannot be removed, and may be another time."""
    step = planned.step
    assert isinstance(step, Remove)
    try:
        with disk.reported(planned):
            for one in [left for left in disk.state.leftovers if left.path == step.image]:
                _remove_leftover(disk, step, one, overlays)
    except StepFailed as error:
        if not (old and isinstance(error.__cause__, OSError)):
            raise
        _stays(disk, step.image, worded(error.__cause__))
        return False
    return True


def _remove_leftover(disk: DiskRun, step: Remove, left: Leftover, overlays: Overlays) -> None:
    if users := _users_of(disk, left, overlays):
        _stays(disk, left.path, f"{', '.join(users)} stands on it")
    elif hidden := _hidden_beside(left.path, overlays):
        _stays(disk, left.path, f"{hidden[0]} cannot be read and may stand on it")
    elif files.opened_by_other(left.path):
        _stays(disk, left.path, "another program has it open")
    elif planning.still_there(left):
        snapshots.forget_states_of(disk, left.path)
        seconds = disk.config.keep(discarded=left.discarded)
        if not seconds:
            disk.backend.run(step, Chain())
            return
        with files.guarded(left.path):
            put = quarantine.put(left.path, seconds, left.file.inode)
        disk.reporter.note(
            disk.plan, f"{left.path.name} is kept as {put}; virt-chain gc --all frees its room"
        )


def _hidden_beside(path: Path, overlays: Overlays) -> Sequence[Path]:
    """Files beside *path* that cannot be read, each of which may be an overlay on it."""
    return [one for one in overlays.unreadable(path.parent) if one != path]


def _stays(disk: DiskRun, path: Path, why: str) -> None:
    """A leftover is not removed, and neither is what it stands on."""
    disk.staying.add(path)
    disk.reporter.note(disk.plan, f"{path.name} stays on disk: {why}")


def _users_of(disk: DiskRun, left: Leftover, overlays: Overlays) -> list[str]:
    """Names of images that stand on the leftover, by the look at all headers."""
    chain = disk.backend.observe(disk.active)
    if left.path in chain:
        raise StaleChain(f"{left.path} is in the chain {chain}")
    gone = {one.path for one in disk.state.leftovers} - disk.found.claimed.keys() - disk.staying
    users = overlays.ordered(images.identity(left.path))
    return [user.name for user in users if user not in gone]
