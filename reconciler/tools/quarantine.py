"""
Images that were taken away and are kept for a while, beside where they lay.

An image goes into a folder of its own kind on the same filesystem, so that
nothing is copied, under its name and the moment until which it is kept; where that
is longer than a file name may be, under its name in a folder with that moment.  It
can be moved back by hand; `gc` removes it when its time is over.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.model.errors import Refused
from reconciler.tools import files, opening, statx

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
    inode: int


def require_usable(images: Path) -> None:
    """Raises Refused where nothing can be moved into the quarantine of the folder *images*."""
    place = images / FOLDER
    try:
        found = os.lstat(place)
        here, there = statx.identity_of(images, follow=True), statx.identity_of(place)
    except OSError:
        return  # it is made when it is needed
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise Refused(
            f"{place} is {what}, and images that are taken away are kept in a folder of that name",
            f"move it away: mv -n {shlex.quote(str(place))} {shlex.quote(f'{place}.old')}",
        )
    # subvolumes of btrfs are on one mount, and have numbers of their own
    if (here.mount_id, here.device) != (there.mount_id, there.device):
        raise Refused(
            f"{place} is a mount or a subvolume of its own, and images that are taken away are "
            "moved there, which works within one filesystem only",
            "move what it holds away and unmount it, or remove the subvolume",
        )


def put(path: Path, seconds: int, inode: int) -> Path:
    """
    Move *path* into the quarantine of its folder for *seconds*, durably; its new place.

    Each folder is opened once: whatever is put in its place meanwhile, nothing is moved
    from there or to there.

    Args:
        inode: Of the file that is meant.

    Raises:
        OSError: It cannot be moved, or is another file; all is still where it was.
    """
    quarantine = path.parent / FOLDER
    until = f"~{(datetime.now(UTC) + timedelta(seconds=seconds)).strftime(_TIME)}"
    with opening.folder(path.parent) as there, _made(quarantine, there) as kept:
        if os.stat(path.name, dir_fd=there, follow_symlinks=False).st_ino != inode:
            raise FileNotFoundError(errno.ENOENT, "it is another file by now", str(path))
        for number in range(1000):
            when = f"{until}-{number}" if number else until
            try:
                if files.fits(f"{path.name}{until}-999"):
                    target = quarantine / f"{path.name}{when}"
                    files.rename_new(path, target, folders=(there, kept))
                else:
                    # a crash here leaves an empty folder
                    target = quarantine / when / path.name
                    with _made(target.parent, kept) as own:
                        files.rename_new(path, target, folders=(there, own))
            except FileExistsError:
                continue
            return target
    full = "the quarantine is full of this name"
    raise FileExistsError(errno.EEXIST, full, str(quarantine / path.name))


@contextmanager
def _made(path: Path, within: int) -> Iterator[int]:
    """A descriptor of the private folder *path*, which is made where it is missing."""
    with suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=within)
        os.fsync(within)
    with opening.folder(path, within) as descriptor:
        yield descriptor


def remove(one: Kept) -> None:
    """
    Unlink an image in quarantine durably, and the folder that it has to itself.

    One that is not there any more, or is another file by now, is left to whoever did that.
    """
    own = one.path.parent
    with ExitStack() as held:
        try:
            kept = held.enter_context(opening.folder(one.was.parent / FOLDER))
            there = kept
            if own.name != FOLDER:
                there = held.enter_context(opening.folder(own, kept))
            found = os.stat(one.path.name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            return
        if found.st_ino != one.inode:
            return
        os.unlink(one.path.name, dir_fd=there)
        os.fsync(there)
        if there != kept:
            with suppress(OSError):
                os.rmdir(own.name, dir_fd=kept)


def kept(folders: Iterable[Path]) -> Iterator[Kept]:
    """
    What lies in the quarantine of each of *folders*, links resolved.

    Other files there are left alone, and so is a quarantine that cannot be read.
    """
    for folder in sorted(set(folders)):
        found: list[Kept] = []
        with suppress(OSError), opening.folder(folder / FOLDER) as quarantine:
            found = list(_inside(folder, quarantine))
        yield from found


def _inside(folder: Path, quarantine: int) -> Iterator[Kept]:
    """The images in the *quarantine* of *folder*."""
    for name in sorted(os.listdir(quarantine)):
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        try:
            until = datetime.strptime(found["until"], _TIME).replace(tzinfo=UTC)
        except ValueError:
            continue  # digits that are no time: the name is not ours
        place = folder / FOLDER / name
        if found["name"]:
            yield from _image(place, folder / found["name"], until, quarantine)
            continue
        with suppress(OSError), opening.folder(place, quarantine) as own:
            for inside in sorted(os.listdir(own)):
                yield from _image(place / inside, folder / inside, until, own)


def _image(path: Path, was: Path, until: datetime, within: int) -> Iterator[Kept]:
    """The image *path*, in a folder that is open; nothing where it is no regular file."""
    with suppress(FileNotFoundError):
        found = os.stat(path.name, dir_fd=within, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            yield Kept(path, was, until, found.st_blocks * 512, found.st_ino)
