"""A plan: steps that explain themselves, disk by disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reconciler.model.image import Chain
from reconciler.model.steps import STEPS, Need, Step, as_data, need

FORMAT_VERSION = 1
"""Version of the plan file; a reader refuses any other."""

State = Literal["offline", "running", "paused", "shut-off"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """
    One step, with why it is there and what it costs.

    Attributes:
        bytes: Data that must be copied.
        allocates: Bytes of *bytes* for which the filesystem has to find room; None: all.
        frees: Bytes that the step gives back to the filesystem.
        reason: One short sentence for the reader.
        deferred: Why the step waits for the domain to be off; None: done now.
        before, after: The chain before and after the step.
        group: Number of the merge that the step belongs to.  Steps of one
            group are finished together, even if the spec changes meanwhile.
    """

    step: Step
    before: Chain
    after: Chain
    reason: str = ""
    bytes: int = 0
    allocates: int | None = None
    frees: int = 0
    deferred: str | None = None
    group: int | None = None

    @property
    def room(self) -> int:
        """Bytes that the step adds to its filesystem, without tables."""
        return self.bytes if self.allocates is None else self.allocates


@dataclass(frozen=True, slots=True)
class RestorePoints:
    """What becomes of the restore points: absolute paths, base first."""

    kept: tuple[Path, ...] = ()
    dropped: tuple[Path, ...] = ()
    discarded: tuple[Path, ...] = ()

    @property
    def lost(self) -> int:
        """How many go, which a host allows so many of (``max_drops``)."""
        return len(self.dropped) + len(self.discarded)


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """
    What is done to one disk.

    Attributes:
        observed: The chain that is there.
        desired: Absolute paths of the chain that the spec asks for.
        fingerprint: Changes when anything changes that the plan relies on.
        notes: Sentences for the reader: what stays on disk, and why.
        warnings: Sentences that come before anything else, also where there is nothing to do.
        doubts: Why the spec may not be meant so, for the reader to see first; what has any
            is not applied without a person.
        error: Why there is no plan; None: *steps* lead to the desired chain.
        state: Of the domain; ``offline`` without libvirt.
        connection: libvirt URI; None: plain images.
        restart: The guest is stopped for the steps, and started again.
    """

    domain: str
    target: str
    observed: Chain
    desired: tuple[Path, ...]
    steps: tuple[PlannedStep, ...] = ()
    restore_points: RestorePoints = field(default_factory=RestorePoints)
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    error: str | None = None
    state: State = "offline"
    connection: str | None = None
    restart: bool = False

    @property
    def label(self) -> str:
        return f"{self.domain}:{self.target}"

    @property
    def bytes_to_copy(self) -> int:
        return sum(planned.bytes for planned in self.steps)

    @property
    def needs(self) -> frozenset[Need]:
        """What the steps that are done now need to be allowed, where nobody is asked."""
        needed = {need(planned.step) for planned in self.now}
        if needed and self.restore_points.discarded:
            needed.add("discard")
        if needed and self.restart:
            needed.add("restart")
        return frozenset(needed)

    @property
    def now(self) -> tuple[PlannedStep, ...]:
        """The steps that are done now; the others wait for the domain to be off."""
        return tuple(planned for planned in self.steps if planned.deferred is None)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plans of all disks of a spec."""

    sources: tuple[Path, ...]
    disks: tuple[DiskPlan, ...]

    @property
    def changes(self) -> bool:
        """True where there is anything to do now."""
        return any(disk.now for disk in self.disks)

    @property
    def errors(self) -> tuple[DiskPlan, ...]:
        return tuple(disk for disk in self.disks if disk.error)

    def domains(self) -> Iterator[tuple[str, list[DiskPlan]]]:
        """Domain names in order of appearance, each with the plans of its disks."""
        names = dict.fromkeys(disk.domain for disk in self.disks)
        for name in names:
            yield name, [disk for disk in self.disks if disk.domain == name]

    def as_data(self) -> dict[str, Any]:
        """The plan file, as `schemas/plan.schema.json` describes it."""
        return {
            "format_version": FORMAT_VERSION,
            "spec": [str(path) for path in self.sources],
            "domains": [
                {
                    "name": name,
                    "connection": disks[0].connection,
                    "state": disks[0].state,
                    "disks": [_disk_as_data(disk) for disk in disks],
                }
                for name, disks in self.domains()
            ],
            "summary": summary(self.disks),
        }


def summary(disks: Iterable[DiskPlan]) -> dict[str, int]:
    """
    Number of steps by kind, of bytes to copy, of deferred steps and of errors.

    ``resize``, ``repair`` and ``forget`` are there when there are any.
    """
    disks = tuple(disks)
    numbers = count(one for disk in disks for one in disk.steps)
    return {**numbers, "errors": sum(disk.error is not None for disk in disks)}


def count(planned: Iterable[PlannedStep]) -> dict[str, int]:
    """The same of single steps, without errors."""
    planned = tuple(planned)
    kinds = Counter(one.step.action for one in planned)
    always = ("create", "commit", "pull", "rebase", "rename", "attach", "remove")
    actions = [kind.action for kind in STEPS if kind.action in always or kinds[kind.action]]
    return {
        **{action: kinds[action] for action in actions},
        "bytes_to_copy": sum(one.bytes for one in planned),
        "deferred": sum(one.deferred is not None for one in planned),
    }


def _disk_as_data(disk: DiskPlan) -> dict[str, Any]:
    points = disk.restore_points
    return {
        "target": disk.target,
        "observed": [str(path) for path in disk.observed.paths],
        "desired": [str(path) for path in disk.desired],
        "fingerprint": disk.fingerprint,
        "restore_points": {
            "kept": [str(path) for path in points.kept],
            "dropped": [str(path) for path in points.dropped],
            "discarded": [str(path) for path in points.discarded],
        },
        "steps": [
            {
                **as_data(one.step),
                "bytes": one.bytes,
                "reason": one.reason,
                "deferred": one.deferred,
            }
            for one in disk.steps
        ],
        "warnings": list(disk.warnings),
        "notes": [*disk.doubts, *disk.notes],
        "error": disk.error,
    }
