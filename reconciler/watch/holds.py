"""Disks that are left alone: held by a person, or suspended after a failure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.model.errors import Busy, ReconcilerError, StaleChain, StateError
from reconciler.tools.decoding import decoded, moment
from reconciler.watch.store import Data, Store

HOLDS = "holds.json"
SUSPENSIONS = "suspended.json"
FIRST_PAUSE = 60
"""Seconds that a disk is left alone after its first failure; each further one doubles them."""
FIRST_WAIT = 5
"""The same where somebody else was at the disk, or it changed meanwhile."""
LONGEST_PAUSE = 3600


@dataclass(frozen=True, slots=True)
class Hold:
    """
    One domain or disk that nothing is done to.

    Attributes:
        label: ``domain`` or ``domain:target``.
        since, until: UTC, ISO 8601; *until* None: until it is released.
    """

    label: str
    reason: str
    who: str
    since: str
    until: str | None = None

    @property
    def text(self) -> str:
        """Who, until when, and why."""
        until = f" until {self.until}" if self.until else ""
        return f"held by {self.who}{until}: {self.reason}"

    @property
    def refusal(self) -> str:
        """The same, with the way out."""
        return f"{self.text}; let it go with: virt-chain release {self.label}"


@dataclass(slots=True)
class Holds:
    """All holds, kept in the state directory."""

    folder: Path
    _store: Store = field(init=False)

    def __post_init__(self) -> None:
        self._store = Store(self.folder, HOLDS, "remove it, and hold what has to be held")

    def all(self) -> list[Hold]:
        """
        Every hold that has not run out.

        Raises:
            StateError: The file cannot be read.
        """
        return list(_holds(self._store))

    def of(self, domain: str, target: str) -> Hold | None:
        """The hold on a disk or on its whole domain; None: it is free."""
        labels = (f"{domain}:{target}", domain)
        return next((one for one in self.all() if one.label in labels), None)

    def add(self, hold: Hold) -> None:
        """Hold from now on; another hold on the same is replaced."""
        _without(self._store, {hold.label}, hold)

    def release(self, label: str) -> list[Hold]:
        """Let go of *label*, and of the disks of a domain *label*; what was held."""
        gone = [one for one in self.all() if one.label == label or _domain(one.label) == label]
        if gone:
            _without(self._store, {one.label for one in gone})
        return gone


@dataclass(frozen=True, slots=True)
class _HoldsFile:
    holds: tuple[Hold, ...] = ()


def _holds(store: Store) -> Iterable[Hold]:
    data = store.read()
    if not data:
        return
    try:
        for hold in decoded(_HoldsFile, data).holds:
            if hold.until is None or moment(hold.until) > _now():
                yield hold
    except ValueError as error:
        raise StateError(f"{store.path} is damaged ({error}); {store.way_out}") from error


def _without(store: Store, labels: set[str], *new: Hold) -> None:
    """Replace all holds on *labels* by *new*; those that have run out go, too."""

    def change(_: Data) -> Data:
        left = [one for one in _holds(store) if one.label not in labels]
        return {"holds": [asdict(one) for one in (*left, *new)]}

    store.change(change)


def _domain(label: str) -> str:
    return label.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Suspension:
    """
    A disk that is left alone for a while, because it failed.

    Attributes:
        failures: In a row, without a success between.
        until: UTC, ISO 8601.
        spec: Digest of what the spec asked for; another one is tried at once.
    """

    failures: int
    until: str
    why: str
    spec: str

    @property
    def end(self) -> datetime:
        return moment(self.until)

    @property
    def text(self) -> str:
        """How often, until when, and why."""
        times = "once" if self.failures == 1 else f"{self.failures} times in a row"
        return f"failed {times}, next try at {self.until}: {self.why}"


@dataclass(slots=True)
class Suspensions:
    """All suspensions, kept in the state directory."""

    folder: Path
    _store: Store = field(init=False)

    def __post_init__(self) -> None:
        self._store = Store(self.folder, SUSPENSIONS, "remove it")

    def all(self) -> dict[str, Suspension]:
        """
        By label; those whose time is over too, for their failures count on.

        Raises:
            StateError: The file cannot be read.
        """
        data = self._store.read()
        if not data:
            return {}
        try:
            found = decoded(dict[str, Suspension], data)
            for one in found.values():
                moment(one.until)
        except ValueError as error:
            raise StateError(f"{self._store.path} is damaged ({error}); remove it") from error
        return found

    def active(self, label: str, spec: str) -> Suspension | None:
        """The suspension of a disk whose spec is still the one that failed; None: it is tried."""
        known = self.all().get(label)
        return known if known and known.spec == spec and known.end > _now() else None

    def failed(self, label: str, error: ReconcilerError | None, why: str, spec: str) -> Suspension:
        """Suspend a disk: longer than the last time, where it failed then too."""
        known = self.all().get(label)
        failures = known.failures + 1 if known and known.spec == spec else 1
        first = FIRST_WAIT if isinstance(error, Busy | StaleChain) else FIRST_PAUSE
        pause = min(first * 2 ** min(failures - 1, 12), LONGEST_PAUSE)
        until = (_now() + timedelta(seconds=pause)).isoformat(timespec="seconds")
        made = Suspension(failures, until, why, spec)
        self._store.change(lambda data: data | {label: asdict(made)})
        return made

    def over(self, labels: Iterable[str]) -> None:
        """Forget the failures of disks that work, or are gone."""
        gone = set(labels) & set(self.all())
        if gone:
            self._store.change(lambda data: {k: v for k, v in data.items() if k not in gone})


def _now() -> datetime:
    return datetime.now(UTC)
