"""
A device that logs every write, with filesystems on it.

Each filesystem has a room on the device::

    loop, mounted -- FUSE -- log of the room --+
    loop, mounted -- FUSE -- log of the room --+-- NBD -- log of the device -- file

The log of the device tells the order of all writes, those of the rooms tell
which room a flush was for.  So a cut is one moment for all filesystems, and a
flush of one of them makes nothing of the others durable.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.power_log import Cut, Filesystem, Recording, Room, merged, rebuild
from tests.images.disks import MIB, tool

SIZES: Mapping[Filesystem, int] = {"ext4": 48 * MIB, "xfs": 300 * MIB}
"""Of a room, in bytes.  XFS takes no less.  Source: mkfs.xfs(8), xfsprogs 6."""
MAKERS: Mapping[Filesystem, Sequence[str]] = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0", "-J", "size=4"),
    "xfs": ("mkfs.xfs", "-q", "-K"),
}
_LOOP_ADD, _LOOP_REMOVE = 0x4C80, 0x4C81
"""Requests to /dev/loop-control.  Source: Linux, include/uapi/linux/loop.h."""
_WRITE_OUT = 2
"""SYNC_FILE_RANGE_WRITE: begin to write dirty pages; flush nothing.  Source: sync_file_range(2)."""
_libc = ctypes.CDLL(None, use_errno=True)


class Unusable(Exception):
    """What this machine lacks for the tests of power loss."""


def require() -> None:
    """
    Make sure that this machine can lose power.

    Raises:
        Unusable: It names everything that is missing.
    """
    programs = ("qemu-storage-daemon", "losetup", "setpriv", "mount", "mkfs.ext4", "mkfs.xfs")
    lacks = [f"the program {name}" for name in programs if not shutil.which(name)]
    lacks += [name for name in ("/dev/fuse", "/dev/loop-control") if not os.path.exists(name)]
    if os.geteuid():
        lacks.append("root, who may mount")
    if lacks:
        raise Unusable(f"power loss needs {', '.join(lacks)}; scripts/setup dev installs programs")


@contextmanager
def looped(file: Path, number: int, offset: int = 0, size: int = 0) -> Iterator[str]:
    """The loop device *number* on *file*, or on *size* bytes of it from *offset*."""
    device = f"/dev/loop{number}"
    with open("/dev/loop-control", "rb") as control:
        fcntl.ioctl(control, _LOOP_ADD, number)
        try:
            tool("losetup", "--offset", str(offset), "--sizelimit", str(size), device, file)
            try:
                yield device
            finally:
                tool("losetup", "--detach", device)
        finally:
            _patiently(lambda: fcntl.ioctl(control, _LOOP_REMOVE, number))


@contextmanager
def mounted(device: str, where: Path) -> Iterator[None]:
    """The filesystem on *device* mounted on the folder *where*."""
    where.mkdir(parents=True, exist_ok=True)
    tool("mount", device, where)
    try:
        yield
    finally:
        _patiently(lambda: tool("umount", where))


def _patiently(act: Callable[[], object]) -> None:
    """Do *act*; while somebody still looks at the device or folder, do it again."""
    for _ in range(200):
        try:
            act()
            return
        except (OSError, AssertionError):
            time.sleep(0.05)
    act()


def first_loop() -> int:
    """Number of a loop device that only this process uses, as are the next seven."""
    return 1000 + os.getpid() % 100000 * 8


@contextmanager
def all_mounted(rooms: Sequence[Room], files: Sequence[Path], *, first: int = 0) -> Iterator[None]:
    """
    Every room mounted: from a file of its own, or all from one that is the device.

    Args:
        first: Added to the numbers of the loop devices.
    """
    with ExitStack() as stack:
        for number, room in enumerate(rooms):
            loop = first_loop() + first + number
            whole = len(files) == 1
            file = files[0] if whole else files[number]
            part = (room.offset, room.size) if whole else (0, 0)
            stack.enter_context(
                mounted(stack.enter_context(looped(file, loop, *part)), room.mounted)
            )
        yield


@contextmanager
def daemon(ready: Path, *argv: str) -> Iterator[None]:
    """A qemu-storage-daemon that ends with this block, and with this process."""
    words = ["setpriv", "--pdeathsig", "TERM", "qemu-storage-daemon", *argv]
    child = subprocess.Popen([*words, "--pidfile", os.fspath(ready)])
    try:
        until = time.monotonic() + 60
        while not (ready.exists() and ready.read_text().strip()):
            assert child.poll() is None, f"{words} ended early"
            assert time.monotonic() < until, f"{words} is not ready after a minute"
            time.sleep(0.01)
        yield
    finally:
        child.terminate()
        child.wait()


def _logged(name: str, file: Mapping[str, object], log: Path) -> list[str]:
    """The block node *name*: *file*, and a log of all that is written to it."""
    log.touch()
    node = {
        "driver": "blklogwrites",
        "node-name": name,
        "file": file,
        "log": {"driver": "file", "filename": os.fspath(log)},
    }
    return ["--blockdev", json.dumps(node)]


@contextmanager
def logged(folder: Path, device: Path, rooms: Sequence[Room]) -> Iterator[list[Path]]:
    """
    A file for each room, through which all writes go into logs in *folder*.

    The log of the device is ``device.log`` there, those of the rooms are
    ``0.log`` and so on; they are complete when the block has ended.
    """
    socket = {"type": "unix", "path": os.fspath(folder / "nbd")}
    address = {"addr": socket, "max-connections": len(rooms)}
    server = [
        *_logged(
            "device", {"driver": "file", "filename": os.fspath(device)}, folder / "device.log"
        ),
        *("--nbd-server", json.dumps(address)),
        *("--export", "type=nbd,id=device,node-name=device,writable=on"),
    ]
    client: list[str] = []
    files = [folder / f"{number}.room" for number in range(len(rooms))]
    for number, (room, file) in enumerate(zip(rooms, files, strict=True)):
        part = {
            "driver": "raw",
            "offset": room.offset,
            "size": room.size,
            "file": {"driver": "nbd", "server": socket, "export": "device"},
        }
        client += _logged(f"room{number}", part, folder / f"{number}.log")
        file.touch()
        export = {
            "type": "fuse",
            "id": f"room{number}",
            "node-name": f"room{number}",
            "mountpoint": os.fspath(file),
            "writable": True,
        }
        client += ["--export", json.dumps(export)]
    with daemon(folder / "server", *server), daemon(folder / "client", *client):
        yield files


def rooms_for(root: Path, filesystem: Filesystem, *, apart: bool) -> tuple[Room, ...]:
    """One filesystem on *root*; *apart*: a second one for the state directory."""
    size = SIZES[filesystem]
    images = Room(filesystem, 0, size, root)
    return (images, Room(filesystem, size, size, root / "state")) if apart else (images,)


def prepare(base: Path, rooms: Sequence[Room], fill: Callable[[], None]) -> None:
    """Make the device *base* with empty filesystems, and let *fill* write into them."""
    base.touch()
    os.truncate(base, rooms[-1].offset + rooms[-1].size)
    for number, room in enumerate(rooms):
        with looped(base, first_loop() + number, room.offset, room.size) as device:
            tool(*MAKERS[room.filesystem], device)
    with all_mounted(rooms, [base]):
        for room in rooms:
            shutil.rmtree(room.mounted / "lost+found", ignore_errors=True)
        fill()


def record(
    folder: Path, base: Path, rooms: tuple[Room, ...], run: Callable[[], None], *, restless: bool
) -> Recording:
    """
    Log all writes while *run* works on the filesystems of the device *base*.

    Args:
        folder: Where the logs go; it is made.
        restless: Dirty pages are written out early and all the time, as a busy
            machine does.
    """
    folder.mkdir()
    device = folder / "device"
    tool("cp", "--sparse=always", base, device)
    log = folder / "device.log"
    with logged(folder, device, rooms) as files, all_mounted(rooms, files):
        with written_out_early(rooms[0].mounted) if restless else ExitStack():
            run()
        size = log.stat().st_size
    events = tuple(merged(rooms, log, [folder / f"{n}.log" for n in range(len(rooms))]))
    device.unlink()
    ended = next((n for n, one in enumerate(events) if one.data > size), len(events))
    return Recording(rooms, base, log, events, ended)


@contextmanager
def written_out_early(root: Path) -> Iterator[None]:
    """Meanwhile, dirty pages of all files below *root* go to the device without a flush."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.001):
            for path in list(root.glob("**/*.*")):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                except OSError:
                    continue  # renamed or removed since
                _libc.sync_file_range(
                    descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_WRITE_OUT)
                )
                os.close(descriptor)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def after(recording: Recording, cut: Cut, device: Path, *, moved: bool = False) -> Iterator[None]:
    """
    The machine has started again: every room is mounted as *cut* left it.

    Args:
        device: A file name for the device that is built.
        moved: The kernel gives its disks other numbers than before.
    """
    rebuild(recording, cut, device)
    try:
        with all_mounted(recording.rooms, [device], first=len(recording.rooms) if moved else 0):
            yield
    finally:
        device.unlink()
