"""
What a watch of many disks costs: ``python -m bench.watching``.

CPU seconds of an idle hour (12 passes), and the time from a saved spec to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bench.merges import VIRT_CHAIN
from bench.plans import make_chains
from bench.table import Table, Target

DISKS = 1000
PASSES = 12
"""Passes of an hour at the default interval."""
EDITS = 9
MOST_CPU = 20.0
"""CPU seconds of an idle hour."""
MOST_WAIT = 0.5
"""Seconds from a saved spec to its first step, median."""
LATEST = 300.0
"""Seconds after which the watch is given up on."""


def main() -> int:
    """The exit code: 0 where no target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.watching", description=__doc__)
    parser.add_argument("--disks", type=int, default=DISKS)
    parser.add_argument("--scratch", type=Path, help="where images are made (default: TMPDIR)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="virt-chain-bench-", dir=asked.scratch) as name:
        table, targets = measure(Path(name), asked.disks)
    print(table.as_text())
    for one in targets:
        print(f"{one.verdict}  {one.what}: {one.ratio:.2f}, at most {one.most:.2f}")
    return int(any(target.verdict == "MISSED" for target in targets))


def measure(scratch: Path, disks: int) -> tuple[Table, list[Target]]:
    """One watch over *disks* disks, each with a spec file of its own."""
    images, specs, state = scratch / "images", scratch / "specs", scratch / "state"
    make_chains(images, disks)
    specs.mkdir()
    for number in range(disks):
        _write(specs, images, number, [f"vm{number}_{level}" for level in (1, 2, 3)])
    log = scratch / "watch.log"
    argv = [VIRT_CHAIN, "watch", "--interval", "1h", "--state-dir", str(state), str(specs)]
    argv += ["--metrics-textfile", str(scratch / "metrics.prom")]
    began = time.monotonic()
    with log.open("wb") as out:
        watch = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        _until(lambda: _passes(scratch) >= 1)
        start = time.monotonic() - began
        for _ in range(2):  # the state files are written, and old enough to be relied on
            time.sleep(1.5)
            _pass(scratch, watch)
        before, at = _cpu(watch.pid), time.monotonic()
        for _ in range(PASSES):
            _pass(scratch, watch)
        idle, each = _cpu(watch.pid) - before, (time.monotonic() - at) / PASSES
        waits = [_edit(scratch, watch, number) for number in range(EDITS)]
    finally:
        watch.terminate()
        watch.wait()
    wait = statistics.median(waits)
    targets = [
        Target("watch: CPU seconds of an idle hour", idle, MOST_CPU, True),
        Target("watch: seconds from a saved spec to its first step", wait, MOST_WAIT, True),
    ]
    row = (str(disks), f"{start:.1f}", f"{idle:.2f}", f"{each:.2f}", f"{wait:.2f}")
    head = ("disks", "first pass", "CPU of 12 idle passes", "SIGHUP to end", "saved to first step")
    note = "Seconds; chains of 4 images on one template, a spec file for each disk."
    return Table("Watch", note, head, (row,)), targets


def _write(specs: Path, images: Path, number: int, names: list[str]) -> float:
    """Save the spec of one disk; when that was."""
    listed = ", ".join(f'"{name}.qcow2"' for name in names)
    text = (
        f'version = 1\ndefaults.directory = "{images}"\n[domains.vm{number}.disks.vda]\n'
        f'chain = [{{ file = "base.qcow2", template = true }}, {listed}]\n'
    )
    new = specs / f".vm{number}.new"
    new.write_text(text)
    os.rename(new, specs / f"vm{number}.toml")
    return time.time()


def _edit(scratch: Path, watch: subprocess.Popen[bytes], number: int) -> float:
    """Seconds from a snapshot more in one spec until its step begins."""
    log = scratch / "watch.log"
    names = [f"vm{number}_{level}" for level in (1, 2, 3, 4)]
    time.sleep(0.5)  # the watch has nothing to do when somebody saves a file
    seen = log.stat().st_size
    done = _passes(scratch)
    saved = _write(scratch / "specs", scratch / "images", number, names)
    _until(lambda: bool(_steps(log, seen)))
    step = _steps(log, seen)[0]
    _until(lambda: _passes(scratch) > done)
    time.sleep(1.5)
    _pass(scratch, watch)
    time.sleep(1.5)
    _pass(scratch, watch)
    ended = datetime.fromisoformat(step["time"]).timestamp()
    return float(ended - float(step["seconds"]) - saved)


def _steps(log: Path, start: int) -> list[dict[str, str]]:
    """Steps that *log* tells of behind its first *start* bytes: a poll leaves the machine alone."""
    with log.open("rb") as lines:
        lines.seek(start)
        told = [json.loads(line) for line in lines if line.endswith(b"}\n")]
    return [one for one in told if one["event"] == "step"]


def _pass(scratch: Path, watch: subprocess.Popen[bytes]) -> None:
    before = _passes(scratch)
    watch.send_signal(signal.SIGHUP)
    _until(lambda: _passes(scratch) > before)


def _passes(scratch: Path) -> float:
    total = 0.0
    with suppress(FileNotFoundError):
        for line in (scratch / "metrics.prom").read_text().splitlines():
            total += float(line.split()[-1]) if line.startswith("virt_chain_passes_total") else 0
    return total


def _until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LATEST
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing for {LATEST:.0f} s")
        time.sleep(0.01)


def _cpu(pid: int) -> float:
    """CPU seconds of a process and its ended children.  Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
