"""Who stands on a file: every overlay in some folders, by what its header names."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.image import Identity
from reconciler.tools import files, images, qcow2
from reconciler.tools.lookups import Lookups

log = logging.getLogger(__name__)


class Overlays:
    """
    Which images stand on a file, directly or not.

    Only who names whom is kept: a chain of thousands beside ours costs no more than its length.

    Args:
        raw: Disks that are known as raw: whatever header they seem to have, a guest wrote it.
    """

    def __init__(
        self, raw: frozenset[Identity] = frozenset(), earlier: Earlier | None = None
    ) -> None:
        self.raw = raw
        self._earlier = earlier
        self._above: dict[Identity, list[tuple[str, Identity]]] = {}
        self._names: dict[str, set[str]] = {}
        self._found: set[str] = set()
        self.folders: set[str] = set()
        """Those that were looked through, links resolved."""
        self._unreadable: dict[str, list[Path]] = {}
        self._data_files: dict[Identity, Path] = {}
        self.hidden: set[str] = set()
        """Files whose headers cannot be read, big enough for one that names a backing file."""
        self.from_links: set[str] = set()
        """Overlays whose backing name means another file from the link that leads to them."""
        self._known: dict[Identity, tuple[Path, ...]] = {}

    def add(self, overlay: str, own: Identity, name: str, below: Identity) -> None:
        """*overlay* names the file *below* as *name*, links resolved."""
        self._above.setdefault(below, []).append((overlay, own))
        self._names.setdefault(name, set()).add(overlay)

    def count(self, overlay: str) -> None:
        """*overlay* lies in one of the folders that were looked at."""
        self._found.add(overlay)

    def add_unreadable(self, folder: str, name: str) -> None:
        """*name*, a file in *folder* or that folder itself, cannot be read."""
        self._unreadable.setdefault(folder, []).append(Path(name))

    def unreadable(self, folder: Path) -> Sequence[Path]:
        """
        Files in *folder*, or the folder itself, that cannot be read.

        Each may be an overlay that stands on any image there.
        """
        return self._unreadable.get(str(folder), ())

    def add_data_file(self, file: Identity, image: str) -> None:
        """*file* holds the data of *image*, a qcow2 image with an external data file."""
        self._data_files.setdefault(file, Path(image))

    def data_file_of(self, file: Identity | None) -> Path | None:
        """The image whose external data file *file* is; None: it is none."""
        if file is None:
            return None
        found = self._data_files.get(file)
        if found is None and self._earlier is not None:
            found = self._earlier.data_file_of(file)
        return found

    def naming(self, name: Path) -> frozenset[Path]:
        """The images whose headers have *name*, and no other name of its file."""
        found = set(self._names.get(str(name), ()))
        if self._earlier is not None:
            found |= self._earlier.naming(str(name))
        return frozenset(map(Path, found))

    def directly_on(self, file: Identity | None) -> Iterator[tuple[str, Identity]]:
        """
        The images whose own header names *file*, in the order of the scan.

        One may lie in a folder that was not looked at, below an overlay in one that was.
        """
        if file is None:
            return
        for name, own in self._above.get(file, ()):
            if own != file:
                yield name, own
        if self._earlier is not None:
            yield from self._earlier.directly_on(file)

    def of(self, file: Identity | None) -> frozenset[Path]:
        """The images in the folders that stand on *file*."""
        return frozenset(self.ordered(file))

    def ordered(self, file: Identity | None) -> tuple[Path, ...]:
        """The same, by name."""
        if file is None or (file not in self._above and self._earlier is None):
            return ()
        if file not in self._known:
            self._known[file] = self._on(file)
        return self._known[file]

    def _on(self, file: Identity) -> tuple[Path, ...]:
        found: set[str] = set()
        seen, left = {file}, [file]
        while left:
            for name, own in self.directly_on(left.pop()):
                if own != file:
                    found.add(name)
                if own not in seen:
                    seen.add(own)
                    left.append(own)
        return tuple(map(Path, sorted(filter(self._counts, found))))

    def _counts(self, overlay: str) -> bool:
        earlier = self._earlier
        return overlay in self._found or (earlier is not None and earlier.counts(overlay))

    def unknown(self) -> set[str]:
        """Overlays in renewed folders that were not there at the scan before."""
        if self._earlier is None:
            return set()
        overlays = {name for some in self._names.values() for name in some}
        return overlays & self._found - self._earlier.found

    def renewed(self, folders: Collection[Path], trust: images.Trust, lookups: Lookups) -> Overlays:
        """The same, with every overlay in *folders* as it is now."""
        earlier = Earlier(self, frozenset(map(str, folders)), trust, lookups)
        now = Overlays(self.raw, earlier)
        _scan_into(now, folders, trust, lookups)
        return now


class Earlier:
    """
    What an earlier scan found outside of some folders, as far as it is still so.

    An overlay is asked again when it matters: ten thousand may stand on one template.
    """

    def __init__(
        self, scanned: Overlays, without: frozenset[str], trust: images.Trust, lookups: Lookups
    ) -> None:
        self._scanned, self._without = scanned, without
        self._trust, self._lookups = trust, lookups

    @property
    def found(self) -> set[str]:
        """Every file that was found then."""
        return self._scanned._found

    def counts(self, overlay: str) -> bool:
        """True where *overlay* lies in a folder that was scanned then, and is not one of ours."""
        outside = overlay.rpartition("/")[0] not in self._without
        return outside and overlay in self._scanned._found

    def directly_on(self, file: Identity) -> Iterator[tuple[str, Identity]]:
        """As `Overlays.directly_on`."""
        for name, then in self._scanned.directly_on(file):
            own = self._lookups.identity(name)
            if own is None and self._lookups.hidden(name):
                yield name, then
            elif own and self._names(name, lambda it: self._lookups.identity(it) == file):
                yield name, own

    def data_file_of(self, file: Identity) -> Path | None:
        """As `Overlays.data_file_of`."""
        found = self._scanned.data_file_of(file)
        return None if found is None or str(found.parent) in self._without else found

    def naming(self, name: str) -> set[str]:
        """As `Overlays.naming`."""
        overlays = map(str, self._scanned.naming(Path(name)))
        return {one for one in overlays if self._names(one, lambda it: it == name)}

    def _names(self, overlay: str, what: Callable[[str], bool]) -> bool:
        if overlay.rpartition("/")[0] in self._without:
            return False
        if overlay in self._scanned.from_links:
            return True  # its name means another file from where it was found
        now, outside = Overlays(self._scanned.raw), not self._trust.allows(overlay)
        below = _below(overlay, self._lookups, now, outside=outside)
        return overlay in now.hidden or (below is not None and what(below))


def scan(
    folders: Iterable[Path],
    trust: images.Trust,
    lookups: Lookups,
    raw: frozenset[Identity] = frozenset(),
) -> Overlays:
    """
    Overlays in *folders*.

    Every file with the magic of qcow2 counts, whatever its name; an overlay is
    followed down to its base, in whatever folder that lies, as far as *trust* goes.
    A link out of there, which QEMU would follow, is followed too: headers are only read
    here, and never by QEMU.

    Args:
        raw: Disks that are known as raw.
    """
    overlays = Overlays(raw)
    _scan_into(overlays, folders, trust, lookups)
    return overlays


def _scan_into(
    overlays: Overlays, folders: Iterable[Path], trust: images.Trust, lookups: Lookups
) -> None:
    ends: dict[str, str | None] = {}
    for folder in sorted({lookups.real(os.fspath(folder)) for folder in folders}):
        overlays.folders.add(folder)
        names = lookups.names(folder)
        if names is None:
            overlays.add_unreadable(folder, folder)
            log.warning("%s cannot be read; what its images stand on is unknown", folder)
            continue
        for name in names:
            if not name.endswith(files.NEW):
                given = f"{folder}/{name}"
                overlay = lookups.real(given)
                overlays.count(overlay)
                hidden = _follow(overlay, trust, lookups, overlays, ends)
                if overlay != given:
                    other = _follow_from_link(given, overlay, trust, lookups, overlays, ends)
                    hidden = hidden or other
                if hidden is not None:
                    overlays.add_unreadable(folder, given if hidden == overlay else hidden)


def _follow(
    overlay: str,
    trust: images.Trust,
    lookups: Lookups,
    overlays: Overlays,
    ends: dict[str, str | None],
) -> str | None:
    """
    Add what *overlay* stands on, down to the first image that was followed before.

    Args:
        ends: By each image that was followed, what this returns.

    Returns:
        The image below, or itself, whose header cannot be read, so that nobody knows what
        it stands on.
    """
    passed: list[str] = []
    at: str | None = overlay
    outside = not trust.allows(overlay)
    while at is not None and at not in ends and (outside or trust.allows(at)):
        passed.append(at)
        ends[at] = None  # a loop ends here
        below = _below(at, lookups, overlays, outside=outside)
        own = lookups.identity(at)
        there = None if below is None else lookups.identity(below)
        if below is None or own is None or there is None:
            break
        overlays.add(at, own, below, there)
        at = below
    end = at if at in overlays.hidden else ends.get(at) if at is not None else None
    ends |= dict.fromkeys(passed, end)
    return end


def _follow_from_link(
    given: str,
    overlay: str,
    trust: images.Trust,
    lookups: Lookups,
    overlays: Overlays,
    ends: dict[str, str | None],
) -> str | None:
    """As `_follow`; QEMU starts a relative name from the folder of the link that it was given."""
    outside = not trust.allows(overlay)
    below = _below(overlay, lookups, overlays, given, outside=outside)
    if below is None:
        return None
    own, there = lookups.identity(overlay), lookups.identity(below)
    if own is None or there is None:
        return None
    overlays.add(overlay, own, below, there)
    overlays.from_links.add(overlay)
    return _follow(below, trust, lookups, overlays, ends)


def _below(
    name: str,
    lookups: Lookups,
    overlays: Overlays,
    given: str | None = None,
    *,
    outside: bool = False,
) -> str | None:
    """
    The file that *name* stands on, links resolved; None: it is no overlay.

    Args:
        given: The name that it was reached under, where that is another.
        outside: It lies where images are not allowed.  Files of the kernel (/proc, /sys),
            which have no blocks, are not read there: that may have effects.
    """
    found = lookups.lstat(name)
    if overlays.raw and lookups.identity(name) in overlays.raw:
        return None
    if found is None or not stat.S_ISREG(found.st_mode) or (outside and not found.st_blocks):
        return None
    try:
        file = images.look_at(name, lookups)
    except images.Unreadable as error:
        if found.st_size > qcow2.SMALLEST:
            overlays.hidden.add(name)
            log.warning("%s; what it stands on is unknown", error)
        return None
    except ObserveError as error:
        log.warning("%s; what it stands on is unknown", error)
        return None
    if file.damage is not None and file.foreign_backing is None:
        log.warning("%s; what it stands on is unknown", file.damage)
        return None
    if file.header is not None and file.header.data_file_name is not None:
        data = qcow2.possible_file(file.header.data_file_name, given or name)
        there = None if data is None else lookups.identity(data)
        if there is not None:
            overlays.add_data_file(there, given or name)
    below = images.named_by(given or name, file)
    return None if below is None else lookups.real(below)
