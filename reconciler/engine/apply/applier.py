"""Applying the plans of one domain's disks: locks, looks, and what goes before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.engine import permitted, planning
from reconciler.engine.apply import recovery, sequence
from reconciler.engine.apply.disk_run import DiskRun, Going
from reconciler.engine.apply.options import Options
from reconciler.engine.apply.reporter import Reporter
from reconciler.engine.apply.side_by_side import all_or_none, side_by_side
from reconciler.engine.disk_state import now
from reconciler.engine.looking import Looking
from reconciler.engine.planning import Work
from reconciler.engine.recorded import settled_state
from reconciler.engine.state import Session, StateFolder
from reconciler.engine.tasks import Look
from reconciler.model.desired import Spec
from reconciler.model.errors import Busy, ReconcilerError, StaleChain
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import Create
from reconciler.tools.lookups import Memory

if TYPE_CHECKING:
    from reconciler.tools.hypervisor import Hypervisor


@dataclass(slots=True)
class Applier:
    """
    Applies plans, disk by disk, to the chains of one spec.

    Args:
        memory: What looks found, for the next one.
    """

    spec: Spec
    states: StateFolder
    options: Options
    reporter: Reporter
    memory: InitVar[Memory | None] = None
    looking: Looking = field(init=False)

    def __post_init__(self, memory: Memory | None) -> None:
        self.looking = Looking(self.spec, self.states, memory or Memory())

    def apply(self, work: Sequence[Work]) -> list[ReconcilerError | None]:
        """
        Carry out the plans of one domain's disks, and look again.

        Each disk goes on by itself, except for what happens to all of them at
        the same moment: snapshots of a running guest, its definition, its start.
        Disks that the guest is stopped for, or all where `Options.together` says so,
        begin only if each of them can.

        Returns:
            For each disk, what went wrong: StaleChain (nothing is done, plan
            again), StepFailed (the disk reads right, apply again) or Busy.
        """
        errors: list[ReconcilerError | None] = [None] * len(work)
        try:
            with ExitStack() as held:
                sessions = held.enter_context(self._locked([plan for plan, _ in work]))
                bound = [
                    index
                    for index, (plan, _) in enumerate(work)
                    if plan.restart or self.options.together
                ]
                able = _permitted(work, bound, errors)
                held.enter_context(self._stopped(list(able.values()), sessions))
                runs: dict[int, Going] = {}
                stopped = any(plan.restart for plan, _ in able.values())
                for index, (plan, found) in able.items():
                    try:
                        session = sessions[plan.label]
                        runs[index] = self._begun(plan, found, session, stopped=stopped)
                    except ReconcilerError as error:
                        errors[index] = error
                all_or_none(bound, runs, errors)
                side_by_side(runs, bound, errors)
        except ReconcilerError as error:
            errors = [one or error for one in errors]
        for (_, found), wrong in zip(work, errors, strict=True):
            if wrong is not None:
                self.looking.leave(found.desired)
        return errors

    def _begun(self, plan: DiskPlan, found: Look, session: Session, *, stopped: bool) -> Going:
        fresh = self.looking.again(found.desired)
        if stopped and not plan.restart:
            # planned for a guest that runs, and off now because of another disk
            plan = planning.plan_disk(fresh)
            if plan.error:
                raise StaleChain(plan.error)
        elif found.resumed is not None and fresh.resumed is None and fresh.error is None:
            # another virt-chain has finished them; what else there is to do has its own round
            plan = replace(plan, steps=())
        elif found.at_work is not None or planning.fingerprint_of(fresh) != plan.fingerprint:
            plan = self._same_steps(plan, fresh)
        if fresh.task is not None and fresh.task.busy:
            raise Busy(f"{fresh.chain.images[-1].path} is open for writing; shut the guest off")
        permitted.require(plan, fresh)
        run = DiskRun(
            plan, fresh, session, self.options, self.reporter, self.looking, self.spec.host
        )
        return sequence.run(run)

    @contextmanager
    def _stopped(self, work: Sequence[Work], sessions: Mapping[str, Session]) -> Iterator[None]:
        """The guest is off where a plan needs that, and runs again afterwards."""
        restarted = next((found for plan, found in work if plan.restart), None)
        if restarted is None or restarted.host is None or restarted.domain is None:
            yield
            return
        host, name = restarted.host, restarted.domain.name
        session = sessions[restarted.desired.label]
        # first: a kill from here on leaves a guest that the next apply starts again
        session.write(replace(session.state, restart=True))
        host.stop(name, restarted.desired.shutdown_timeout)
        try:
            yield
        finally:
            _run_again(host, session)

    def start_again(self, plan: DiskPlan, found: Look) -> None:
        """
        Start a guest that an apply stopped for a rollback, and was killed before it started it.

        Raises:
            ReconcilerError: Another virt-chain is at the disk, or the guest does not start.
        """
        disk, host = found.desired, found.host
        if host is None:
            return
        targets = self.states.stopped_for(disk.domain)
        if not targets:
            return
        with ExitStack() as held:
            # whoever stopped it may be at work; the disk may be in no spec any more
            sessions = [
                held.enter_context(self.states.locked(disk.domain, target, self.options.wait_for))
                for target in targets
            ]
            if sessions[-1].state.restart and _run_again(host, sessions[-1]):
                self.reporter.note(plan, "the guest runs again: an interrupted apply stopped it")

    def _same_steps(self, plan: DiskPlan, fresh: Look) -> DiskPlan:
        """
        A new plan for a disk whose surroundings changed, if it has the steps of *plan*, or none.

        Another disk of the same apply may just have left an image that both shared, or another
        virt-chain has done what there was to do.
        """
        current = planning.plan_disk(fresh)
        steps = [one.step for one in current.now]
        if current.error or (steps and steps != [one.step for one in plan.now]):
            raise StaleChain(
                f"{plan.label} changed since the plan was made (it is {fresh.chain} now"
                f"{'; ' + current.error if current.error else ''}); plan again"
            )
        return replace(current, restart=plan.restart)

    def planned_again(self, found: Look) -> Work:
        """What is left to do for a disk after its plan was carried out."""
        fresh = self.looking.after(found.desired)
        return planning.plan_disk(fresh), fresh

    def wake(self, plan: DiskPlan, found: Look) -> None:
        """
        Let a guest run on that an interrupted step has left paused, or its filesystems frozen.

        Raises:
            Busy: Another virt-chain is at the disk; the guest may stand still for it.
        """
        unfinished, host, disk = found.state.unfinished, found.host, found.desired
        if host is None or unfinished is None or not unfinished.live:
            return
        with self.states.locked(disk.domain, disk.target, self.options.wait_for) as session:
            unfinished = session.state.unfinished
            domain = host.domain(disk.domain)
            if unfinished is None or not unfinished.live or domain is None or not domain.on:
                return
            if domain.state == "paused":
                host.resume(disk.domain)
                self.reporter.note(plan, "the guest runs on: it stood still for a flush")
            if any(isinstance(step, Create) for step in unfinished.steps):
                host.thaw(disk.domain)

    def record(self, found: Look) -> None:
        """
        Remember the images of a disk that is as its spec says.

        Raises:
            Busy: Somebody works on the disk.
        """
        if found.chain.active is None or found.changes:
            return
        if settled_state(found.state, found.chain) == found.state:
            return
        disk = found.desired
        with self.states.locked(disk.domain, disk.target, self.options.wait_for) as session:
            if replace(session.state, names=found.state.names) != found.state:
                return  # somebody has applied it since: what was found is out of date
            recovery.tidy(found.state.unfinished)  # a record of steps that never began is dropped
            state = settled_state(found.state, found.chain)
            session.write(replace(state, applied=now()))

    @contextmanager
    def _locked(self, plans: Sequence[DiskPlan]) -> Iterator[dict[str, Session]]:
        """The sessions of the disks, with every folder held that their images lie in."""
        with ExitStack() as held:
            sessions = {
                plan.label: held.enter_context(
                    self.states.locked(plan.domain, plan.target, self.options.wait_for)
                )
                for plan in sorted(plans, key=lambda plan: (plan.domain, plan.target))
            }
            held.enter_context(self.states.folders_locked(_folders(plans), self.options.wait_for))
            yield sessions


def _run_again(host: Hypervisor, session: Session) -> bool:
    """
    See that the guest of a disk runs, and forget that it has to be started.

    Returns:
        False where it runs already, or is there no more.
    """
    domain = host.domain(session.domain)
    off = domain is not None and not domain.on
    if off:
        host.start(session.domain)
    session.write(replace(session.state, restart=False))
    return off


def _folders(plans: Iterable[DiskPlan]) -> set[Path]:
    """Folders that the images of *plans* lie in or will lie in."""
    paths = {path for plan in plans for path in (*plan.observed.paths, *plan.desired)}
    return {path.parent for path in paths if path.parent.is_dir()}


def _permitted(
    work: Sequence[Work], bound: Sequence[int], errors: list[ReconcilerError | None]
) -> dict[int, Work]:
    """Those of *work* that this user may carry out, asked before a guest is stopped for it."""
    able: dict[int, Work] = {}
    for these in (bound, [index for index in range(len(work)) if index not in bound]):
        stopped = any(plan.restart for plan, _ in able.values())
        for index in these:
            plan, found = work[index]
            try:
                permitted.require(plan, found, stopped=stopped)
                able[index] = plan, found
            except ReconcilerError as error:
                errors[index] = error
        all_or_none(bound, able, errors)
    return dict(sorted(able.items()))
