"""
The disks in a domain's XML, and edits that leave every other byte as it is.

Source: https://libvirt.org/formatdomain.html, section "Hard drives, floppy
disks, CDROMs".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from reconciler.model.domain import Source
from reconciler.model.errors import ObserveError

SPECIAL = ("transient", "shareable")
"""Disks whose changes QEMU throws away, and disks that several guests write to."""


def disks(text: str) -> dict[str, Source]:
    """Every disk of the domain *text*, by target name."""
    found = {}
    for disk in _parsed(text).findall("./devices/disk"):
        target = disk.find("target")
        if target is not None and disk.get("device", "disk") in ("disk", "lun"):
            found[target.get("dev", "")] = _source(disk)
    return found


def targets(text: str) -> tuple[str, ...]:
    """The target of every drive of the domain *text*: disks, CD-ROMs, floppies, empty ones too."""
    found = (one.get("dev", "") for one in _parsed(text).findall("./devices/disk/target"))
    return tuple(name for name in found if name)


def beside(text: str) -> tuple[str, ...]:
    """What belongs to the state of the guest *text* and is in none of its disks, in words."""
    root = _parsed(text)
    found = []
    nvram = root.find("./os/nvram")
    if nvram is not None:
        source = nvram.find("source")
        name = nvram.text if source is None else source.get("file") or source.get("name")
        where = f" ({name.strip()})" if name and name.strip() else ""
        found.append(f"the NVRAM of the guest's firmware{where}")
    if root.find("./devices/tpm/backend[@type='emulator']") is not None:
        found.append("the state of its TPM")
    return tuple(found)


def has_disk_snapshots(text: str) -> bool:
    """
    True where the host's capabilities *text* have a guest with snapshots of its disks alone.

    Source: https://libvirt.org/formatcaps.html, guest feature ``disksnapshot``.
    """
    found = _parsed(text).findall("./guest/features/disksnapshot")
    return any(one.get("default") == "on" for one in found)


def images(text: str) -> set[Path]:
    """Every file that the XML names as a disk source, backing store or mirror."""
    return {Path(one.get("file", "")) for one in _parsed(text).iter("source") if one.get("file")}


def _parsed(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)  # noqa: S314 (libvirt wrote it)
    except ElementTree.ParseError as error:
        raise ObserveError(f"libvirt's XML cannot be read: {error}") from error


def _source(disk: ElementTree.Element) -> Source:
    driver, mirror = disk.find("driver"), disk.find("mirror")
    backing, whole = _backing(disk)
    return Source(
        kind=disk.get("type", "file"),
        path=_file(disk),
        format=None if driver is None else driver.get("type"),
        backing=backing,
        whole=whole,
        mirror=None if mirror is None else _file(mirror) or Path(mirror.get("file", "?")),
        ready=mirror is not None and mirror.get("ready") == "yes",
        special=next((name for name in SPECIAL if disk.find(name) is not None), None),
        read_only=disk.find("readonly") is not None,
    )


def _file(parent: ElementTree.Element) -> Path | None:
    source = parent.find("source")
    name = None if source is None else source.get("file")
    return None if name is None else Path(name)


def _backing(disk: ElementTree.Element) -> tuple[tuple[Path, ...], bool]:
    """The backing files spelled out, and whether the last ``<backingStore/>`` ends them."""
    found: list[Path] = []
    store = disk.find("backingStore")
    while store is not None:
        name = _file(store)
        if name is None:
            return tuple(found), store.get("type") is None
        found.append(name)
        store = store.find("backingStore")
    return tuple(found), False


@dataclass(slots=True)
class _Place:
    """Byte offsets of one disk's parts, ends excluded."""

    target: str = ""
    driver: tuple[int, int] | None = None
    source: tuple[int, int] | None = None
    stores: list[tuple[int, int]] = field(default_factory=list)


def with_sources(text: str, sources: Mapping[str, tuple[Path, str]]) -> str:
    """
    *text*, where each target of *sources* has another image.

    Their backing files are left to the headers: spelled out, they would be
    those of the old image.

    Args:
        sources: Image and its format, by target.

    Raises:
        ObserveError: *text* has no file-backed disk of that name.
    """
    data = text.encode()
    places = {place.target: place for place in _places(data)}
    edits: list[tuple[int, int, bytes]] = []
    for target, (path, image_format) in sources.items():
        place = places.get(target)
        if place is None or place.source is None:
            raise ObserveError(f"the domain has no disk {target} in a file")
        edits.append(_attribute(data, place.source, "file", str(path)))
        if place.driver is not None:
            edits.append(_attribute(data, place.driver, "type", image_format))
        edits += [(start, end, b"") for start, end in place.stores]
    return _edited(data, edits)


def without_backing(text: str, targets: Iterable[str]) -> str:
    """*text*, where the backing files of *targets* are left to the headers."""
    data, wanted = text.encode(), set(targets)
    stores = [span for place in _places(data) if place.target in wanted for span in place.stores]
    return _edited(data, [(start, end, b"") for start, end in stores])


def _edited(data: bytes, edits: Iterable[tuple[int, int, bytes]]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        data = data[:start] + new + data[end:]
    return data.decode()


def _attribute(data: bytes, span: tuple[int, int], name: str, value: str) -> tuple[int, int, bytes]:
    """The edit that gives the start tag at *span* the attribute *name*."""
    start, end = span
    tag = data[start:end]
    new = f"{name}={quoteattr(value)}".encode()
    found = re.search(rb"(?<=\s)" + name.encode() + rb"\s*=\s*('[^']*'|\"[^\"]*\")", tag)
    if found:
        return start + found.start(), start + found.end(), new
    at = start + re.match(rb"<[\w:.-]+", tag).end()  # type: ignore[union-attr]
    return at, at, b" " + new


def _places(data: bytes) -> list[_Place]:
    """Where the parts of each disk of the domain lie."""
    parser = expat.ParserCreate()
    path: list[str] = []
    starts: list[int] = []
    found: list[_Place] = []

    def start_tag(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        at = parser.CurrentByteIndex
        starts.append(at)
        if path == ["domain", "devices", "disk"]:
            found.append(_Place())
        elif path[:-1] == ["domain", "devices", "disk"]:
            span = at, _tag_end(data, at)
            if name == "target":
                found[-1].target = attributes.get("dev", "")
            elif name == "driver":
                found[-1].driver = span
            elif name == "source" and "file" in attributes:
                found[-1].source = span

    def end_tag(_: str) -> None:
        start = starts.pop()
        if path == ["domain", "devices", "disk", "backingStore"]:
            end = _tag_end(data, start)
            if data[end - 2 : end] != b"/>":
                end = _tag_end(data, parser.CurrentByteIndex)
            while start and data[start - 1 : start].isspace():
                start -= 1
            found[-1].stores.append((start, end))
        path.pop()

    parser.StartElementHandler = start_tag
    parser.EndElementHandler = end_tag
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ObserveError(f"libvirt's XML cannot be read: {error}") from error
    return found


def _tag_end(data: bytes, at: int) -> int:
    """Just behind the tag that begins at *at*; a ``>`` inside of quotes does not count."""
    quote = b""
    for position in range(at, len(data)):
        char = data[position : position + 1]
        if quote:
            quote = b"" if char == quote else quote
        elif char in (b"'", b'"'):
            quote = char
        elif char == b">":
            return position + 1
    return len(data)


def snapshot(overlays: Mapping[str, Path], others: Iterable[str]) -> str:
    """
    The XML of an external disk snapshot: *overlays* by target; *others* have none.

    Whatever the XML leaves out, libvirt snapshots too: a floppy that has a
    medium makes it refuse the whole snapshot.

    Source: https://libvirt.org/formatsnapshot.html.
    """
    taken = "".join(
        f"<disk name={quoteattr(target)} snapshot='external'>"
        f"<driver type='qcow2'/><source file={quoteattr(str(path))}/></disk>"
        for target, path in overlays.items()
    )
    left = "".join(f"<disk name={quoteattr(target)} snapshot='no'/>" for target in others)
    return f"<domainsnapshot><disks>{taken}{left}</disks></domainsnapshot>"


def snapshot_states(text: str) -> dict[str, Path]:
    """
    The image that holds the state of an external snapshot, by target.

    libvirt keeps the domain as it was before the snapshot was made: the disk
    that it has there is the one below the overlay.  A disk whose state is in
    the image itself (an internal snapshot), or that had no part, has none.
    """
    root = _parsed(text)
    taken = {
        one.get("name") for one in root.findall("./disks/disk") if one.get("snapshot") == "external"
    }
    found = {}
    for disk in root.findall("./domain/devices/disk"):
        target, path = disk.find("target"), _file(disk)
        name = None if target is None else target.get("dev")
        if name is not None and name in taken and path is not None:
            found[name] = path
    return found


def snapshot_memory(text: str) -> Path | None:
    """The file that a snapshot has saved the guest's memory to; None: it has not."""
    memory = _parsed(text).find("./memory[@snapshot='external']")
    name = None if memory is None else memory.get("file")
    return Path(name) if name else None


def is_disk_only(text: str) -> bool:
    """True for a snapshot of disks alone, taken while the guest ran."""
    return _parsed(text).findtext("./state") == "disk-snapshot"


def snapshot_parent(text: str) -> str | None:
    """The name of the snapshot that *text* comes after; None: of none."""
    return _parsed(text).findtext("./parent/name")


def with_parent(text: str, parent: str | None) -> str:
    """The snapshot *text*, coming after the snapshot *parent*; None: after none."""
    new = "" if parent is None else f"<parent><name>{escape(parent)}</name></parent>"
    return re.sub(r"<parent>\s*<name>[^<]*</name>\s*</parent>", lambda _: new, text, count=1)
