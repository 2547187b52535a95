"""Opening a file or folder under a name that was resolved before, and under no other one."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_OPENAT2 = 437
_RESOLVE_NO_SYMLINKS = 0x04
"""Source: openat2(2), linux/openat2.h; the number is the same on every architecture."""
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
_have_openat2 = True


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def folder(path: Path, within: int | None = None) -> Iterator[int]:
    """
    A descriptor of the folder *path*, absolute and without symbolic links.

    Whatever its name leads to afterwards, names that are used with the descriptor are
    names in this folder.

    Args:
        within: A descriptor of the folder that it lies in; its own name alone is looked up.

    Raises:
        OSError: It cannot be opened (ELOOP or ENOTDIR: a link is in its place).
    """
    descriptor = _opened(os.fspath(path), _FOLDER, within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_resolved(name: str, found: os.stat_result | None = None) -> tuple[int, os.stat_result]:
    """
    A descriptor of the regular file *name*, an absolute name without symbolic links.

    Whoever may write to a folder on the way could put a link there after the name was
    resolved and allowed; such a name is refused.

    Args:
        found: What `os.lstat` said of it just now; None: it is asked.

    Returns:
        The descriptor, and what `os.fstat` says of it.

    Raises:
        OSError: It cannot be opened (ELOOP: a component is a link by now), or is not a
            regular file (EINVAL).
    """
    if found is None:
        found = os.lstat(name)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    if not stat.S_ISREG(found.st_mode):  # opening a device or a pipe may have effects
        raise OSError(errno.EINVAL, "not a regular file", name)
    descriptor = _opened(name)
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file any more", name)
    return descriptor, opened


def _opened(name: str, flags: int = _FLAGS, within: int | None = None) -> int:
    """A descriptor of the file *name*, of which only the last part is used *within* a folder."""
    global _have_openat2
    asked = name if within is None else os.path.basename(name)
    if _have_openat2:
        how = _How(flags, 0, _RESOLVE_NO_SYMLINKS)
        start = _AT_FDCWD if within is None else within
        descriptor: int = _libc.syscall(
            _OPENAT2, start, os.fsencode(asked), ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a seccomp filter
            raise OSError(code, os.strerror(code), name)
        if code == errno.ENOSYS:
            _have_openat2 = False
    try:
        descriptor = os.open(asked, flags, dir_fd=within)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
    if within is None and os.readlink(f"/proc/self/fd/{descriptor}") != name:
        os.close(descriptor)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return descriptor
