"""Reconciling: the plans of many disks, domain by domain, until nothing is left for now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from reconciler.engine import history
from reconciler.engine.applying import Applier, Work
from reconciler.engine.disk_state import now
from reconciler.engine.tasks import Look
from reconciler.model.errors import ReconcilerError
from reconciler.model.plan import DiskPlan, Plan

ROUNDS = 4
"""Most plans that are made for a disk: what was interrupted, then the rest."""

Status = Literal["applied", "unchanged", "failed", "error"]


@dataclass(frozen=True, slots=True)
class Result:
    """
    What became of one disk.

    Attributes:
        status: ``failed``: something was tried, or could have been; ``error``:
            there was no plan, and the plan said why.
        error: What was raised, where something was.
    """

    domain: str
    target: str
    status: Status
    message: str | None = None
    steps_done: int = 0
    error: ReconcilerError | None = None

    @property
    def label(self) -> str:
        return f"{self.domain}:{self.target}"


class Listener(Protocol):
    """Who is told what becomes of each disk."""

    def again(self, plan: DiskPlan) -> None:
        """A disk has another round: what was interrupted is finished, this is the rest."""

    def reached(self, plan: DiskPlan, found: Look) -> None:
        """A disk is as far as it gets for now; *plan* has the steps that wait."""

    def ended(self, result: Result) -> None:
        """All that will be done for a disk is done."""

    def forbidden(self, plan: DiskPlan) -> str | None:
        """Why nothing may be done to a disk; None: all of its plan may."""


@dataclass(slots=True)
class Reconciling:
    """
    One run over all disks of a plan.

    Attributes:
        once: Each disk is planned once; what a new plan has for it is only told of in *left*.
        results: One a disk, once it ended.
        left: The last plan of each disk that ended well: deferred steps, or none (see *once*).
    """

    applier: Applier
    listener: Listener
    results: list[Result] = field(default_factory=list)
    left: list[DiskPlan] = field(default_factory=list)
    once: bool = False
    _steps: dict[str, list[str]] = field(default_factory=dict)

    def run(self, plan: Plan, looks: Iterable[Look], jobs: int = 1) -> None:
        """Carry out *plan*, which was made from *looks*, on so many domains side by side."""
        domains: dict[object, list[Work]] = {}
        for disk, found in zip(plan.disks, looks, strict=True):
            # without libvirt, disks of a domain have nothing to do at the same moment
            key = (disk.connection, disk.domain) if disk.connection else disk.label
            domains.setdefault(key, []).append((disk, found))
        if jobs > 1 and len(domains) > 1:
            self._in_parallel(list(domains.values()), jobs)
        else:
            for work in domains.values():
                self._domain(work)

    def write_history(self) -> None:
        """Add what was tried to the history."""
        spec, states = self.applier.spec, self.applier.states
        tried = [one for one in self.results if one.status in ("applied", "failed")]
        digest = history.spec_digest(spec.sources) if tried else ""
        for one in tried:
            done = tuple(self._steps.get(one.label, ())[: one.steps_done])
            record = history.Record(
                now(), one.domain, one.target, digest, one.status, one.message, done
            )
            history.add(states.folder, record)

    def _in_parallel(self, domains: Sequence[list[Work]], jobs: int) -> None:
        """Several domains side by side."""
        from concurrent.futures import ThreadPoolExecutor  # takes a while, for one domain too long

        with ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(self._domain, domains):
                pass  # an error that nobody expected is raised here

    def _domain(self, work: Sequence[Work]) -> None:
        """The disks of one domain: planned and applied until nothing is left for now."""
        done = {disk.label: 0 for disk, _ in work}
        left = [one for one in work if self._has_steps(*one)]
        for _ in range(ROUNDS):
            if not left:
                return
            for disk, _ in left:
                self._steps.setdefault(disk.label, []).extend(str(one.step) for one in disk.now)
            errors = self.applier.apply(left)
            for (disk, _), error in zip(left, errors, strict=True):
                done[disk.label] += len(disk.now)
                if error is not None:
                    self._failed(disk, str(error), done[disk.label] - len(disk.now), error)
            good = [one for one, error in zip(left, errors, strict=True) if error is None]
            planned = [self.applier.planned_again(found) for _, found in good]
            left = [one for one in planned if self._goes_on(one, done)]
        for disk, _ in left:
            self._failed(disk, f"{len(disk.now)} steps are left; apply again", done[disk.label])

    def _has_steps(self, disk: DiskPlan, found: Look) -> bool:
        """True where there is something to do now; otherwise the disk's result is told."""
        self.applier.wake(disk, found)
        if found.lost is not None and not disk.error:
            self.left.append(disk)
            self._failed(disk, found.lost, 0)
        elif disk.error:
            self._ended(Result(disk.domain, disk.target, "error", disk.error))
        elif disk.now and (why := self.listener.forbidden(disk)) is not None:
            self.left.append(disk)
            self._failed(disk, why, 0)
            return False
        elif not disk.now:
            self.left.append(disk)
            if not disk.steps:
                self.applier.record(found)
            self._ended(Result(disk.domain, disk.target, "unchanged"))
        return bool(disk.now) and not disk.error and found.lost is None

    def _goes_on(self, one: Work, done: Mapping[str, int]) -> bool:
        """True where a new plan has steps for now; otherwise the disk's result is told."""
        disk, found = one
        if disk.error:
            self._failed(disk, disk.error, done[disk.label])
            return False
        if disk.now and not self.once:
            self.listener.again(disk)
            if (why := self.listener.forbidden(disk)) is None:
                return True
            self._failed(disk, why, done[disk.label])
            return False
        self.left.append(disk)
        self._ended(Result(disk.domain, disk.target, "applied", None, done[disk.label]))
        self.listener.reached(disk, found)
        return False

    def _failed(
        self, disk: DiskPlan, why: str, done: int, error: ReconcilerError | None = None
    ) -> None:
        self._ended(Result(disk.domain, disk.target, "failed", why, done, error))

    def _ended(self, result: Result) -> None:
        self.results.append(result)
        self.listener.ended(result)
