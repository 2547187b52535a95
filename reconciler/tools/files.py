"""Files and folders: durable renames, locks, and facts from the filesystem."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from reconciler.model.errors import Busy
from reconciler.model.image import FileId
from reconciler.tools import statx

NEW = ".virt-chain-new"
"""Suffix of a file that is being made; it is never taken for a finished one."""


LONGEST = 143
"""
Bytes of the longest name that is made up here: every filesystem has room for it.

Most take 255, and eCryptfs takes 143, for it puts more than the name into the name below.
"""


def fits(name: str) -> bool:
    """True where every filesystem takes *name*."""
    return len(os.fsencode(name)) <= LONGEST


def longest_name(folder: Path) -> int:
    """Bytes of the longest file name in *folder*, as its filesystem says."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except OSError:
        return 255


def unmade(path: Path) -> Path:
    """The name under which *path* is made before it gets its own; it always fits."""
    name = f".{path.name}{NEW}"
    if not fits(name):
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{NEW}"
    return path.with_name(name)


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` on 64-bit Linux: type, whence, start, length, pid."""
_PERM_FIRST, _SHARE_LAST = 100, 299
_PERM_WRITE = 101
_SHARE_WRITE = 201
"""
QEMU locks byte 100 + n of a file for each permission n that it uses, and byte
200 + n for each that it denies to others; writing is permission 1.
Source: QEMU, block/file-posix.c, raw_apply_lock_bytes.
"""


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Errors of the kernel that name no file (utime, fsync, read, write) name *path*."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def sync(path: Path) -> None:
    """Make the content of the file or folder *path* durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _about(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_new(source: Path, target: Path, *, folders: tuple[int, int] | None = None) -> None:
    """
    Rename *source* to *target*, durably, where *target* does not exist yet.

    Args:
        folders: Descriptors of the folders of *source* and *target*, where they are open.

    Raises:
        FileExistsError: *target* exists; nothing was changed.
    """
    there, here = folders or (_AT_FDCWD, _AT_FDCWD)
    old, new = map(os.fsencode, (source.name, target.name) if folders else (source, target))
    result = _libc.renameat2(there, old, here, new, _RENAME_NOREPLACE)
    if result:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            # the name that is taken, or both
            names = (target,) if code == errno.EEXIST else (source, None, target)
            raise OSError(code, os.strerror(code), *(name and str(name) for name in names))
        # a filesystem without RENAME_NOREPLACE: link fails where the name is taken
        os.link(old, new, src_dir_fd=there, dst_dir_fd=here)
        os.unlink(old, dir_fd=there)
    if folders is None:
        sync(target.parent)
        return
    for folder, path in ((here, target.parent), (there, source.parent)):
        with _about(path):
            os.fsync(folder)


def rename_over(source: Path, target: Path) -> None:
    """Put *source* in the place of *target*, in one durable act."""
    os.rename(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def write_private(path: Path, text: str) -> None:
    """Put a file of *text* that only its owner reads in the place of *path*, in one durable act."""
    temporary = path.with_name(f".{path.name}.new")
    write(temporary, text)
    rename_over(temporary, path)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Let the file *path* say *text*, durably; a new one gets *mode*, and no link is followed."""
    rest = text.encode()
    descriptor = os.open(path, _NEW_FILE, mode)
    try:
        with _about(path):
            while rest:  # a write may take less than it was given
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int | None:
    """Bytes of the file *path*; None where it cannot be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def remove(path: Path) -> None:
    """Unlink *path* durably; a file that is gone already is fine."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    sync(path.parent)


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """
    Hold the lock on the file or folder *path*; it goes with its holder.

    Args:
        shared: With others who share it; otherwise alone.

    Raises:
        Busy: Another process holds it; *what* tells the reader what is held.
    """
    try:
        descriptor = _opened_to_lock(path)
    except OSError as error:
        raise Busy(f"{path} cannot be locked: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"{_holder(os.fstat(descriptor).st_ino)} is working on {what}; wait for it, "
                "or say --lock-timeout"
            ) from error
        except OSError as error:  # a filesystem without locks, or NFS and no right to write
            raise Busy(f"{path} cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


ASKING = 0.3
"""Seconds that a lock is waited for in any case: whoever only asks who has it holds it, too."""


@contextmanager
def locked_within(
    path: Path, what: str, seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """
    Hold a lock as `locked` does, once whoever has it lets it go.

    Args:
        meanwhile: Called before each try; what it raises ends the waiting.

    Raises:
        Busy: It is still held after *seconds*.
    """
    until = time.monotonic() + max(seconds, ASKING)
    with ExitStack() as held:
        while True:
            meanwhile()
            try:
                held.enter_context(locked(path, what))
                break
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(ASKING / 3)
        yield


def holder(path: Path) -> str | None:
    """Who holds the lock on the file *path*, in words; None: nobody, or nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(os.fstat(descriptor).st_ino)
    finally:
        os.close(descriptor)
    return None


def _holder(inode: int) -> str:
    """
    Who holds the lock on the file *inode*, in words.

    Source: proc(5), /proc/locks; a holder on another host or in another
    container is not among them.
    """
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            lock = line.split()
            if lock[1] == "FLOCK" and int(lock[5].rpartition(":")[2]) == inode:
                pid = int(lock[4])
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                words = [os.path.basename(os.fsdecode(word)) for word in command if word]
                said = " ".join(words).partition("\n")[0][:80]
                owner = Path(f"/proc/{pid}").stat().st_uid
                return f"another virt-chain ({said}; pid {pid} of uid {owner} on this host)"
    return "another virt-chain (on another host, or in a container)"


@contextmanager
def alone_with(lock: Path) -> Iterator[int]:
    """Wait until nobody else is in such a block for the file *lock*, which is made and opened."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone_in(path: Path, seconds: float) -> Iterator[None]:
    """
    Hold the lock on the file *path* while it is replaced by another one of that name.

    The lock is on the file itself, so everybody who may replace it meets at it,
    and nothing is left behind.  Whoever waited for it may hold the lock on a
    file that has lost its name by then, and takes the one on the new file.

    Raises:
        Busy: Somebody else still has it after *seconds*.
        OSError: It cannot be opened.
    """
    descriptor = _locked_alone(path, time.monotonic() + seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked_alone(path: Path, until: float) -> int:
    """A descriptor of the file that *path* is, locked."""
    while True:
        descriptor = _opened_to_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError as error:
            holder = _holder(os.fstat(descriptor).st_ino)
            os.close(descriptor)
            if time.monotonic() > until:
                raise Busy(f"{holder} holds its lock") from error
            time.sleep(0.01)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _opened_to_lock(path: Path) -> int:
    """For writing where that is allowed: over NFS, a lock of one's own needs it."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
            raise
    return os.open(path, os.O_RDONLY | flags)


def written_by_other(path: Path) -> bool:
    """
    True while another program (a guest's QEMU) has the image open for writing.

    Source: FIELD_NOTES; QEMU's locks are open file description locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _conflicts(descriptor, _PERM_WRITE)
    finally:
        os.close(descriptor)


def opened_by_other(path: Path) -> bool:
    """
    True while another program has the image open as QEMU does, for reading or writing.

    One that was told to share everything (``-U``) holds no lock, and is not seen.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _conflicts(descriptor, _PERM_FIRST, _SHARE_LAST - _PERM_FIRST + 1)
    finally:
        os.close(descriptor)


def _conflicts(descriptor: int, byte: int, length: int = 1) -> bool:
    probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, probe)
    except OSError:
        return False  # a filesystem without locks; QEMU works unlocked there, too
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """
    Keep every QEMU from opening the image *path* for writing meanwhile.

    The guard is QEMU's own lock "others may not write" and goes with its
    holder; readers are unaffected.

    Raises:
        Busy: A guest or another program has the image open for writing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _SHARE_WRITE, 1, 0)
        with suppress(OSError):  # a filesystem without locks has no guard to give
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        if _conflicts(descriptor, _PERM_WRITE):
            raise Busy(f"{path} is open for writing; shut the guest off, then apply again")
        yield
    finally:
        os.close(descriptor)


def same_file(one: Path, other: Path) -> bool:
    """True where both names exist and mean one file."""
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def file_id(path: Path) -> FileId | None:
    """Who the file *path* is; None where there is none.  A link stands for itself."""
    try:
        found = statx.identity_of(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return FileId(found.inode, found.btime_ns, found.size, found.mtime_ns, found.ctime_ns)


def is_as_it_was(path: Path, known: FileId | None) -> bool:
    """True where *path* is the file that was known and nobody wrote to it since; None: no file."""
    who = file_id(path)
    return who is None if known is None else who is not None and who.has_same_content(known)


def durable_id(path: Path) -> FileId | None:
    """
    Who the file *path* is, once its times are durable; None where there is none.

    A tool's fdatasync makes data durable and leaves the times to chance: after a power loss
    the data would be new and the time old.  Source: fdatasync(2).
    """
    with suppress(OSError):
        sync(path)
    return file_id(path)


def changed(path: Path) -> int:
    """When the content of *path* last changed, in nanoseconds; 0 where it is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def touch(path: Path) -> None:
    """
    Give *path* another modification time, durably.

    A tool's fdatasync makes data durable and leaves the time to chance: after
    a power loss the data is new and the time is old.  Source: fdatasync(2).
    """
    before = os.stat(path)
    for later in (0, 2_000_000_000):  # a filesystem may keep whole seconds only
        now = max(time.time_ns(), before.st_mtime_ns + 1) + later
        with _about(path):
            os.utime(path, ns=(before.st_atime_ns, now))
        if changed(path) != before.st_mtime_ns:
            break
    sync(path)


def take_manners(path: Path, like: Path) -> None:
    """
    Give *path* the owner, mode and labels (extended attributes) of *like*.

    What an unprivileged user may not give stays as it is.  What libvirt remembers
    of a file's owner in labels of its own is about that file alone.
    """
    model = os.stat(like)
    with _held(path) as descriptor:
        _give(descriptor, (model.st_uid, model.st_gid), stat.S_IMODE(model.st_mode))
        with suppress(OSError):
            for name in os.listxattr(like):
                if name.startswith("trusted.libvirt."):
                    continue
                with suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(like, name))


def own(path: Path, owner: tuple[int, int], mode: int) -> None:
    """Give the file *path*, which was just made, its owner and mode."""
    with _about(path), _held(path) as descriptor:
        _give(descriptor, owner, mode)


def _give(descriptor: int, owner: tuple[int, int], mode: int) -> None:
    """Owner and mode of an open file, as far as this user may give them."""
    with suppress(PermissionError):
        os.fchown(descriptor, *owner)
    with suppress(PermissionError):
        os.fchmod(descriptor, mode)


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """A descriptor of the very file *path*: a link that was put there leads nowhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_regular(path: Path) -> bool:
    """True where *path* is a regular file, links followed."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def read_only(folder: Path) -> bool:
    """True where *folder* is on a mount that nobody here may write to, root included."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged writer may still use on the filesystem of *folder*."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
