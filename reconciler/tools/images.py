"""What is on the disk: single images, chains, and the overlays in a folder."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.host import Host
from reconciler.model.image import Chain, Format, Identity, Image, short_name
from reconciler.tools import files, qcow2, qemuimg
from reconciler.tools.moment import Moment, Version

log = logging.getLogger(__name__)

MAX_DEPTH = 1000
"""Images of the longest chain that is read."""


def real(path: Path) -> Path:
    """*path* with every symbolic link resolved; it need not exist."""
    return Path(os.path.realpath(path))


def identity(path: Path) -> Identity | None:
    """Device and inode of the file behind *path*; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return Identity(found.st_dev, found.st_ino)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of the regular file *path*; nothing else is ever opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ObserveError(f"{path} is no regular file; only images in files are handled")
        # a link or a pipe may have been put there in between
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ObserveError(f"{path} does not exist") from None
    except OSError as error:
        raise ObserveError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ObserveError(f"{path} is no regular file any more")
        yield descriptor, found
    finally:
        os.close(descriptor)


def read_image(path: Path, image_format: Format) -> Image:
    """
    The image at *path*, which is said to be in *image_format*.

    Raises:
        ObserveError: It cannot be read, or is not in that format.
    """
    where = real(path)
    with _opened(where) as (descriptor, found):
        header = qcow2.read_header(descriptor, where) if image_format == "qcow2" else None
    if image_format == "qcow2" and header is None:
        raise ObserveError(
            f'{where} is no qcow2 image; if it is raw, write format = "raw" for it in the spec'
        )
    for name in (str(where), header.backing if header and header.backing else ""):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ObserveError(f"{name!r}: the file name is no UTF-8; rename the file") from None
    image = Image(
        path=where,
        format=image_format,
        virtual_size=-(-found.st_size // 512) * 512,
        cluster_size=1,
        actual_size=found.st_blocks * 512,
        identity=Identity(found.st_dev, found.st_ino),
        links=found.st_nlink,
        owner=(found.st_uid, found.st_gid),
        mode=stat.S_IMODE(found.st_mode),
    )
    if header is None:
        return image
    return replace(
        image,
        virtual_size=header.virtual_size,
        cluster_size=header.cluster_size,
        recorded=header.backing,
        recorded_format=header.backing_format,
        snapshots=header.snapshots,
        bitmaps=header.bitmaps,
        encrypted=header.encrypted,
        data_file=header.data_file,
        corrupt=header.corrupt,
        lazy_refcounts=header.lazy_refcounts,
        extended_l2=header.extended_l2,
        version=header.version,
        unknown_features=header.unknown_features,
    )


def is_qcow2(path: Path) -> bool:
    """
    True where the file *path* begins as a qcow2 image does, links followed.

    Raises:
        ObserveError: It cannot be read, or the header is damaged.
    """
    where = real(path)
    with _opened(where) as (descriptor, _):
        return qcow2.read_header(descriptor, where) is not None


def allowed_roots(host: Host) -> tuple[Path, ...] | None:
    """Folders below which *host* allows images, links resolved; None: its config names none."""
    return None if host.allowed_roots is None else tuple(map(real, host.allowed_roots))


@dataclass(frozen=True, slots=True)
class Trust:
    """
    Which files may be opened, and in which format.

    A guest writes the content of its disk, and whoever may write to a folder
    writes headers; neither is believed.  The format comes from the spec or
    from the overlay that records it, and nothing outside of *roots* is opened.

    Attributes:
        formats: Formats that the spec or the domain names.
        default: Believed where neither the spec nor an overlay names a
            format and the file has the magic of that format.
        guess: In place of the default, the magic of the file decides; for a look
            whose result a person reads before it is used.
        roots: Folders below which images may lie, links resolved; None: anywhere.
    """

    formats: Mapping[Identity, Format] = field(default_factory=dict)
    default: Format = "qcow2"
    guess: bool = False
    roots: tuple[Path, ...] | None = None

    def allows(self, path: Path) -> bool:
        """True where *path*, its links resolved, lies below one of the roots."""
        return self.roots is None or any(real(path).is_relative_to(root) for root in self.roots)

    def see_to(self, path: Path) -> None:
        """Raises ObserveError where *path* lies outside of the roots, whether it exists or not."""
        if not self.allows(path):
            places = ", ".join(str(root) for root in self.roots or ()) or "nowhere"
            raise ObserveError(
                f"{path} is never opened: images may lie in {places} (the folders of the images "
                "that the spec lists, or allowed_roots in the host's config)"
            )

    def image(self, path: Path, recorded: str | None = None) -> Image:
        """
        The image at *path*.

        Args:
            recorded: The format that the overlay above records.

        Raises:
            ObserveError: It lies outside of the roots, cannot be read, or has another format.
        """
        self.see_to(path)
        default = self.default
        if self.guess:
            default = "qcow2" if is_qcow2(path) else "raw"
        return read_image(path, _format(path, self.formats, recorded, default))


def walk(active: Path, trust: Trust) -> Chain:
    """
    The chain whose active image is *active*, walked image by image.

    Raises:
        ObserveError: An image is missing, unreadable or no image, or the
            chain loops; the message says which image names it.
    """
    images: list[Image] = []
    seen: set[Identity] = set()
    given: Path | None = active
    recorded_format: str | None = None
    while given is not None:
        try:
            image = trust.image(given, recorded_format)
        except ObserveError as error:
            raise _named_by(images, error) from error
        assert image.identity is not None
        if image.identity in seen:
            names = " <- ".join(short_name(one.path) for one in [image, *reversed(images)])
            raise ObserveError(f"the chain loops: {names}")
        if len(images) == MAX_DEPTH:
            raise ObserveError(f"{active} stands on more than {MAX_DEPTH} images")
        seen.add(image.identity)
        images.append(image)
        given, recorded_format = _below(image, given), image.recorded_format
    return Chain(tuple(reversed(images)))


def with_names(chain: Chain, names: Mapping[Path, Path]) -> Chain:
    """
    *chain*, where files with two names have the one that the spec uses.

    Args:
        names: By the name that headers and QEMU have, the name that the spec has.
    """
    if not names:
        return chain
    known = {one.path: names[one.path] for one in chain if one.path in names}
    return Chain(
        tuple(
            replace(one, path=known[one.path], second=one.path)
            if one.path in known and identity(known[one.path]) == one.identity
            else one
            for one in chain
        )
    )


def _named_by(images: list[Image], error: ObserveError) -> ObserveError:
    if not images:
        return error
    overlay = images[-1]
    return ObserveError(
        f"{error}; {overlay.path} names it as its backing file ({overlay.recorded!r})"
    )


def _format(
    path: Path, formats: Mapping[Identity, Format], recorded: str | None, default: Format
) -> Format:
    there = identity(path)
    said = formats.get(there) if there else None
    if said and recorded and said != recorded:
        raise ObserveError(
            f"{path}: the spec says format {said}, and the overlay above records {recorded}"
        )
    chosen = said or recorded or default
    if chosen == "qcow2":
        return "qcow2"
    if chosen == "raw":
        return "raw"
    raise ObserveError(f"{path} has the format {chosen}; only qcow2 and raw are handled")


def _below(image: Image, given: Path) -> Path | None:
    """The backing file of *image*, which was reached under the name *given*."""
    if image.recorded is None:
        return None
    below = qcow2.backing_path(image.recorded, image.path)
    if given.is_symlink():
        # QEMU starts a relative name from the folder of the name it was given
        other = qcow2.backing_path(image.recorded, given)
        if real(other) != real(below):
            raise ObserveError(
                f"{given} is a symbolic link to {image.path}, and its backing name "
                f"{image.recorded!r} means another file from there; list {image.path} instead"
            )
    return below


def confirm(chain: Chain) -> None:
    """
    Let QEMU read *chain* too, and compare.

    Raises:
        ObserveError: QEMU sees another chain than the headers tell.
        ToolFailed: QEMU cannot open it.
    """
    if chain.active is None or any(i.recorded and not i.recorded_format for i in chain):
        return  # without a recorded format QEMU would guess
    told = qemuimg.chain_info(chain.images)
    seen = [(_told_path(name), size) for name, size in told]
    here = [(image.second or image.path, image.virtual_size) for image in chain]
    same = len(seen) == len(here) and all(
        size == own_size and path in (None, own_path)
        for (path, size), (own_path, own_size) in zip(seen, here, strict=True)
    )
    if not same:
        raise ObserveError(
            f"QEMU reads the chain of {chain.active.path} as "
            f"{' <- '.join(name for name, _ in told)}, its headers say {chain}"
        )


def behind(named: Sequence[Path], chain: Chain) -> bool:
    """
    True where *named*, base first, is *chain* with more images directly below the active one.

    So a chain looks to whoever has missed the end of a merge.
    """
    there = [identity(path) for path in named]
    known = [image.identity for image in chain]
    below = known[:-1]
    return bool(known) and len(there) > len(known) and [*there[: len(below)], there[-1]] == known


def _told_path(name: str) -> Path | None:
    if name.startswith("json:"):
        return None
    return real(Path(name.removeprefix("file:")))


def backing_of(overlay: Path) -> Path | None:
    """The file that the header of *overlay* names, links resolved; None: none, or no image."""
    below = _named(overlay)
    return None if below is None or identity(below) is None else real(below)


class Overlays:
    """
    Which images stand on a file, directly or not.

    Only who names whom is kept: a chain of thousands beside ours costs no more than its length.
    """

    def __init__(self) -> None:
        self._above: dict[Identity, list[tuple[Path, Identity]]] = {}
        self._names: dict[Path, set[Path]] = {}
        self._found: set[Path] = set()
        self._known: dict[Identity, tuple[Path, ...]] = {}

    def add(self, overlay: Path, own: Identity, name: Path, below: Identity) -> None:
        """*overlay* names the file *below* as *name*, links resolved."""
        self._known = {}
        self._above.setdefault(below, []).append((overlay, own))
        self._names.setdefault(name, set()).add(overlay)

    def naming(self, name: Path) -> frozenset[Path]:
        """The images whose headers have *name*, and no other name of its file."""
        return frozenset(self._names.get(name, ()))

    def count(self, overlay: Path) -> None:
        """*overlay* lies in one of the folders that were looked at."""
        self._known = {}
        self._found.add(overlay)

    def of(self, file: Identity | None) -> tuple[Path, ...]:
        """The images in the folders that stand on *file*, by name."""
        if file is None:
            return ()
        if file not in self._known:
            self._known[file] = self._on(file)
        return self._known[file]

    def _on(self, file: Identity) -> tuple[Path, ...]:
        found: set[Path] = set()
        seen, left = {file}, [file]
        while left:
            for path, own in self._above.get(left.pop(), ()):
                if own != file:
                    found.add(path)
                if own not in seen:
                    seen.add(own)
                    left.append(own)
        return tuple(sorted(found & self._found, key=str))


class Names:
    """What headers name, by file, kept for as long as a file is the same."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Version, Path | None]] = {}
        self._last: tuple[object, dict[str, Version | None], Overlays] | None = None

    def below(self, path: Path, moment: Moment) -> Path | None:
        """The file that the header of *path* may name; None: none, or *path* is no image."""
        version = moment.version(str(path))
        known = self._known.get(path)
        if known is not None and version is not None and known[0] == version:
            return known[1]
        below = _named(path)
        if version:
            self._known[path] = (version, below)
        else:
            self._known.pop(path, None)
        return below

    def last(self, where: object, moment: Moment) -> Overlays | None:
        """What the last scan found, if it was the same one and all its files are as they were."""
        if self._last is None or self._last[0] != where:
            return None
        _, versions, overlays = self._last
        same = all(moment.version(name) == version for name, version in versions.items())
        return overlays if same else None

    def scanned(
        self,
        where: object,
        listed: Iterable[str],
        seen: Collection[Path],
        overlays: Overlays,
        moment: Moment,
    ) -> None:
        """Remember a scan, which found these names and came by these files."""
        self._known = {path: known for path, known in self._known.items() if path in seen}
        versions = {name: moment.version(name) for name in (*listed, *map(str, seen))}
        self._last = None if None in versions.values() else (where, versions, overlays)


def scan(
    folders: Iterable[Path],
    trust: Trust,
    names: Names | None = None,
    moment: Moment | None = None,
) -> Overlays:
    """
    Overlays in *folders*.

    Every file with the magic of qcow2 counts, whatever its name; an overlay is
    followed down to its base, in whatever folder that lies, as far as *trust* goes.

    Args:
        names: Kept from an earlier scan; without it every header is read.
        moment: When this is; now, unless told.
    """
    names, moment = names or Names(), moment or Moment()
    allowed = _Allowed(trust)
    seen: set[Path] = set()
    overlays = Overlays()
    listed = [name for folder in sorted(set(folders)) for name in _listed(folder)]
    where = (trust.roots, tuple(listed), [moment.folder(str(folder)) for folder in set(folders)])
    if (known := names.last(where, moment)) is not None:
        return known
    for name in listed:
        overlay = moment.real(Path(name))
        overlays.count(overlay)
        at: Path | None = overlay
        while at is not None and at not in seen:
            seen.add(at)
            below = names.below(at, moment) if at.parent in allowed else None
            overlay, at = at, None if below is None else moment.real(below)
            own, there = _at(overlay, moment), _at(at, moment)
            at = at if there else None
            if own is not None and at is not None and there is not None:
                overlays.add(overlay, own, at, there)
    names.scanned(where, listed, seen, overlays, moment)
    return overlays


def _listed(folder: Path) -> list[str]:
    """Names in *folder* that may be images, in order."""
    try:
        with os.scandir(folder) as entries:
            found = [one.path for one in entries if not one.is_dir(follow_symlinks=False)]
    except OSError as error:
        log.warning("%s cannot be read: %s", folder, error.strerror)
        return []
    return sorted(name for name in found if not name.endswith(files.NEW))


class _Allowed:
    """Folders, links resolved, whose files may be opened; each is asked about once."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._known: dict[Path, bool] = {}

    def __contains__(self, folder: Path) -> bool:
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = self._trust.allows(folder)
        return known


def _at(path: Path | None, moment: Moment) -> Identity | None:
    """Device and inode of the file *path*, links resolved; None where there is none."""
    found = None if path is None else moment.at(path)
    return None if found is None else Identity(found.st_dev, found.st_ino)


def _named(path: Path) -> Path | None:
    """The file that the header of *path* may name, as it names it; None: none, or no image."""
    if not files.is_regular(path):
        return None
    try:
        with _opened(path) as (descriptor, _):
            header = qcow2.read_header(descriptor, path)
    except ObserveError as error:
        log.warning("%s; what it stands on is unknown", error)
        return None
    if header is None or header.backing is None:
        return None
    return qcow2.possible_path(header.backing, path)
