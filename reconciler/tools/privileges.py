"""
As whom a tool runs: as the owner of the image that it works on, where that works.

A crafted image that takes qemu-img over then has the rights of a user who may
write to that image anyway.  It is root that gives its rights up; any other user
runs tools as itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

User = tuple[int, int]
"""User and group number."""

_READ, _WRITE, _ENTER = 4, 2, 1
_ACL = "system.posix_acl_access"


def user_for(reads: Iterable[Path], writes: Iterable[Path] = ()) -> User | None:
    """
    As whom a tool runs that opens these images; None: as virt-chain does.

    It is the owner of the last image that is written, else of the last that is read.
    """
    if os.geteuid() != 0:
        return None
    wanted = [*((path, False) for path in reads), *((path, True) for path in writes)]
    try:
        last = os.stat(wanted[-1][0])
    except (OSError, IndexError):
        return None
    user = last.st_uid, last.st_gid
    if last.st_uid == 0 or not all(_reaches(user, path, write=write) for path, write in wanted):
        return None
    return user


def _reaches(user: User, path: Path, *, write: bool) -> bool:
    bits = _READ | (_WRITE if write else 0)
    try:
        return _allowed(user, path, bits) and all(
            _allowed(user, folder, _ENTER) for folder in path.parents
        )
    except OSError:
        return False


def _allowed(user: User, path: Path, bits: int) -> bool:
    """True where the mode of *path* gives *user* these *bits*; with an ACL nobody knows."""
    found = os.stat(path)
    with suppress(OSError):
        if _ACL in os.listxattr(path):
            return False
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == user[0]:
        mode >>= 6
    elif found.st_gid == user[1]:
        mode >>= 3
    return mode & bits == bits
