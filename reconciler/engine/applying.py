"""
Applying: look, act, look again, for each step of one disk's plan.

The protocol of a group of steps is: remember it, do each step, look, remember
that it is finished.  Whatever is no longer needed is removed last, after all
that was written was checked and every header that could name it was read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reconciler.backends.offline import Offline, Verify
from reconciler.engine import permitted, planning
from reconciler.engine.disk_state import (
    DiskState,
    Leftover,
    OldLink,
    Unfinished,
    begun,
    now,
)
from reconciler.engine.looking import Looking
from reconciler.engine.recorded import settled_state
from reconciler.engine.state import Session, StateFolder, waiting
from reconciler.engine.tasks import Look
from reconciler.model.desired import Spec
from reconciler.model.errors import (
    Busy,
    ReconcilerError,
    StaleChain,
    StepFailed,
    Stopped,
    worded,
)
from reconciler.model.image import Chain, FileId, Identity, short_name
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import (
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Step,
    active_after,
    rewritten,
    touched,
)
from reconciler.planner.books import memory_note
from reconciler.planner.price import room
from reconciler.tools import files, images, quarantine, views
from reconciler.tools.lookups import Memory
from reconciler.tools.overlays import Overlays

if TYPE_CHECKING:
    from reconciler.backends.together import Together
    from reconciler.tools.hypervisor import Hypervisor

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds to wait for another virt-chain on the same disk or folder, where nothing else is said."""
LEFT = "left as it is, because another disk of the domain cannot be changed now"


Work = tuple[DiskPlan, Look]
"""A plan with the look that it was made from."""
Going = Generator["Together", None, None]
"""A disk's plan being carried out, until it waits for the other disks of its domain."""


class Reporter(Protocol):
    """Who is told what happens; the command line has one, tests have another."""

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        """Step *number*, counted from 1, begins."""

    def progress(self, done: float) -> None:
        """The part of the current step that is done, from 0 to 1."""

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        """Step *number* is done."""

    def note(self, plan: DiskPlan, text: str) -> None:
        """Something that the reader should know."""


@dataclass(slots=True)
class Options:
    """
    How to apply.

    Attributes:
        verify: What to compare.
        bandwidth: How fast to copy, in bytes a second; None: without a limit.
        patience: Seconds to wait for another virt-chain on the same disk or folder.
        stopping: True when nothing more shall begin.
        together: The disks of a domain are changed together, or none begins.
    """

    verify: Verify = "moved"
    bandwidth: int | None = None
    patience: float = PATIENCE
    stopping: Callable[[], bool] = lambda: False
    together: bool = False


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
                _all_or_none(bound, runs, errors)
                _side_by_side(runs, bound, errors)
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
        return _Run(self, plan, fresh, session).run()

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
                held.enter_context(self.states.locked(disk.domain, target, self._wait_for))
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

    def go_on(self) -> None:
        """Raises Stopped at a point that is as good as any to stop at."""
        if self.options.stopping():
            raise Stopped("stopped as asked; nothing is lost: virt-chain apply continues")

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
        with self.states.locked(disk.domain, disk.target, self._wait_for) as session:
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
        with self.states.locked(disk.domain, disk.target, self._wait_for) as session:
            if replace(session.state, names=found.state.names) != found.state:
                return  # somebody has applied it since: what was found is out of date
            _tidy(found.state.unfinished)  # a record of steps that never began is dropped
            state = settled_state(found.state, found.chain)
            session.write(replace(state, applied=now()))

    @contextmanager
    def _locked(self, plans: Sequence[DiskPlan]) -> Iterator[dict[str, Session]]:
        """The sessions of the disks, with every folder held that their images lie in."""
        with ExitStack() as held:
            sessions = {
                plan.label: held.enter_context(
                    self.states.locked(plan.domain, plan.target, self._wait_for)
                )
                for plan in sorted(plans, key=lambda plan: (plan.domain, plan.target))
            }
            held.enter_context(self.states.folders_locked(_folders(plans), self._wait_for))
            yield sessions

    def _wait_for(self, path: Path, what: str) -> AbstractContextManager[None]:
        return waiting(self.options.patience, self.go_on)(path, what)


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
        _all_or_none(bound, able, errors)
    return dict(sorted(able.items()))


def _all_or_none(
    bound: Sequence[int], going: dict[int, Any], errors: list[ReconcilerError | None]
) -> None:
    """None of the disks *bound* together is left in *going* where one of them failed."""
    if _split(bound, errors):
        for index in bound:
            going.pop(index, None)
            errors[index] = errors[index] or StaleChain(LEFT)


def _split(bound: Sequence[int], errors: Sequence[ReconcilerError | None]) -> bool:
    """True where one of the disks *bound* together failed."""
    return any(errors[index] is not None for index in bound)


def _side_by_side(
    runs: dict[int, Going], bound: Sequence[int], errors: list[ReconcilerError | None]
) -> None:
    """
    Let *runs* go on until all have ended; those that failed leave their error in *errors*.

    Each goes as far as it can by itself.  When all wait, those that wait for
    the same go on together; the start of the domain comes last.  Once one of those
    *bound* together has failed, no other of them begins, none is a restore point of
    another moment, and the guest is not started on some of them.
    """
    waiting: dict[int, Together] = {}

    def go(index: int, failed: ReconcilerError | None = None) -> None:
        waiting.pop(index, None)
        try:
            run = runs[index]
            waiting[index] = next(run) if failed is None else run.throw(failed)
        except StopIteration:
            pass
        except ReconcilerError as error:
            errors[index] = error
        except OSError as error:  # between two steps
            errors[index] = StaleChain(f"{worded(error)}; nothing is lost: apply again")

    for index in runs:
        if index in bound and _split(bound, errors):
            errors[index] = StaleChain(LEFT)
        else:
            go(index)
    while waiting:
        from reconciler.backends.together import carry_out  # for libvirt alone

        kinds = {one.kind for one in waiting.values()}
        kind = min(kinds, key=("attach", "snapshot", "start").index)
        these = {index: one for index, one in waiting.items() if one.kind == kind}
        failed: ReconcilerError | None = None
        if kind != "attach" and not these.keys().isdisjoint(bound) and _split(bound, errors):
            failed = StaleChain(LEFT)
        try:
            if failed is None:
                carry_out(list(these.values()))
        except ReconcilerError as error:
            failed = error
        for index in these:
            go(index, failed)


def _backend(
    found: Look,
    names: Mapping[Path, Path],
    applier: Applier,
    pivoting: Callable[[Sequence[Path]], None],
) -> Offline:
    """Who does the steps of *found*: qemu-img, or libvirt while the guest runs."""
    common: dict[str, Any] = {
        "trust": found.trust,
        "names": names,
        "verify": applier.options.verify,
        "bandwidth": applier.options.bandwidth,
        "progress": applier.reporter.progress,
    }
    if found.host is None or found.domain is None:
        return Offline(**common)
    where: dict[str, Any] = {
        "host": found.host,
        "domain": found.domain.name,
        "target": found.desired.target,
    }
    if found.domain.on:
        from reconciler.backends.live import Live

        return Live(**common, **where, quiesce=found.desired.quiesce, pivoting=pivoting)
    from reconciler.backends.shut_off import ShutOff

    return ShutOff(**common, **where)


def _tidy(unfinished: Unfinished | None) -> None:
    """Remove what steps that were interrupted have begun to make."""
    for step in unfinished.steps if unfinished else ():
        for path in touched(step):
            files.unmade(path).unlink(missing_ok=True)


def _rewritten(steps: Iterable[Step]) -> dict[Path, None]:
    """Images whose data *steps* write in place: from here on nobody takes them for untouched."""
    return dict.fromkeys(path for step in steps for path in rewritten(step))


def _is_last(planned: PlannedStep) -> bool:
    """True for what comes after all changes of the chain, each by itself."""
    forgets = isinstance(planned.step, Forget) and planned.group is None
    return forgets or isinstance(planned.step, Remove)


def _identities(chain: Chain) -> dict[Path, Identity | None]:
    return {image.path: image.identity for image in chain}


@dataclass(slots=True)
class _Run:
    """One disk's plan being carried out."""

    applier: Applier
    plan: DiskPlan
    found: Look
    session: Session
    backend: Offline = field(init=False)
    state: DiskState = field(init=False)
    resumed: Unfinished | None = field(init=False)
    active: Path | None = field(init=False)
    names: dict[Path, Path] = field(init=False)
    number: int = 0
    written: dict[Path, None] = field(default_factory=dict)
    merged_at: dict[Path, FileId | None] = field(default_factory=dict)
    overlays: Overlays = field(default_factory=Overlays)
    stays: set[Path] = field(default_factory=set)
    looked_at: dict[Path, Identity | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.looked_at = _identities(self.found.chain)
        self.state = self.found.state
        self.names = dict(self.state.names)
        self.backend = _backend(self.found, self.names, self.applier, self._pivoting)
        self.resumed = self.found.resumed
        active = self.found.chain.active
        self.active = active.path if active else None

    def run(self) -> Going:
        """Each step in turn; yields what has to be done together with other disks."""
        self._define()
        if self.resumed is None:
            _tidy(self.found.state.unfinished)
        views_before = self._digests()
        early = [one for one in self.plan.now if self._is_old_leftover(one)]
        later = [one for one in self.plan.now if one not in early]
        self._remove_all(early, old=True)
        changes = [one for one in later if not _is_last(one)]
        for _, unit in groupby(
            changes, key=lambda one: one.group if one.group is not None else id(one)
        ):
            yield from self._unit(tuple(unit))
            thrown = [one for one in later if self._is_discarded(one)]
            if thrown and not self.plan.restart:
                # they stand on images that the next steps may rename
                images.confirm(self.backend.observe(self.active))
                self._remove_all(thrown)
                later = [one for one in later if one not in thrown]
        self._look_again(views_before)
        if self.plan.restart:
            yield from self._started()
        self._forget_all(one for one in later if isinstance(one.step, Forget) and _is_last(one))
        removals = [one for one in later if isinstance(one.step, Remove)]
        self._remove_all(removals, old=self.resumed is not None)
        self._remember(replace(self._now(settled=True), applied=now()))

    def _started(self) -> Going:
        """Start the guest before anything is removed; put its disk back where it does not start."""
        from reconciler.backends.together import Together  # for libvirt alone

        host, domain, before = self.found.host, self.found.domain, self.found.chain.active
        assert host is not None
        assert domain is not None
        assert before is not None
        assert self.active is not None
        target = self.plan.target
        try:
            yield Together("start", host, domain.name, target, self.active)
        except ReconcilerError as error:
            yield Together("attach", host, domain.name, target, before.path, before.format)
            for planned in self.plan.now:
                if isinstance(planned.step, Create):
                    files.remove(planned.step.image)
            self.active = before.path
            self._remember(replace(self._now(settled=True), leftovers=()))
            why = f"{error}; the domain has {before} as its disk again"
            raise StepFailed(f"start {domain.name}", self.number, why) from error

    def _define(self) -> None:
        """Let the definition name the image that QEMU writes to, if libvirt was killed before."""
        domain, host, target = self.found.domain, self.found.host, self.plan.target
        if not (self.resumed and self.resumed.live and domain and host and domain.on):
            return
        now, later = domain.live[target], domain.persistent.get(target)
        if later and later.path and now.path and later.path != now.path:
            host.attach(domain.name, {target: (now.path, now.format or "qcow2")})

    def _pivoting(self, images_: Sequence[Path]) -> None:
        """Remember that from now on either of two images, which hold the same, may be active."""
        assert self.state.unfinished is not None
        pivots = {path: who for path in images_ if (who := files.durable_id(path)) is not None}
        unfinished = replace(self.state.unfinished, pivots=pivots)
        self._remember(replace(self.state, unfinished=unfinished))

    def _pivoted(self, step: Step) -> bool | None:
        """
        True where QEMU, which has ended, left *step* in its base; False: in its top.

        Raises:
            StaleChain: Both were written to since, and nobody can tell.
        """
        pivots = self.resumed.pivots if self.resumed else {}
        if not isinstance(step, Commit) or step.top not in pivots:
            return None
        top, base = (
            not files.is_as_it_was(path, pivots.get(path)) for path in (step.top, step.base)
        )
        if top and base:
            raise StaleChain(
                f"{step} was interrupted while QEMU changed from one image to the other, and "
                "both were written to since; find out which has the current state"
            )
        return not top

    def _now(self, *, settled: bool = False) -> DiskState:
        """The state as it is after the steps done so far; *settled*: none of them is half done."""
        state = replace(self.state, active=self.active, names=dict(self.names))
        return settled_state(state, self.backend.observe(self.active)) if settled else state

    def _is_old_leftover(self, planned: PlannedStep) -> bool:
        step = planned.step
        return isinstance(step, Remove) and any(
            left.path == step.image for left in self.found.state.leftovers
        )

    def _is_discarded(self, planned: PlannedStep) -> bool:
        """True where *planned* removes an image that was discarded by the steps so far."""
        step = planned.step
        return isinstance(step, Remove) and any(
            left.path == step.image and left.discarded for left in self.state.leftovers
        )

    # One group of steps

    def _unit(self, unit: tuple[PlannedStep, ...]) -> Going:
        resumed = self.resumed
        if self.number and resumed is None:
            self._still_alone(unit)
        unfinished = resumed or self._unfinished(unit)
        rewritten = [path for path in _rewritten(unfinished.steps) if path in unit[0].before]
        for path in rewritten:
            if not self.backend.live and files.written_by_other(path):
                raise Busy(f"{path} is open for writing; close it, then apply again")
        self._remember(begun(self._now(), unfinished))
        if resumed is None:
            for path in rewritten:
                files.touch(path)
        for planned in unit:
            yield from self._step(planned, again=resumed is not None)
        left = tuple(self._as_left(one) for one in unfinished.remove)
        # what is in the chain again, under its old name, is no leftover
        chain = self.backend.observe(self.active)
        leftovers = tuple(one for one in (*self.state.leftovers, *left) if one.path not in chain)
        if not self.backend.live:
            self._drop_names(chain)
        self._remember(replace(self._now(settled=True), leftovers=leftovers))

    def _still_alone(self, unit: tuple[PlannedStep, ...]) -> None:
        """Raises StaleChain where somebody has come to use what *unit* writes to."""
        written = _rewritten(one.step for one in unit)
        if not written:
            return
        fresh = self.applier.looking.again(self.found.desired)
        if fresh.task is None:
            raise StaleChain(fresh.error or "the disk cannot be read")
        before = self.found.task.users if self.found.task else {}
        for path in written:
            if new := set(fresh.task.users.get(path, ())) - set(before.get(path, ())):
                raise StaleChain(f"{', '.join(sorted(new))} uses {path} by now; plan again")

    def _as_left(self, left: Leftover) -> Leftover:
        """
        *left*, as it is now that its data is merged.

        A file that was written to, or replaced, since its data was read is left as it was
        known: it is never removed.
        """
        known = self.merged_at.get(left.path) or left.file
        who = files.durable_id(left.path)
        return replace(left, file=who if who and who.has_same_content(known) else known)

    def _drop_names(self, chain: Chain) -> None:
        """Second names that QEMU had while it ran, and that no header has any more, go."""
        for second in [path for path in self.names if not any(i.second == path for i in chain)]:
            there = images.identity(second)
            if second not in chain and any(image.identity == there for image in chain):
                files.remove(second)
            del self.names[second]

    def _unfinished(self, unit: tuple[PlannedStep, ...]) -> Unfinished:
        before, after = unit[0].before, unit[-1].after
        gone = [
            image
            for image in reversed(before.images)
            if image.path not in after
            and any(one.step == Remove(image.path) for one in self.plan.now)
        ]
        second = [replace(image, path=image.second) for image in gone if image.second]
        return Unfinished(
            steps=tuple(one.step for one in unit),
            remove=tuple(
                Leftover(image.path, who, image.path in self.plan.restore_points.discarded)
                for image in (*gone, *second)
                if (who := files.durable_id(image.path)) is not None
            ),
            links=tuple(
                OldLink(i.path, i.recorded, i.recorded_format, files.durable_id(i.path))
                for i in before
            ),
            live=self.found.domain is not None and self.found.domain.state == "running",
        )

    def _step(self, planned: PlannedStep, *, again: bool) -> Going:
        step = planned.step
        self.applier.go_on()
        self.number += 1
        began = time.monotonic()
        self.applier.reporter.step(self.plan, self.number, planned)
        log.info("%s: %s", self.plan.label, step)
        try:
            chain = self.backend.observe(self.active)
            if again:
                self.backend.settle()
            done = again and self._was_done(step, chain)
            if again:
                self.backend.mend(step, chain)
            if done:
                if isinstance(step, Commit) and step.top.exists():
                    self.merged_at[step.top] = files.durable_id(step.top)
                self._follow(step)
                self.looked_at = {}
            else:
                # looking at what was done may have put a header back
                chain = self.backend.observe(self.active) if again else chain
                yield from self._do(planned, chain, again)
        except (ReconcilerError, OSError) as error:
            raise StepFailed(str(step), self.number - 1, worded(error)) from error
        if again or self.backend.live or not isinstance(step, Commit | Pull):
            # offline merges are checked before their header is written
            self.written.update(dict.fromkeys(touched(step)))
        seconds = time.monotonic() - began
        self.applier.reporter.finished(self.plan, self.number, planned, seconds)

    def _do(self, planned: PlannedStep, chain: Chain, again: bool) -> Going:
        """Look, act, look again."""
        step = planned.step
        if not again and chain.paths != planned.before.paths:
            raise StaleChain(f"the chain is {chain} now, not {planned.before}")
        self._same_files(chain)
        self._room(planned)
        sources = {path: files.file_id(path) for path in self.backend.read_sources(step, chain)}
        with ExitStack() as held:
            if isinstance(step, Rename) and step.target in self.merged_at:
                held.enter_context(files.guarded(step.target))
                self._unchanged(step)
            together = self.backend.run(step, chain)
        if together is not None:
            try:
                yield together
            except ReconcilerError:
                self._refused(step, chain)
                raise
        if isinstance(step, Forget):
            self._tell_of_memory(step.snapshot)
        for path, known in sources.items():
            if not files.is_as_it_was(path, known):
                raise StaleChain(f"{path} was written to while it was being merged")
        self.merged_at.update(sources)
        if isinstance(step, Commit):
            self.merged_at[step.top] = files.durable_id(step.top)  # a guest may have written to it
        self._follow(step)
        after = self.backend.observe(self.active)
        self._same_files(after, touched(step))
        self.looked_at = _identities(after)
        if not again and after.paths != planned.after.paths:
            raise StaleChain(f"the chain is {after} after it, not {planned.after}")

    def _refused(self, step: Step, chain: Chain) -> None:
        """Forget a group of steps whose first one libvirt refused, and left nothing of."""
        unfinished = self.state.unfinished
        if unfinished is None or unfinished.steps[0] != step:
            return
        if self.backend.taken_back(step, chain):
            self._remember(replace(self._now(), unfinished=None))

    def _same_files(self, chain: Chain, renamed: Sequence[Path] = ()) -> None:
        """A file that somebody has put in the place of an image that was looked at is no image."""
        for image in chain:
            known = self.looked_at.get(image.path, image.identity)
            if known != image.identity and image.path not in renamed:
                raise StaleChain(f"{image.path} is another file now than when the plan was made")

    def _was_done(self, step: Step, chain: Chain) -> bool:
        """True where the interrupted *step* is done, and reads right."""
        if not self.backend.live and (pivoted := self._pivoted(step)) is not None:
            return pivoted
        if not self.backend.done(step, chain):
            return False
        if self.backend.live:
            return True
        unfinished = self.state.unfinished
        if unfinished and unfinished.live and self._went_back(step, chain, unfinished):
            return False
        image = step.into if isinstance(step, Pull) else None
        image = step.image if isinstance(step, Rebase) else image
        if image is None or unfinished is None or image not in chain:
            return True
        return self._reads_as_before(image, chain, unfinished)

    def _reads_as_before(self, image: Path, chain: Chain, unfinished: Unfinished) -> bool:
        """
        Compare a relinked image with itself on its old backing file.

        A relink by qemu-img is durable only after the data; should it not be,
        the header goes back to the old backing file, and the step is done again.
        """
        old = next((link for link in unfinished.links if link.image == image), None)
        if old is None or old.backing is None:
            return True
        below = self.backend.observe_below(image, old.backing, old.format)
        if below is None:
            return True  # removed: it was compared before that
        return self.backend.confirm_relinked(chain, image, below)

    def _went_back(self, step: Step, chain: Chain, unfinished: Unfinished) -> bool:
        """
        Undo a relink by a QEMU that has ended since; True where there was one.

        The header may have been durable before the data was.  What was merged
        away is untouched until QEMU has flushed, so one header leads back.
        """
        if not isinstance(step, Pull | Commit):
            return False
        for link in unfinished.links:
            if link.image not in chain or link.backing is None:
                continue
            below = self.backend.observe_below(link.image, link.backing, link.format)
            if below is None or below.active is None:
                continue
            if isinstance(step, Commit):
                meant = images.identity(step.top) == below.active.identity
            else:
                meant = link.image == step.into
            now = chain.backing_of(link.image)
            if meant and (now is None or now.identity != below.active.identity):
                self.backend.go_back(link.image, link.backing, link.format)
                return True
        return False

    def _follow(self, step: Step) -> None:
        """Keep in mind which image is active after *step*, and under which names."""
        match step:
            case Rename(source, target, True) if self.backend.live:
                known = next((qemu for qemu, spec in self.names.items() if spec == source), source)
                self.names[known] = target
                return
            case Rename(source):
                self.names.pop(source, None)
        self.active = active_after(self.active, step)

    def _unchanged(self, step: Step) -> None:
        """What a rename replaces is as it was when its data was merged."""
        merged = self.merged_at.get(step.target) if isinstance(step, Rename) else None
        if isinstance(step, Rename) and merged and not files.is_as_it_was(step.target, merged):
            raise StaleChain(f"{step.target} was written to while it was being merged")

    def _room(self, planned: PlannedStep) -> None:
        if planned.room:
            folder = touched(planned.step)[0].parent
            free = files.free_bytes(folder)
            if room(planned.room) > free:
                raise StaleChain(f"{folder} has {free} bytes free, and the step needs more")

    # Looking again, and removing

    def _digests(self) -> dict[Path | None, str]:
        """Digests of all kept views, and of the current state (None), with ``--verify full``."""
        points = self.plan.restore_points
        if self.applier.options.verify != "full" or self.resumed:
            return {}
        chain = self.found.chain
        found: dict[Path | None, str] = {
            path: views.digest(chain.up_to(path).images) for path in points.kept
        }
        if current := self._current_state():
            found[None] = views.digest(current.images)
        return found

    def _current_state(self) -> Chain | None:
        """The chain, before the first step, whose view must be the guest's afterwards."""
        left = [i for i in self.found.chain if i.path not in self.plan.restore_points.discarded]
        return Chain(tuple(left)) if left else None

    def _look_again(self, before: dict[Path | None, str]) -> None:
        """Check what was written, let QEMU read the chain, and compare the digests."""
        try:
            chain = self.backend.observe(self.active)
            for image in chain:
                if image.path in self.written:
                    self.backend.check(image)
            images.confirm(chain)
            wanted = self.plan.now[-1].after.paths if self.plan.now else chain.paths
            if not self.resumed and chain.paths != wanted:
                raise StaleChain(f"the chain is {chain} after the last step")
            for path, digest in before.items():
                self._reads_the_same(path, digest, chain)
        except (ReconcilerError, OSError) as error:
            raise StepFailed("look again", self.number, worded(error)) from error

    def _reads_the_same(self, path: Path | None, digest: str, chain: Chain) -> None:
        current = self._current_state()
        size = current[len(current) - 1].virtual_size if path is None and current else None
        upper = chain if path is None else chain.up_to(path)
        name = "the current state" if path is None else short_name(path)
        if views.digest(upper.images, size) != digest:
            raise StaleChain(f"{name} reads differently; nothing was removed")
        self.applier.reporter.note(self.plan, f"{name} reads as before, sha256 {digest[:16]}")

    def _remove_all(self, removals: Sequence[PlannedStep], *, old: bool = False) -> None:
        """
        Remove files, after a fresh look at every header that could name one of them.

        Args:
            old: An earlier apply has left them: one that cannot go stays for a later one.
        """
        if not removals:
            return
        self.overlays = self.applier.looking.overlays(self.found.desired)
        gone = [planned for planned in removals if self._remove(planned, old=old)]
        removed = {path for planned in gone for path in touched(planned.step)}
        left = tuple(one for one in self.state.leftovers if one.path not in removed)
        self.state = replace(self.state, leftovers=left)  # files that are gone are no leftovers

    def _remove(self, planned: PlannedStep, *, old: bool) -> bool:
        """False where it cannot be removed, and may be another time."""
        assert isinstance(planned.step, Remove)
        path = planned.step.image
        self.applier.go_on()
        self.number += 1
        began = time.monotonic()
        self.applier.reporter.step(self.plan, self.number, planned)
        try:
            for one in [left for left in self.state.leftovers if left.path == path]:
                self._remove_leftover(planned.step, one)
        except (ReconcilerError, OSError) as error:
            if old and isinstance(error, OSError):
                self._stays(path, worded(error))
                return False
            raise StepFailed(str(planned.step), self.number - 1, worded(error)) from error
        seconds = time.monotonic() - began
        self.applier.reporter.finished(self.plan, self.number, planned, seconds)
        return True

    def _remove_leftover(self, step: Remove, left: Leftover) -> None:
        if users := self._users_of(left):
            self._stays(left.path, f"{', '.join(users)} stands on it")
        elif hidden := self._hidden_beside(left.path):
            self._stays(left.path, f"{hidden[0]} cannot be read and may stand on it")
        elif files.opened_by_other(left.path):
            self._stays(left.path, "another program has it open")
        elif planning.still_there(left):
            self._forget_states_of(left.path)
            seconds = self.applier.spec.host.keep(discarded=left.discarded)
            if not seconds:
                self.backend.run(step, Chain())
                return
            with files.guarded(left.path):
                put = quarantine.put(left.path, seconds, left.file.inode)
            self.applier.reporter.note(
                self.plan, f"{left.path.name} is kept as {put}; virt-chain gc --all frees its room"
            )

    def _hidden_beside(self, path: Path) -> Sequence[Path]:
        """Files beside *path* that cannot be read, each of which may be an overlay on it."""
        return [one for one in self.overlays.unreadable(path.parent) if one != path]

    def _stays(self, path: Path, why: str) -> None:
        """A leftover is not removed, and neither is what it stands on."""
        self.stays.add(path)
        self.applier.reporter.note(self.plan, f"{path.name} stays on disk: {why}")

    def _users_of(self, left: Leftover) -> list[str]:
        """Names of images that stand on the leftover, by the look at all headers."""
        chain = self.backend.observe(self.active)
        if left.path in chain:
            raise StaleChain(f"{left.path} is in the chain {chain}")
        gone = {one.path for one in self.state.leftovers} - self.found.claimed.keys() - self.stays
        users = self.overlays.ordered(images.identity(left.path))
        return [user.name for user in users if user not in gone]

    def _forget_all(self, planned: Iterable[PlannedStep]) -> None:
        """Drop libvirt's metadata of snapshots whose images are gone."""
        for one in planned:
            assert isinstance(one.step, Forget)
            self.number += 1
            self.applier.reporter.step(self.plan, self.number, one)
            self._forget(one.step.snapshot)
            self.applier.reporter.finished(self.plan, self.number, one, 0.0)

    def _forget(self, snapshot: str) -> None:
        host = self.found.host
        if host is not None and host.forget(self.plan.domain, snapshot):
            self._tell_of_memory(snapshot)

    def _tell_of_memory(self, snapshot: str) -> None:
        saved = self.found.task.snapshots.get(snapshot) if self.found.task else None
        if saved is not None and (note := memory_note(snapshot, saved)) is not None:
            self.applier.reporter.note(self.plan, note)

    def _forget_states_of(self, path: Path) -> None:
        """libvirt's metadata goes before the image that holds the state that it means."""
        known = self.found.task.snapshots if self.found.task else {}
        for name, saved in known.items():
            if saved.image == path:
                self._forget(name)

    def _remember(self, state: DiskState) -> None:
        self.state = state
        self.session.write(state)
