"""What is on the disk: single images, and chains walked by their headers."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.host import Host
from reconciler.model.image import Chain, Format, Identity, Image, short_name
from reconciler.tools import other_formats, qcow2, qemuimg
from reconciler.tools.lookups import Lookups

MAX_DEPTH = 1000
"""Images of the longest chain that is read."""
NAMED = 4
"""Most folders that a message lists."""


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


@dataclass(slots=True)  # frozen ones take three times as long to make
class File:
    """
    A regular file as it was looked at, before anybody says which format it has.

    Attributes:
        found: What the kernel says of it.
        header: Where it begins as a qcow2 image does.
        damage: Why that header cannot be read.
        foreign_backing: What it stands on, where it is an overlay in a format that is never
            opened, or its header is damaged and that much of it can be read.
    """

    found: os.stat_result
    header: qcow2.Header | None = None
    damage: str | None = None
    foreign_backing: str | None = None

    @property
    def identity(self) -> Identity:
        return Identity(self.found.st_dev, self.found.st_ino)


def _file(name: str, descriptor: int, found: os.stat_result) -> File:
    try:
        header = qcow2.read_header(descriptor, name)
    except ObserveError as error:
        named = _foreign(descriptor) or _foreign(descriptor, qcow2.backing_name)
        return File(found, damage=str(error), foreign_backing=named)
    return File(found, header, foreign_backing=None if header else _foreign(descriptor))


def _foreign(
    descriptor: int, reader: Callable[[int], str | None] = other_formats.backing_name
) -> str | None:
    try:
        return reader(descriptor)
    except OSError:
        return None


class Unreadable(ObserveError):
    """A regular file is there, and this user may not read it, or nobody can."""


def look_at(name: str, lookups: Lookups) -> File:
    """
    The file *name*, links resolved.

    Raises:
        Unreadable: There is such a file, and it cannot be read.
        ObserveError: There is no such regular file.
    """
    try:
        return lookups.read(name, _file)
    except FileNotFoundError:
        raise ObserveError(f"{name} does not exist") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ObserveError(
                f"{name} is no regular file; only images in files are handled"
            ) from error
        raise Unreadable(f"{name} cannot be read: {error.strerror}") from error


def read_image(path: Path, image_format: Format, lookups: Lookups | None = None) -> Image:
    """
    The image at *path*, which is said to be in *image_format*.

    Raises:
        ObserveError: It cannot be read, or is not in that format.
    """
    lookups = lookups or Lookups()
    where = lookups.path(path)
    return _image(where, image_format, look_at(str(where), lookups))


def _image(where: Path, image_format: Format, file: File) -> Image:
    """The image that *file*, found at *where*, is in *image_format*."""
    header = file.header if image_format == "qcow2" else None
    if image_format == "qcow2" and header is None:
        if file.found.st_size == 0:
            raise ObserveError(f"{where} is empty (0 bytes), and no qcow2 image; restore the file")
        raise ObserveError(
            file.damage
            or f'{where} is no qcow2 image; if it is raw, write format = "raw" for it in the spec'
        )
    for name in (str(where), header.backing if header and header.backing else ""):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ObserveError(f"{name!r}: the file name is no UTF-8; rename the file") from None
    found = file.found
    if header is None:
        return Image(
            path=where,
            format=image_format,
            virtual_size=-(-found.st_size // 512) * 512,
            cluster_size=1,
            actual_size=found.st_blocks * 512,
            identity=file.identity,
            links=found.st_nlink,
            owner=(found.st_uid, found.st_gid),
            mode=stat.S_IMODE(found.st_mode),
        )
    return Image(
        path=where,
        format=image_format,
        virtual_size=header.virtual_size,
        cluster_size=header.cluster_size,
        actual_size=found.st_blocks * 512,
        identity=file.identity,
        links=found.st_nlink,
        owner=(found.st_uid, found.st_gid),
        mode=stat.S_IMODE(found.st_mode),
        recorded=header.backing,
        recorded_format=header.backing_format,
        snapshots=header.snapshots,
        bitmaps=header.bitmaps,
        encrypted=header.encrypted,
        data_file=header.data_file,
        corrupt=header.corrupt,
        lazy_refcounts=header.lazy_refcounts,
        extended_l2=header.extended_l2,
        dirty=header.dirty,
        version=header.version,
        unknown_features=header.unknown_features,
    )


class Roots:
    """
    Folders below which images may lie.

    Args:
        folders: Links resolved; whatever lies below one of them is allowed.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self._folders = frozenset(folders)
        self._known: dict[str, bool] = {}

    def hold(self, name: str) -> bool:
        """True where *name*, links resolved, is one of the folders or lies below one."""
        folder = name.rpartition("/")[0] or "/"
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = any(one in self._folders for one in _upwards(folder))
        return known or name in self._folders

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roots) and self._folders == other._folders

    def __hash__(self) -> int:
        return hash(self._folders)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._folders))

    def __str__(self) -> str:
        names = list(self)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more or "nowhere"


def _upwards(folder: str) -> Iterator[str]:
    """*folder* and every folder above it."""
    while True:
        yield folder
        above = os.path.dirname(folder)
        if above == folder:
            return
        folder = above


def allowed_roots(host: Host) -> Roots | None:
    """Folders below which *host* allows images; None: its config names none."""
    if host.allowed_roots is None:
        return None
    return Roots(os.path.realpath(root) for root in host.allowed_roots)


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
        roots: Folders below which images may lie; None: anywhere.
    """

    formats: Mapping[Identity, Format] = field(default_factory=dict)
    default: Format = "qcow2"
    guess: bool = False
    roots: Roots | None = None

    def allows(self, where: str) -> bool:
        """True where the file *where*, links resolved, lies below one of the roots."""
        return self.roots is None or self.roots.hold(where)

    def require_allowed(self, where: str) -> None:
        """
        Raises ObserveError where the file *where* lies outside of the roots.

        Args:
            where: Links resolved; it need not exist.
        """
        if not self.allows(where):
            raise ObserveError(
                f"{where} is never opened: images may lie in {self.roots} (the folders of the "
                "images that the spec lists, or allowed_roots in the host's config)"
            )

    def image(self, path: str | Path, recorded: str | None, lookups: Lookups) -> Image:
        """
        The image at *path*.  Its name is resolved once: what is allowed is what is opened.

        Args:
            recorded: The format that the overlay above records.

        Raises:
            ObserveError: It lies outside of the roots, cannot be read, or has another format.
        """
        where = lookups.path(path)
        name = str(where)
        self.require_allowed(name)
        file = look_at(name, lookups)
        default = self.default
        if self.guess:
            if file.damage is not None:
                raise ObserveError(file.damage)
            default = "qcow2" if file.header is not None else "raw"
        said = self.formats.get(file.identity)
        return _image(where, _chosen(path, said, recorded, default), file)


def walk(active: Path, trust: Trust, lookups: Lookups | None = None) -> Chain:
    """
    The chain whose active image is *active*, walked image by image.

    Raises:
        ObserveError: An image is missing, unreadable or no image, or the
            chain loops; the message says which image names it.
    """
    lookups = lookups or Lookups()
    images: list[Image] = []
    seen: set[Identity] = set()
    given: str | None = os.fspath(active)
    recorded_format: str | None = None
    while given is not None:
        try:
            image = trust.image(given, recorded_format, lookups)
        except ObserveError as error:
            raise _named_by(images, error, given) from error
        assert image.identity is not None
        if image.identity in seen:
            names = " <- ".join(short_name(one.path) for one in [image, *reversed(images)])
            raise ObserveError(f"the chain loops: {names}")
        if len(images) == MAX_DEPTH:
            raise ObserveError(f"{active} stands on more than {MAX_DEPTH} images")
        seen.add(image.identity)
        images.append(image)
        given, recorded_format = _below(image, given, lookups), image.recorded_format
    return Chain(tuple(reversed(images)))


def with_names(chain: Chain, names: Mapping[Path, Path], lookups: Lookups | None = None) -> Chain:
    """
    *chain*, where files with two names have the one that the spec uses.

    Args:
        names: By the name that headers and QEMU have, the name that the spec has.
    """
    if not names:
        return chain
    lookups = lookups or Lookups()
    return Chain(tuple(_under_its_name(image, names, lookups) for image in chain))


def _under_its_name(image: Image, names: Mapping[Path, Path], lookups: Lookups) -> Image:
    name = names.get(image.path)
    if name is None or identity_at(name, lookups) != image.identity:
        return image
    return replace(image, path=name, second=image.path)


def identity_at(path: str | Path, lookups: Lookups) -> Identity | None:
    """Device and inode of the file behind the absolute *path*; None where there is none."""
    return lookups.identity(os.fspath(path))


class BackingMissing(ObserveError):
    """
    The backing file that a header names is not there.

    Attributes:
        missing: Its absolute path.
    """

    def __init__(self, reason: str, missing: Path, overlay: Image) -> None:
        self.missing = missing
        self._reason, self._overlay = reason, overlay
        super().__init__(self.told(None))

    def told(self, place: Path | None) -> str:
        """The message, with the command that relinks the overlay to *place*, if that is known."""
        overlay = self._overlay
        where = shlex.quote(str(place)) if place is not None else "NEW-PLACE"
        moved = f"it was moved to {place}" if place is not None else "it was moved"
        return (
            f"{self._reason}; {overlay.path} names it as its backing file ({overlay.recorded!r}); "
            f"if {moved}, relink it: qemu-img rebase -u -F {overlay.recorded_format or 'FORMAT'} "
            f"-b {where} {shlex.quote(str(overlay.path))}"
        )


def _named_by(images: list[Image], error: ObserveError, given: str) -> ObserveError:
    """*error* about the image *given*, told as what the overlay above it names."""
    if not images:
        return error
    overlay = images[-1]
    if str(error).endswith("does not exist"):
        return BackingMissing(str(error), Path(given), overlay)
    return ObserveError(
        f"{error}; {overlay.path} names it as its backing file ({overlay.recorded!r})"
    )


def _chosen(path: str | Path, said: Format | None, recorded: str | None, default: Format) -> Format:
    """The format of *path*: what the spec says, else what the overlay records, else *default*."""
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


def _below(image: Image, given: str, lookups: Lookups) -> str | None:
    """The backing file of *image*, which was reached under the name *given*."""
    if image.recorded is None:
        return None
    own = str(image.path)
    below = qcow2.backing_file(image.recorded, own)
    if given != own:
        found = lookups.lstat(given)
        if found is not None and stat.S_ISLNK(found.st_mode):
            _same_from_the_link(image, given, below, lookups)
    return below


def _same_from_the_link(image: Image, given: str, below: str, lookups: Lookups) -> None:
    """QEMU starts a relative name from the folder of the name it was given."""
    assert image.recorded is not None
    other = qcow2.backing_file(image.recorded, given)
    if lookups.real(other) != lookups.real(below):
        raise ObserveError(
            f"{given} is a symbolic link to {image.path}, and its backing name "
            f"{image.recorded!r} means another file from there; list {image.path} instead"
        )


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


def require_confirmed(chain: Chain) -> None:
    """As `confirm` does it; images that the planner refuses need not be opened for that."""
    if not any(image.left_alone or image.corrupt for image in chain):
        confirm(chain)


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


def backing_of(overlay: Path, lookups: Lookups | None = None) -> Path | None:
    """The file that the header of *overlay* names, links resolved; None: none, or no image."""
    lookups = lookups or Lookups()
    where = lookups.path(overlay)
    try:
        file = look_at(str(where), lookups)
    except ObserveError:
        return None
    below = named_by(str(where), file)
    if below is None or lookups.stat(below) is None:
        return None
    return Path(lookups.real(below))


def named_by(name: str, file: File) -> str | None:
    """The file that the header of *file*, found at *name*, may name; None: none."""
    recorded = file.header.backing if file.header else file.foreign_backing
    if recorded is None:
        return None
    return qcow2.possible_file(recorded, name)
