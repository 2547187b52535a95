"""The one place that starts other programs."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from reconciler.model.errors import ToolFailed

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _die_with(parent: int) -> None:
    """A killed virt-chain takes its child along: nobody writes unobserved."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


Child = subprocess.Popen[bytes]
"""A started program."""


def start(
    argv: Sequence[str | Path],
    *,
    pass_fds: Sequence[int] = (),
    talk: bool = False,
    settings: Mapping[str, str] | None = None,
    reads: bool = False,
) -> Child:
    """
    Start *argv* with pipes on stdout and stderr, out of reach of a Ctrl-C.

    Args:
        pass_fds: Open file descriptors that the program gets.
        talk: A pipe on its standard input, too.
        settings: Environment variables that are added.
        reads: It only reads and takes no lock, so it may outlive a killed virt-chain.

    Raises:
        ToolFailed: The program is not installed.
    """
    words = [os.fspath(word) for word in argv]
    log.debug("run %s", words)
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(settings or {})},
            pass_fds=tuple(pass_fds),
            umask=0o077,
            start_new_session=True,
            bufsize=0,
            # PR_SET_PDEATHSIG has to be set in the child itself, between fork and exec
            preexec_fn=None if reads else partial(_die_with, os.getpid()),
        )
    except FileNotFoundError as error:
        missing = f"{words[0]} is not installed; on Debian it is in {_package(words[0])}"
        raise ToolFailed(words, 127, missing) from error
    except OSError as error:
        raise ToolFailed(words, 126, f"{words[0]} cannot be started: {error.strerror}") from error


def run(
    argv: Sequence[str | Path],
    *,
    accept: Sequence[int] = (0,),
    progress: Callable[[bytes], None] | None = None,
    pass_fds: Sequence[int] = (),
    reads: bool = False,
) -> tuple[int, bytes]:
    """
    Exit code and standard output of *argv*.

    Args:
        accept: Exit codes that are no error.
        progress: Called with each piece of standard output as it arrives.
        pass_fds, reads: As `start` has them.

    Raises:
        ToolFailed: The program is missing, or ended with another exit code.
    """
    child = start(argv, pass_fds=pass_fds, reads=reads)
    try:
        if progress is None:
            out, err = child.communicate()
        else:
            out, err = _follow(child, progress)
    except BaseException:
        stop(child)
        raise
    if child.returncode not in accept:
        raise ToolFailed(
            [os.fspath(word) for word in argv],
            child.returncode,
            err.decode(errors="replace"),
        )
    return child.returncode, out


def _follow(child: Child, progress: Callable[[bytes], None]) -> tuple[bytes, bytes]:
    """All output of *child*, its standard output told as it arrives."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, err = child.stdout.fileno(), child.stderr.fileno()
    pieces: dict[int, list[bytes]] = {out: [], err: []}
    still_open = {out, err}
    while still_open:
        for descriptor in select.select(list(still_open), [], [])[0]:
            piece = os.read(descriptor, 65536)
            if not piece:
                still_open.discard(descriptor)
                continue
            pieces[descriptor].append(piece)
            if descriptor == out:
                progress(piece)
    child.communicate()
    return b"".join(pieces[out]), b"".join(pieces[err])


def stop(child: Child, patience: float = 10.0) -> None:
    """End *child*: asked first, killed after *patience* seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
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
