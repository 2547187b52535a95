"""Files at one moment: each is asked about once, and what tells that one is as it was."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

TICK = 1_000_000_000
"""Nanoseconds: a file that was changed so recently may change again without a new time."""

Version = tuple[int, ...]
"""Device, inode, size, and times of a file; empty where there is none."""

_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
    }
)
"""Filesystems of this host alone.  Source: statfs(2), linux/magic.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def version_of(found: os.stat_result) -> Version:
    """The version of a file that was found like this."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Moment:
    """
    Files and folders, each looked at when it is first asked for.

    It lives as long as one look at all disks, in which paths are asked about
    thousands of times; a lock that is taken after it began asks for another.

    Attributes:
        settled: A file that was changed after that may change again without a new time;
            nanoseconds since 1970.
    """

    def __init__(self) -> None:
        self.settled = time.time_ns() - TICK
        self._folders: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._found: dict[str, os.stat_result | None] = {}
        self._versions: dict[str, Version | None] = {}
        self._local: dict[int, bool] = {}

    def real(self, path: Path) -> Path:
        """*path* with every symbolic link resolved; it need not exist."""
        name = str(path)
        found = self._paths.get(name)
        if found is None:
            last = path.name
            if last == ".." or self._is_link(name):
                found = Path(os.path.realpath(name))
            else:
                found = Path(self.folder(os.path.dirname(name)), last)
            self._paths[name] = found
        return found

    def folder(self, name: str) -> str:
        """The folder *name* with every symbolic link resolved."""
        if name not in self._folders:
            self._folders[name] = os.path.realpath(name)
        return self._folders[name]

    def at(self, path: Path) -> os.stat_result | None:
        """What lies under the name *path*, a link itself; None: nothing."""
        return self._lstat(str(path))

    def behind(self, name: str) -> os.stat_result | None:
        """What the name *name* leads to, through links; None: nothing."""
        if not self._is_link(name):
            return self._lstat(name)
        try:
            return os.stat(name)
        except OSError:
            return None

    def version(self, name: str) -> Version | None:
        """
        What changes whenever the file *name* is written to, replaced, or moved.

        The change time (ctime) is set by the kernel, and by nobody else.

        Returns:
            None where nobody can tell: a link, a file that was changed a moment
            ago, or one on a network filesystem, whose clients keep times for a while.
        """
        if name not in self._versions:
            self._versions[name] = self._version(name)
        return self._versions[name]

    def _version(self, name: str) -> Version | None:
        found = self._lstat(name)
        if found is None:
            return ()
        if not stat.S_ISREG(found.st_mode) or found.st_ctime_ns > self.settled:
            return None
        if not self.is_local(found.st_dev, name):
            return None
        return version_of(found)

    def _is_link(self, name: str) -> bool:
        found = self._lstat(name)
        return found is not None and stat.S_ISLNK(found.st_mode)

    def _lstat(self, name: str) -> os.stat_result | None:
        if name not in self._found:
            self._found[name] = None
            with suppress(OSError, ValueError):  # ValueError: a name that no file can have
                self._found[name] = os.lstat(name)
        return self._found[name]

    def is_local(self, device: int, name: str) -> bool:
        """True where this host alone writes to *device*, which holds *name*, and keeps times."""
        if device not in self._local:
            self._local[device] = _on_local(name)
        return self._local[device]


def _on_local(name: str) -> bool:
    room = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(name), room):
        return False
    return ctypes.c_long.from_buffer(room).value in _LOCAL
