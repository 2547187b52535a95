"""`show`: the observed chains as trees, base first; only a branch is indented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.cli.naming import Naming, naming, printable
from reconciler.cli.report import counts, print_table, print_warnings, waiting_steps
from reconciler.engine.showing import Forest, Shown, forest
from reconciler.engine.tasks import Look
from reconciler.model.domain import Job
from reconciler.model.plan import DiskPlan, Plan
from reconciler.model.units import human_size

STYLES = {"active": "bold green", "template": "blue", "dropped": "yellow", "being merged": "red"}


def print_show(looks: Sequence[Look], plans: Sequence[DiskPlan], out: Console) -> None:
    """The forest of all images, then one line a disk: as the spec says, or its drift."""
    print_warnings(Plan((), tuple(plans)), out)
    trees = forest(looks)
    name = naming(trees.images)
    if trees.images:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("image", "what it is", "size", "on disk", "alone"):
            number = title in ("size", "on disk", "alone")
            table.add_column(title, justify="right" if number else "left", overflow="fold")
        for root in trees.roots:
            for indent, shown in _lines(trees, root, "", ""):
                _row(table, indent, shown, name)
        print_table(table, out)
        out.print()
    for found, plan in zip(looks, plans, strict=True):
        out.print(_status(plan, found.job))


def _lines(trees: Forest, path: Path, first: str, rest: str) -> Iterator[tuple[str, Shown]]:
    """Images in the order they are drawn, each with the branches left of its name."""
    indent = first
    while True:
        shown = trees.images[path]
        yield indent, shown
        indent = rest
        if len(shown.above) != 1:
            break
        path = shown.above[0]
    for number, above in enumerate(shown.above, start=1):
        last = number == len(shown.above)
        yield from _lines(
            trees, above, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        )


def _row(table: Table, indent: str, shown: Shown, name: Naming) -> None:
    active = [label for label, role in shown.roles.items() if role == "active"]
    roles = dict.fromkeys(role for role in shown.roles.values() if role != "active")
    what = ", ".join([*roles, *(f"active: {printable(label)}" for label in active)])
    if shown.second is not None:
        what += f"; QEMU calls it {printable(shown.second.name)}"
    style = STYLES.get("active" if active else next(iter(roles), ""), "")
    table.add_row(
        Text(f"{indent}{name(shown.path)}{'*' if active else ''}"),
        Text(what, style=style),
        human_size(shown.virtual_size),
        human_size(shown.actual_size),
        human_size(shown.alone),
    )


def _status(plan: DiskPlan, job: Job | None) -> Text:
    label = Text.assemble((printable(plan.label), "bold"), "  ")
    if plan.connection is not None:
        label.append(f"{plan.state}  ")
    if job is not None:
        part = f" {job.done / job.size:.0%}" if job.size else ""
        label.append(f"{job.kind} job{part}  ", "cyan")
    if plan.error:
        return Text.assemble(label, ("error: ", "bold red"), printable(plan.error))
    if plan.now:
        return Text.assemble(label, (f"drift: {counts(plan.now)} (virt-chain plan)", "yellow"))
    waiting = waiting_steps([plan]).rstrip(".")
    return Text.assemble(label, "as the spec says", f"; {waiting}" if waiting else "")
