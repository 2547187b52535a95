"""The chain notation of the docs as values: ``base <- mon <- tue*``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reconciler.model.extents import Extent, Extents
from reconciler.model.image import Chain, Identity, Image
from reconciler.planner.making import make_plan, needed
from reconciler.planner.task import Task, View, Wanted

FOLDER = Path("/images")
MIB = 1024 * 1024


def path(name: str) -> Path:
    return FOLDER / f"{name}.qcow2"


def image(name: str, number: int, below: str | None, **facts: Any) -> Image:
    defaults: dict[str, Any] = {
        "path": path(name),
        "format": "qcow2",
        "virtual_size": 64 * MIB,
        "identity": Identity(1, number + 10),
        "recorded": None if below is None else f"{below}.qcow2",
        "recorded_format": None if below is None else "qcow2",
    }
    return Image(**{**defaults, **facts})


def chain(text: str, facts: dict[str, dict[str, Any]] | None = None) -> Chain:
    """``base <- mon <- tue*`` as a chain; ``(none)`` is empty; facts by name."""
    text = text.strip().rstrip("*")
    if text in ("", "(none)"):
        return Chain()
    names = [name.strip() for name in text.split("<-")]
    below = [None, *names[:-1]]
    return Chain(
        tuple(
            image(name, abs(hash(name)) % 10**6, under, **(facts or {}).get(name, {}))
            for name, under in zip(names, below, strict=True)
        )
    )


def extents(words: list[set[int]], unit: int = MIB, size: int = 64 * MIB) -> Extents:
    """The map of a chain (base first), each image given as the numbers of its clusters."""
    found = []
    for cluster in range(size // unit):
        holders = [depth for depth, own in enumerate(reversed(words)) if cluster in own]
        if holders:
            found.append(Extent(cluster * unit, unit, holders[0], offset=0))
        else:
            found.append(Extent(cluster * unit, unit, len(words) - 1, zero=True, present=False))
    return tuple(found)


__all__ = [
    "FOLDER",
    "MIB",
    "Task",
    "View",
    "Wanted",
    "chain",
    "extents",
    "image",
    "make_plan",
    "needed",
    "path",
]
