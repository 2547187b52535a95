"""`apply`: plan, ask, do, look again; one result for each disk."""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.text import Text

from reconciler.cli import report
from reconciler.cli.naming import chain_text, printable
from reconciler.cli.progress import Silent, Terminal
from reconciler.cli.stopping import Interrupted, between_steps
from reconciler.engine.apply.applier import Applier
from reconciler.engine.apply.options import Options
from reconciler.engine.gate import EVERYTHING, Admitted, Gate
from reconciler.engine.looking import Look, look
from reconciler.engine.planning import Work, plan_all, plan_disk
from reconciler.engine.reconciling import ROUNDS, Reconciling, Result, refusal
from reconciler.engine.state import StateFolder
from reconciler.engine.stopping import Stop
from reconciler.model.desired import Spec
from reconciler.model.errors import Mistake
from reconciler.model.plan import DiskPlan, Plan
from reconciler.spec.planfile import SavedPlan, read_plan
from reconciler.watch.holds import Holds

Loading = Callable[[Sequence[Path], str | None], Spec]
Looking = Callable[[Spec, StateFolder, Sequence[str] | None], list[Look]]


class Edit(Protocol):
    """An edit of the spec, whose plan is shown before it is written."""

    def check(self, plan: Plan, refused: str | None = None) -> None:
        """Raise an error where *plan* is none to be applied, or would be *refused* in part."""

    def write(self) -> None:
        """Write it: what follows is done."""

    def take_back(self) -> None:
        """Take it back: nothing was done to any of its disks."""

    def keep(self, changed: Collection[str], left: Collection[str]) -> None:
        """Say that it stays: the disks *changed* have something of it, *left* have nothing."""


@dataclass(slots=True)
class Session:
    """
    One call of ``apply``.

    Attributes:
        loading: Reads the specs at some paths, through a connection, as the host allows.
        max_drops: Most restore points that go without a person who says yes; None: as the
            host's config says.
        stop: Asked to, nothing more begins.
        round: Which one goes on; 0: none yet.
        edit: What the spec is not yet, and will be when somebody has said yes.
    """

    loading: Loading
    max_drops: int | None
    stop: Stop
    states: StateFolder
    options: Options
    target: Sequence[str] | None
    as_json: bool
    yes: bool
    connection: str | None = None
    jobs: int = 1
    edit: Edit | None = None
    round: int = 0
    _holds: Holds = field(init=False)

    def __post_init__(self) -> None:
        self._holds = Holds(self.states.folder)

    def apply_specs(self, paths: Sequence[Path], looking: Looking) -> bool:
        """Plan *paths*, ask, apply; True where every disk is as its spec says."""
        spec = self.loading(paths, self.connection)
        looks = looking(spec, self.states, self.target)
        plan = plan_all(tuple(path.absolute() for path in paths), looks)
        work = list(zip(plan.disks, looks, strict=True))
        self._show(plan)
        if self.edit is not None:
            self.edit.check(plan, self._refusal(work))
        most = spec.host.max_drops if self.max_drops is None else self.max_drops
        if self.yes:
            gate = Gate(EVERYTHING, most, _too_many, doubts=self.max_drops is not None)
        else:
            gate = Gate(EVERYTHING, None, _too_many, self._confirmed)
        admitted = gate.enter(work)
        if admitted.refused:
            raise Mistake(f"nothing was done: {admitted.refused[0][1]}")
        if self.edit is not None:
            self.edit.write()
        return self._run(spec, plan, gate, admitted)

    def apply_file(self, path: Path, specs: Sequence[Path], allowed: Sequence[Path]) -> bool:
        """
        Apply the plan saved in *path*, disk by disk, or refuse a disk as stale.

        What it shows is done, and nothing else: no round follows.

        Args:
            specs: Those that the command line names; none: those of this folder.
            allowed: Specs, or folders of them, that the host's config names.
        """
        saved = read_plan(path)
        spec = self.loading(saved.specs(specs, allowed), self.connection)
        saved.see_connections(spec)
        chosen = [d for d in spec.disks if (d.domain, d.target) in saved.disks]
        looks = look(spec, self.states, chosen)
        fresh = [_checked(plan_disk(found), saved) for found in looks]
        plan = Plan(saved.sources, tuple(fresh))
        self._show(plan)
        gate = Gate(EVERYTHING, None, _too_many)  # somebody has saved it, and now names it
        admitted = gate.enter(list(zip(plan.disks, looks, strict=True)))
        gone = sorted(set(saved.disks) - {(d.domain, d.target) for d in chosen})
        return self._run(spec, plan, None, admitted, gone)

    def _show(self, plan: Plan) -> None:
        if not self.as_json and (
            plan.errors or any(disk.steps or disk.warnings for disk in plan.disks)
        ):
            report.print_plan(plan, report.console(), None)

    def _refusal(self, work: Sequence[Work]) -> str | None:
        """The first disk whose plan will be refused, and why."""
        reasons = ((disk.label, refusal(self, disk, found)) for disk, found in work)
        return next((f"{label}: {why}" for label, why in reasons if why is not None), None)

    def _confirmed(self, _: Plan) -> bool:
        """Ask on a terminal; without one only ``-y`` goes on."""
        first = self.round == 0
        if self.as_json or not sys.stdin.isatty():
            if not first:
                return False
            raise Mistake(
                "nothing was done: there is no terminal to ask on; say -y, or apply a saved plan "
                "(virt-chain plan -o FILE)"
            )
        question = "Apply this?" if first else "Apply this, too?"
        return typer.confirm(question, abort=first, err=True)

    def _run(
        self,
        spec: Spec,
        plan: Plan,
        gate: Gate | None,
        admitted: Admitted,
        gone: Sequence[tuple[str, str]] = (),
    ) -> bool:
        """All rounds; without a gate there is no other round."""
        reporter = Silent() if self.as_json else Terminal(bars=self.jobs == 1)
        applier = Applier(spec, self.states, self.options, reporter)
        reconciling = Reconciling(applier, self)
        for domain, target in gone:
            message = "stale: the spec does not have this disk any more; plan again"
            reconciling.add(Result(domain, target, "error", message))
            self._say(reconciling.results[-1])
        gc.freeze()  # `main` has turned it off, and this may run for hours
        gc.enable()
        seconds = 0.0
        try:
            for self.round in range(1, ROUNDS + 1):
                began = time.monotonic()
                with between_steps(self.stop, reconciling.write_history):
                    reconciling.run(admitted, self.jobs)
                seconds += time.monotonic() - began
                last = self.round == ROUNDS or self.stop.asked
                if last or gate is None or not reconciling.rest:
                    break
                self._show(Plan((), tuple(disk for disk, _ in reconciling.rest)))
                admitted = gate.enter(reconciling.rest)
            self._settle(reconciling, gate)
        except KeyboardInterrupt:
            text = "interrupted; nothing is lost: virt-chain apply continues"
            print(f"virt-chain: {text}", file=sys.stderr)
            raise Interrupted(self.stop.signal or signal.SIGINT) from None
        finally:
            reporter.close()
            reconciling.write_history()
            if self.edit is not None:
                _end(self.edit, plan, reconciling)
            if self.as_json:
                print(json.dumps(self._as_data(plan, reconciling), indent=2), flush=True)
        good = all(result.status in ("applied", "unchanged") for result in reconciling.results)
        if not self.as_json:
            self._close(reconciling, seconds)
        if self.stop.signal is not None and not good:
            raise Interrupted(self.stop.signal)
        return good

    def _settle(self, reconciling: Reconciling, gate: Gate | None) -> None:
        if self.stop.asked:
            reconciling.settle("failed", "stopped as asked, virt-chain apply continues")
        elif gate is None:
            reconciling.settle("applied", "the rest needs a new plan")
        else:
            reconciling.settle("failed", "apply again")

    # What a run over all disks tells, as reconciling.Listener has it

    def reached(self, plan: DiskPlan, found: Look) -> None:
        """The chain that a disk has now."""
        if not self.as_json:
            chain = chain_text(found.chain.paths, report.disk_naming(plan))
            report.console().print(Text(f"{printable(plan.label)}  {chain}"))

    def ended(self, result: Result) -> None:
        """What went wrong, except where the plan has said it."""
        if result.status != "error":
            self._say(result)

    def _say(self, result: Result) -> None:
        if result.message and not self.as_json:
            where = printable(f"{result.label}: {result.message}")
            print(f"virt-chain: {where}", file=sys.stderr)

    def forbidden(self, plan: DiskPlan) -> str | None:
        """A disk that somebody holds is left alone."""
        held = self._holds.of(plan.domain, plan.target)
        return None if held is None else held.refusal

    def _close(self, reconciling: Reconciling, seconds: float) -> None:
        """What was done in all rounds, also to disks that failed later."""
        bad = [r for r in reconciling.results if r.status in ("failed", "error")]
        done = [step.planned for steps in reconciling.done.values() for step in steps]
        if done:
            made = report.counts(done).replace(" to copy", " copied")
            waiting = report.waiting_steps(reconciling.left)
            typer.echo(f"Done: {made} in {seconds:.1f} s. {waiting}".rstrip())
        elif not bad:
            typer.echo(report.closing(Plan((), tuple(reconciling.left))))
        if bad:
            count = len(bad)
            print(
                f"{count} {'disk' if count == 1 else 'disks'} not as the spec says.",
                file=sys.stderr,
            )

    def _as_data(self, plan: Plan, reconciling: Reconciling) -> dict[str, Any]:
        return {
            **plan.as_data(),
            "results": [
                {
                    "domain": one.domain,
                    "target": one.target,
                    "status": one.status,
                    "message": one.message,
                    "steps_done": one.steps_done,
                }
                for one in reconciling.results
            ],
        }


def _end(edit: Edit, plan: Plan, reconciling: Reconciling) -> None:
    """
    See that an edit is done, or goes back, or that the user knows that it is done in part.

    What is asked for and not done would be done by a later apply, to what the guest has
    written by then.
    """
    good = {one.label for one in reconciling.results if one.status in ("applied", "unchanged")}
    left = {disk.label for disk in plan.disks} - good
    if not left:
        return
    if changed := reconciling.changed():
        edit.keep(changed, left - changed)
    else:
        edit.take_back()


def _too_many(total: int, most: int) -> str:
    return (
        f"{total} restore points would go, and -y alone takes away at most {most}; look at the "
        f"plan, then say --max-drops {total} (or raise max_drops in the host's config)"
    )


def _checked(fresh: DiskPlan, saved: SavedPlan) -> DiskPlan:
    """*fresh*, or in its place an error where the saved plan is another one."""
    if fresh.error is None and saved.disks[fresh.domain, fresh.target].matches(fresh):
        return fresh
    why = fresh.error or f"the chain is {fresh.observed} now, or the spec has changed"
    return replace(fresh, steps=(), error=f"stale: {why}; plan again")
