"""
``virt-chain`` as processes of their own that are forked, so that Python starts once.

The first call starts a parent, which imports what virt-chain imports (0.3 s of a
processor) and does nothing else.  Each run is a child of it, with an environment,
limits and standard streams of its own; it calls the entry point of the installed
command and ends as that does.

The start of the command itself is for the tests that run ``tests.images.disks.EXECUTABLE``.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    argv = ["virt-chain", *map(os.fspath, words)]
    order = {
        "argv": argv,
        "environment": dict(os.environ if environment is None else environment),
        "folder": os.fspath(folder or Path.cwd()),
        "umask": _umask() if umask is None else umask,
        "limits": list((limits or {}).items()),
        "user": user,
    }
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


def _serve(client: socket.socket) -> bool:
    """Fork a child for each order: False in the parent at its end, True in every child."""
    while True:
        said, descriptors, _, _ = socket.recv_fds(client, 1, 3)
        if not said:
            return False
        child = os.fork()
        if child == 0:
            client.close()
            _become(*descriptors)
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        client.sendall(_NUMBER.pack(child))
        client.sendall(_NUMBER.pack(os.waitpid(child, 0)[1]))


def _become(asked: int, out: int, err: int) -> None:
    """Be what the order says."""
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


if __name__ == "__main__":
    load_all()
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        from reconciler.__main__ import main

        main()
