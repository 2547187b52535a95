"""Whether anything has changed since all disks were right: what makes idle passes cheap."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine.looking import Look
from reconciler.engine.state import StateFolder
from reconciler.model.desired import Spec
from reconciler.tools.moment import Moment, Version, version_of


@dataclass(frozen=True, slots=True)
class World:
    """
    All that a pass over disks without libvirt looks at: spec, folders of images, state files.

    Every write to an image, and every rename, gives a file another version: the
    change time (ctime) is set by the kernel, and by nobody else.
    """

    spec: Spec
    folders: tuple[tuple[Path, str], ...]
    files: dict[str, Version]

    @classmethod
    def of(
        cls, spec: Spec, states: StateFolder, folders: Iterable[Path], moment: Moment
    ) -> World | None:
        """The world at *moment*; None where nobody can tell whether it stays like that."""
        if any(disk.connection is not None for disk in spec.disks):
            return None  # what runs writes to its images all the time
        listed = {entry.path.parent for disk in spec.disks for entry in disk.chain}
        every = sorted({*folders, *listed})
        files: dict[str, Version] = {}
        try:
            for folder in every:
                for entry in os.scandir(folder):
                    files[entry.path] = _version(entry.path, moment)
            for entry in os.scandir(states.folder):
                if entry.name.endswith(".toml"):
                    files[entry.path] = _version(entry.path, moment)
        except OSError:
            return None
        if any(version[-1] > moment.settled for version in files.values() if version):
            return None
        if not all(moment.is_local(version[0], path) for path, version in files.items() if version):
            return None  # other hosts write there, and times come late or from elsewhere
        return cls(spec, tuple((one, os.path.realpath(one)) for one in every), files)

    def differs_in_spec(self, other: World) -> bool:
        """True where the disks that the spec asks for are all that may have changed."""
        same_files = self.files == other.files and self.folders == other.folders
        return same_files and self.spec.host == other.spec.host


def _version(name: str, moment: Moment) -> Version:
    found = moment.behind(name)
    if found is None:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return (found.st_dev, found.st_ino)
    return version_of(found)


def folders_of(looks: Iterable[Look]) -> frozenset[Path]:
    """Folders that the observed chains lie in."""
    return frozenset(image.path.parent for one in looks for image in one.chain)
