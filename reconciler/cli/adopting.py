"""`adopt`: accept what is on the disk, after a look at what that means."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from reconciler.cli.naming import printable
from reconciler.engine.adopting import Adoption, carry_out, consider
from reconciler.engine.apply.options import PATIENCE
from reconciler.engine.state import StateFolder, waiting
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.errors import Mistake


def adopt(
    spec: Spec, states: StateFolder, disk: DesiredDisk, image: str | None, *, new: bool, yes: bool
) -> None:
    """Show what is adopted, ask, and remember it."""
    path = None if image is None else _path(image, disk)
    adoption = consider(spec, states, disk, path, new=new)
    _show(adoption)
    if not adoption.facts:
        typer.echo("Nothing to adopt: this is what was known.")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise Mistake("stdin is not a terminal; use -y to adopt without confirmation")
        typer.confirm("Adopt this?", abort=True, err=True)
    carry_out(adoption, spec, states, waiting(PATIENCE))
    if edit := adoption.edit:
        typer.echo(printable(f"Adopted. In {disk.where.file}, {edit}; then run: virt-chain plan"))
    else:
        typer.echo("Adopted. See what is left to do with: virt-chain plan")


def _show(adoption: Adoption) -> None:
    chain = str(adoption.chain) if adoption.chain.images else "(no image)"
    typer.echo(printable(f"{adoption.disk.label}  {chain}"))
    for fact in adoption.facts:
        typer.echo(printable(f"  {fact}"))


def _path(image: str, disk: DesiredDisk) -> Path:
    """The image that a person named: by a path, or as the spec does."""
    for path in (disk.directory / image, Path(image).absolute()):
        if path.exists():
            return path
    raise Mistake(f"{image} does not exist, neither here nor in {disk.directory}")
