"""`apply`: plan, ask, do, look again; one result for each disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.text import Text

from reconciler.cli import report
from reconciler.cli.naming import chain_text, printable
from reconciler.cli.progress import Silent, Terminal
from reconciler.cli.stopping import Stop
from reconciler.engine import history
from reconciler.engine.applying import Applier, Options, Work
from reconciler.engine.looking import Look
from reconciler.engine.planning import plan_all, plan_disk
from reconciler.engine.state import StateFolder, now
from reconciler.model.desired import Spec
from reconciler.model.errors import Mistake
from reconciler.model.plan import DiskPlan, Plan
from reconciler.spec.planfile import SavedPlan, read_plan

Loading = Callable[[Sequence[Path], str | None], Spec]
Looking = Callable[[Spec, StateFolder, Sequence[str] | None], list[Look]]
ROUNDS = 4
"""Most plans that one apply makes for a disk: what was interrupted, then the rest."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one disk: ``applied``, ``unchanged``, ``failed`` or ``error``."""

    domain: str
    target: str
    status: str
    message: str | None = None
    steps_done: int = 0


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
    _steps: dict[str, list[str]] = field(default_factory=dict)

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
            self._result(Result(domain, target, "error", message))
        from reconciler.engine.looking import look

        looks = look(spec, self.states, chosen)
        fresh = [_checked(plan_disk(found), saved) for found in looks]
        plan = Plan(saved.sources, tuple(fresh))
        self._show(plan)
        return self._run(spec, plan, looks) and not gone

    def _show(self, plan: Plan) -> None:
        if not self.as_json and (plan.errors or any(disk.steps for disk in plan.disks)):
            report.print_plan(plan, report.console(), None)

    def _ask(self, plan: Plan, max_drops: int) -> None:
        """Ask on a terminal; without one only ``-y`` goes on, up to *max_drops*."""
        if self.yes:
            gone = sum(
                len(points.dropped) + len(points.discarded)
                for points in (disk.restore_points for disk in plan.disks if disk.now)
            )
            if gone > max_drops:
                raise Mistake(
                    f"nothing was done: {gone} restore points would go, and -y alone takes away at "
                    f"most {max_drops}; look at the plan, then say --max-drops {gone} (or "
                    "raise max_drops in the host's config)"
                )
            return
        if self.as_json or not sys.stdin.isatty():
            raise Mistake(
                "nothing was done: there is no terminal to ask on; say -y, or apply a saved plan "
                "(virt-chain plan -o FILE)"
            )
        typer.confirm("Apply this?", abort=True, err=True)

    def _run(self, spec: Spec, plan: Plan, looks: Iterable[Look]) -> bool:
        began = time.monotonic()
        domains: dict[object, list[Work]] = {}
        for disk, found in zip(plan.disks, looks, strict=True):
            # without libvirt, disks of a domain have nothing to do at the same moment
            key = (disk.connection, disk.domain) if disk.connection else disk.label
            domains.setdefault(key, []).append((disk, found))
        with self.stop.between_steps():
            if self.jobs > 1 and len(domains) > 1:
                self._in_parallel(spec, list(domains.values()))
            else:
                self._in_turn(spec, domains.values())
        good = all(result.status in ("applied", "unchanged") for result in self.results)
        self._write_history(spec)
        if self.as_json:
            print(json.dumps(self._as_data(plan), indent=2))
        else:
            self._close(plan, time.monotonic() - began)
        return good

    def _in_turn(self, spec: Spec, domains: Iterable[list[Work]]) -> None:
        reporter = Silent() if self.as_json else Terminal()
        applier = Applier(spec, self.states, self.options, reporter)
        try:
            for work in domains:
                self._domain(applier, work)
        finally:
            reporter.close()

    def _in_parallel(self, spec: Spec, domains: Sequence[list[Work]]) -> None:
        """Several domains side by side, each telling its own finished steps."""
        from concurrent.futures import ThreadPoolExecutor  # takes a while, for one domain too long

        plans = [disk for work in domains for disk, _ in work]
        reporter = Silent() if self.as_json else Terminal(bars=False)
        applier = Applier(spec, self.states, self.options, reporter)
        with applier.folders_held(plans), ThreadPoolExecutor(self.jobs) as pool:
            for _ in pool.map(lambda work: self._domain(applier, work), domains):
                pass  # an error that nobody expected is raised here

    def _domain(self, applier: Applier, work: Sequence[Work]) -> None:
        """The disks of one domain: planned and applied until nothing is left for now."""
        done = {disk.label: 0 for disk, _ in work}
        left = [one for one in work if self._has_steps(applier, *one)]
        for _ in range(ROUNDS):
            if not left:
                return
            for disk, _ in left:
                self._steps.setdefault(disk.label, []).extend(str(one.step) for one in disk.now)
            errors = applier.apply(left)
            for (disk, _), error in zip(left, errors, strict=True):
                done[disk.label] += len(disk.now)
                if error is not None:
                    self._failed(disk, str(error), done[disk.label] - len(disk.now))
            good = [one for one, error in zip(left, errors, strict=True) if error is None]
            planned = [applier.planned_again(found) for _, found in good]
            left = [one for one in planned if self._goes_on(one, done)]
        for disk, _ in left:
            self._failed(disk, f"{len(disk.now)} steps are left; apply again", done[disk.label])

    def _has_steps(self, applier: Applier, disk: DiskPlan, found: Look) -> bool:
        """True where there is something to do now; otherwise the disk's result is told."""
        applier.wake(disk, found)
        if found.lost is not None and not disk.error:
            self.left.append(disk)
            self._failed(disk, found.lost, 0)
        elif disk.error:
            self._result(Result(disk.domain, disk.target, "error", disk.error), said=True)
        elif not disk.now:
            self.left.append(disk)
            if not disk.steps:
                applier.record(found)
            self._result(Result(disk.domain, disk.target, "unchanged"))
        return bool(disk.now) and not disk.error and found.lost is None

    def _goes_on(self, one: Work, done: Mapping[str, int]) -> bool:
        """True where a new plan has steps for now; otherwise the disk's result is told."""
        disk, found = one
        if disk.error:
            self._failed(disk, disk.error, done[disk.label])
            return False
        if disk.now:
            self._show(Plan((), (disk,)))
            return True
        self.left.append(disk)
        self._result(Result(disk.domain, disk.target, "applied", None, done[disk.label]))
        if not self.as_json:
            chain = chain_text(found.chain.paths, report.disk_naming(disk))
            report.console().print(Text(f"{printable(disk.label)}  {chain}"))
        return False

    def _failed(self, disk: DiskPlan, why: str, done: int) -> None:
        self._result(Result(disk.domain, disk.target, "failed", why, done))

    def _write_history(self, spec: Spec) -> None:
        digest = history.spec_digest(spec.sources)
        for one in self.results:
            if one.status not in ("applied", "failed"):
                continue
            done = tuple(self._steps.get(f"{one.domain}:{one.target}", ())[: one.steps_done])
            record = history.Record(
                now(), one.domain, one.target, digest, one.status, one.message, done
            )
            history.add(self.states.folder, record)

    def _result(self, result: Result, *, said: bool = False) -> None:
        self.results.append(result)
        if result.message and not said and not self.as_json:
            where = printable(f"{result.domain}:{result.target}: {result.message}")
            print(f"virt-chain: {where}", file=sys.stderr)

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
