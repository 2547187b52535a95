"""Reading a saved plan.  It is data: it is compared with a fresh plan, never obeyed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.model.desired import Spec
from reconciler.model.errors import Mistake, ReconcilerError
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import Step, from_data
from reconciler.spec.ownership import others_may_write
from reconciler.spec.schema import plan_fault

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of the largest plan file that is read."""


class PlanFileError(ReconcilerError):
    """A plan file cannot be read; the operator plans again."""


@dataclass(frozen=True, slots=True)
class SavedDisk:
    """What a plan file says of one disk."""

    fingerprint: str
    steps: tuple[Step, ...]

    def matches(self, fresh: DiskPlan) -> bool:
        """True where *fresh* is the plan that was saved, made from the same facts."""
        same = tuple(one.step for one in fresh.steps) == self.steps
        return same and fresh.fingerprint == self.fingerprint


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """
    A plan file.

    Attributes:
        path: The file.
        sources: The specs that it says it was made from.
        disks: By domain and target.
        connections: By domain; None: plain images.
    """

    path: Path
    sources: tuple[Path, ...]
    disks: Mapping[tuple[str, str], SavedDisk]
    connections: Mapping[str, str | None]

    def specs(self, named: Sequence[Path], allowed: Sequence[Path]) -> list[Path]:
        """
        The specs to load: those that somebody who may say so has named, and the plan was made from.

        Args:
            named: On the command line.  None: those that the host's config allows, or else
                those of the current folder.
            allowed: By the host's config: files, or folders of them.

        Raises:
            Mistake: They are not those of the plan; it tells what to type.
        """
        mine = {_real(source) for source in self.sources}
        if named:
            if {_real(path) for path in named} == mine:
                return list(named)
            why = f"it was not made from {_listed(named)}"
        else:
            here = _real(Path("."))
            roots = [_real(path) for path in allowed]
            if mine and all(
                _below(one, roots) or one == here or one.parent == here for one in mine
            ):
                return list(self.sources)
            why = "a plan file does not choose the specs that are applied"
        command = shlex.join(["virt-chain", "apply", *map(str, (self.path, *self.sources))])
        raise Mistake(
            f"{self.path}: {why}; it was made from {_listed(self.sources)}: where that is what "
            f"you mean, say {command}"
        )

    def see_connections(self, spec: Spec) -> None:
        """
        See that *spec* leads to the same domains as the plan.

        Raises:
            Mistake: It has another connection; it tells what to type.
        """
        for disk in spec.disks:
            if disk.domain not in self.connections:
                continue
            saved = self.connections[disk.domain]
            if saved != disk.connection:
                way_out = f"say -c {shlex.quote(saved)}, or plan again" if saved else "plan again"
                raise Mistake(
                    f"{self.path}: it was made for {disk.domain} {_through(saved)}, and the spec "
                    f"has it {_through(disk.connection)}; {way_out}"
                )


def looks_like_plan(path: Path) -> bool:
    """True where *path* is a file that begins as JSON does."""
    if not path.is_file() or path.suffix == ".toml":
        return False
    with path.open("rb") as file:
        return file.read(256).lstrip()[:1] == b"{"


def is_plan_file(path: Path) -> bool:
    """True where *path* is a regular file that begins as a saved plan does, or is empty."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        return path.is_file() and (not start or b'"format_version"' in start.lstrip(b"{ \n")[:40])
    except OSError:
        return False


def read_plan(path: Path) -> SavedPlan:
    """
    The plan saved in *path*.

    Raises:
        PlanFileError: It is no plan file, one of another version, or others could have
            written it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise PlanFileError(f"{path}: more than {MAX_BYTES} bytes are no plan file")
            if why := others_may_write(path, os.fstat(file.fileno())):
                raise PlanFileError(f"{path}: {why}")
            data: Any = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise PlanFileError(f"{path}: no plan file: {error}") from error
    if fault := plan_fault(data):
        raise PlanFileError(f"{path}: no plan file of this version: {fault}; plan again")
    try:
        disks = {
            (domain["name"], disk["target"]): SavedDisk(
                disk["fingerprint"], tuple(from_data(step) for step in disk["steps"])
            )
            for domain in data["domains"]
            for disk in domain["disks"]
        }
    except (ValueError, TypeError) as error:
        raise PlanFileError(f"{path}: {error}; plan again") from error
    connections = {domain["name"]: domain["connection"] for domain in data["domains"]}
    return SavedPlan(path, tuple(Path(source) for source in data["spec"]), disks, connections)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _below(path: Path, roots: Iterable[Path]) -> bool:
    return any(path == root or root in path.parents for root in roots)


def _listed(paths: Iterable[Path]) -> str:
    return " and ".join(map(str, paths)) or "no spec at all"


def _through(connection: str | None) -> str:
    return f"on {connection}" if connection else "as plain images"
