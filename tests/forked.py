"""
``virt-chain`` as processes of their own that are forked, so that Python starts once.

The first call starts a parent, which imports what virt-chain imports (0.3 s of a
processor) and does nothing else.  Each run is a child of it, with an environment,
limits and standard streams of its own; it calls the entry point of the installed
command, or of a script of the tests, and ends as that does.

The start of the command itself is for the tests that run ``tests.images.disks.EXECUTABLE``.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import typer.main

_NUMBER = struct.Struct("i")
_server: tuple[int, socket.socket] | None = None
"""Whose it is, and the connection to it; its process ends when this one is closed."""


def run(
    words: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    umask: int | None = None,
    limits: Mapping[int, int] | None = None,
    user: int = 0,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """
    ``virt-chain WORDS`` without a terminal, until it has ended.

    Args:
        environment, folder, umask: Left out: those of this process, as they are now.
        limits: By their number in `resource`.
        user: Who runs it, and with which group; 0: whoever runs the tests.
        timeout: In seconds.

    Raises:
        subprocess.TimeoutExpired: It did not end in time, and was killed.
    """
    return _child(
        {
            "argv": ["virt-chain", *map(os.fspath, words)],
            "environment": dict(os.environ if environment is None else environment),
            "folder": os.fspath(folder or Path.cwd()),
            "umask": _umask() if umask is None else umask,
            "limits": list((limits or {}).items()),
            "user": user,
        },
        timeout,
    )


def script(
    path: Path, words: Sequence[str], *, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """
    ``python PATH WORDS``, until it has ended.

    Raises:
        subprocess.TimeoutExpired: It did not end in time, and was killed.
    """
    return _child(
        {
            "argv": [os.fspath(path), *words],
            "script": os.fspath(path),
            "environment": dict(os.environ),
            "folder": os.fspath(Path.cwd()),
            "umask": _umask(),
            "limits": [],
            "user": 0,
        },
        timeout,
    )


def _child(order: Mapping[str, Any], timeout: float) -> subprocess.CompletedProcess[str]:
    """A child that is what *order* says, once it has ended."""
    argv: list[str] = order["argv"]
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        asked.write(json.dumps(order).encode())
        asked.seek(0)
        code = _ask([asked.fileno(), out.fileno(), err.fileno()], argv, timeout)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
        return subprocess.CompletedProcess(argv, code, *said)


def _umask() -> int:
    """The umask of this process."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _ask(descriptors: Sequence[int], argv: Sequence[str], timeout: float) -> int:
    """The exit code of a new child, as `subprocess` has it."""
    global _server
    server = _connection()
    try:
        socket.send_fds(server, [b"."], descriptors)
        pid = _number(server)
        server.settimeout(timeout)
        late = False
        try:
            status = _number(server)
        except TimeoutError:
            late = True
            os.kill(pid, signal.SIGKILL)
            server.settimeout(None)
            status = _number(server)
        server.settimeout(None)
    except BaseException:
        _server = None  # it is in the middle of an answer
        server.close()
        raise
    if late:
        raise subprocess.TimeoutExpired(argv, timeout)
    return os.waitstatus_to_exitcode(status)


def _connection() -> socket.socket:
    global _server
    if _server is None or _server[0] != os.getpid():
        mine, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-P", __file__, str(theirs.fileno())]
            subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        _server = os.getpid(), mine
    return _server[1]


def _number(server: socket.socket) -> int:
    said = server.recv(_NUMBER.size, socket.MSG_WAITALL)
    assert len(said) == _NUMBER.size, "the parent of all runs has died"
    number: int = _NUMBER.unpack(said)[0]
    return number


def build_once() -> None:
    """
    Let typer build the command line once for all calls in this process.

    The installed command is called once, and builds it once; to build it for
    each call takes four fifths of the processor's time of a ``plan``.
    """
    typer.main.get_command = functools.cache(typer.main.get_command)


# The parent of all runs


def load_all() -> None:
    """Import what virt-chain imports, but for libvirt, and build its command line."""
    import jsonschema  # noqa: F401
    import rich.progress  # noqa: F401
    import tomlkit  # noqa: F401

    import reconciler.cli.main

    for module in pkgutil.walk_packages(reconciler.__path__, "reconciler."):
        if module.name not in ("reconciler.__main__", "reconciler.tools.hypervisor"):
            importlib.import_module(module.name)
    importlib.import_module("_strptime")  # `datetime` does so later; another user may not
    build_once()
    typer.main.get_command(reconciler.cli.main.app)
    # all of this is there to the end: to look through it for garbage would copy it in each child
    gc.collect()
    gc.freeze()


def _load_libvirt() -> None:
    """Its binding, where it is installed; it starts no thread before it is asked for something."""
    os.environ["LIBVIRT_LOG_OUTPUTS"] = "4:file:/dev/null"  # as `tools.hypervisor` has it
    with suppress(ImportError):
        import libvirt  # noqa: F401

        import reconciler.tools.hypervisor  # noqa: F401


def _serve(client: socket.socket) -> None:
    """Fork a child for each order, until nobody is there who gives any; children never return."""
    while True:
        said, descriptors, _, _ = socket.recv_fds(client, 1, 3)
        if not said:
            return
        child = os.fork()
        if child == 0:
            client.close()
            _be(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        client.sendall(_NUMBER.pack(child))
        client.sendall(_NUMBER.pack(os.waitpid(child, 0)[1]))


def _be(asked: int, out: int, err: int) -> NoReturn:
    """Be what the order says, to the end."""
    with open(asked, "rb") as file:
        order = json.load(file)
    for descriptor, stream in ((out, 1), (err, 2)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.argv = order["argv"]
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    os.umask(order["umask"])
    for what, most in order["limits"]:
        resource.setrlimit(what, (most, most))
    if user := order["user"]:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    try:
        if "script" in order:
            runpy.run_path(order["script"], run_name="__main__")
        else:
            from reconciler.__main__ import main

            main()
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        _end(ended.code)
    _end(0)


def _end(code: int) -> NoReturn:
    """
    End as Python does, but leave the memory to the kernel.

    Python first takes every module and object apart, which takes ten times the
    processor's time of a ``--version``.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # which says so, and ends with another code
    os._exit(code)


if __name__ == "__main__":
    _load_libvirt()
    load_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
