"""
One full pass: load, look, plan, decide for each disk what may happen, do it, tell.

A pass knows nothing of what triggered it, and does nothing that `apply` would
not do: what it lets through goes through the same Reconciling and Applier.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from reconciler.engine.apply.applier import Applier
from reconciler.engine.apply.options import Options
from reconciler.engine.apply.reporter import Reporter
from reconciler.engine.gate import Admitted, Gate
from reconciler.engine.looking import look
from reconciler.engine.planning import plan_all
from reconciler.engine.reconciling import ROUNDS, Reconciling, Result
from reconciler.engine.state import StateFolder, file_name
from reconciler.engine.tasks import Look
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.errors import ReconcilerError, SpecError, Stopped
from reconciler.model.plan import DiskPlan, Plan, PlannedStep
from reconciler.tools.lookups import Evidence, Lookups, Memory, is_settled
from reconciler.watch.holds import Holds, Suspensions
from reconciler.watch.metrics import Metrics
from reconciler.watch.status import DiskStatus, StatusFile

Fields = Mapping[str, object]


class Voice(Reporter, Protocol):
    """Who is told what happens: the reporter of steps, and lines about all the rest."""

    def tell(self, event: str, text: str, *, bad: bool = False, **more: object) -> None:
        """One line; *more* is for programs that read it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What the command line asks of every pass.

    Attributes:
        load: Reads the specs, as the host allows.
        choose: The disks of a spec that are watched; None: all.
        command: The command that applies a saved plan.
    """

    sources: tuple[Path, ...]
    load: Callable[[], Spec]
    choose: Callable[[Spec], Sequence[DesiredDisk] | None]
    command: Callable[[Path], str]
    interval: float
    jobs: int = 1
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Quiet:
    """A pass that found all disks as *spec* says, and every lookup that it relied on."""

    spec: Spec
    evidence: Evidence


@dataclass(slots=True)
class Passes:
    """All passes of one watch."""

    asked: Asked
    states: StateFolder
    options: Options
    voice: Voice
    metrics: Metrics | None = None
    holds: Holds = field(init=False)
    suspensions: Suspensions = field(init=False)
    status: StatusFile = field(init=False)
    disks: dict[str, DiskStatus] = field(default_factory=dict)
    next_pass: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: str = ""
    _said: dict[str, str] = field(default_factory=dict)
    _problem: str | None = None
    _complaints: dict[str, str] = field(default_factory=dict)
    _quiet: Quiet | None = None
    _memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        folder = self.states.folder
        self.holds, self.suspensions = Holds(folder), Suspensions(folder)
        self.status = StatusFile(folder)
        self.started = _stamp(datetime.now(UTC))
        try:
            self.disks = self.status.last()
        except ReconcilerError as error:
            self.voice.tell("status", f"{error} (this watch starts without it)", bad=True)
            self.status.start_over()

    def run(self, connected: Callable[[Spec], None] = lambda _: None) -> None:
        """
        One pass.  A spec that is bad, or a host that does not answer, leaves all as it is.

        Args:
            connected: Called with the spec before anything is looked at.
        """
        began = time.monotonic()
        try:
            spec = self.asked.load()
            connected(spec)
            gate = Gate(spec.host.allow, spec.host.max_drops, _too_many, doubts=False)
            for _ in range(ROUNDS):
                if not (left := self._pass(spec, gate)):
                    break
            for label, result in left.items():
                self._failed(result, _digest_of(spec, label))
            self._well()
        except Stopped:
            pass
        except (ReconcilerError, OSError) as error:
            self._trouble(error)
        if self.metrics is not None:
            bad, seconds = self._problem is not None, time.monotonic() - began
            with self._complaining("metrics"):
                self.metrics.passed(None if bad else self.disks, seconds)

    def due(self, latest: datetime) -> datetime:
        """When the next pass is: at *latest*, or when a suspension or a hold ends before that."""
        moments = [latest]
        with suppress(ReconcilerError, ValueError):
            ends = [one.end for one in self.suspensions.all().values()]
            ends += [datetime.fromisoformat(one.until) for one in self.holds.all() if one.until]
            moments += [end + timedelta(seconds=1) for end in ends if end > datetime.now(UTC)]
        self.next_pass = min(moments)
        with self._complaining("status"):
            self._write_status()
        return self.next_pass

    # One pass

    def _pass(self, spec: Spec, gate: Gate) -> dict[str, Result]:
        """
        Look, plan, decide, do.

        Returns:
            Disks that have more steps now, such as those after an interrupted merge that is
            finished: whether they may happen is for another pass to decide.
        """
        lookups = Lookups(self._memory)
        quiet = self._quiet
        if quiet is not None and not lookups.confirms(quiet.evidence):
            quiet = None
        if quiet is not None and quiet.spec == spec:
            return {}  # nothing has changed since all disks were as their specs say
        chosen = self._chosen(spec, quiet)
        with lookups.recording() as evidence:
            looks = look(spec, self.states, chosen, lookups=lookups)
        plan = plan_all(self.asked.sources, looks)
        found: dict[str, DiskStatus] = {}
        going: list[tuple[DiskPlan, Look]] = []
        for disk, one in zip(plan.disks, looks, strict=True):
            verdict = self._verdict(disk, one)
            if verdict is None:
                going.append((disk, one))
            else:
                found[disk.label] = verdict
        admitted = gate.enter([*going, *_unrecorded(plan, looks, found)])
        for disk, why in admitted.refused:
            found[disk.label] = self._waiting(disk, why)
        going = [one for one in admitted.work if one[0].now]
        self._gone(spec, found)
        dry = self.asked.dry_run
        what = "would be brought to its spec (--dry-run)" if dry else "is being brought to its spec"
        for disk, _ in going:
            found[disk.label] = _status("drift", disk, what)
        self._save_waiting(plan, found)
        self._warn(plan)
        self._tell(plan, found)
        listed = [disk.label for disk in spec.disks]
        known = {**self.disks, **found}
        self.disks = {one: known[one] for one in (*listed, *found) if one in known}
        left: dict[str, Result] = {}
        if not self.asked.dry_run:
            left = self._do(spec, admitted)
        settled = all(one.kind in ("in force", "vanished") for one in self.disks.values())
        if quiet is not None:
            evidence = {**quiet.evidence, **evidence}
        asleep = settled and not going and is_settled(evidence)
        # what runs writes to its images all the time
        plain = all(disk.connection is None for disk in spec.disks)
        self._quiet = Quiet(spec, evidence) if asleep and plain else None
        return left

    def _chosen(self, spec: Spec, quiet: Quiet | None) -> Sequence[DesiredDisk] | None:
        """
        The disks to look at: all, or those whose spec changed where nothing else has.

        The others were as their specs say, and no file has changed since; the
        pass after this one looks at all again.
        """
        chosen = self.asked.choose(spec)
        if quiet is None or quiet.spec.host != spec.host:
            return chosen
        known = {disk.label: disk for disk in quiet.spec.disks}
        every = spec.disks if chosen is None else chosen
        return [disk for disk in every if known.get(disk.label) != disk]

    def _verdict(self, disk: DiskPlan, found: Look) -> DiskStatus | None:
        """What keeps a disk from being changed now; None: nothing does."""
        if disk.error is not None or found.lost is not None:
            return _status("failing", disk, disk.error or found.lost or "")
        if not disk.now:
            if disk.steps:
                return _deferred(disk)
            self._good(disk.label)
            return _status("in force", disk, "; ".join(disk.warnings))
        if (held := self.holds.of(disk.domain, disk.target)) is not None:
            return _status("held", disk, held.text, f"virt-chain release {held.label}")
        if suspended := self.suspensions.active(disk.label, _digest(found.desired)):
            return _status("suspended", disk, suspended.text, f"virt-chain release {disk.label}")
        return None

    def _warn(self, plan: Plan) -> None:
        """What was changed from outside is said once, until it says something else."""
        for disk in plan.disks:
            about, text = f"{disk.label} warning", "; ".join(disk.warnings)
            if text and self._said.get(about) != text:
                self.voice.tell("warning", text, bad=True, disk=disk.label)
            self._said[about] = text

    def _waiting(self, disk: DiskPlan, why: str) -> DiskStatus:
        return _status("waiting", disk, why, self.asked.command(self._waiting_file(disk.label)))

    def _gone(self, spec: Spec, found: dict[str, DiskStatus]) -> None:
        """Disks that are no longer in the spec are left alone."""
        listed = {disk.label for disk in spec.disks}
        for label, known in self.disks.items():
            if label not in listed:
                why = "is no longer in the spec; its images are left as they are"
                found[label] = DiskStatus("vanished", known.chain, why, images=known.images)
        self.suspensions.over(set(self.suspensions.all()) - listed)

    # Doing, as reconciling.Listener has it

    def _do(self, spec: Spec, admitted: Admitted) -> dict[str, Result]:
        going = admitted.work
        if not going:
            return {}
        if working := [disk.label for disk, _ in going if disk.now]:
            self._write_status(working)
        reporter = _Counting(self.voice, self.metrics)
        applier = Applier(spec, self.states, self.options, reporter, self._memory)
        reconciling = Reconciling(applier, self)
        specs = {disk.label: _digest(one.desired) for disk, one in going}
        began = time.monotonic()
        try:
            reconciling.run(admitted, self.asked.jobs)
            reconciling.settle("applied")  # the next round looks at all again
        finally:
            reconciling.write_history()
        self._tell_end(reconciling.results, time.monotonic() - began)
        for disk in reconciling.left:
            self.disks[disk.label] = self._after(disk)
        failed = {one.label for one in reconciling.results if one.status == "failed"}
        for result in reconciling.results:
            if result.label in failed:
                self._failed(result, specs[result.label])
            elif result.status == "applied":
                self._good(result.label)
        return {
            disk.label: Result(
                disk.domain, disk.target, "failed", f"{_count(len(disk.now), 'step')} left"
            )
            for disk in reconciling.left
            if disk.now and disk.label not in failed
        }

    def _after(self, disk: DiskPlan) -> DiskStatus:
        if not disk.steps:
            return _status("in force", disk)
        if disk.now:
            return _status("drift", disk, "has more steps, which the next pass decides on")
        return _deferred(disk)

    def reached(self, plan: DiskPlan, found: Look) -> None:
        """The chain that a disk has now."""
        self.voice.tell("done", f"is {found.chain}", disk=plan.label, chain=str(found.chain))

    def ended(self, result: Result) -> None:
        """Failures are told where it is decided what they lead to."""

    def forbidden(self, plan: DiskPlan) -> str | None:
        """A hold counts from its first moment, in the middle of a pass too."""
        held = self.holds.of(plan.domain, plan.target)
        return None if held is None else held.text

    def _failed(self, result: Result, spec: str) -> None:
        why = result.message or ""
        if isinstance(result.error, Stopped):
            return
        if (held := self.holds.of(result.domain, result.target)) is not None:
            self.disks[result.label] = DiskStatus("held", why=held.text)
            self._say_once(result.label, "held", held.text)
            return
        made = self.suspensions.failed(result.label, result.error, why, spec)
        known = self.disks.get(result.label, DiskStatus("failing"))
        way_out = f"virt-chain release {result.label}"
        self.disks[result.label] = DiskStatus(
            "suspended", known.chain, made.text, way_out, known.steps, known.images
        )
        self._say_once(result.label, "failed", made.text, bad=True)
        if self.metrics is not None:
            self.metrics.failure(result.label)

    def _good(self, label: str) -> None:
        self.suspensions.over([label])

    # Telling

    def _tell(self, plan: Plan, found: Mapping[str, DiskStatus]) -> None:
        plans = {disk.label: disk for disk in plan.disks}
        for label, disk in found.items():
            plain = disk.kind in ("vanished", "held", "drift")
            text = disk.why if plain else f"{disk.kind}: {disk.why}"
            if label in plans and disk.kind in ("waiting", "held", "drift"):
                text += f"; planned: {_steps_text(plans[label])}"
            if disk.command:
                text += f"; go on with: {disk.command}"
            if disk.kind == "in force":
                self._said.pop(label, None)
            elif disk.kind != "drift" or self.asked.dry_run:
                self._say_once(label, disk.kind, text, bad=disk.kind == "failing")
        for label in set(self._said) - set(found):
            del self._said[label]

    def _tell_end(self, results: Sequence[Result], seconds: float) -> None:
        """One line for a pass that did something."""
        steps = sum(one.steps_done for one in results)
        done = sum(one.status == "applied" for one in results)
        failed = sum(
            one.status == "failed" and not isinstance(one.error, Stopped) for one in results
        )
        if done or failed:
            text = f"pass: {_count(steps, 'step')} in {seconds:.1f} s; {_count(done, 'disk')} done"
            text += f", {failed} not" if failed else ""
            self.voice.tell("pass", text, bad=bool(failed), steps=steps, done=done, failed=failed)

    def _say_once(self, label: str, event: str, text: str, *, bad: bool = False) -> None:
        if self._said.get(label) != text:
            self._said[label] = text
            self.voice.tell(event.replace(" ", "-"), text, bad=bad, disk=label)

    def _trouble(self, error: Exception) -> None:
        """A whole pass that failed is said once, problem by problem."""
        text = str(error)
        if text == self._problem:
            return
        self._problem = text
        if isinstance(error, SpecError):
            for problem in error.problems:
                self.voice.tell("spec", str(problem), bad=True)
            self.voice.tell("spec", "the spec is bad; everything stays as it is", bad=True)
        else:
            self.voice.tell("pass", f"the pass failed: {text}", bad=True)

    def _well(self) -> None:
        if self._problem is not None:
            self._problem = None
            self.voice.tell("pass", "passes work again")

    @contextmanager
    def _complaining(self, about: str) -> Iterator[None]:
        """What only tells of the work never ends it: its failure is said once."""
        try:
            yield
            self._complaints.pop(about, None)
        except (ReconcilerError, OSError) as error:
            if self._complaints.get(about) != str(error):
                self._complaints[about] = str(error)
                self.voice.tell(about, f"the watch goes on, but: {error}", bad=True)

    # Files

    def _waiting_file(self, label: str) -> Path:
        return self.states.folder / "waiting" / f"{file_name(label)}.json"

    def _save_waiting(self, plan: Plan, found: Mapping[str, DiskStatus]) -> None:
        """Save the plan of each disk that waits for a person; the others' go."""
        waiting = [disk for disk in plan.disks if found[disk.label].kind == "waiting"]
        names = set()
        for disk in waiting:
            path = self._waiting_file(disk.label)
            names.add(path.name)
            text = json.dumps(Plan(plan.sources, (disk,)).as_data(), indent=2) + "\n"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                self.states.replace_file(path, text)
        folder = self.states.folder / "waiting"
        for path in folder.glob("*.json") if folder.is_dir() else ():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _write_status(self, working: Sequence[str] = ()) -> None:
        told = {
            "pid": os.getpid(),
            "started": self.started,
            "spec": [str(path) for path in self.asked.sources],
            "interval": self.asked.interval,
            "dry_run": self.asked.dry_run,
            "problem": self._problem,
            "working": list(working),
            "disks": {label: disk.as_data() for label, disk in self.disks.items()},
        }
        now = _stamp(datetime.now(UTC))
        times = {"last_pass": now, "next_pass": _stamp(self.next_pass)}
        self.status.write(told, times, self.asked.interval / 2)


@dataclass(slots=True)
class _Counting:
    """Tells a voice of steps, and counts them."""

    voice: Voice
    metrics: Metrics | None

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        self.voice.step(plan, number, planned)

    def progress(self, done: float) -> None:
        self.voice.progress(done)

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.step(planned)
        self.voice.finished(plan, number, planned, seconds)

    def note(self, plan: DiskPlan, text: str) -> None:
        self.voice.note(plan, text)


def _unrecorded(
    plan: Plan, looks: Sequence[Look], found: Mapping[str, DiskStatus]
) -> list[tuple[DiskPlan, Look]]:
    """Disks as their specs say, whose active image the state file does not have yet."""
    unrecorded = []
    for disk, one in zip(plan.disks, looks, strict=True):
        active = one.chain.active.path if one.chain.active else None
        state = one.state
        known = state.active == active and state.applied and state.unfinished is None
        known = known and not state.restart  # its guest has to be started
        if disk.label in found and found[disk.label].kind == "in force" and not known:
            unrecorded.append((disk, one))
    return unrecorded


def _too_many(total: int, most: int) -> str:
    return f"{total} restore points would go in one pass, and max_drops is {most}"


def _status(kind: Any, disk: DiskPlan, why: str = "", command: str | None = None) -> DiskStatus:
    steps = tuple(str(one.step) for one in disk.steps)
    return DiskStatus(kind, str(disk.observed), why, command, steps, len(disk.observed))


def _deferred(disk: DiskPlan) -> DiskStatus:
    """Of a disk whose steps, and it has some, all wait."""
    why = next(one.deferred for one in disk.steps if one.deferred)
    return _status("deferred", disk, f"waits until the guest is off: {why}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _steps_text(disk: DiskPlan) -> str:
    return ", ".join(str(one.step) for one in disk.now)


def _digest(disk: DesiredDisk) -> str:
    """Changes with all that the spec says of a disk, and not with its place in the file."""
    said = (disk.chain, disk.discard, disk.active, disk.remove_base, disk.bitmaps, disk.format)
    more = (disk.connection, disk.on_running, disk.quiesce)
    return hashlib.sha256(repr((said, more)).encode()).hexdigest()[:16]


def _digest_of(spec: Spec, label: str) -> str:
    return next((_digest(disk) for disk in spec.disks if disk.label == label), "")


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
