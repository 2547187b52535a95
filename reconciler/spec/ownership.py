"""Who could have written a file that says what is done with virt-chain's rights."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LINKS = 40
"""Symbolic links that one path may lead through, as Linux has it."""


def others_may_write(path: Path, opened: os.stat_result) -> str | None:
    """
    Why *path*, which was *opened*, may be the work of others; None: only we or root can write it.

    Every folder and link on the way counts: whoever can change one of them can put
    another file in its place.  In a folder such as /tmp only the owner of a file can.
    """
    if not _ours(opened.st_uid):
        return f"it belongs to {_name(opened.st_uid)}; read it, then make it yours with chown"
    if _writable(opened):
        return "others may write to it; read it, then chmod go-w"
    for place, found in _way(path):
        if not _ours(found.st_uid):
            return (
                f"{place}, on the way to it, belongs to {_name(found.st_uid)}, who could put "
                "another plan there; copy it to a folder of your own"
            )
        sticky = bool(found.st_mode & stat.S_ISVTX)
        if stat.S_ISDIR(found.st_mode) and _writable(found) and not sticky:
            return (
                f"others may write to the folder {place} and could put another plan there; "
                "copy it to a folder of your own"
            )
    return None


def _ours(user: int) -> bool:
    return user in (0, os.geteuid())


def _writable(found: os.stat_result) -> bool:
    """True where others may write; a group of its owner alone (umask 002) is no others."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _private(found.st_uid, found.st_gid)


def _private(user: int, group: int) -> bool:
    """True where *group* is the one that *user* has alone, under its own name."""
    with suppress(KeyError):
        owner, members = pwd.getpwuid(user), grp.getgrgid(group)
        same = owner.pw_gid == group and members.gr_name == owner.pw_name
        return same and not set(members.gr_mem) - {owner.pw_name}
    return False


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder and symbolic link that *path* leads through."""
    at, rest, links = Path("/"), deque(path.absolute().parts[1:]), 0
    yield at, os.lstat(at)
    while rest:
        name = rest.popleft()
        if name == "..":
            at = at.parent
            continue
        found = os.lstat(at / name)
        if stat.S_ISLNK(found.st_mode):
            yield at / name, found
            links += 1
            if links > LINKS:
                return
            target = Path(os.readlink(at / name))
            at = Path("/") if target.is_absolute() else at
            rest.extendleft(reversed([part for part in target.parts if part != "/"]))
            continue
        at = at / name
        if stat.S_ISDIR(found.st_mode):
            yield at, found


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
