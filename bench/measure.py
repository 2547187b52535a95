"""
One command, its wall time, and the bytes that it and all its children wrote.

Bytes are the growth of ``wchar`` in ``/proc/self/io`` of the bench itself: the
kernel adds the counters of a child to its parent's when the child is waited
for, and so, level by level, those of the whole tree that has ended.  ``wchar``
counts every byte handed to write(2) and its kin: image data, qcow2 metadata,
state files, and also what only goes through a pipe (the answers of qemu-img
to virt-chain), so it is never too low for them.  It does not count
fallocate(2), which makes zeroes without writing any.  ``write_bytes``, the
pages that were made dirty in files, stands beside it as a cross-check: pipes
are left out, file system metadata is in it, and a page that is written
twice before it reaches the disk counts once.  Source: proc(5), section
/proc/pid/io; Linux, kernel/exit.c, wait_task_zombie; the sums of
``strace -f -y -e trace=write,pwrite64,pwritev`` agree with ``wchar``.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

Prepare = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cost:
    """
    What one run cost.

    Attributes:
        seconds: Wall time.
        written: Bytes given to write(2) and its kin by the whole process tree.
        dirtied: Bytes of pages made dirty in files.
    """

    seconds: float
    written: int
    dirtied: int


class Failed(Exception):
    """A measured command ended with an error."""


def run(argv: Sequence[str], folder: Path) -> Cost:
    """
    The cost of *argv*, run in *folder*.

    Raises:
        Failed: It ended with an error; the message is what it said.
    """
    before = _counters()
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    seconds = time.monotonic() - began
    after = _counters()
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise Failed(f"{' '.join(argv)}: {said}")
    return Cost(
        seconds,
        after["wchar"] - before["wchar"],
        after["write_bytes"] - before["write_bytes"],
    )


def _counters() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def seconds(costs: Sequence[Cost]) -> float:
    """The median wall time of *costs*."""
    return median(cost.seconds for cost in costs)
