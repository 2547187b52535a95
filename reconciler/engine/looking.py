"""Looking at the disks of a spec: a survey, then what each disk means to the planner."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.engine.forest import Forest
from reconciler.engine.state import StateFolder
from reconciler.engine.survey import Survey
from reconciler.engine.tasks import Look, look_at
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.tools.garbage import without_collecting
from reconciler.tools.lookups import Lookups, Memory
from reconciler.tools.overlays import Overlays

__all__ = ["Look", "Looking", "look"]

SHARE = 10
"""How much longer than it took a survey of all disks counts: it costs a tenth of an apply."""

GLANCE = 10
"""The same for asking whether a folder has changed: 15 ms where there are ten thousand."""

Version = tuple[int, ...] | None


def look(
    spec: Spec,
    states: StateFolder,
    only: Iterable[DesiredDisk] | None = None,
    memory: Memory | None = None,
    lookups: Lookups | None = None,
) -> list[Look]:
    """
    Every disk of *spec* as it is now; an unreadable one carries its error.

    Args:
        only: Disks to return; the others are looked at for what they share.
        memory: What earlier looks found.
        lookups: The look at the filesystem; a new one that uses *memory*, unless given.
    """
    chosen = spec.disks if only is None else tuple(only)
    with without_collecting():
        survey = Survey(spec, states, lookups or Lookups(memory))
        forest = survey.forest(chosen)
        return [look_at(disk.label, forest) for disk in chosen]


@dataclass(slots=True)
class Looking:
    """
    Looks at one disk after the other while they are changed; threads may share it.

    Each look reads the disk, its domain, and every header in its folders anew.  What lies
    elsewhere is found by a survey of all disks; whoever it says to use an image of the disk is
    asked again.  The survey is made again when another virt-chain has begun or done anything
    since, when a file was made, replaced or removed in a folder by anybody else, and once it
    is older than SHARE times what it cost.
    """

    spec: Spec
    states: StateFolder
    memory: Memory = field(default_factory=Memory)
    _all: tuple[Survey, Forest] | None = None
    _until: float = 0.0
    _others: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _versions: dict[str, Version] = field(default_factory=dict)
    _ours: dict[str, frozenset[str]] = field(default_factory=dict)
    _own: set[str] = field(default_factory=set)
    _glance_at: float = 0.0

    def again(self, disk: DesiredDisk) -> Look:
        """*disk* as it is now."""
        return look_at(disk.label, self._renewed(disk))

    def after(self, disk: DesiredDisk) -> Look:
        """The same, once nothing more is done to *disk*: what changes in its folders counts."""
        with self._lock:
            versions = {folder: _version(folder) for folder in self._ours.get(disk.label, ())}
        forest = self._renewed(disk)
        own = forest.trees[disk.label].own
        with self._lock:
            self._versions |= versions
            self._ours.pop(disk.label, None)
            self._own |= own
            if forest.overlays.unknown() - self._own:
                self._all = None  # somebody else's, on whatever image
        return look_at(disk.label, forest)

    def leave(self, disk: DesiredDisk) -> None:
        """Nothing more is done to *disk*, whatever state it is in."""
        with self._lock:
            self._ours.pop(disk.label, None)

    def overlays(self, disk: DesiredDisk) -> Overlays:
        """Who stands on the images of *disk* at this moment."""
        return self._renewed(disk).overlays

    def _renewed(self, disk: DesiredDisk) -> Forest:
        with self._lock:
            others = self.states.writes_of_others()
            late = time.monotonic() >= self._until
            if self._all is None or late or others != self._others or self._has_changed():
                self._others = others
                began = time.monotonic()
                survey = Survey(self.spec, self.states, Lookups(self.memory))
                self._all = survey, survey.forest(())
                ended = time.monotonic()
                self._until = ended + SHARE * (ended - began)
                folders = self._all[1].overlays.folders
                self._versions = {one: _version_at(one, survey.lookups) for one in folders}
            survey, forest = self._all
        renewed = survey.renewed(disk, forest)
        with self._lock:
            self._ours[disk.label] = frozenset(map(str, renewed.trees[disk.label].every_folder))
        return renewed

    def _has_changed(self) -> bool:
        """True where a file has come or gone in a folder that no disk at work lies in."""
        began = time.monotonic()
        if began < self._glance_at:
            return False
        ours = frozenset[str]().union(*self._ours.values())
        changed = any(
            folder not in ours and _version(folder) not in (known, None)
            for folder, known in self._versions.items()
        )
        ended = time.monotonic()
        self._glance_at = ended + GLANCE * (ended - began)
        return changed


def _version_at(folder: str, lookups: Lookups) -> Version:
    """As `_version`, when *lookups* looked at it, which is before its files were listed."""
    found = lookups.lstat(folder)
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if found else ()


def _version(folder: str) -> Version:
    """
    What changes when a file comes, goes or is replaced in *folder*; None: nobody can tell.

    Its rights are no part of that: a folder that may not be looked into any more has what
    was found there.
    """
    try:
        found = os.lstat(folder)
    except OSError as error:
        return () if isinstance(error, FileNotFoundError | NotADirectoryError) else None
    return (found.st_dev, found.st_ino, found.st_mtime_ns)
