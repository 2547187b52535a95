"""libvirt's metadata of snapshots whose images go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reconciler.engine.apply.disk_run import DiskRun
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Forget
from reconciler.planner.books import memory_note


def _forget(disk: DiskRun, snapshot: str) -> None:
    host = disk.found.host
    if host is not None and host.forget(disk.plan.domain, snapshot):
        tell_of_memory(disk, snapshot)


def tell_of_memory(disk: DiskRun, snapshot: str) -> None:
    saved = disk.found.task.snapshots.get(snapshot) if disk.found.task else None
    if saved is not None and (note := memory_note(snapshot, saved)) is not None:
        disk.reporter.note(disk.plan, note)


def forget_states_of(disk: DiskRun, path: Path) -> None:
    """libvirt's metadata goes before the image that holds the state that it means."""
    known = disk.found.task.snapshots if disk.found.task else {}
    for name, saved in known.items():
        if saved.image == path:
            _forget(disk, name)


def forget_all(disk: DiskRun, forgets: Iterable[PlannedStep]) -> None:
    """Drop libvirt's metadata of snapshots whose images are gone."""
    for planned in forgets:
        assert isinstance(planned.step, Forget)
        with disk.reported(planned):
            _forget(disk, planned.step.snapshot)
