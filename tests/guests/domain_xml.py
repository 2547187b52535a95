"""Domain XML of test guests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.guests.boot import COMMAND_LINE, Boot


@dataclass(frozen=True, slots=True)
class DiskSource:
    """
    One virtio disk of a guest.

    Attributes:
        path: Its active image.
        format: ``qcow2`` or ``raw``.
        driver: More attributes of ``<driver>``, for example ``{"cache": "none"}``.
        extra: XML inside ``<disk>``, for example ``<readonly/>`` or ``<backingStore>``.
    """

    path: Path
    format: str = "qcow2"
    driver: tuple[tuple[str, str], ...] = ()
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """
    How the guest's program works; see witness.c.

    Attributes:
        region: Bytes of each disk that hold records.
        pause_ms: Milliseconds between two records of a disk.
        mode: ``write``, or ``read`` to verify only.
    """

    region: int = 16 * 1024 * 1024
    pause_ms: int = 10
    mode: str = "write"

    def __str__(self) -> str:
        return (
            f"witness.region={self.region // 1024}K witness.pause_ms={self.pause_ms} "
            f"witness.mode={self.mode}"
        )


def domain_xml(
    name: str,
    boot: Boot,
    disks: Sequence[DiskSource],
    *,
    serial: Path,
    log: Path,
    witness: Witness,
    memory: int,
    extra: str,
) -> str:
    """A TCG guest without network; disks are vda, vdb, ... in order."""
    return f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{boot.kernel}</kernel>
    <initrd>{boot.initrd}</initrd>
    <cmdline>{COMMAND_LINE} {witness}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
{"".join(_disk(disk, letter) for disk, letter in zip(disks, "abcdefgh", strict=False))}\
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path={quoteattr(str(serial))}/>
      <log file={quoteattr(str(log))} append='on'/>
    </serial>
    <memballoon model='none'/>
  </devices>
  <seclabel type='none'/>
  {extra}
</domain>
"""


def _disk(disk: DiskSource, letter: str) -> str:
    attributes = dict((("name", "qemu"), ("type", disk.format), *disk.driver))
    driver = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f"""\
    <disk type='file' device='disk'>
      <driver {driver}/>
      <source file={quoteattr(str(disk.path))}/>
      <target dev='vd{letter}' bus='virtio'/>
      {disk.extra}
    </disk>
"""
