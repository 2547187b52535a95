"""What a guest's program said on its serial console."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

START = "# start"
"""The line that the harness puts in the log before each start of a guest."""

POLL = 0.02
"""Seconds between two looks at the log."""

T = TypeVar("T")


class NotHeard(AssertionError):
    """The guest did not say in time what the test waited for."""

    def __init__(self, guest: str, what: str, seconds: float, log: str) -> None:
        super().__init__(f"{guest}: no {what} in {seconds} s; the log ends with:\n{log}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What the guest found when it read all its records.

    Attributes:
        ok: Every record up to the highest one is there.
        highest: The highest durable number; 0 when *ok* is false.
        text: The guest's line.
    """

    ok: bool
    highest: int
    text: str


@dataclass(frozen=True, slots=True)
class WriteError:
    """A write or read that failed in the guest; *number* is the record."""

    disk: str
    number: int
    errno: int


class Guest:
    """
    A guest by its serial log.  All methods but commands work on a stopped guest too.

    Attributes:
        name: The domain's name.
        disks: Its targets, for example ``("vda", "vdb")``.
        log: The serial log of all its starts.
    """

    def __init__(self, name: str, log: Path, serial: Path, disks: tuple[str, ...]) -> None:
        self.name = name
        self.log = log
        self.disks = disks
        self._serial = serial

    def lines(self, *, last_start: bool = False) -> list[str]:
        """The complete lines of the log; with *last_start* those since the last start."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").split("\n")[:-1]
        if last_start and START in lines:
            lines = lines[len(lines) - lines[::-1].index(START) :]
        return [line.strip("\r") for line in lines]

    def note_start(self) -> None:
        with self.log.open("a") as log:
            log.write(f"\n{START}\n")

    def wait_booted(self, seconds: float = 60) -> dict[str, Verdict]:
        """Wait until every disk was verified at boot; returns what the guest found."""

        return self._wait(self._booted, "verdict on every disk", seconds)

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until it has booted and waits for :meth:`open_disks`."""
        self._wait(lambda: "C" in self.lines() or None, "word that it has booted", seconds)

    def open_disks(self, seconds: float = 60) -> dict[str, Verdict]:
        """A guest that waits opens its disks; what it found, as :meth:`wait_booted`."""
        return self._ask("open", lambda _: self._booted(), seconds)

    def _booted(self) -> dict[str, Verdict] | None:
        found = self.boot_verdicts()
        return found if len(found) == len(self.disks) else None

    def boot_verdicts(self) -> dict[str, Verdict]:
        """By disk: what the guest found at its last boot before it wrote."""
        return _verdicts("B", self.lines(last_start=True))

    def records(self, disk: str = "vda") -> int:
        """The highest record that the guest knows as durable; 0 for none."""
        found = re.compile(rf"(?:W {disk} (\d+) \d+us|[BR] {disk} ok (\d+))$")
        for line in reversed(self.lines()):
            if match := found.match(line):
                return int(match[1] or match[2])
        return 0

    def wait_for(self, more: int, disk: str | None = None, seconds: float = 60) -> None:
        """Wait for *more* durable records on *disk*, or on each disk."""
        goals = {name: self.records(name) + more for name in ([disk] if disk else self.disks)}

        def reached() -> bool | None:
            return all(self.records(name) >= goal for name, goal in goals.items()) or None

        self._wait(reached, f"{more} more records", seconds)

    def errors(self) -> list[WriteError]:
        """Each failed write or read since the last start."""
        found = (re.match(r"E (\w+) (\d+) (\d+)$", line) for line in self.lines(last_start=True))
        return [WriteError(hit[1], int(hit[2]), int(hit[3])) for hit in found if hit]

    def latencies(self, disk: str = "vda") -> list[int]:
        """Microseconds that each record since the last start took to become durable."""
        found = (re.match(rf"W {disk} \d+ (\d+)us$", line) for line in self.lines(last_start=True))
        return [int(hit[1]) for hit in found if hit]

    def read_back(self, seconds: float = 60) -> dict[str, Verdict]:
        """By disk: what the running guest finds when it reads all its records."""

        def verdicts(lines: list[str]) -> dict[str, Verdict] | None:
            found = _verdicts("R", lines)
            return found if len(found) == len(self.disks) else None

        return self._ask("read", verdicts, seconds)

    def hold(self, seconds: float = 30) -> None:
        """The guest stops writing; every record it began is durable."""
        self._ask("hold", lambda lines: True if "H" in lines else None, seconds)

    def go_on(self, seconds: float = 30) -> None:
        """The guest writes again after :meth:`hold`."""
        self._ask("go", lambda lines: True if "G" in lines else None, seconds)

    def say_stop(self, seconds: float = 30) -> None:
        """The guest powers off; libvirt has still to end QEMU (``World.stop`` does both)."""
        self._ask("stop", lambda lines: True if "S" in lines else None, seconds)

    def _ask(self, command: str, answer: Callable[[list[str]], T | None], seconds: float) -> T:
        """
        Send *command* and wait for the lines that *answer* recognises.

        The connection stays open and is read until then: QEMU drops what a
        closed one has sent, and waits for one that does not read.
        """
        before = len(self.lines())
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._serial))
            connection.sendall(f"{command}\n".encode())
            connection.setblocking(False)

            def heard() -> T | None:
                _drain(connection)
                return answer(self.lines()[before:])

            return self._wait(heard, f"answer to {command}", seconds)

    def _wait(self, look: Callable[[], T | None], what: str, seconds: float) -> T:
        end = time.monotonic() + seconds
        while (found := look()) is None:
            if time.monotonic() > end:
                raise NotHeard(self.name, what, seconds, "\n".join(self.lines()[-15:]))
            time.sleep(POLL)
        return found


def _drain(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except OSError:
        return  # nothing left to read, or QEMU is gone


def _verdicts(kind: str, lines: list[str]) -> dict[str, Verdict]:
    return dict(_each_verdict(kind, lines))


def _each_verdict(kind: str, lines: list[str]) -> Iterator[tuple[str, Verdict]]:
    for line in lines:
        if hit := re.match(rf"{kind} (\w+) (?:ok (\d+)|bad .*)$", line):
            yield hit[1], Verdict(hit[2] is not None, int(hit[2] or 0), line)
