"""What is there, for a spec to be written: the disks of domains, of images, or of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.model.domain import Domain, Source
from reconciler.model.errors import Mistake, ObserveError, ReconcilerError
from reconciler.model.host import Host
from reconciler.model.image import Chain, Format, Identity, Image, short_name
from reconciler.tools import files, images, process
from reconciler.tools.lookups import Lookups

RAW_SUFFIXES = (".raw", ".img")
"""Names of raw images; nothing in such a file tells what it is."""


@dataclass(frozen=True, slots=True)
class FoundDisk:
    """
    One disk, for a spec to be written.

    Attributes:
        source: Its active image, as it was found.
        chain: Empty where *why* is set.
        templates: Images that several chains stand on and nobody writes, and how many.
        why: Why it cannot be described.
    """

    domain: str
    target: str
    source: Path | None
    connection: str | None = None
    format: Format | None = None
    chain: Chain = field(default_factory=Chain)
    templates: tuple[tuple[Path, int], ...] = ()
    why: str | None = None

    @property
    def label(self) -> str:
        """``domain:target``."""
        return f"{self.domain}:{self.target}"


def of_domains(uri: str, names: Sequence[str], host: Host) -> list[FoundDisk]:
    """
    Every disk of the domains *names*; of every domain where there are none.

    Raises:
        ReconcilerError: No connection, or no such domain.
    """
    from reconciler.tools.hypervisor import connect  # takes a while, for libvirt alone

    domains = sorted(connect(uri).domains(), key=lambda one: one.name)
    known = [one.name for one in domains]
    if unknown := [name for name in names if name not in known]:
        raise Mistake(
            f"{uri} has no domain {', '.join(unknown)} (it has: {', '.join(known) or 'none'})"
        )
    every = [disk for domain in domains for disk in _of_domain(uri, domain)]
    found = _walked(every, host)
    return [disk for disk in found if not names or disk.domain in names]


def _of_domain(uri: str, domain: Domain) -> Iterator[FoundDisk]:
    for target, source in domain.disks.items():
        disk = FoundDisk(domain.name, target, source.path, uri, _known(source.format))
        yield replace(disk, why=_not_in_files(source))


def _known(name: str | None) -> Format | None:
    return "qcow2" if name == "qcow2" else "raw" if name == "raw" else None


def _not_in_files(source: Source) -> str | None:
    if source.kind != "file":
        return f"it is a disk of type {source.kind}, and only disks in files are handled"
    if source.path is None:
        return "it has no image"
    if source.special is not None:
        return f"it is a {source.special} disk, and its image has to stay the one it is"
    if source.format is not None and _known(source.format) is None:
        return f"its image has the format {source.format}; only qcow2 and raw are handled"
    return None


def of_images(paths: Sequence[Path], host: Host) -> list[FoundDisk]:
    """A disk for each of the active images *paths*, named after it."""
    given = list(dict.fromkeys(images.real(path) for path in paths))
    disks = _named(given)
    walked = _walked(disks, host)
    folders = {image.path.parent for disk in walked for image in disk.chain}
    others = [path for folder in sorted(folders) for path in _tops(folder) if path not in given]
    return _walked([*disks, *_named(others)], host)[: len(disks)]


def of_folder(folder: Path, host: Host) -> list[FoundDisk]:
    """
    A disk for every image in *folder* that no other image there stands on.

    Raises:
        Mistake: The folder cannot be read.
    """
    return _walked(_named(_tops(folder)), host)


def _named(paths: Sequence[Path]) -> list[FoundDisk]:
    """A disk ``vda`` for each of *paths*, of a domain with its name."""
    count = Counter(map(short_name, paths))
    return [
        FoundDisk(short_name(path) if count[short_name(path)] == 1 else path.name, "vda", path)
        for path in paths
    ]


def _tops(folder: Path) -> list[Path]:
    """Images in *folder* that no other image there stands on, by name."""
    lookups = Lookups()
    where = lookups.path(folder)
    names = lookups.names(str(where))
    if names is None:
        raise Mistake(f"{folder} cannot be read")
    found: dict[Identity, Path] = {}
    below: set[Identity | None] = set()
    for name in names:
        path = lookups.path(where / name)
        there = images.identity_at(path, lookups)
        if there is None or name.endswith(files.NEW) or not _is_image(path, lookups, below):
            continue
        found.setdefault(there, path)
    return [path for there, path in found.items() if there not in below]


def _is_image(path: Path, lookups: Lookups, below: set[Identity | None]) -> bool:
    """True where *path* may be an image; what it stands on is added to *below*."""
    try:
        file = images.look_at(str(path), lookups)
    except ObserveError:
        return False
    if (named := images.named_by(str(path), file)) is not None:
        below.add(images.identity_at(Path(named), lookups))
    # a damaged one is an image, too: its disk tells why
    return file.header is not None or file.damage is not None or path.suffix in RAW_SUFFIXES


def _walked(disks: Sequence[FoundDisk], host: Host) -> list[FoundDisk]:
    """*disks* with their chains, and what these share."""
    process.limit(host.limits)
    roots = images.allowed_roots(host)
    lookups = Lookups()
    found = _apart([_with_chain(disk, roots, lookups) for disk in disks])
    stand: Counter[Path] = Counter(image.path for disk in found for image in disk.chain.images[:-1])
    written = {disk.chain.images[-1].path for disk in found if disk.chain.images}
    written |= {images.real(disk.source) for disk in disks if disk.source is not None}
    templates = {path: number for path, number in stand.items() if number > 1}
    return [replace(disk, templates=_templates(disk.chain, templates, written)) for disk in found]


def _with_chain(disk: FoundDisk, roots: images.Roots | None, lookups: Lookups) -> FoundDisk:
    if disk.why is not None or disk.source is None:
        return disk
    there = images.identity(disk.source)
    formats = {there: disk.format} if there and disk.format else {}
    try:
        chain = images.walk(disk.source, images.Trust(formats, guess=True, roots=roots), lookups)
    except ReconcilerError as error:
        return replace(disk, why=str(error))
    return replace(disk, chain=chain)


def _apart(disks: Sequence[FoundDisk]) -> list[FoundDisk]:
    """*disks*, without the chains of those that have one active image."""
    active: dict[Identity | None, list[str]] = {}
    for disk in disks:
        if disk.chain.active is not None:
            active.setdefault(disk.chain.active.identity, []).append(disk.label)
    apart = []
    for disk in disks:
        labels = active[disk.chain.active.identity] if disk.chain.active is not None else []
        others = [label for label in labels if label != disk.label]
        why = f"its image is also that of {', '.join(others)}" if others else disk.why
        apart.append(replace(disk, chain=Chain(), why=why) if others else disk)
    return apart


def _templates(
    chain: Chain, shared: dict[Path, int], written: Set[Path]
) -> tuple[tuple[Path, int], ...]:
    """The shared part of *chain*, from the base on, as far as nobody writes to it."""
    found = []
    for image in chain.images[:-1]:
        if image.path not in shared or image.path in written:
            break
        found.append((image.path, shared[image.path]))
    return tuple(found)


def format_to_write(chain: Chain, image: Image) -> Format | None:
    """The format that a spec has to name for *image*: raw, or one that its overlay leaves out."""
    overlay = chain.overlay_of(image.path)
    unrecorded = overlay is not None and overlay.recorded_format is None
    return image.format if image.format == "raw" or unrecorded else None
