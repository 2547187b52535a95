"""What a watch tells of itself: a file in the state directory, and what it means to a monitor."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from reconciler.engine.state import StateFolder
from reconciler.model.errors import Busy, StateError
from reconciler.tools import files
from reconciler.tools.decoding import decoded
from reconciler.watch.holds import Holds, Suspensions
from reconciler.watch.store import Store

Kind = Literal[
    "in force", "drift", "deferred", "waiting", "held", "suspended", "failing", "vanished"
]
WARNINGS: tuple[Kind, ...] = ("waiting", "held", "deferred", "suspended", "drift")
FREE = "was released; the next pass takes it up"
WAY_OUT = "remove it, and the next pass of a watch writes it anew"
LATE = 60.0
"""Seconds that a pass may be later than twice the interval."""


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """
    One disk after a pass.

    Attributes:
        why: One sentence; empty where the disk is in force.
        command: What a person types to go on; None: nothing.
        steps: That are planned, in words.
        images: Of the observed chain.
    """

    kind: Kind
    chain: str = ""
    why: str = ""
    command: str | None = None
    steps: tuple[str, ...] = ()
    images: int = 0

    def as_data(self) -> dict[str, Any]:
        """What DiskStatus takes as keywords; JSON has it in this order."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Told:
    """What the file holds."""

    pid: int
    started: str
    spec: tuple[str, ...]
    interval: float
    dry_run: bool
    problem: str | None
    working: tuple[str, ...]
    disks: dict[str, DiskStatus]
    last_pass: str
    next_pass: str


@dataclass(slots=True)
class StatusFile:
    """The file; it is replaced after a pass that changed something, else once an interval."""

    folder: Path
    _store: Store = field(init=False)
    _last: Any = None
    _written: float = 0.0
    _good: Any = None

    def __post_init__(self) -> None:
        self._store = Store(self.folder, "watch.json", WAY_OUT)

    def read(self) -> dict[str, Any]:
        """
        What the last watch has told; empty where there was none.

        Raises:
            StateError: It cannot be read, or is damaged.
        """
        data = self._store.read()
        if data and data != self._good:
            try:
                decoded(Told, data)
            except ValueError as error:
                raise StateError(f"{self._store.path} is damaged ({error}); {WAY_OUT}") from error
            self._good = data
        return data

    def last(self) -> dict[str, DiskStatus]:
        """The disks as the last watch has left them; raises what `read` does."""
        data = self.read()
        return decoded(Told, data).disks if data else {}

    def start_over(self) -> None:
        """Let go of a file that nobody can read: the next pass tells everything anew."""
        with suppress(OSError):
            self._store.path.unlink(missing_ok=True)

    def write(self, told: Mapping[str, Any], times: Mapping[str, Any], at_most: float) -> None:
        """Replace it where *told* is new, or *at_most* seconds after the last time."""
        if told != self._last or time.monotonic() - self._written >= at_most:
            self._store.change(lambda _: {**told, **times})
            self._last, self._written = told, time.monotonic()


def running(folder: Path) -> str | None:
    """Who watches with this state directory, in words; None: nobody."""
    lock = lock_file(folder)
    if not lock.exists():
        return None
    try:
        with files.locked(lock, "watch", shared=True):  # two looks at once see no watch
            return None
    except Busy as error:
        return str(error).partition(" is working on")[0]


def lock_file(folder: Path) -> Path:
    """The file that a watch holds a lock on for as long as it lives."""
    return folder / "locks" / "watch"


def collect(states: StateFolder) -> dict[str, Any]:
    """The status as data: what the watch has written, and what is true at this moment."""
    told = dict(StatusFile(states.folder).read())
    told["running"] = running(states.folder)
    holds, suspensions = Holds(states.folder), Suspensions(states.folder).all()
    told["holds"] = [
        {"label": one.label, "reason": one.reason, "who": one.who, "until": one.until}
        for one in holds.all()
    ]
    disks: dict[str, Any] = {}
    for label, disk in told.get("disks", {}).items():
        domain, _, target = label.rpartition(":")
        held = holds.of(domain, target)
        suspended = suspensions.get(label)
        if disk["kind"] == "held" and held is None:
            disk = {**disk, "kind": "drift", "why": FREE, "command": None}
        elif held is not None and disk["kind"] not in ("in force", "failing", "vanished"):
            disk = {**disk, "kind": "held", "why": held.text}
        elif disk["kind"] == "suspended" and suspended is None:
            disk = {**disk, "kind": "drift", "why": FREE, "command": None}
        disks[label] = disk
    return {**told, "disks": disks}


@dataclass(frozen=True, slots=True)
class Health:
    """For a monitor: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, and one line."""

    code: int
    line: str


def check(told: Mapping[str, Any], now: datetime | None = None) -> Health:
    """What *told* (as `collect` has it) means.  Source: Monitoring Plugins' guidelines."""
    if "pid" not in told:
        return Health(3, "UNKNOWN: no watch has run with this state directory")
    kinds = Counter(disk["kind"] for disk in told["disks"].values())
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in ("in force", "failing", *WARNINGS))
    performance = " ".join(
        f"{kind.replace(' ', '_')}={kinds[kind]}" for kind in ("in force", "failing", *WARNINGS)
    )
    bad = _critical(told, kinds, now or datetime.now(UTC))
    held = [one["label"] for one in told["holds"]]
    if bad:
        code, said = 2, bad
    elif held or any(kinds[kind] for kind in WARNINGS):
        names = [
            f"{label} {disk['kind']}"
            for label, disk in told["disks"].items()
            if disk["kind"] in WARNINGS
        ]
        names += [f"{label} held" for label in held if f"{label} held" not in names]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        code, said = 1, ", ".join(names[:5]) + more
    else:
        code, said = 0, counts
    word = ("OK", "WARNING", "CRITICAL")[code]
    return Health(code, f"{word}: {said} | {performance}")


def _critical(told: Mapping[str, Any], kinds: Mapping[str, int], now: datetime) -> str | None:
    if told["running"] is None:
        return "no watch is running"
    if told.get("problem"):
        return f"the last pass failed: {told['problem'].splitlines()[0]}"
    if kinds["failing"]:
        failing = [label for label, disk in told["disks"].items() if disk["kind"] == "failing"]
        return f"failing: {', '.join(failing[:5])}"
    with suppress(KeyError, TypeError, ValueError):
        age = (now - datetime.fromisoformat(told["last_pass"])).total_seconds()
        if age > 2 * told["interval"] + LATE and not told.get("working"):
            return f"the last pass was {age:.0f} s ago"
        return None
    return None if told.get("working") else "no pass has ended yet"
