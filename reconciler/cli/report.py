"""Plans and results as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import assert_never

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reconciler.cli.naming import Naming, chain_text, listed, naming, printable
from reconciler.model.plan import DiskPlan, Plan, PlannedStep, count
from reconciler.model.steps import (
    STEPS,
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
    Step,
)
from reconciler.model.units import human_size

STYLES = {
    "create": "green",
    "commit": "cyan",
    "pull": "cyan",
    "rebase": "cyan",
    "rename": "blue",
    "resize": "green",
    "repair": "green",
    "attach": "yellow",
    "forget": "red",
    "remove": "red",
}


def console(*, stderr: bool = False) -> Console:
    """A console that wraps on a terminal only, and heeds ``NO_COLOR``."""
    plain = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not plain.is_terminal:
        plain = Console(stderr=stderr, highlight=False, width=100_000)
    return plain


def print_table(table: Table, out: Console) -> None:
    """Print *table* without the blanks that fill its last column."""
    with out.capture() as captured:
        out.print(table)
    lines = captured.get().splitlines()
    out.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def disk_naming(plan: DiskPlan) -> Naming:
    """Names for every image that *plan* speaks of."""
    paths = {*plan.observed.paths, *plan.desired}
    for one in plan.steps:
        paths |= {value for value in _values(one.step) if isinstance(value, Path)}
    return naming(paths)


def _values(step: Step) -> list[object]:
    return [getattr(step, key) for key in step.__slots__]


def words(step: Step, name: Naming) -> str:
    """What *step* does, without its action."""
    match step:
        case Create(image, backing, _, size):
            if backing is None:
                return f"{name(image)}, {human_size(size)}"
            return f"{name(image)} on {name(backing)}"
        case Commit(top, base):
            return f"{name(top)} down into {name(base)}"
        case Pull(into, base):
            return f"up into {name(into)}, {f'down to {name(base)}' if base else 'all of it'}"
        case Rebase(image, backing):
            return f"{name(image)} onto {name(backing)}"
        case Rename(source, target):
            return f"{name(source)} to {name(target)}"
        case Resize(image, size):
            return f"{name(image)} to {human_size(size)}"
        case Repair(image) | Attach(image) | Remove(image):
            return name(image)
        case Forget(snapshot):
            return printable(snapshot)
        case _:
            assert_never(step)


def print_plan(plan: Plan, out: Console, apply_with: str | None) -> None:
    """
    The whole plan; nothing about disks that are as they should be.

    Args:
        apply_with: The command that applies it; None: left out.
    """
    print_warnings(plan, out)
    shown = [disk for disk in plan.disks if disk.steps or disk.error]
    for disk in shown:
        print_disk(disk, out)
        out.print()
    out.print(Text(closing(plan)))
    if plan.changes and apply_with:
        out.print(Text(printable(f"Apply it with: {apply_with}")))


def print_warnings(plan: Plan, out: Console) -> None:
    """What has to be known before anything else is read."""
    for disk in plan.disks:
        for warning in disk.warnings:
            out.print(Text(printable(f"{disk.label}  WARNING: {warning}"), style="bold yellow"))


def closing(plan: Plan) -> str:
    """The last line of a plan."""
    quiet = sum(not disk.steps and not disk.error for disk in plan.disks)
    as_said = f"{quiet} other {_disks(quiet)} as the spec says." if quiet else ""
    broken = len(plan.errors)
    errors = f"{broken} {'disk' if broken == 1 else 'disks'} cannot be planned."
    waiting = waiting_steps(plan.disks)
    if not plan.changes and not broken and not waiting:
        return f"Nothing to do: {quiet} {_disks(quiet)} as the spec says."
    now = [one for disk in plan.disks for one in disk.now]
    parts = [f"Plan: {counts(now)}." if plan.changes else "", waiting]
    return " ".join(filter(None, [*parts, errors if broken else "", as_said]))


def waiting_steps(disks: Iterable[DiskPlan]) -> str:
    """``2 steps wait until the guest is off.``; empty where none does."""
    count = sum(len(disk.steps) - len(disk.now) for disk in disks)
    if not count:
        return ""
    return f"{count} {'step waits' if count == 1 else 'steps wait'} until the guest is off."


def _disks(count: int) -> str:
    return "disk is" if count == 1 else "disks are"


def counts(planned: Iterable[PlannedStep]) -> str:
    """``1 commit, 1 rename, 1 remove; 8.0 MiB to copy``."""
    numbers = count(planned)
    steps = ", ".join(
        f"{number} {kind.action}{'s' if number > 1 else ''}"
        for kind in STEPS
        if (number := numbers.get(kind.action, 0))
    )
    return f"{steps}; {human_size(numbers['bytes_to_copy'])} to copy"


def print_disk(disk: DiskPlan, out: Console) -> None:
    """One disk: where it is, its chain, its steps, and what becomes of the restore points."""
    name = disk_naming(disk)
    there, asked = len(disk.observed), len(disk.desired)
    images = f"{there or 'no'} {'image' if there == 1 else 'images'}, the spec has {asked}"
    out.print(Text.assemble((printable(disk.label), "bold"), f"  {disk.state}  {images}"))
    if there:
        out.print(Text(f"  {chain_text(disk.observed.paths, name)}"))
    if disk.error:
        out.print(Text.assemble(("  error: ", "bold red"), printable(disk.error)))
        return
    for doubt in disk.doubts:
        out.print(Text.assemble("  ", (printable(doubt), "bold red")))
    print_table(_steps(disk.steps, name), out)
    if points := points_text(disk, name):
        out.print(Text(f"  {points}"))
    for note in disk.notes:
        out.print(Text(f"  {printable(note)}"))


def _steps(steps: Sequence[PlannedStep], name: Naming) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, one in enumerate(steps, start=1):
        what, size, reason = cells(one, name)
        action = Text(one.step.action, style=STYLES[one.step.action])
        table.add_row(f"  {number}", action, Text(what), size, Text(reason))
    return table


def cells(one: PlannedStep, name: Naming) -> tuple[str, str, str]:
    """What a step does, what it copies, and why; safe on a terminal."""
    size = human_size(one.bytes) if one.bytes or one.step.copies else ""
    reason = one.reason
    if isinstance(one.step, Remove) and one.frees:
        reason = f"frees {human_size(one.frees)}"
    if one.deferred:
        reason = f"{reason} (deferred: {one.deferred})"
    return words(one.step, name), size, printable(reason)


def points_text(disk: DiskPlan, name: Naming) -> str:
    """Which restore points *disk* keeps, drops and discards; empty: none of them."""
    points = disk.restore_points
    said = [
        f"{verb} {listed(map(name, paths))}"
        for verb, paths in (
            (_plural("keeps the restore point", points.kept), points.kept),
            ("drops", points.dropped),
            ("discards", points.discarded),
        )
        if paths
    ]
    return "; ".join(said)


def _plural(words_: str, paths: Sequence[Path]) -> str:
    return words_ if len(paths) == 1 else f"{words_}s"
