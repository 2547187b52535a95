"""
The header of a qcow2 image, read without QEMU.

Everything in a header is untrusted: each offset and length is checked before
it is used, and at most one cluster is read.

Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from reconciler.model.errors import ObserveError

MAGIC = b"QFI\xfb"
MAX_HEADER = 2 * 1024 * 1024
"""Bytes of the largest cluster, in which header, extensions and names lie."""
SMALLEST = 48
"""Bytes of the shortest header that can name a backing file, that of qcow version 1."""
MAX_NAME = 1023
"""Bytes of the longest backing name that QEMU takes."""

_MAX_L1 = 32 * 1024 * 1024
_MAX_REFCOUNTS = 8 * 1024 * 1024
_MAX_SNAPSHOTS = 4096
"""
Bytes and entries of the largest tables.  Source: QEMU, block/qcow2.h, QCOW_MAX_L1_SIZE etc.;
it takes 65536 snapshots, and tells of each in some 200 bytes of JSON.
"""

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")

_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_BITMAPS = 0x23852875
_EXT_DATA_FILE = 0x44415441

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_LAZY_REFCOUNTS = 1
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2


@dataclass(slots=True)  # frozen ones take three times as long to make
class Header:
    """
    What the header says; sizes in bytes.

    Attributes:
        data_file_name: Of the external data file, where it has one and the header names it.
    """

    virtual_size: int
    cluster_size: int
    backing: str | None
    backing_format: str | None
    snapshots: int
    bitmaps: int
    encrypted: bool
    data_file: bool
    corrupt: bool
    unknown_features: int
    lazy_refcounts: bool = False
    extended_l2: bool = False
    dirty: bool = False
    version: int = 3
    data_file_name: str | None = None


def read_header(descriptor: int, name: Path | str) -> Header | None:
    """
    The qcow2 header behind *descriptor*; None where the magic is another.

    Args:
        descriptor: An open regular file.
        name: Its name, for messages.

    Raises:
        ObserveError: The file begins as qcow2, and its header is broken.
    """
    try:
        start = os.pread(descriptor, 4096, 0)
        return _parse(descriptor, start) if start[:4] == MAGIC else None
    except OSError as error:
        raise ObserveError(f"{name} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise ObserveError(f"{name}: the qcow2 header is broken: {error}") from error


def backing_name(descriptor: int) -> str | None:
    """
    The backing name alone, from a header that may be damaged elsewhere; None: it has none.

    QEMU may take what `read_header` refuses, such as an image of 5,000 snapshots.
    """
    start = os.pread(descriptor, SMALLEST, 0)
    if len(start) < SMALLEST or start[:4] != MAGIC:
        return None
    at, length = struct.unpack_from(">QI", start, 8)
    if not 0 < at < MAX_HEADER or not 0 < length <= MAX_NAME:
        return None
    return os.fsdecode(os.pread(descriptor, length, at)) or None


def _parse(descriptor: int, start: bytes) -> Header:
    (
        _,
        version,
        name_at,
        name_length,
        bits,
        size,
        crypt,
        l1_size,
        _,
        _,
        refcounts,
        snapshots,
        _,
    ) = _FIXED.unpack_from(start)
    if version not in (2, 3):
        raise ValueError(f"version {version} is neither 2 nor 3")
    if not 9 <= bits <= 21:
        raise ValueError(f"{bits} cluster bits are outside 9 to 21")
    if size >= 2**63:
        raise ValueError(f"a virtual size of {size} bytes is beyond 8 EiB")
    if l1_size * 8 > _MAX_L1 or refcounts << bits > _MAX_REFCOUNTS or snapshots > _MAX_SNAPSHOTS:
        raise ValueError("its tables are too large")
    incompatible, compatible, header_length = 0, 0, 72
    if version == 3:
        incompatible, compatible, _, _, header_length = _V3.unpack_from(start, _FIXED.size)
    cluster = 1 << bits
    head = start[:cluster]
    if not name_at or name_at + name_length > len(head):  # most headers end far before
        head = os.pread(descriptor, min(cluster, MAX_HEADER), 0)
    backing = None
    if name_at:
        if not 0 < name_length <= MAX_NAME or name_at + name_length > len(head):
            raise ValueError("the backing name lies outside the first cluster")
        backing = os.fsdecode(head[name_at : name_at + name_length])
    extensions = _extensions(head, header_length, name_at or len(head))
    recorded = extensions.get(_EXT_BACKING_FORMAT)
    bitmaps = extensions.get(_EXT_BITMAPS, b"")
    data_file = extensions.get(_EXT_DATA_FILE) if incompatible & _DATA_FILE else None
    return Header(
        version=version,
        virtual_size=size,
        cluster_size=cluster,
        backing=backing,
        backing_format=recorded.decode("ascii", "replace") if recorded else None,
        snapshots=snapshots,
        bitmaps=struct.unpack_from(">I", bitmaps)[0] if len(bitmaps) >= 4 else 0,
        encrypted=crypt != 0,
        data_file=bool(incompatible & _DATA_FILE),
        corrupt=bool(incompatible & _CORRUPT),
        lazy_refcounts=bool(compatible & _LAZY_REFCOUNTS),
        extended_l2=bool(incompatible & _EXTENDED_L2),
        dirty=bool(incompatible & _DIRTY),
        unknown_features=incompatible & ~_KNOWN,
        data_file_name=os.fsdecode(data_file) if data_file else None,
    )


def _extensions(head: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 8 <= min(end, len(head)):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _EXT_END:
            break
        if at + 8 + length > len(head):
            raise ValueError("a header extension lies outside the first cluster")
        found[kind] = head[at + 8 : at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
    return found


def backing_path(recorded: str, overlay: Path) -> Path:
    """The same as `backing_file`, as a path."""
    return Path(backing_file(recorded, str(overlay)))


def backing_file(recorded: str, overlay: str) -> str:
    """
    The local file that the backing name *recorded* in *overlay* means.

    Relative names start from the folder of the overlay, as QEMU has it.

    Args:
        overlay: An absolute name.

    Raises:
        ObserveError: The name is no local file: a protocol, or a ``json:``
            name of anything but a qcow2 or raw image on a file.
    """
    name = recorded
    if name.startswith("json:"):
        name = _json_filename(name[len("json:") :], overlay)
        _absolute(name, recorded, overlay)
    elif name.startswith("file:"):
        name = name[len("file:") :]
        _absolute(name, recorded, overlay)
    elif ":" in name.split("/", 1)[0]:
        raise ObserveError(f"{overlay}: the backing name {recorded!r} is no local file")
    try:
        named = bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise ObserveError(f"{overlay}: the backing name {recorded!r} names no file")
    return _beside(overlay, name)


def _beside(overlay: str, name: str) -> str:
    return name if name.startswith("/") else f"{overlay.rpartition('/')[0]}/{name}"


def possible_file(recorded: str, overlay: str) -> str | None:
    """
    The local file that *recorded* may mean, for the question who stands on what.

    More is understood here than is ever opened: ``json:`` names with any other
    option, and names that depend on the folder QEMU is started in.
    """
    try:
        return backing_file(recorded, overlay)
    except ObserveError:
        pass
    name: object = recorded.removeprefix("file:")
    if recorded.startswith("json:"):
        try:
            flat = _options(recorded[len("json:") :])
        except (ValueError, RecursionError):
            return None
        # what is spelled out below its own file says what that stands on
        keys = sorted(flat, key=lambda key: ("backing." in key, key.count(".")))
        found = [flat[key] for key in keys if key.split(".")[-1] == "filename"]
        name = found[0] if found else None
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return _beside(overlay, name.removeprefix("file:"))


def _absolute(name: str, recorded: str, overlay: str) -> None:
    if not name.startswith("/"):
        raise ObserveError(
            f"{overlay}: the backing name {recorded!r} depends on the folder that QEMU is "
            "started in; record an absolute name with qemu-img rebase -u"
        )


def _json_filename(text: str, overlay: str) -> str:
    refused = ObserveError(
        f"{overlay}: the backing name json:{text} is no plain qcow2 or raw image on a local file"
    )
    try:
        flat = _options(text)
    except (ValueError, RecursionError) as error:
        raise refused from error
    if flat.get("driver") in ("file", None) and "filename" in flat:
        flat = {"driver": "raw", "file.driver": "file", "file.filename": flat["filename"]}
    allowed = {"driver", "file.driver", "file.filename"}
    name, driver = flat.get("file.filename"), flat.get("driver")
    if driver in ("qcow2", "raw") and isinstance(name, str) and name.startswith("/"):
        # QEMU spells out the images below as well, and the headers there may say otherwise; where
        # they agree they may only do so for now: QEMU goes by this name alone, so that a merge
        # further down, which rewrites the header of the image below, would leave it naming an
        # image that is gone.  And qemu-img 7.2 takes such a name in some of its commands only
        # ("Block format 'qcow2' does not support the option 'backing.driver'").
        refused = ObserveError(
            f"{refused}; where {name} with what its own header names is meant, record that: "
            f"qemu-img rebase -u -F {driver} -b '{name}' '{overlay}'"
        )
    if set(flat) - allowed or flat.get("driver") not in ("qcow2", "raw"):
        raise refused
    filename = flat.get("file.filename")
    if flat.get("file.driver", "file") != "file" or not isinstance(filename, str):
        raise refused
    return filename


def _options(text: str) -> dict[str, object]:
    """The options of a ``json:`` name, dotted: ``file.filename``; empty for no object."""
    tree = json.loads(text)
    return dict(_flatten(tree, "")) if isinstance(tree, dict) else {}


def _flatten(tree: dict[str, object], prefix: str) -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
