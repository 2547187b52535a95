"""Renames, locks and guards, with real programs on the other side."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.model.errors import Busy, worded
from reconciler.tools import files

ROOT = Path(files.__file__).parents[2]
FLOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"]
    subprocess.run(argv, check=True)
    return path


@contextmanager
def held(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until its standard input closes."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()


def soon(path: Path, seconds: float = 5.0) -> bool:
    """True as soon as another program has *path* open for writing."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if files.written_by_other(path):
            return True
        time.sleep(0.01)
    return False


def daemon(path: Path, *, writable: bool) -> list[str]:
    node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={path}"
    return [
        "qemu-storage-daemon",
        *("--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"),
        *("--blockdev", node if writable else f"{node},read-only=on"),
        *("--nbd-server", f"addr.type=unix,addr.path={path}.sock"),
        *("--export", f"nbd,id=e,node-name=disk,writable={'on' if writable else 'off'}"),
    ]


def test_a_new_name_is_taken(tmp_path):
    (tmp_path / "a").write_text("a")

    files.rename_new(tmp_path / "a", tmp_path / "b")

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "a"}


def test_a_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")

    with pytest.raises(FileExistsError) as raised:
        files.rename_new(tmp_path / "a", tmp_path / "b")

    assert raised.value.filename == str(tmp_path / "b")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_a_dangling_link_takes_its_name_too(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("nowhere")

    with pytest.raises(FileExistsError):
        files.rename_new(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").readlink() == Path("nowhere")


def test_a_missing_source_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.rename_new(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("taken", [False, True])
def test_a_filesystem_without_that_rename_gets_a_link(tmp_path, monkeypatch, taken):
    class Old:
        @staticmethod
        def renameat2(*_: object) -> int:
            files.ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(files, "_libc", Old)
    (tmp_path / "a").write_text("a")
    if taken:
        (tmp_path / "b").write_text("b")

    with pytest.raises(FileExistsError) if taken else contextlib.nullcontext():
        files.rename_new(tmp_path / "a", tmp_path / "b")

    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == ({"a": "a", "b": "b"} if taken else {"b": "a"})


@pytest.mark.parametrize("folder", [".", "other"])
def test_a_file_takes_the_place_of_another(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "a").write_text("a")
    (tmp_path / "b").write_text("b")

    files.rename_over(tmp_path / folder / "a", tmp_path / "b")

    assert ((tmp_path / folder / "a").exists(), (tmp_path / "b").read_text()) == (False, "a")


def test_a_removed_file_may_be_gone_already(tmp_path):
    (tmp_path / "a").touch()

    files.remove(tmp_path / "a")
    files.remove(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holder_at_a_time_has_a_lock(tmp_path, kind):
    path = tmp_path / "lock"
    path.touch() if kind == "file" else path.mkdir()
    with held([sys.executable, "-c", FLOCK, str(path)]) as other:
        assert other.stdout is not None
        said = other.stdout.readline()
        with pytest.raises(Busy) as raised, files.locked(path, "web:vda"):
            pass
    with files.locked(path, "web:vda"):
        free_again = True

    assert (said, free_again) == (b"held\n", True)
    assert str(raised.value).startswith("another virt-chain (python")
    assert f"; pid {other.pid} of uid {os.geteuid()} on this host) is working on web:vda; " in str(
        raised.value
    )


def test_a_lock_ends_with_an_error_inside(tmp_path):
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path, "x"):
        raise ZeroDivisionError
    with files.locked(tmp_path, "x"), pytest.raises(Busy), files.locked(tmp_path, "x"):
        pass


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as NFS has them: one of one's own needs a file that is open for writing."""
    flock = fcntl.flock

    def over_nfs(descriptor: int, operation: int) -> None:
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if operation & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", over_nfs)


@pytest.mark.usefixtures("nfs")
def test_a_lock_of_ones_own_is_had_over_nfs(tmp_path):
    path = tmp_path / "lock"
    path.touch(mode=0o600)
    told = pytest.raises(Busy, match="is working on x")
    with files.locked(path, "x"), told, files.locked(path, "x", shared=True):
        pass


@pytest.mark.usefixtures("nfs")
def test_what_cannot_be_locked_there_is_told(tmp_path):
    told = pytest.raises(Busy, match=f"^{tmp_path} cannot be locked: Bad file descriptor$")
    with told, files.locked(tmp_path, "x"):
        pass


def test_an_idle_image_is_written_by_nobody(disk):
    assert files.written_by_other(disk) is False


@pytest.mark.parametrize("program", ["qemu-io", "qemu-storage-daemon"])
def test_an_image_that_a_program_writes_is_known(disk, program):
    argv = (
        daemon(disk, writable=True)
        if program == "qemu-storage-daemon"
        else ["qemu-io", "-f", "qcow2", str(disk)]
    )
    with held(argv):
        during = soon(disk)
    after = files.written_by_other(disk)

    assert (during, after) == (True, False)


def test_an_image_that_a_program_reads_is_written_by_nobody(disk):
    with held(daemon(disk, writable=False)) as other:
        assert other.stdout is not None
        said = other.stdout.readline()
        found = files.written_by_other(disk)
        with files.guarded(disk):
            pass

    assert (b"QMP" in said, found) == (True, False)


@pytest.mark.parametrize("kind", ["missing", "FIFO", "folder"])
def test_what_is_no_file_is_written_by_nobody(tmp_path, kind):
    path = tmp_path / "odd"
    if kind == "FIFO":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()

    assert files.written_by_other(path) is False


def test_a_guarded_image_is_read_and_not_written(disk):
    write = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(disk)]
    read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", str(disk)]
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "x", str(disk)]
    before = disk.read_bytes()
    with files.guarded(disk):
        answers = [subprocess.run(a, capture_output=True) for a in (write, read, rebase)]
    during = disk.read_bytes()
    after = subprocess.run(write, capture_output=True)

    assert [one.returncode for one in (*answers, after)] == [1, 0, 1, 0]
    assert [b'Failed to get "write" lock' in one.stderr for one in answers] == [True, False, True]
    assert during == before


def test_an_image_that_is_written_gets_no_guard(disk):
    with held(["qemu-io", "-f", "qcow2", str(disk)]):
        assert soon(disk)
        with pytest.raises(Busy) as raised, files.guarded(disk):
            pass

    assert str(raised.value) == (
        f"{disk} is open for writing; shut the guest off, then apply again"
    )


def test_two_guards_get_along(disk):
    with files.guarded(disk), files.guarded(disk):
        pass


def test_a_file_is_the_same_under_any_name(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "d").symlink_to("a")

    same = {name: files.same_file(tmp_path / "a", tmp_path / name) for name in "abcde"}

    assert same == {"a": True, "b": True, "c": False, "d": True, "e": False}


def test_a_change_is_seen(tmp_path):
    path = tmp_path / "a"
    gone = files.changed(path)
    path.touch()
    os.utime(path, ns=(1, 5_000_000_007))
    first = files.changed(path)
    path.chmod(0o400)
    second = files.changed(path)
    path.write_text("x")

    assert (gone, first, second, files.changed(path) > second) == (
        0,
        5_000_000_007,
        5_000_000_007,
        True,
    )


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o660])
def test_the_mode_is_taken_over(tmp_path, mode):
    (tmp_path / "new").touch(mode=0o600)
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(mode)

    files.take_manners(tmp_path / "new", tmp_path / "old")

    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owner_and_group_are_taken_over(tmp_path):
    (tmp_path / "new").touch()
    (tmp_path / "old").touch(mode=0o640)
    os.chown(tmp_path / "old", 12345, 54321)

    files.take_manners(tmp_path / "new", tmp_path / "old")

    found = (tmp_path / "new").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


def test_what_may_not_be_given_stays_as_it_is(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    (tmp_path / "new").touch(mode=0o600)
    (tmp_path / "old").touch(mode=0o640)
    monkeypatch.setattr(os, "chown", refuse)

    files.take_manners(tmp_path / "new", tmp_path / "old")

    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_labels_are_taken_over(tmp_path):
    (tmp_path / "new").touch()
    (tmp_path / "old").touch()
    try:
        os.setxattr(tmp_path / "old", "user.label", b"svirt")
    except OSError:
        pytest.skip("this filesystem has no extended attributes")

    files.take_manners(tmp_path / "new", tmp_path / "old")

    assert os.getxattr(tmp_path / "new", "user.label") == b"svirt"


def test_only_regular_files_are_regular(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")

    found = {path.name for path in tmp_path.iterdir() if files.is_regular(path)}

    assert found == {"file", "link"}


def test_free_bytes_are_what_df_tells(tmp_path):
    told = subprocess.run(
        ["df", "--output=avail", "-B1", tmp_path], capture_output=True, check=True
    ).stdout.split()[-1]

    assert abs(files.free_bytes(tmp_path) - int(told)) < 1 << 30


WORDED = [
    (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied; give this"),
    (
        OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"),
        "/a to /b: Invalid cross",
    ),
    (OSError(errno.EROFS, "Read-only file system", "/a"), "; mount its filesystem for writing"),
    (OSError(errno.ENOSPC, "No space left on device", "/a"), "; free some room (virt-chain gc"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "/a"), "; give it a shorter name"),
    (OSError(errno.EPERM, "Operation not permitted", "/a"), "an i for '/a', it is immutable until"),
    (OSError(errno.ENOTEMPTY, "Directory not empty", "/a"), "/a: Directory not empty"),
    (OSError("something"), "something"),
    (ValueError("something"), "something"),
]


@pytest.mark.parametrize(("error", "part"), WORDED)
def test_an_error_of_the_kernel_names_its_file_and_what_to_do(error: Exception, part: str) -> None:
    text = worded(error)

    assert part in text
    assert "Errno" not in text


def test_an_error_that_the_kernel_gives_no_name_has_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError) as refused:
        files.rename_new(tmp_path / "a", tmp_path / "gone" / "b")

    assert worded(refused.value) == f"{tmp_path}/a to {tmp_path}/gone/b: No such file or directory"


def test_whoever_asks_who_has_a_lock_keeps_nobody_out(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    over = threading.Event()

    def ask():
        while not over.is_set():
            files.holder(lock)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            with files.locked_within(lock, "vm:vda", 0):
                pass
    finally:
        over.set()
        asking.join()
