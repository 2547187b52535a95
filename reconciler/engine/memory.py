"""
What earlier looks found, kept for as long as nothing that it was read from has changed.

One disk is planned at a time, and all others are looked at for what they
share with it.  Of a thousand disks, nearly all are as they were a moment ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.engine.around import Found
from reconciler.engine.state import DiskState, StateFolder
from reconciler.model.desired import DesiredDisk
from reconciler.model.errors import StateError
from reconciler.model.image import Chain
from reconciler.planner.task import Wanted
from reconciler.tools import images, qcow2
from reconciler.tools.moment import Moment, Version

Evidence = tuple[tuple[tuple[str, Version], ...], tuple[tuple[str, str], ...]]
"""
Each file that a walk relied on, as it was named, and its version; each of their
folders, as it was named, and with links resolved.
"""


@dataclass(frozen=True, slots=True)
class Walked:
    """
    A disk whose chain was walked, before anybody else's interest in it is known.

    Attributes:
        listed: Absolute paths of the desired chain with symbolic links resolved.
        told: QEMU has read the chain, and found the same.
        folders: Where these and the images of the chain lie.
    """

    desired: DesiredDisk
    listed: tuple[Path, ...]
    state: DiskState
    chain: Chain
    wanted: tuple[Wanted, ...] = ()
    outside: tuple[tuple[Path, Chain], ...] = ()
    error: str | None = None
    found: Found | None = None
    trust: images.Trust = field(default_factory=images.Trust)
    told: bool = False
    folders: frozenset[Path] = field(init=False)

    def __post_init__(self) -> None:
        paths = (*self.listed, *self.chain.paths)
        object.__setattr__(self, "folders", frozenset(path.parent for path in paths))


@dataclass(slots=True)
class Memory:
    """
    Walked chains and read headers of earlier looks.

    Attributes:
        names: What headers name.
    """

    names: images.Names = field(default_factory=images.Names)
    _trust: images.Trust = field(default_factory=images.Trust)
    _walks: dict[str, tuple[Walked, Evidence]] = field(default_factory=dict)

    def believe(self, trust: images.Trust, labels: Iterable[str]) -> None:
        """A look begins that trusts like this, at these disks; nothing else stays known."""
        if trust != self._trust:
            self._trust, self._walks = trust, {}
        listed = set(labels)
        self._walks = {label: kept for label, kept in self._walks.items() if label in listed}

    def recall(self, disk: DesiredDisk, states: StateFolder, moment: Moment) -> Walked | None:
        """The walk of *disk*, where a new one would find the same; else None."""
        if disk.label not in self._walks:
            return None
        walked, (files, folders) = self._walks[disk.label]
        if walked.desired != disk or walked.state != _state(disk, states, moment):
            return None
        for name, version in files:
            if moment.version(name) != version:
                return None
        for folder, there in folders:
            if moment.folder(folder) != there:
                return None
        return walked

    def keep(self, walked: Walked, moment: Moment) -> None:
        """Remember a walk, which began at *moment*, where that can be relied on."""
        disk, state, chain = walked.desired, walked.state, walked.chain
        self._walks.pop(disk.label, None)
        if disk.connection is not None or state.unfinished or state.leftovers or state.names:
            return
        said = [disk.active, state.active, *(entry.path for entry in disk.chain)]
        named = [qcow2.possible_path(one.recorded, one.path) for one in chain if one.recorded]
        files: dict[str, Version] = {}
        folders: dict[str, str] = {}
        for path in filter(None, [*said, *chain.paths, *named]):
            name, folder = str(path), str(path.parent)
            version = moment.version(name)
            if version is None:
                return
            files[name], folders[folder] = version, moment.folder(folder)
        self._walks[disk.label] = (walked, (tuple(files.items()), tuple(folders.items())))


def _state(disk: DesiredDisk, states: StateFolder, moment: Moment) -> DiskState | None:
    try:
        return states.disk(disk.domain, disk.target, moment)
    except StateError:
        return None
