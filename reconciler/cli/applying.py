"""`apply`: plan, ask, do, look again; one result for each disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.text import Text

from reconciler.cli import report
from reconciler.cli.naming import chain_text, printable
from reconciler.cli.progress import Silent, Terminal
from reconciler.cli.stopping import between_steps
from reconciler.engine.applying import Applier, Options
from reconciler.engine.looking import Look, look
from reconciler.engine.planning import plan_all, plan_disk
from reconciler.engine.reconciling import Reconciling, Result
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

    def check(self, plan: Plan) -> None:
        """Raise an error where *plan* is none to be applied."""

    def write(self) -> None:
        """Write it: what follows is done."""


@dataclass(slots=True)
class Session:
    """
    One call of ``apply``.

    Attributes:
        loading: Reads the specs at some paths, through a connection, as the host allows.
        max_drops: Most restore points that go without a person who says yes; None: as the
            host's config says.
        stop: Asked to, nothing more begins.
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
    results: list[Result] = field(default_factory=list)
    left: list[DiskPlan] = field(default_factory=list)
    _holds: Holds = field(init=False)

    def __post_init__(self) -> None:
        self._holds = Holds(self.states.folder)

    def apply_specs(self, paths: Sequence[Path], looking: Looking) -> bool:
        """Plan *paths*, ask, apply; True where every disk is as its spec says."""
        spec = self.loading(paths, self.connection)
        looks = looking(spec, self.states, self.target)
        plan = plan_all(tuple(path.absolute() for path in paths), looks)
        self._show(plan)
        if self.edit is not None:
            self.edit.check(plan)
        if plan.changes:
            self._ask(plan, spec.host.max_drops if self.max_drops is None else self.max_drops)
        if self.edit is not None:
            self.edit.write()
        return self._run(spec, plan, looks)

    def apply_file(self, path: Path) -> bool:
        """Apply the plan saved in *path*, disk by disk, or refuse a disk as stale."""
        saved = read_plan(path)
        spec = _connected(self.loading(saved.sources, self.connection), saved)
        chosen = [d for d in spec.disks if (d.domain, d.target) in saved.disks]
        gone = set(saved.disks) - {(d.domain, d.target) for d in chosen}
        for domain, target in sorted(gone):
            message = "stale: the spec does not have this disk any more; plan again"
            self.results.append(Result(domain, target, "error", message))
            self._say(self.results[-1])
        looks = look(spec, self.states, chosen)
        fresh = [_checked(plan_disk(found), saved) for found in looks]
        plan = Plan(saved.sources, tuple(fresh))
        self._show(plan)
        return self._run(spec, plan, looks) and not gone

    def _show(self, plan: Plan) -> None:
        if not self.as_json and (
            plan.errors or any(disk.steps or disk.warnings for disk in plan.disks)
        ):
            report.print_plan(plan, report.console(), None)

    def _ask(self, plan: Plan, max_drops: int) -> None:
        """Ask on a terminal; without one only ``-y`` goes on, up to *max_drops*."""
        if self.yes:
            gone = sum(disk.restore_points.lost for disk in plan.disks if disk.now)
            if gone > max_drops:
                raise Mistake(
                    f"nothing was done: {gone} restore points would go, and -y alone takes away at "
                    f"most {max_drops}; look at the plan, then say --max-drops {gone} (or "
                    "raise max_drops in the host's config)"
                )
            if self.max_drops is None:
                _no_doubts(plan)
            return
        if self.as_json or not sys.stdin.isatty():
            raise Mistake(
                "nothing was done: there is no terminal to ask on; say -y, or apply a saved plan "
                "(virt-chain plan -o FILE)"
            )
        typer.confirm("Apply this?", abort=True, err=True)

    def _run(self, spec: Spec, plan: Plan, looks: Iterable[Look]) -> bool:
        began = time.monotonic()
        reporter = Silent() if self.as_json else Terminal(bars=self.jobs == 1)
        applier = Applier(spec, self.states, self.options, reporter)
        reconciling = Reconciling(applier, self, self.results, self.left)
        with between_steps(self.stop):
            try:
                reconciling.run(plan, looks, self.jobs)
            finally:
                reporter.close()
        good = all(result.status in ("applied", "unchanged") for result in self.results)
        reconciling.write_history()
        if self.as_json:
            print(json.dumps(self._as_data(plan), indent=2))
        else:
            self._close(plan, time.monotonic() - began)
        return good

    # What a run over all disks tells, as reconciling.Listener has it

    def again(self, plan: DiskPlan) -> None:
        """The rest, after what was interrupted was finished, is shown as a plan."""
        self._show(Plan((), (plan,)))

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

    def _close(self, plan: Plan, seconds: float) -> None:
        applied = {(r.domain, r.target) for r in self.results if r.status == "applied"}
        bad = [r for r in self.results if r.status in ("failed", "error")]
        disks = [disk for disk in plan.disks if (disk.domain, disk.target) in applied]
        if disks:
            made = report.counts(disks).replace(" to copy", " copied")
            waiting = report.waiting_steps(self.left)
            typer.echo(f"Done: {made} in {seconds:.1f} s. {waiting}".rstrip())
        elif not bad:
            typer.echo(report.closing(plan))
        if bad:
            count = len(bad)
            print(
                f"{count} {'disk' if count == 1 else 'disks'} not as the spec says.",
                file=sys.stderr,
            )

    def _as_data(self, plan: Plan) -> dict[str, Any]:
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
                for one in self.results
            ],
        }


def _no_doubts(plan: Plan) -> None:
    """Refuse what looks like a mistake: nobody is there to see it."""
    for disk in plan.disks:
        if disk.now and disk.doubts:
            raise Mistake(
                f"nothing was done: {disk.label}: {'; '.join(disk.doubts)}; -y alone does not "
                f"apply that: mend the spec, or say --max-drops {disk.restore_points.lost} where "
                "it is meant so"
            )


def _connected(spec: Spec, saved: SavedPlan) -> Spec:
    """*spec*, with the connections that the plan was made with."""
    disks = tuple(
        replace(disk, connection=saved.connections.get(disk.domain, disk.connection))
        for disk in spec.disks
    )
    return replace(spec, disks=disks)


def _checked(fresh: DiskPlan, saved: SavedPlan) -> DiskPlan:
    """*fresh*, or in its place an error where the saved plan is another one."""
    if fresh.error is None and saved.disks[fresh.domain, fresh.target].matches(fresh):
        return fresh
    why = fresh.error or f"the chain is {fresh.observed} now, or the spec has changed"
    return replace(fresh, steps=(), error=f"stale: {why}; plan again")
