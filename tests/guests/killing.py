"""Run a program and kill it just before its nth step; see kill_at.c."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guests.boot import MissingPackage

SOURCE = Path(__file__).with_name("kill_at.c")


@dataclass(frozen=True, slots=True)
class Run:
    """
    A program that ended or was killed.

    Attributes:
        steps: What it did, for example ``qmp blockdev-add`` or ``rename
            /root/etc/qemu/web.xml``; the last one was not done if *killed*.
    """

    returncode: int
    stdout: str
    stderr: str
    steps: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL


def run_killed(argv: Sequence[str | Path], at: int, cache: Path, seconds: float = 120) -> Run:
    """
    Run *argv* and kill it before step *at*; with 0, or after its last step, it ends by itself.

    The steps of the process count, those of its children do not.

    Args:
        cache: Folder that keeps the compiled library.
    """
    with tempfile.NamedTemporaryFile("r", prefix="steps") as log:
        preload = {"LD_PRELOAD": str(_library(cache)), "KILL_AT": str(at), "KILL_LOG": log.name}
        ran = subprocess.run(
            argv,
            env={**os.environ, **preload},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        return Run(ran.returncode, ran.stdout, ran.stderr, tuple(log.read().splitlines()))


def _library(cache: Path) -> Path:
    library = cache / f"kill_at-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        argv = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(part), str(SOURCE)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise MissingPackage(f"gcc to compile {SOURCE.name}", ran.stderr)
        part.rename(library)
    return library
