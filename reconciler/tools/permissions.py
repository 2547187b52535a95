"""
What this user may change, asked of the kernel before anything is changed.

The kernel knows more than mode bits: capabilities, access control lists, how a mount was made,
and attributes such as immutable, which hold for root too.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from reconciler.model.errors import Refused
from reconciler.tools import files, statx


def require_folder(folder: Path) -> None:
    """Raises Refused where this user may not create, rename or remove files in *folder*."""
    if not folder.is_dir() or _allowed(folder, os.W_OK | os.X_OK):
        return
    if files.read_only(folder):
        raise Refused(
            f"virt-chain cannot write to {folder}: it is mounted read-only here",
            "mount it for writing, or list it in ReadWritePaths= of the systemd unit",
        )
    _require_changeable(folder)
    raise Refused(
        f"{_me()} may not create, rename or remove files in {folder} ({_owner_and_mode(folder)})",
        f"{_run_as(folder)}, or let {_me()} write to that folder",
    )


def require_name(path: Path) -> None:
    """Raises Refused where this user may not rename or remove *path* in a folder of many users."""
    if not os.path.lexists(path):
        return
    _require_changeable(path)
    folder = path.parent
    if os.stat(folder).st_mode & stat.S_ISVTX and not (_owns(path) or _owns(folder)):
        raise Refused(
            f"{path} belongs to {_owner(path)}, and in {folder} only the owner of a file may "
            "rename or remove it (sticky bit)",
            _run_as(path),
        )


def require_image(path: Path, *, owned: bool, written: bool) -> None:
    """
    Raises Refused where this user may not change the file *path*.

    Args:
        owned: Its modification time is set, which only its owner may.
        written: It is opened for writing.
    """
    if not os.path.lexists(path):
        return
    _require_changeable(path)
    if owned and not _owns(path):
        raise Refused(
            f"{path} belongs to {_owner(path)}, and {_me()} may not change it", _run_as(path)
        )
    if written and not _allowed(path, os.R_OK | os.W_OK):
        if files.read_only(path):
            require_folder(path.parent)
        raise Refused(
            f"{_me()} may not write to {path} ({_owner_and_mode(path)})",
            f"{_run_as(path)}, or let {_me()} write to that file",
        )


def require_link(path: Path) -> None:
    """
    Raises Refused where this user may not give the file *path* a second name.

    Source: proc(5), fs.protected_hardlinks, which distributions set.
    """
    if os.path.lexists(path) and not _allowed(path, os.R_OK | os.W_OK):
        require_image(path, owned=True, written=False)


def _require_changeable(path: Path) -> None:
    if statx.is_protected(path):
        raise Refused(
            f"{path} cannot be changed: it is immutable (lsattr shows an i) or append-only (an a)",
            f"make it changeable with: chattr -i -a '{path}'",
        )


def _allowed(path: Path, how: int) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def _owns(path: Path) -> bool:
    """True for the owner of *path*, and whoever may do what its owner may."""
    try:
        # open(2), O_NOATIME: only for the owner, or with CAP_FOWNER
        os.close(os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return os.geteuid() in (0, os.lstat(path).st_uid)
    return True


def _me() -> str:
    return f"the user {_name(os.geteuid())}"


def _owner(path: Path) -> str:
    return _name(os.lstat(path).st_uid)


def _owner_and_mode(path: Path) -> str:
    found = os.stat(path)
    return f"owner {_name(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _run_as(path: Path) -> str:
    users = dict.fromkeys((os.lstat(path).st_uid, 0))
    others = [_name(user) for user in users if user != os.geteuid()]
    return f"run virt-chain as {' or as '.join(others)}" if others else "look at its mode and ACL"
