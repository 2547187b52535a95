"""
What the kernel knows of a file beyond stat(2): when it was born, and on which mount it is.

Two folders with one device number may lie on two mounts (a bind mount), and
rename(2) and link(2) between those fail with EXDEV; a file that was deleted and
made anew may get the old inode number, and never the old birth time.

Source: statx(2); STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND; STATX_BTIME and STATX_MNT_ID,
which came with Linux 4.11 and 5.8.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from struct import Struct
from typing import NamedTuple

_FOLLOW, _NO_FOLLOW, _THE_DESCRIPTOR = 0, 0x100, 0x1000
_BASIC, _BTIME, _MNT_ID = 0x7FF, 0x800, 0x1000
_WANTED = _BASIC | _BTIME | _MNT_ID
_AT_FDCWD = -100
_ANSWER = Struct("=I28xQQ32xqI4xqI4xqI4x8xIIQ")
"""mask; inode, size; birth, change and modification time; device; mount."""
_ATTRIBUTES = Struct("=8xQ")
_IMMUTABLE, _APPEND = 0x10, 0x20
_Buffer = ctypes.c_char * 256

# an old C library has none: stat(2) answers, without birth time and mount
_statx = getattr(ctypes.CDLL(None), "statx", None)
if _statx is not None:
    _statx.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )


class FileIdentity(NamedTuple):
    """
    Which file this is, and whether it was changed since.

    Attributes:
        inode: Its number on its filesystem.
        btime_ns: When it was made, in nanoseconds; 0: the filesystem does not tell.
        size: Length in bytes.
        ctime_ns: When anything of it last changed, its name and owner included.
        mtime_ns: When its content last changed.
        mount_id: The mount it was reached through, which a reboot renumbers; where
            the kernel does not tell, the device.
        device: Device number, which a reboot may renumber.
    """

    inode: int
    btime_ns: int
    size: int
    ctime_ns: int
    mtime_ns: int
    mount_id: int
    device: int


def identity_of(place: str | os.PathLike[str] | int, *, follow: bool = False) -> FileIdentity:
    """
    Who the file *place* is: a path, or a descriptor.

    Args:
        follow: A symbolic link stands for the file that it leads to; otherwise
            for itself.

    Raises:
        OSError: There is no such file, or it may not be looked at; as os.stat has it.
    """
    if _statx is None:
        return _by_stat(place, follow)
    answer = _Buffer()
    if isinstance(place, int):
        failed = _statx(place, b"", _THE_DESCRIPTOR, _WANTED, answer)
    else:
        name = os.fsencode(place)
        if b"\0" in name:  # C would read the name up to there, and answer for another file
            raise ValueError("embedded null byte")
        failed = _statx(_AT_FDCWD, name, _FOLLOW if follow else _NO_FOLLOW, _WANTED, answer)
    if failed:
        return _by_stat(place, follow)
    # one expression: this is called for every image of a host
    mask, inode, size, born, b_part, changed, c_part, written, w_part, major, minor, mount = (
        _ANSWER.unpack_from(answer)
    )
    return FileIdentity(
        inode,
        born * 1_000_000_000 + b_part if mask & _BTIME else 0,
        size,
        changed * 1_000_000_000 + c_part,
        written * 1_000_000_000 + w_part,
        mount if mask & _MNT_ID else os.makedev(major, minor),
        os.makedev(major, minor),
    )


def is_protected(path: Path) -> bool:
    """True where *path* is immutable or append-only, for root too; False where nobody tells."""
    if _statx is None:
        return False
    answer = _Buffer()
    if _statx(_AT_FDCWD, os.fsencode(path), _NO_FOLLOW, 0, answer):
        return False
    (attributes,) = _ATTRIBUTES.unpack_from(answer)
    return bool(attributes & (_IMMUTABLE | _APPEND))


def _by_stat(place: str | os.PathLike[str] | int, follow: bool) -> FileIdentity:
    """By stat(2), which raises what is wrong, and answers where statx is forbidden."""
    found = os.fstat(place) if isinstance(place, int) else os.stat(place, follow_symlinks=follow)
    device = found.st_dev
    times = found.st_ctime_ns, found.st_mtime_ns
    return FileIdentity(found.st_ino, 0, found.st_size, *times, device, device)


def mount_of(folder: str | os.PathLike[str] | int) -> int:
    """
    The mount that *folder* is on: between two of them nothing is renamed or linked.

    Raises:
        OSError: There is no such folder, or it may not be looked at.
    """
    return identity_of(folder, follow=True).mount_id
