"""Names that a filesystem, the kernel or a qcow2 header has no room for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from reconciler.backends.offline import is_relative, link_name
from reconciler.model.errors import Refused
from reconciler.model.plan import PlannedStep
from reconciler.model.steps import Create, Rebase, Rename
from reconciler.tools import files
from reconciler.tools.qcow2 import MAX_NAME

LONGEST_PATH = 4095
"""Bytes of the longest path that the kernel takes.  Source: linux/limits.h, PATH_MAX."""


def require_room_for_names(steps: Iterable[PlannedStep]) -> None:
    """
    Look at every name that *steps* create; each folder is asked once how long one may be.

    Raises:
        Refused: One of them has no room.
    """
    longest = cache(files.longest_name)
    for planned in steps:
        for path in _new_names(planned):
            most = longest(path.parent)
            # it has another name while it is made
            if max(_size(path.name), _size(files.unmade(path).name)) > most:
                raise Refused(
                    f"{path.name} has {_size(path.name)} bytes, and a file name in {path.parent} "
                    f"has at most {most}",
                    "give it a shorter name",
                )
            if (size := max(_size(path), _size(files.unmade(path)))) > LONGEST_PATH:
                raise Refused(
                    f"the path of {path.name} has {size} bytes with its folders (while it is "
                    f"created), and a path has at most {LONGEST_PATH}",
                    "give it a shorter name, or use a folder nearer to the root",
                )
        recorded = _recorded(planned)
        if recorded is not None and _size(recorded) > MAX_NAME:
            raise Refused(
                f"{planned.step}: the path of the backing file has {_size(recorded)} bytes, and a "
                f"qcow2 header has room for {MAX_NAME}",
                "use a folder nearer to the root, or relative backing names "
                "(qemu-img rebase -u) in the images below",
            )


def _size(name: str | Path) -> int:
    return len(os.fsencode(name))


def _new_names(planned: PlannedStep) -> Iterator[Path]:
    match planned.step:
        case Create(image):
            yield image
        case Rename(_, target):
            yield target


def _recorded(planned: PlannedStep) -> str | None:
    """The backing name that is recorded by a step which creates an image or moves one."""
    match planned.step:
        case Create(image, backing) if backing is not None:
            relative = any(is_relative(one) for one in planned.before)
        case Rebase(image, backing) if image in planned.before:
            relative = is_relative(planned.before.image(image))
        case _:
            return None
    return link_name(image, backing, relative=relative)
