"""
The chain notation of the docs as values: ``base <- mon <- tue*``.

Names stand for ``/images/NAME.qcow2``; a name with a folder (``/other/mon``)
for that file there.  In a desired chain ``~mon`` is an image with
``restore_point = false``.  Data is given as the numbers of the MiB that an
image holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.model.extents import Extent, Extents
from reconciler.model.image import Chain, Identity, Image
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import Commit, Create
from reconciler.model.units import human_size
from reconciler.planner.making import make_plan, needed
from reconciler.planner.task import Task, View, Wanted

FOLDER = Path("/images")
OTHER = Path("/other")
"""A folder on another filesystem."""
MIB = 1024 * 1024

DATA: dict[str, Iterable[int]] = {
    "t": range(10),
    "b": range(10),
    "c": range(8),
    "p": range(5),
    "q": range(20),
    "r": [1],
    "x": [1, 2],
}
"""The MiB that images hold, so chosen that every way of a merge has its own price."""


def path(name: str) -> Path:
    there = Path(f"{name}.qcow2")
    return there if there.is_absolute() else FOLDER / there


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


def names(text: str) -> list[str]:
    """``base <- mon*`` as names, base first; ``(none)`` has none."""
    text = text.strip().rstrip("*")
    return [] if text in ("", "(none)") else [name.strip() for name in text.split("<-")]


def chain(text: str, facts: Mapping[str, Mapping[str, Any]] | None = None) -> Chain:
    """``base <- mon <- tue*`` as a chain; facts by name."""
    listed = names(text)
    below = [None, *listed[:-1]]
    return Chain(
        tuple(
            image(name, zlib.crc32(name.encode()), under, **(facts or {}).get(name, {}))
            for name, under in zip(listed, below, strict=False)
        )
    )


def extents(words: Sequence[Iterable[int]], unit: int = MIB, size: int = 64 * MIB) -> Extents:
    """The map of a chain (base first), each image given as the numbers of its clusters."""
    words = [set(own) for own in words]
    found = []
    for cluster in range(size // unit):
        holders = [depth for depth, own in enumerate(reversed(words)) if cluster in own]
        if holders:
            found.append(Extent(cluster * unit, unit, holders[0], offset=0))
        else:
            found.append(Extent(cluster * unit, unit, len(words) - 1, zero=True, present=False))
    return tuple(found)


def task(
    observed: str,
    desired: str,
    *,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    wanted: Mapping[str, Mapping[str, Any]] | None = None,
    foreign: Sequence[str] = (),
    discard: str = "",
    shared: Mapping[str, str] | None = None,
    templates: str = "",
    **rest: Any,
) -> Task:
    """
    The task that leads from *observed* to *desired*.

    Args:
        facts: Of images that exist, by name.
        wanted: What the spec says of an entry, by name.
        foreign: Chains that exist outside the observed one.
        discard, templates: Names, with spaces between.
        shared: Who else stands on an image, by its name.
    """
    there = chain(observed, facts)
    outside = [chain(text, facts) for text in foreign]
    entries = []
    for name in names(desired):
        at = path(name.removeprefix("~"))
        found = next((one.image(at) for one in (there, *outside) if at in one), None)
        says: dict[str, Any] = {"restore_point": not name.startswith("~")}
        says |= (wanted or {}).get(name.removeprefix("~"), {})
        entries.append(Wanted(at, name.removeprefix("~"), found, **says))
    listed = {one.path for one in entries}
    return Task(
        **{
            "domain": "web01",
            "target": "vda",
            "chain": there,
            "wanted": tuple(entries),
            "discard": frozenset(path(name) for name in discard.split()),
            "outside": {
                one.path: other.up_to(one.path)
                for other in outside
                for one in other
                if one.path in listed and one.path not in there
            },
            "users": {path(name): (user,) for name, user in (shared or {}).items()},
            "templates": frozenset(path(name) for name in templates.split()),
            "filesystems": {FOLDER: 1, OTHER: 2},
            "free": {1: 1 << 40, 2: 1 << 40},
            **rest,
        }
    )


def views(
    one: Task,
    data: Mapping[str, Iterable[int]] | None = None,
    forged: bool = False,
) -> dict[Path, View]:
    """What the planner needs to know of the views; *data* is DATA where it says nothing."""
    held = {path(name): own for name, own in {**DATA, **(data or {})}.items()}
    found = {}
    for wanted in needed(one):
        chains = [one.chain, *one.outside.values()]
        below = next(other.up_to(wanted) for other in chains if wanted in other)
        size = below.images[-1].virtual_size
        own = [held.get(under.path, ()) for under in below]
        found[wanted] = View(extents(own, size=size), forged)
    return found


def plan(
    observed: str,
    desired: str,
    *,
    data: Mapping[str, Iterable[int]] | None = None,
    forged: bool = False,
    **rest: Any,
) -> DiskPlan:
    """The plan from *observed* to *desired*; *rest* as `task` takes it."""
    one = task(observed, desired, **rest)
    return make_plan(one, views(one, data, forged))


def line(planned: PlannedStep) -> str:
    """A step as one line: what it does, and in brackets the bytes that it copies."""
    text = str(planned.step)
    if isinstance(planned.step, Create):
        text += f", {planned.step.format}, {human_size(planned.step.size)}"
    if isinstance(planned.step, Commit) and planned.step.relink:
        text += ", relink"
    return f"{text} [{human_size(planned.bytes)}]" if planned.bytes else text


def lines(made: DiskPlan) -> list[str]:
    return [line(planned) for planned in made.steps]
