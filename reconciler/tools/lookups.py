"""
Looking things up in the filesystem: each question is asked once in a look, and remembered
results hold for as long as the same questions have the same answers.

There is one rule for what may be remembered, and it is judged before anything is read: a file
whose change time (ctime, set by the kernel alone) is so recent that the next write could leave
the same time behind has no answer that equals another one.  So has a file on a network
filesystem, whose clients keep times for a while.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from reconciler.model.image import Identity
from reconciler.tools.opening import open_resolved

SECOND = 1_000_000_000
COARSE_TICK = SECOND + 50_000_000
"""
Nanoseconds between two writes that surely leave different times behind, on a filesystem that
keeps whole seconds (ext4 with inodes of 128 bytes).
"""
FINE_TICK = 20_000_000
"""The same on one that keeps nanoseconds: the kernel's clock for them moves 100 times a second."""

Version = tuple[int, ...]
"""Device, inode, size, modification and change time of a file, times in nanoseconds."""
Question = tuple[str, str]
"""What was asked (the name of a method of `Lookups`), and the name that it was asked of."""
Evidence = dict[Question, object]
"""The answers that a result was made from."""

T = TypeVar("T")
Parse = Callable[[str, int, os.stat_result], T]

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
"""Filesystems that this host alone writes to.  Source: statfs(2), linux/magic.h."""

_libc = ctypes.CDLL(None, use_errno=True)


_LASTING = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL}
)
"""Errors of opening a file that stay for as long as nobody changes it or its folder."""


_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
"""Errors of lstat that say that no such file is there."""


class Unsettled:
    """The answer about a file that may change without a trace: it equals no other answer."""


def version_of(found: os.stat_result) -> Version:
    """The version of a file that was found like this."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Lookups:
    """
    One look at the filesystem.

    Names are absolute strings: paths are asked about tens of thousands of times.  An object
    belongs to one thread, and a lock that is taken after it was made asks for another one.

    Args:
        memory: What earlier looks found; None: nothing is remembered.

    Attributes:
        began: When the look began, in nanoseconds since 1970.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.began = time.time_ns()
        self.memory = memory
        self._found: dict[str, os.stat_result | None] = {}
        self._hidden: dict[str, str] = {}
        self._real: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._listed: dict[str, tuple[str, ...] | None] = {}
        self._read: dict[tuple[str, object], object] = {}
        self._resolving: set[str] = set()
        self._local: dict[int, bool] = {}
        self._changed: set[str] = set()
        self._recorders: list[Evidence] = []

    # Questions

    def lstat(self, name: str) -> os.stat_result | None:
        """What lies under *name*, a symbolic link itself; None: nothing."""
        found = self._lstat(name)
        if self._recorders:
            self._record("version", name, self._version(name, found))
        return found

    def hidden(self, name: str) -> str | None:
        """Why nobody can tell whether *name* is there; None: it is, or it is not."""
        self._lstat(name)
        why = self._hidden.get(name)
        if self._recorders:
            self._record("hidden", name, why)
        return why

    def version(self, name: str) -> object:
        """What changes whenever the file *name* is written to, replaced, moved or removed."""
        version = self._version(name, self._lstat(name))
        self._record("version", name, version)
        return version

    def real(self, name: str) -> str:
        """*name* with every symbolic link resolved; it need not exist."""
        found = self._real.get(name)
        if found is None:
            found = self._real[name] = self._resolved(name)
        if self._recorders:
            self._record("real", name, found)
        return found

    def path(self, path: str | Path) -> Path:
        """
        *path*, absolute, with every symbolic link resolved.

        A file has one object in a look, which is hashed once and is found by what it is:
        to compare paths part by part took a quarter of a plan.
        """
        name = os.fspath(path)
        real = self.real(name if name.startswith("/") else os.path.join(os.getcwd(), name))
        known = self._paths.get(real)
        if known is None:
            known = path if real == name and isinstance(path, Path) else Path(real)
            self._paths[real] = known
        return known

    def folders(self, paths: Iterable[Path]) -> frozenset[Path]:
        """The folders that *paths*, links resolved, lie in."""
        names = {os.fspath(path).rpartition("/")[0] or "/" for path in paths}
        known = self._paths
        return frozenset(known.get(name) or known.setdefault(name, Path(name)) for name in names)

    def stat(self, name: str) -> os.stat_result | None:
        """What *name* leads to, through links; None: nothing."""
        return self.lstat(self.real(name))

    def identity(self, name: str) -> Identity | None:
        """Device and inode of what *name* leads to, through links; None: nothing."""
        found = self.lstat(self.real(name))
        return None if found is None else Identity(found.st_dev, found.st_ino)

    def is_folder(self, name: str) -> bool:
        """True where *name*, links resolved, is a folder; what lies in it may change."""
        found = self._lstat(name)
        answer = found is not None and stat.S_ISDIR(found.st_mode)
        if self._recorders:
            self._record("is_folder", name, answer)
        return answer

    def names(self, folder: str) -> tuple[str, ...] | None:
        """
        Names in the folder *folder*, links resolved, in order, without those of folders.

        Returns:
            None where it cannot be read; no name where there is no such folder.
        """
        if folder not in self._listed:
            self._listed[folder] = _listed(folder)
        if self._recorders:
            self._record("names", folder, self._listed[folder])
        return self._listed[folder]

    def read(self, name: str, parse: Parse[T]) -> T:
        """
        What *parse* makes of the regular file *name*, links resolved; each file is read once.

        Args:
            parse: Called with the name, an open descriptor, and what `os.fstat` says of it.

        Raises:
            OSError: It cannot be opened, or a component of the name became a link.
        """
        key = name, parse
        if key not in self._read:
            if self.memory is None:
                self._read[key] = self._parsed(name, parse)
            else:
                self._read[key] = self.memory.of(key, self, lambda: self._parsed(name, parse))
        elif self._recorders:
            self.version(name)
        found = self._read[key]
        if isinstance(found, OSError):
            raise found
        return found  # type: ignore[return-value]  # it is what this very parse returned

    # Evidence

    @contextmanager
    def recording(self) -> Iterator[Evidence]:
        """Every question that is asked meanwhile, with its answer."""
        evidence: Evidence = {}
        self._recorders.append(evidence)
        try:
            yield evidence
        finally:
            self._recorders.pop()

    def confirms(self, evidence: Evidence) -> bool:
        """True where every question of *evidence* has the same answer now."""
        for (kind, name), answer in evidence.items():
            now = self.version(name) if kind == "version" else getattr(self, kind)(name)
            if now != answer:
                return False
        return True

    def _record(self, kind: str, name: str, answer: object) -> None:
        for evidence in self._recorders:
            evidence[kind, name] = answer

    # Answers

    def _lstat(self, name: str) -> os.stat_result | None:
        try:
            return self._found[name]
        except KeyError:
            pass
        found: os.stat_result | None
        try:
            found = os.lstat(name)
        except OSError as error:
            found = None
            if error.errno not in _NOT_THERE:
                self._hidden[name] = os.strerror(error.errno or 0)
        except ValueError:  # a name that no file can have
            found = None
        self._found[name] = found
        return found

    def _version(self, name: str, found: os.stat_result | None) -> object:
        if found is None:
            return None
        tick = FINE_TICK if found.st_ctime_ns % SECOND else COARSE_TICK
        if found.st_ctime_ns > self.began - tick or name in self._changed:
            return Unsettled()
        if not self._is_local(found.st_dev, name):
            return Unsettled()
        return version_of(found)

    def _resolved(self, name: str) -> str:
        folder, _, last = name.rpartition("/")
        if last in ("", ".", ".."):
            above = self.real(folder) if folder else "/"
            return (os.path.dirname(above) or "/") if last == ".." else above
        above = self.real(folder) if folder else "/"
        full = f"{above.rstrip('/')}/{last}"
        found = self._lstat(full)
        if found is None or not stat.S_ISLNK(found.st_mode) or full in self._resolving:
            return full
        self._resolving.add(full)
        try:
            return self.real(os.path.join(above, os.readlink(full)))
        except OSError:
            return full
        finally:
            self._resolving.discard(full)

    def _parsed(self, name: str, parse: Parse[T]) -> T | OSError:
        """What *parse* makes of the file; the error where it cannot be opened."""
        expected = self.lstat(name)
        try:
            descriptor, found = open_resolved(name, expected)
        except OSError as error:
            if error.errno not in _LASTING:
                self._changed.add(name)
                self._record("version", name, Unsettled())
            return error
        try:
            if expected is None or version_of(found) != version_of(expected):
                self._changed.add(name)  # between the two looks
                self._record("version", name, Unsettled())
            return parse(name, descriptor, found)
        finally:
            os.close(descriptor)

    def _is_local(self, device: int, name: str) -> bool:
        if device not in self._local:
            self._local[device] = _on_local(name)
        return self._local[device]


def is_settled(evidence: Evidence) -> bool:
    """True where every answer can be relied on for as long as it is given again."""
    return not any(isinstance(answer, Unsettled) for answer in evidence.values())


@dataclass(frozen=True, slots=True)
class _Remembered:
    given: object
    evidence: Evidence
    value: Any


@dataclass(slots=True)
class Memory:
    """What earlier looks worked out; threads may share it."""

    _kept: dict[Hashable, _Remembered] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, key: Hashable, lookups: Lookups, make: Callable[[], T], given: object = None) -> T:
        """
        What *make* returns, which may be what it returned before.

        Args:
            given: Equal for as long as all is equal that *make* depends on and does not
                ask of *lookups*.
        """
        with self._lock:
            known = self._kept.get(key)
        if known is not None and known.given == given and lookups.confirms(known.evidence):
            found: T = known.value
            return found
        with lookups.recording() as evidence:
            made = make()
        with self._lock:
            if is_settled(evidence):
                self._kept[key] = _Remembered(given, evidence, made)
            else:
                self._kept.pop(key, None)
        return made


def _listed(folder: str) -> tuple[str, ...] | None:
    try:
        with os.scandir(folder) as entries:
            found = [one.name for one in entries if not one.is_dir(follow_symlinks=False)]
    except OSError as error:
        return () if error.errno in _NOT_THERE else None
    return tuple(sorted(found))


def _on_local(name: str) -> bool:
    """True where *name* itself, not what it may link to, lies on one of these filesystems."""
    room = ctypes.create_string_buffer(256)
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if _libc.fstatfs(descriptor, room):
            return False
    finally:
        os.close(descriptor)
    return ctypes.c_long.from_buffer(room).value in _LOCAL
