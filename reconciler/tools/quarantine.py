"""
Images that were taken away and are kept for a while, beside where they lay.

An image goes into a folder of its own kind on the same filesystem, so that
nothing is copied, under its name and the moment until which it is kept; where that
is longer than a file name may be, under its name in a folder with that moment.  It
can be moved back by hand; `gc` removes it when its time is over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.tools import files

FOLDER = ".virt-chain-quarantine"
_NAME = re.compile(r"(?P<name>.*)~(?P<until>\d{8}T\d{6}Z)(?:-\d+)?", re.DOTALL)
_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Kept:
    """An image in quarantine: where it is, where it was, until when it is kept, its bytes."""

    path: Path
    was: Path
    until: datetime
    size: int


def put(path: Path, seconds: int) -> Path:
    """
    Move *path* into the quarantine of its folder for *seconds*, durably; its new place.

    Raises:
        OSError: It cannot be moved; it is still where it was.
    """
    folder = path.parent / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(20, "a quarantine folder is no symbolic link", str(folder))
    files.sync(path.parent)
    until = f"~{(datetime.now(UTC) + timedelta(seconds=seconds)).strftime(_TIME)}"
    for number in range(1000):
        when = f"{until}-{number}" if number else until
        target = folder / f"{path.name}{when}"
        if not files.fits(f"{path.name}{until}-999"):
            # a crash here leaves an empty folder
            target = folder / when / path.name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            files.sync(folder)
        try:
            files.rename_new(path, target)
        except FileExistsError:
            continue
        files.sync(path.parent)
        return target
    raise FileExistsError(17, "the quarantine is full of this name", str(folder / path.name))


def remove(one: Kept) -> None:
    """Unlink an image in quarantine durably, and the folder that it has to itself."""
    files.remove(one.path)
    if one.path.parent.name != FOLDER:
        with suppress(OSError):
            one.path.parent.rmdir()


def kept(folders: Iterable[Path]) -> Iterator[Kept]:
    """What lies in the quarantine of each of *folders*; other files there are left alone."""
    for folder in sorted({folder / FOLDER for folder in folders}):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for name in sorted(os.listdir(folder)):
            found = _NAME.fullmatch(name)
            if found is None:
                continue
            try:
                until = datetime.strptime(found["until"], _TIME).replace(tzinfo=UTC)
            except ValueError:
                continue  # digits that are no time: the name is not ours
            place = folder / name
            inside = [(found["name"], place)] if found["name"] else _inside(place)
            for was, path in inside:
                if files.is_regular(path):
                    yield Kept(path, folder.parent / was, until, path.stat().st_blocks * 512)


def _inside(folder: Path) -> list[tuple[str, Path]]:
    """Name and place of what lies in a *folder* for one moment."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [(name, folder / name) for name in sorted(os.listdir(folder))]
