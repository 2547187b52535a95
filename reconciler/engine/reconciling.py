"""Reconciling: the plans of many disks, domain by domain, round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from reconciler.engine import history, permitted
from reconciler.engine.apply.applier import Applier
from reconciler.engine.apply.reporter import Reporter
from reconciler.engine.disk_state import now
from reconciler.engine.gate import Admitted
from reconciler.engine.planning import Work
from reconciler.engine.tasks import Look
from reconciler.model.errors import ReconcilerError, StaleChain, StateError
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import Remove, Step

ROUNDS = 4
"""Most rounds of one run: what was interrupted, then the rest."""

ENDING = 2.0
"""Seconds that threads get to notice that everything ends at once."""

Status = Literal["applied", "unchanged", "failed", "error"]


@dataclass(frozen=True, slots=True)
class Result:
    """
    What became of one disk.

    Attributes:
        status: ``failed``: something was tried, or could have been; ``error``:
            there was no plan, and the plan said why.
        message: Why it failed, or what is left for another plan.
        steps_done: In all rounds.
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


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was done, and how long it took."""

    planned: PlannedStep
    seconds: float


class Listener(Protocol):
    """Who is told what becomes of each disk."""

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

    What goes wrong with one disk is its result, and the others go on.

    Attributes:
        left: The last plan of each disk that ended well: deferred steps, or none.
        rest: Disks that have steps for another round, with their new plans.
        done: The steps that were done, by disk, in all rounds.
        begun: Disks a step of which was begun that the spec asks for, by label, each with the
            look that it was planned from.  What finishes an interrupted apply, or removes what
            it left, is asked for by no spec.
    """

    applier: Applier
    listener: Listener
    left: list[DiskPlan] = field(default_factory=list)
    rest: list[Work] = field(default_factory=list)
    done: dict[str, list[Done]] = field(default_factory=dict)
    begun: dict[str, Look] = field(default_factory=dict)
    _results: dict[str, Result] = field(default_factory=dict)
    _recorded: set[str] = field(default_factory=set)
    _seen: dict[str, Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.applier.reporter = _Remembering(self.applier.reporter, self.done, self._begin)

    @property
    def results(self) -> list[Result]:
        """One a disk, once it ended."""
        return list(self._results.values())

    def run(self, admitted: Admitted, jobs: int = 1) -> None:
        """Carry out one round that passed the gate, on so many domains side by side."""
        self.rest = []
        for disk, why in admitted.refused:
            self.left.append(disk)
            self._failed(disk, why)
        domains: dict[object, list[Work]] = {}
        for disk, found in admitted.work:
            # without libvirt, disks of a domain have nothing to do at the same moment
            as_one = disk.connection or self.applier.options.together
            key = (disk.connection, disk.domain) if as_one else disk.label
            domains.setdefault(key, []).append((disk, found))
        if jobs > 1 and len(domains) > 1:
            self._in_parallel(list(domains.values()), jobs)
        else:
            for work in domains.values():
                self._domain(work)

    def changed(self) -> set[str]:
        """
        Disks to which anything was done that the spec asks for.

        A step that was begun may have left nothing behind, and a disk may have been put back:
        such a disk is as it was when the first of those steps was planned.
        """
        return {label for label, before in self.begun.items() if not self._is_as(before)}

    def settle(self, status: Status, message: str | None = None) -> None:
        """No round follows: what became of the disks in *rest*."""
        for disk, found in self.rest:
            self.left.append(disk)
            count = len(disk.now)
            steps = "1 more step is" if count == 1 else f"{count} more steps are"
            told = None if message is None else f"{steps} left; {message}"
            self._ended(disk, status, told)
            if status == "applied":
                self.listener.reached(disk, found)
        self.rest = []
        self._start_again()

    def add(self, result: Result) -> None:
        """The result of a disk that cannot be planned at all."""
        self._results[result.label] = result
        self.listener.ended(result)

    def write_history(self) -> None:
        """Add what was done or tried to the history: each disk once, also when all ends at once."""
        told = {one.label: one for one in self.results if one.status in ("applied", "failed")}
        new = [one for one in {**dict.fromkeys(self.done), **told} if one not in self._recorded]
        digest = history.spec_digest(self.applier.spec.sources) if new else ""
        for label in new:
            domain, _, target = label.rpartition(":")
            result = told.get(label, Result(domain, target, "failed", "interrupted"))
            done = self.done.get(label, ())
            record = history.Record(
                now(),
                result.domain,
                result.target,
                digest,
                result.status,
                result.message if result.status == "failed" else None,
                tuple(str(one.planned.step) for one in done),
                round(sum(one.seconds for one in done), 3),
            )
            self._recorded.add(label)
            history.add(self.applier.states.folder, record)

    def _in_parallel(self, domains: Sequence[list[Work]], jobs: int) -> None:
        """Several domains side by side; one after the other where their folders are busy."""
        from concurrent import futures  # takes a while, for one domain too long

        pool = futures.ThreadPoolExecutor(jobs)
        running = [pool.submit(self._domain, work) for work in domains]
        try:
            for one in running:
                one.result()  # an error that nobody expected is raised here
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            futures.wait(running, ENDING)
            raise
        pool.shutdown()

    def _domain(self, work: Sequence[Work]) -> None:
        """One round of the disks of one domain."""
        self._seen.update({disk.label: (disk, found) for disk, found in work})
        going = [one for one in work if self._has_steps(*one)]
        if not going:
            return
        errors: Sequence[ReconcilerError | None]
        try:
            errors = self.applier.apply(going)
        except (ReconcilerError, OSError) as error:
            errors = [_as_ours(error)] * len(going)
        for (disk, found), wrong in zip(going, errors, strict=True):
            if wrong is not None:
                self._failed(disk, str(wrong), wrong)
            else:
                self._look_again(disk, found)

    def _start_again(self) -> None:
        """Start guests that an interrupted apply has stopped, whatever became of their plans."""
        for disk, found in self._seen.values():
            try:
                if forbidden(self.listener, disk, found) is None:
                    self.applier.start_again(disk, found)
            except StateError as error:
                # whether a guest has to be started, nobody can tell
                if not disk.error:
                    self._failed(disk, str(error), error)
            except ReconcilerError as error:
                self._failed(disk, f"the guest is off: {error}", error)

    def _has_steps(self, disk: DiskPlan, found: Look) -> bool:
        """True where there is something to do now; otherwise the disk's result is told."""
        try:
            self.applier.wake(disk, found)
            if found.lost is not None and not disk.error:
                self.left.append(disk)
                self._failed(disk, found.lost)
            elif disk.error:
                # after a round something was done to it, which its result tells
                self._ended(disk, "failed" if disk.label in self.done else "error", disk.error)
            elif disk.now and (why := forbidden(self.listener, disk, found)) is not None:
                self.left.append(disk)
                self._failed(disk, why)
            elif disk.now:
                return True
            else:
                if not disk.steps:
                    self.applier.record(found)
                self.left.append(disk)
                self._ended(disk, "unchanged")
        except (ReconcilerError, OSError) as error:
            self._failed(disk, str(error), _as_ours(error))
        return False

    def _look_again(self, disk: DiskPlan, found: Look) -> None:
        """After its steps: a disk is done, or goes to the next round."""
        try:
            again, fresh = self.applier.planned_again(found)
        except (ReconcilerError, OSError) as error:
            self._failed(disk, str(error), _as_ours(error))
            return
        if again.error:
            self._failed(again, again.error)
        elif again.now:
            self.rest.append((again, fresh))
        else:
            self.left.append(again)
            self._ended(again, "applied")
            self.listener.reached(again, fresh)

    def _begin(self, label: str, step: Step) -> None:
        found = self._seen[label][1]
        if found.resumed is None and not isinstance(step, Remove):
            self.begun.setdefault(label, found)

    def _is_as(self, before: Look) -> bool:
        """True where a disk has the same images in the same order, and no steps in flight."""
        try:
            now = self.applier.looking.again(before.desired)
        except (ReconcilerError, OSError):
            return False
        known = [(image.path, image.identity) for image in before.chain]
        same = known == [(image.path, image.identity) for image in now.chain]
        return same and now.error is None and now.resumed is None

    def _failed(self, disk: DiskPlan, why: str, error: ReconcilerError | None = None) -> None:
        self._ended(disk, "failed", why, error)

    def _ended(
        self,
        disk: DiskPlan,
        status: Status,
        why: str | None = None,
        error: ReconcilerError | None = None,
    ) -> None:
        count = len(self.done.get(disk.label, ()))
        self.add(Result(disk.domain, disk.target, status, why, count, error))


def forbidden(listener: Listener, disk: DiskPlan, found: Look) -> str | None:
    """Why nothing may be done to a disk; a domain is stopped only where all its disks may."""
    others = found.domain.disks if disk.restart and found.domain else ()
    plans = (disk, *(replace(disk, target=target) for target in others))
    return next((why for one in plans if (why := listener.forbidden(one))), None)


def refusal(listener: Listener, disk: DiskPlan, found: Look) -> str | None:
    """Why a plan will be refused, as far as that can be told before anything is done."""
    if found.lost is not None or not disk.now:
        return found.lost
    try:
        permitted.require(disk, found)
    except ReconcilerError as error:
        return str(error)
    return forbidden(listener, disk, found)


def _as_ours(error: ReconcilerError | OSError) -> ReconcilerError:
    if isinstance(error, ReconcilerError):
        return error
    return StaleChain(f"{error}; nothing is lost: apply again")


@dataclass(slots=True)
class _Remembering:
    """Passes everything on to a reporter, and remembers the steps that were done."""

    reporter: Reporter
    done: dict[str, list[Done]]
    begin: Callable[[str, Step], None]

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        self.begin(plan.label, planned.step)
        self.reporter.step(plan, number, planned)

    def progress(self, done: float) -> None:
        self.reporter.progress(done)

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        self.done.setdefault(plan.label, []).append(Done(planned, seconds))
        self.reporter.finished(plan, number, planned, seconds)

    def note(self, plan: DiskPlan, text: str) -> None:
        self.reporter.note(plan, text)
