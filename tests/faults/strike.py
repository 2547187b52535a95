"""
One run of virt-chain, struck by a fault at a number.

A run is a process of its own, forked from the worker so that Python starts once.
The worker is started with strike.c preloaded; wrappers in front of the PATH load
it into the tools.  What is counted and struck is in strike.c.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tests.forked import load_all

SOURCE = Path(__file__).with_name("strike.c")
LIBRARY = "STRIKE_LIBRARY"
"""Environment variable by which a worker knows the library that it was started with."""
TOOLS = ("qemu-img", "qemu-storage-daemon")
DEADLINE = 120.0
"""Seconds after which a run counts as one that never ends."""

_NUMBERS = struct.Struct("11q256s256s")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class How(IntEnum):
    """What happens at the number; the values are those of strike.c."""

    COUNT = 0
    KILL_SELF = 1
    KILL_BOTH = 2
    KILL_MAIN = 3
    TEAR_SELF = 4
    TEAR_BOTH = 5
    FAIL = 6
    SHORT = 7
    SIGNAL = 8
    PAUSE = 9
    CLOCK = 10
    TOOL_KILL_BEFORE = 20
    TOOL_KILL_AFTER = 21
    TOOL_FAIL = 22
    TOOL_HANG = 23
    TOOL_GONE = 24


WRITES, SYNCS, NAMES = 1, 2, 4
ANY = WRITES | SYNCS | NAMES


@dataclass(frozen=True, slots=True)
class Strike:
    """
    A fault.

    Attributes:
        at: Number of the call (or of the start of a tool) that is struck, from 1.
        error: The errno, the signal or the exit code.
        forever: From then on every such call fails.
        classes: Calls that can be struck; the first of them from *at* on is.
        clock: Seconds by which the time of day jumps.
        limits: Resource limits of the whole run, by their number in `resource`.
        meanwhile: What the world does while the run stands still at the number;
            it returns False where that was impossible.
    """

    how: How
    at: int
    error: int = 0
    forever: bool = False
    classes: int = ANY
    clock: int = 0
    limits: Mapping[int, int] = field(default_factory=dict)
    meanwhile: Callable[[], bool] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How a run ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it.
        calls, tools: How many calls and starts of tools were counted.
        struck: The call that was struck, in words; empty: none was.
        hung: It did not end by itself.
    """

    code: int
    out: str
    err: str
    calls: int = 0
    tools: int = 0
    struck: str = ""
    hung: bool = False

    @property
    def text(self) -> str:
        return (self.out + self.err).strip()


def library(cache: Path) -> Path:
    """The compiled strike.c, kept in *cache*."""
    path = cache / f"strike-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", part, SOURCE], check=True)
        part.rename(path)
    return path


class Striker:
    """
    Starts runs, each with a control file and wrappers in *folder*.

    Args:
        root: Only calls on files below it count.
        wrong: Called in each run before it begins; tests break virt-chain with it.
    """

    def __init__(self, folder: Path, root: Path, wrong: Callable[[], None] | None = None) -> None:
        self.folder, self.root, self.wrong = folder, root, wrong
        self.library = Path(os.environ[LIBRARY])
        self._arm = ctypes.CDLL(os.fspath(self.library)).strike_arm
        self.control = folder / "control"
        self.tools = folder / "bin"
        self.ended: dict[int, int] = {}
        """Exit codes of children that ended while another was waited for."""
        folder.mkdir(parents=True, exist_ok=True)
        load_all()
        # orphaned tools become children of this process, so that it can wait for them
        assert _prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0

    def run(self, words: Sequence[str | Path], strike: Strike | None = None) -> Ended:
        """``virt-chain WORDS`` until it and all its tools have ended."""
        self.begin(strike)
        child = self.start(words, strike)
        return self.wait(child, strike)

    def begin(self, strike: Strike | None) -> None:
        """Fresh wrappers and a fresh control file."""
        shutil.rmtree(self.tools, ignore_errors=True)
        self.tools.mkdir()
        for tool in TOOLS:
            real = shutil.which(tool)
            assert real, f"{tool} is not installed"
            wrapper = self.tools / tool
            settings = {
                "STRIKE_FILE": self.control,
                "STRIKE_WRAPPER": wrapper,
                "LD_PRELOAD": self.library,
            }
            exports = "\n".join(f"export {name}='{value}'" for name, value in settings.items())
            wrapper.write_text(f'#!/bin/sh\n{exports}\nexec {real} "$@"\n')
            wrapper.chmod(0o755)
        one = strike or Strike(How.COUNT, 0)
        numbers = [one.at, one.how, one.error, one.forever, one.classes, one.clock, 0, 0, 0, 0, 0]
        root = os.fsencode(self.root)
        self.control.write_bytes(_NUMBERS.pack(*numbers, root, b""))

    def start(
        self, words: Sequence[str | Path], strike: Strike | None, *, armed: bool = True
    ) -> int:
        """The process id of a run that began; its output goes to files beside the control file."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                self._be_virt_chain(words, strike, armed)
            finally:
                os._exit(99)
        return child

    def _be_virt_chain(
        self, words: Sequence[str | Path], strike: Strike | None, armed: bool
    ) -> None:
        name = f"{os.getpid()}"
        for descriptor, end in ((1, "out"), (2, "err")):
            file = os.open(self.folder / f"{name}.{end}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = io.TextIOWrapper(io.FileIO(0))
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding="utf-8", write_through=True)
        code = 1
        try:
            from reconciler.cli import main

            if self.wrong:
                self.wrong()
            if armed:
                # the wrappers alone: a tool that is missing there is missing
                os.environ["PATH"] = os.fspath(self.tools)
                assert self._arm(os.fsencode(self.control)) == 0
            for what, most in (strike.limits if strike else {}).items():
                resource.setrlimit(what, (most, most))
            code = main.run([os.fspath(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            with suppress(BaseException):
                traceback.print_exc()
        os._exit(code)

    def wait(self, child: int, strike: Strike | None) -> Ended:
        """How the run *child* ended; the world's part of *strike* is played meanwhile."""
        until = time.monotonic() + DEADLINE
        status: int | None = None
        acted = hung = False
        with self.control.open("r+b") as file, mmap.mmap(file.fileno(), _NUMBERS.size) as control:
            while status is None:
                status = _ended(child)
                if status is not None:
                    break
                struck = _at(control, 9)
                if struck and strike and not acted:
                    if strike.how == How.PAUSE and strike.meanwhile:
                        acted = True
                        if not strike.meanwhile():
                            control[_NUMBERS.size - 256 :] = bytes(256)
                        struct.pack_into("q", control, 80, 1)
                    elif strike.how in (How.PAUSE, How.TOOL_HANG):
                        acted = True
                        os.kill(child, signal.SIGKILL)
                if time.monotonic() > until:
                    hung = True
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.001)
            self._end_orphans(hang=bool(strike and strike.how in (How.PAUSE, How.TOOL_HANG)))
            calls, tools = _at(control, 7), _at(control, 8)
            what = bytes(control[_NUMBERS.size - 256 :]).rstrip(b"\0").decode(errors="replace")
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._said(child, "out"),
            self._said(child, "err"),
            calls,
            tools,
            what.replace(f"{self.root}/", "")
            or ("limits" if strike and strike.limits and status else ""),
            hung,
        )

    def _end_orphans(self, *, hang: bool) -> None:
        """Wait for tools that outlive virt-chain; those that hang are killed."""
        until = time.monotonic() + (0.2 if hang else 30)
        while True:
            try:
                found, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if found:
                self.ended[found] = os.waitstatus_to_exitcode(status)
                continue
            if time.monotonic() > until:
                text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
                for orphan in text.split():
                    with suppress(ProcessLookupError):
                        os.kill(int(orphan), signal.SIGKILL)
            time.sleep(0.001)

    def _said(self, child: int, end: str) -> str:
        path = self.folder / f"{child}.{end}"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        path.unlink(missing_ok=True)
        return text


def _at(control: mmap.mmap, index: int) -> int:
    number: int = struct.unpack_from("q", control, index * 8)[0]
    return number


def _ended(child: int) -> int | None:
    found, status = os.waitpid(child, os.WNOHANG)
    return status if found else None


def end_with_parent() -> None:
    """A worker whose campaign was killed gets SIGTERM."""
    assert _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0


def temporary_folder() -> Path:
    """A new folder for a campaign; TMPDIR says where."""
    return Path(tempfile.mkdtemp(prefix="faults-"))
