"""Reading a saved plan.  It is data: it is compared with a fresh plan, never obeyed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.model.errors import ReconcilerError
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import Step, from_data
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
        sources: The specs that it was made from.
        disks: By domain and target.
        connections: By domain; None: plain images.
    """

    sources: tuple[Path, ...]
    disks: Mapping[tuple[str, str], SavedDisk]
    connections: Mapping[str, str | None]


def looks_like_plan(path: Path) -> bool:
    """True where *path* is a file that begins as JSON does."""
    if not path.is_file() or path.suffix == ".toml":
        return False
    with path.open("rb") as file:
        return file.read(256).lstrip()[:1] == b"{"


def read_plan(path: Path) -> SavedPlan:
    """
    The plan saved in *path*.

    Raises:
        PlanFileError: It is no plan file, or one of another version.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanFileError(f"{path}: more than {MAX_BYTES} bytes are no plan file")
        data: Any = json.loads(path.read_text(encoding="utf-8"))
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
    return SavedPlan(tuple(Path(source) for source in data["spec"]), disks, connections)
