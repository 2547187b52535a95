"""What `show` tells of the observed chains: sizes, roles, and what each image holds alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reconciler.engine.looking import Look
from reconciler.engine.planning import overwritten
from reconciler.model.errors import ObserveError, ToolFailed
from reconciler.model.extents import Range, join, ranges, total
from reconciler.model.image import Format
from reconciler.model.plan import DiskPlan
from reconciler.tools import qemuimg

Role = Literal["template", "active", "restore point", "dropped", "being merged", "unlisted base"]


@dataclass(slots=True)
class Shown:
    """
    One image of the forest.

    Attributes:
        alone: Bytes that some disk reads from this image and from no other.
        roles: What it is, by disk: ``("centos2:vda", "active")``.
        above: Images that stand on it.
        second: The name by which a running QEMU knows it, where that is another.
    """

    path: Path
    format: Format
    virtual_size: int
    actual_size: int
    alone: int = 0
    roles: dict[str, Role] = field(default_factory=dict)
    above: list[Path] = field(default_factory=list)
    second: Path | None = None


@dataclass(frozen=True, slots=True)
class Forest:
    """All observed images, and the bases that everything stands on."""

    images: dict[Path, Shown]
    roots: tuple[Path, ...]


def forest(looks: Iterable[Look]) -> Forest:
    """The observed chains of *looks*, images that several share shown once."""
    images: dict[Path, Shown] = {}
    roots: dict[Path, None] = {}
    seen: dict[Path, list[Range]] = {}
    for found in looks:
        below: Path | None = None
        for image in found.chain:
            images.setdefault(
                image.path,
                Shown(
                    image.path,
                    image.format,
                    image.virtual_size,
                    image.actual_size,
                    second=image.second,
                ),
            )
            if below is None:
                roots.setdefault(image.path)
            elif image.path not in images[below].above:
                images[below].above.append(image.path)
            below = image.path
        for path, role in _roles(found):
            images[path].roles[found.desired.label] = role
        for path, runs in _alone(found):
            seen.setdefault(path, []).extend(runs)
    for path, every in seen.items():
        images[path].alone = total(join(every))
    return Forest(images, tuple(root for root in roots))


def _roles(found: Look) -> Iterable[tuple[Path, Role]]:
    listed = {} if found.task is None else {one.path: one for one in found.task.wanted}
    merging = overwritten(found)
    for index, image in enumerate(found.chain):
        wanted = listed.get(image.path)
        if image.path in merging:
            yield image.path, "being merged"
        elif index == len(found.chain) - 1:
            yield image.path, "active"
        elif wanted is None and found.task is not None:
            yield image.path, "unlisted base" if index == 0 else "dropped"
        elif wanted is not None and wanted.template:
            yield image.path, "template"
        else:
            yield image.path, "restore point"


def _alone(found: Look) -> Iterable[tuple[Path, tuple[Range, ...]]]:
    if not len(found.chain):
        return
    safe = not any(image.left_alone or image.corrupt for image in found.chain)
    try:
        extents = qemuimg.map_view(found.chain.images, as_recorded=safe)
    except (ObserveError, ToolFailed):
        return
    top = len(found.chain) - 1
    for depth in range(len(found.chain)):
        runs = ranges(one for one in extents if one.data and one.depth == depth)
        yield found.chain[top - depth].path, runs


def as_data(looks: Sequence[Look], plans: Sequence[DiskPlan]) -> dict[str, Any]:
    """The same as plain JSON data, disk by disk."""
    images = forest(looks).images
    return {
        "format_version": 1,
        "disks": [
            {
                "domain": found.desired.domain,
                "target": found.desired.target,
                "state": plan.state,
                "connection": plan.connection,
                "job": None
                if found.job is None
                else {"kind": found.job.kind, "done": found.job.done, "size": found.job.size},
                "images": [
                    {
                        "path": str(image.path),
                        "format": image.format,
                        "virtual_size": image.virtual_size,
                        "actual_size": image.actual_size,
                        "alone": images[image.path].alone,
                        "role": images[image.path].roles[found.desired.label],
                        "snapshots": image.snapshots,
                        "second_name": None if image.second is None else str(image.second),
                    }
                    for image in found.chain
                ],
                "desired": [str(path) for path in plan.desired],
                "drift": bool(plan.steps) or plan.error is not None,
                "steps": len(plan.steps),
                "warnings": list(plan.warnings),
                "error": plan.error,
            }
            for found, plan in zip(looks, plans, strict=True)
        ],
    }
