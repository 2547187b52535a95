"""Facts of the machine that figures mean nothing without."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def facts(scratch: Path) -> dict[str, str]:
    """Cores, versions and file system, by name."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f} when it began",
        "QEMU": _first_line(["qemu-img", "--version"]),
        "Python": platform.python_version(),
        "kernel": platform.release(),
        "file system": _first_line(["findmnt", "-n", "-o", "FSTYPE", "-T", str(scratch)]),
    }


def _first_line(argv: list[str]) -> str:
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return out.splitlines()[0].removeprefix("qemu-img version ")
