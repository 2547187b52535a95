"""A watch as a process of its own, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.engine.state import StateFolder
from reconciler.watch.status import collect
from tests.images.disks import EXECUTABLE, Disk, Outcome, command

LONG = 40.0
"""Seconds after which something that should have happened is given up on; it takes far less."""


def until(happened: Callable[[], Any], what: str | Callable[[], str], seconds: float = LONG) -> Any:
    """What *happened* returns, as soon as that is true; *what* is told where it never is."""
    end = time.monotonic() + seconds
    while True:
        if found := happened():
            return found
        assert time.monotonic() < end, f"never: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)


@dataclass
class Watcher:
    """Starts, stops and reads watches of one disk's spec."""

    disk: Disk
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.disk.root / "watch.log"

    def start(
        self, *words: str | Path, spec: Path | None = None, interval: str = "1h"
    ) -> subprocess.Popen[bytes]:
        """A watch that is ready: its first pass has ended."""
        argv = [EXECUTABLE, "watch", "--interval", interval, "--state-dir", self.disk.state]
        env = {**os.environ, **self.environment}
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                [*map(os.fspath, argv), *map(os.fspath, words), spec or self.disk.spec_file],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=env,
            )
        self.processes.append(process)
        until(lambda: self.told().get("pid") == process.pid, lambda: f"{self.said()}")
        return process

    def status(self) -> dict[str, Any]:
        """The data of ``virt-chain status --json``."""
        told: dict[str, Any] = self.command("status", "--json").data
        return told

    def told(self) -> dict[str, Any]:
        """The same data, for those who look again and again: the command takes far longer."""
        return collect(StateFolder(self.disk.state))

    def kind(self, label: str = "vm:vda") -> str | None:
        """What is with a disk, as the status has it."""
        found = self.status()["disks"].get(label)
        return found["kind"] if found else None

    def wait_for(self, kind: str, label: str = "vm:vda") -> dict[str, Any]:
        """The status of a disk, once it is of that kind."""

        def there() -> bool:
            found = self.told()["disks"].get(label)
            return bool(found and found["kind"] == kind)

        until(there, lambda: f"{label} {kind}; it is {self.status()}")
        found: dict[str, Any] = self.status()["disks"][label]
        return found

    def wait_chain(self, *names: str) -> None:
        """Until the watch has brought the disk to this chain."""
        chain = " <- ".join(names) + "*"

        def there() -> bool:
            found = self.told()["disks"].get("vm:vda")
            return bool(found and found["kind"] == "in force" and found["chain"] == chain)

        until(there, lambda: f"{chain}; it is {self.status()}, and it said {self.said()}")

    def command(self, *words: str | Path) -> Outcome:
        """``virt-chain WORDS`` with the state directory of the watch."""
        return command(*words, "--state-dir", self.disk.state)

    def lines(self) -> list[dict[str, Any]]:
        """Every JSON line that the watches have written."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, event: str | None = None) -> list[str]:
        """The texts of all lines, or of those of one event."""
        return [one["text"] for one in self.lines() if event in (None, one["event"])]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code of the last watch, once it has ended by this signal."""
        process = self.processes[-1]
        process.send_signal(number)
        return process.wait(LONG)

    def end(self) -> None:
        """End every watch."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
