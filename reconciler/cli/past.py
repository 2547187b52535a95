"""What was: the history of applies, and images in quarantine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import typer

from reconciler.cli.naming import printable
from reconciler.engine.collecting import Emptied, Kept
from reconciler.engine.history import Record
from reconciler.model.units import human_size


def is_of(record: Record, wanted: Sequence[str]) -> bool:
    """True where *record* is of one of the domains or disks *wanted*; globs work."""
    label = f"{record.domain}:{record.target}"
    return any(fnmatchcase(record.domain, one) or fnmatchcase(label, one) for one in wanted)


def as_data(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Records as JSON has them."""
    return [asdict(one) for one in records]


def print_history(records: Sequence[Record]) -> None:
    """One line for each record, and its steps below."""
    if not records:
        typer.echo("Nothing was applied yet.")
    for one in records:
        label, spec = printable(f"{one.domain}:{one.target}"), one.spec.removeprefix("sha256:")
        why = f": {printable(one.message)}" if one.message else ""
        took = "" if one.seconds is None else f" in {one.seconds:.1f} s"
        typer.echo(printable(f"{one.time}  {label}  {one.status}{took}{why}  spec {spec[:12]}"))
        for step in one.steps:
            typer.echo(f"  {printable(step)}")


def kept_as_data(done: Emptied) -> dict[str, Any]:
    """The lists as JSON has them."""

    def data(one: Kept) -> dict[str, Any]:
        where = {"path": str(one.path), "was": str(one.was)}
        return {**where, "until": one.until.isoformat(), "size": one.size}

    return {
        "removed": [data(one) for one in done.gone],
        "kept": [data(one) for one in done.left],
        "in_use": [{**data(one), "why": why} for one, why in done.used],
    }


def print_kept(done: Emptied, *, dry_run: bool) -> None:
    """One line for each image, and a sum."""
    word = "would remove" if dry_run else "removed"
    for one in done.gone:
        path, was = printable(str(one.path)), printable(str(one.was))
        typer.echo(f"{word}  {path}  {human_size(one.size)}  (was {was})")
    for one in done.left:
        until = one.until.isoformat(timespec="minutes")
        typer.echo(f"kept until {until}  {printable(str(one.path))}  {human_size(one.size)}")
    for one, why in done.used:
        typer.echo(f"in use  {printable(str(one.path))}  {printable(why)}")
    if not done.gone and not done.left and not done.used:
        typer.echo("The quarantine is empty.")
