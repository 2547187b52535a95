"""
The one place that starts other programs, and bounds what they may use.

What they read was written by people who may not be trusted: a crafted image
makes qemu-img loop, wait for ever, or ask for all the memory there is
(FIELD_NOTES §2).  So each has limits, is ended when it stands still, gets a
clean environment, and has no network.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from reconciler.model.errors import ToolFailed
from reconciler.model.host import Limits
from reconciler.tools import pulse
from reconciler.tools.privileges import User

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_CAP_SYS_RESOURCE = 24
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

TICK = 1.0
"""Seconds between two looks at a program that prints nothing."""
KEPT = ("PATH", "TMPDIR")
"""Environment variables that a program gets; all others stay here."""


def _die_with(parent: int) -> None:
    """A killed virt-chain takes its child along: nobody writes unobserved."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _in_child(parent: int | None, wanted: Mapping[int, int]) -> None:
    """Between fork and exec: what only the child itself may do."""
    if parent is not None:
        _die_with(parent)
    for kind, most in wanted.items():
        _lower(os.getpid(), kind, most)


Child = subprocess.Popen[bytes]
"""A started program."""


_running: set[Child] = set()
_killed = False


def kill_all() -> None:
    """Kill every program that was started, with its children; from now on none is started."""
    global _killed
    _killed = True
    for child in tuple(_running):
        if child.poll() is None:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own


_limits = Limits()


def limit(limits: Limits) -> None:
    """From now on programs have these limits."""
    global _limits
    _limits = limits


def start(
    argv: Sequence[str | Path],
    *,
    pass_fds: Sequence[int] = (),
    talk: bool = False,
    settings: Mapping[str, str] | None = None,
    reads: bool = False,
    user: User | None = None,
) -> Child:
    """
    Start *argv* with pipes on stdout and stderr, out of reach of a Ctrl-C.

    Args:
        pass_fds: Open file descriptors that the program gets.
        talk: A pipe on its standard input, too.
        settings: Environment variables that are added.
        reads: It only reads and takes no lock, so it may outlive a killed virt-chain.
        user: As whom it runs; None: as virt-chain does.

    Raises:
        ToolFailed: The program is not installed.
    """
    words = [os.fspath(word) for word in argv]
    if _killed:
        raise ToolFailed(words, 1, "it was not started: everything ends at once")
    log.debug("run %s", words)
    as_user: dict[str, Any] = {}
    if user is not None:
        as_user = {"user": user[0], "group": user[1], "extra_groups": []}
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        with _without_network():
            child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # with one arena per thread, threads use up the address space
                env={**kept, "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1", **(settings or {})},
                pass_fds=tuple(pass_fds),
                **as_user,
                umask=0o077,
                start_new_session=True,
                bufsize=0,
                preexec_fn=_preparation(reads=reads, user=user),
            )
    except FileNotFoundError as error:
        missing = f"{words[0]} is not installed; on Debian it is in {_package(words[0])}"
        raise ToolFailed(words, 127, missing) from error
    except OSError as error:
        raise ToolFailed(words, 126, f"{words[0]} cannot be started: {error.strerror}") from error
    _running.difference_update([one for one in tuple(_running) if one.returncode is not None])
    _running.add(child)
    if _killed:  # meanwhile
        kill_all()
    _bound(child.pid, reads=reads)
    return child


def _bound(pid: int, *, reads: bool) -> None:
    """Give the process *pid* its limits, as far as this user may."""
    for kind, most in _wanted(reads=reads).items():
        _lower(pid, kind, most)


def _wanted(*, reads: bool) -> dict[int, int]:
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _limits.memory}
    return {resource.RLIMIT_CPU: _limits.seconds, **wanted} if reads else wanted


def _lower(pid: int, kind: int, most: int) -> None:
    # it has ended, or has less already
    with suppress(OSError, ValueError, OverflowError, MemoryError):
        _, hard = resource.prlimit(pid, kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, kind, (most, most))


def _preparation(*, reads: bool, user: User | None) -> Callable[[], None] | None:
    """
    What a child does before it is the program; None: nothing.

    PR_SET_PDEATHSIG has to be set by the child itself, and its limits where it is
    another user's and virt-chain may not set them, as in most containers.
    """
    own = {} if user is None or _limits_others() else _wanted(reads=reads)
    if reads and not own:
        return None
    return partial(_in_child, None if reads else os.getpid(), own)


@cache
def _limits_others() -> bool:
    """True where virt-chain may limit programs of other users.  Source: capabilities(7)."""
    with suppress(OSError, ValueError, IndexError):
        told = Path("/proc/self/status").read_text().partition("\nCapEff:")[2].split()[0]
        return bool(int(told, 16) >> _CAP_SYS_RESOURCE & 1)
    return False


@contextmanager
def _without_network() -> Iterator[None]:
    """
    Programs that this thread starts meanwhile have no network, where virt-chain may take it away.

    Source: setns(2): it is the calling thread that moves, and a child is where its parent is.

    Raises:
        OSError: The thread cannot come back to its own network.
    """
    nowhere = _no_network()
    if nowhere is None:
        yield
        return
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(nowhere, _CLONE_NEWNET):
            log.debug("tools keep their network: %s", os.strerror(ctypes.get_errno()))
            yield
            return
        try:
            yield
        finally:
            if _libc.setns(here, _CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, f"this thread stays without network: {os.strerror(code)}")
    finally:
        os.close(here)


@cache
def _no_network() -> int | None:
    """A descriptor of a network namespace that has nothing; None where none can be made."""
    found: list[int] = []

    def leave() -> None:
        if _libc.unshare(_CLONE_NEWNET) == 0:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    if os.geteuid() == 0:
        thread = threading.Thread(target=leave)
        try:
            thread.start()
        except RuntimeError as error:  # no memory for a thread
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        thread.join()
    return found[0] if found else None


def run(
    argv: Sequence[str | Path],
    *,
    accept: Sequence[int] = (0,),
    progress: Callable[[bytes], None] | None = None,
    pass_fds: Sequence[int] = (),
    reads: bool = False,
    user: User | None = None,
) -> tuple[int, bytes]:
    """
    Exit code and standard output of *argv*.

    Args:
        accept: Exit codes that are no error.
        progress: Called with each piece of standard output as it arrives.
        pass_fds, reads, user: As `start` has them.

    Raises:
        ToolFailed: The program is missing, ended with another exit code, or
            went beyond its limits.
    """
    child = start(argv, pass_fds=pass_fds, reads=reads, user=user)
    try:
        out, err = _follow(child, Still(child, argv), progress)
    except BaseException:
        stop(child)
        raise
    if child.returncode not in accept:
        words = [os.fspath(word) for word in argv]
        raise ToolFailed(words, child.returncode, err.decode(errors="replace"))
    return child.returncode, out


def _follow(
    child: Child, stands: Still, progress: Callable[[bytes], None] | None
) -> tuple[bytes, bytes]:
    """All output of *child*, its standard output told as it arrives."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, err = child.stdout.fileno(), child.stderr.fileno()
    pieces: dict[int, list[bytes]] = {out: [], err: []}
    still_open, size = {out, err}, 0
    while still_open:
        ready = select.select(list(still_open), [], [], TICK)[0]
        pulse.beat()
        if not ready:
            stands.check()
        for descriptor in ready:
            piece = os.read(descriptor, 65536)
            if not piece:
                still_open.discard(descriptor)
                continue
            size += len(piece)
            if size > _limits.output:
                raise ToolFailed(stands.words, 1, f"it prints more than {_limits.output} bytes")
            pieces[descriptor].append(piece)
            if descriptor == out and progress is not None:
                progress(piece)
    while not _ended(child):
        stands.check()
    for stream in (child.stdout, child.stderr):
        stream.close()
    return b"".join(pieces[out]), b"".join(pieces[err])


def _ended(child: Child) -> bool:
    try:
        child.wait(TICK)
    except subprocess.TimeoutExpired:
        return False
    return True


class Still:
    """
    Tells a program that stands still from one that works without a word.

    Where virt-chain may not see what a program of another user reads and writes
    (it lacks CAP_SYS_PTRACE, as under systemd's hardening), computing alone counts.

    Source: proc(5), /proc/PID/stat and /proc/PID/io.
    """

    def __init__(self, child: Child, words: Sequence[str | Path]) -> None:
        self.words = [os.fspath(word) for word in words]
        self._pid = child.pid
        self._since = time.monotonic()
        self._done: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ToolFailed where the program has done nothing for too long."""
        pulse.beat()  # it may stand still; virt-chain, which will end it, does not
        done = self._what_it_did()
        if done != self._done:
            self._done, self._since = done, time.monotonic()
        elif time.monotonic() - self._since > _limits.seconds:
            raise ToolFailed(
                self.words, 1, f"it stood still for {_limits.seconds} s, and was ended"
            )

    def _what_it_did(self) -> tuple[str, ...]:
        found: list[str] = []
        with suppress(OSError):
            # utime and stime, counted behind the name in parentheses
            text = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2]
            found += text.split()[11:13]
        with suppress(OSError):
            found.append(Path(f"/proc/{self._pid}/io").read_text())
        return tuple(found)


def stop(child: Child, patience: float = 10.0) -> None:
    """End *child*: asked first, killed after *patience* seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel
                child.wait(patience)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def wait_readable(descriptor: int, seconds: float) -> bool:
    """True as soon as *descriptor* has something to read; False after *seconds*."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def installed(program: str) -> bool:
    """True where *program* is on the PATH."""
    return shutil.which(program) is not None


def _package(program: str) -> str:
    return {"qemu-storage-daemon": "qemu-system-common"}.get(program, "qemu-utils")
