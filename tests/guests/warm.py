"""
Guests that start where an equal one had booted to, so that a kernel boots once a session.

A kernel's boot under TCG takes four seconds of a processor, and no test is about
it.  The first guest of each shape boots on blank images until its program is about
to open the disks, and is saved there.  Every other one is restored from that: QEMU
opens its images anew, and its program opens and verifies all disks as it does
after a boot.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tests.guests.guest import Guest

_HEADER = struct.Struct("=16s5I56x")
"""Of a saved guest: magic, version, length of the XML and cookie, was running, compressed,
where the cookie begins.  Source: libvirt, src/qemu/qemu_saveimage.h."""
_PIECE = 1 << 22


def shape(xml: str) -> tuple[str, list[int]]:
    """
    All of a definition that the guest sees, and the sizes of its disks in bytes.

    Args:
        xml: The persistent definition, as libvirt tells it.
    """
    domain = ET.fromstring(xml)
    sizes = []
    for disk in domain.findall("devices/disk"):
        sizes.append(_size(disk))
        for part in ("source", "backingStore", "driver"):
            for found in disk.findall(part):
                if part == "driver":
                    found.attrib.pop("type", None)
                else:
                    disk.remove(found)
    for name in ("name", "uuid"):
        for found in domain.findall(name):
            domain.remove(found)
    text = re.sub(r'(path|file)="[^"]*"', "", ET.tostring(domain, encoding="unicode"))
    # what it runs on may be replaced by another version
    for found in ("devices/emulator", "os/kernel", "os/initrd"):
        file = os.stat(domain.findtext(found, ""))
        text += f" {file.st_size} {file.st_mtime_ns}"
    return text, sizes


def has_only_images(xml: str) -> bool:
    """True where each disk is an image in a file: another kind of drive is booted with."""
    disks = ET.fromstring(xml).findall("devices/disk")
    return all((source := disk.find("source")) is not None and source.get("file") for disk in disks)


def _size(disk: ET.Element) -> int:
    """What the guest sees of a disk, in bytes."""
    driver, source = disk.find("driver"), disk.find("source")
    assert driver is not None, "every disk of these tests says its format"
    assert source is not None, "every disk of these tests has an image"
    path = Path(source.get("file", ""))
    if driver.get("type") != "qcow2":
        return path.stat().st_size
    with path.open("rb") as file:
        size: int = struct.unpack(">Q", file.read(32)[24:])[0]
    return size


def saved(cache: Path, shaped: tuple[str, list[int]], make: Callable[[Path], None]) -> Path:
    """
    The saved guest of that shape; *make* is called once for each.

    Args:
        cache: Keeps it for later sessions too.
        make: Boots such a guest and saves it at the path that it is given.
    """
    name = hashlib.sha256(repr(shaped).encode()).hexdigest()[:16]
    path = cache / f"saved-{name}"
    cache.mkdir(parents=True, exist_ok=True)
    with closing(os.fdopen(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600))) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            make(part)
            part.rename(path)
    return path


def on_blank_images(xml: str, sizes: Sequence[int], root: Path) -> tuple[str, Guest]:
    """A definition of the shape of *xml* whose files are all in *root*, and its guest."""
    domain = ET.fromstring(xml)
    for name in ("name", "uuid"):
        found = domain.find(name)
        assert found is not None
        domain.remove(found)
    ET.SubElement(domain, "name").text = "template"
    for number, (disk, size) in enumerate(zip(domain.findall("devices/disk"), sizes, strict=True)):
        blank = root / f"{number}.raw"
        with blank.open("wb") as file:
            file.truncate(size)
        driver, source = disk.find("driver"), disk.find("source")
        assert driver is not None
        assert source is not None
        driver.set("type", "raw")
        source.set("file", str(blank))
        for below in disk.findall("backingStore"):
            disk.remove(below)
    line = domain.find("os/cmdline")
    assert line is not None
    line.text = f"{line.text} witness.wait=1"
    serial, log = root / "template.sock", root / "template.log"
    for found in domain.findall("devices/*/source[@path]"):
        found.set("path", str(serial))
    for found in domain.findall("devices/*/log"):
        found.set("file", str(log))
    return ET.tostring(domain, encoding="unicode"), Guest("template", log, serial, ())


def write_as(template: Path, xml: str, target: Path) -> None:
    """The guest saved in *template*, as one whose definition is *xml*."""
    with template.open("rb") as file, target.open("wb") as out:
        magic, version, length, running, packed, at = _HEADER.unpack(file.read(_HEADER.size))
        assert (magic, version, packed) == (b"LibvirtQemudSave", 2, 0), "libvirt saves otherwise"
        data = file.read(length)
        cookie = data[at:] if at else b""
        head = xml.encode() + b"\0"
        whole = head + cookie
        out.write(_HEADER.pack(magic, version, len(whole), running, packed, at and len(head)))
        out.write(whole)
        shutil.copyfileobj(file, out, _PIECE)
