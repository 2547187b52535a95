"""Who stands on a file: every overlay in some folders, by what its header names."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.image import Identity
from reconciler.tools import files, images
from reconciler.tools.lookups import Lookups

log = logging.getLogger(__name__)


class Overlays:
    """
    Which images stand on a file, directly or not.

    Only who names whom is kept: a chain of thousands beside ours costs no more than its length.
    """

    def __init__(self) -> None:
        self._above: dict[Identity, list[tuple[str, Identity]]] = {}
        self._names: dict[str, set[str]] = {}
        self._found: set[str] = set()
        self._known: dict[Identity, tuple[Path, ...]] = {}

    def add(self, overlay: str, own: Identity, name: str, below: Identity) -> None:
        """*overlay* names the file *below* as *name*, links resolved."""
        self._above.setdefault(below, []).append((overlay, own))
        self._names.setdefault(name, set()).add(overlay)

    def count(self, overlay: str) -> None:
        """*overlay* lies in one of the folders that were looked at."""
        self._found.add(overlay)

    def naming(self, name: Path) -> frozenset[Path]:
        """The images whose headers have *name*, and no other name of its file."""
        return frozenset(map(Path, self._names.get(str(name), ())))

    def directly_on(self, file: Identity | None) -> Iterator[tuple[str, Identity]]:
        """
        The images whose own header names *file*, in the order of the scan.

        One may lie in a folder that was not looked at, below an overlay in one that was.
        """
        for name, own in self._above.get(file, ()) if file is not None else ():
            if own != file:
                yield name, own

    def of(self, file: Identity | None) -> frozenset[Path]:
        """The images in the folders that stand on *file*."""
        return frozenset(self.ordered(file))

    def ordered(self, file: Identity | None) -> tuple[Path, ...]:
        """The same, by name."""
        if file is None or file not in self._above:
            return ()
        if file not in self._known:
            self._known[file] = self._on(file)
        return self._known[file]

    def _on(self, file: Identity) -> tuple[Path, ...]:
        found: set[str] = set()
        seen, left = {file}, [file]
        while left:
            for name, own in self._above.get(left.pop(), ()):
                if own != file:
                    found.add(name)
                if own not in seen:
                    seen.add(own)
                    left.append(own)
        return tuple(map(Path, sorted(found & self._found)))


def scan(folders: Iterable[Path], trust: images.Trust, lookups: Lookups) -> Overlays:
    """
    Overlays in *folders*.

    Every file with the magic of qcow2 counts, whatever its name; an overlay is
    followed down to its base, in whatever folder that lies, as far as *trust* goes.
    """
    overlays = Overlays()
    seen: set[str] = set()
    for folder in sorted({lookups.real(os.fspath(folder)) for folder in folders}):
        names = lookups.names(folder)
        if names is None:
            log.warning("%s cannot be read; what its images stand on is unknown", folder)
            continue
        for name in names:
            if not name.endswith(files.NEW):
                given = f"{folder}/{name}"
                overlay = lookups.real(given)
                overlays.count(overlay)
                _follow(overlay, trust, lookups, overlays, seen)
                if overlay != given:
                    _follow_from_link(given, overlay, trust, lookups, overlays, seen)
    return overlays


def _follow(
    overlay: str, trust: images.Trust, lookups: Lookups, overlays: Overlays, seen: set[str]
) -> None:
    """Add what *overlay* stands on, down to the first image that was *seen*."""
    at: str | None = overlay
    while at is not None and at not in seen:
        seen.add(at)
        if trust.roots is not None and not trust.roots.hold(at):
            return
        below = _below(at, lookups)
        if below is None:
            return
        own, there = lookups.identity(at), lookups.identity(below)
        if own is None or there is None:
            return
        overlays.add(at, own, below, there)
        at = below


def _follow_from_link(
    given: str,
    overlay: str,
    trust: images.Trust,
    lookups: Lookups,
    overlays: Overlays,
    seen: set[str],
) -> None:
    """QEMU starts a relative backing name from the folder of the link that it was given."""
    if trust.roots is not None and not trust.roots.hold(overlay):
        return
    below = _below(overlay, lookups, given)
    if below is None:
        return
    own, there = lookups.identity(overlay), lookups.identity(below)
    if own is None or there is None:
        return
    overlays.add(overlay, own, below, there)
    _follow(below, trust, lookups, overlays, seen)


def _below(name: str, lookups: Lookups, given: str | None = None) -> str | None:
    """
    The file that *name* stands on, links resolved; None: it is no overlay.

    Args:
        given: The name that it was reached under, where that is another.
    """
    found = lookups.lstat(name)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    try:
        file = images.look_at(name, lookups)
    except ObserveError as error:
        log.warning("%s; what it stands on is unknown", error)
        return None
    if file.damage is not None and file.foreign_backing is None:
        log.warning("%s; what it stands on is unknown", file.damage)
        return None
    below = images.named_by(given or name, file)
    return None if below is None else lookups.real(below)
