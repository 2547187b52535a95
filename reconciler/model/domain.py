"""What libvirt knows of a domain and of its disks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DomainState = Literal["running", "paused", "shut-off"]


@dataclass(frozen=True, slots=True)
class Job:
    """
    A block job on a disk.

    Attributes:
        kind: ``pull``, ``commit``, ``active-commit``, ``copy`` or another word of libvirt's.
        ready: The job waits for its pivot.
        done, size: Progress in bytes, as libvirt counts it.
    """

    kind: str
    ready: bool = False
    done: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """
    One disk as a domain's XML has it.

    Attributes:
        kind: ``file``, ``block``, ``network``, ``volume`` and so on.
        path: The image; None for a disk without one, or of another kind.
        format: Of the image, as ``<driver type>`` says.
        backing: Backing files that the XML spells out, nearest first.
        whole: *backing* goes down to the base; False: the XML leaves it to the headers.
        mirror: The image that a job copies into; None: no such job.
        ready: What was copied there equals the disk.
        special: ``transient`` or ``shareable``, where the disk is one.
        read_only: The guest cannot write to it.
    """

    kind: str
    path: Path | None
    format: str | None = None
    backing: tuple[Path, ...] = ()
    whole: bool = False
    mirror: Path | None = None
    ready: bool = False
    special: str | None = None
    read_only: bool = False

    @property
    def named(self) -> tuple[Path, ...]:
        """Every image that the XML names, base first."""
        return () if self.path is None else (*reversed(self.backing), self.path)


@dataclass(frozen=True, slots=True)
class Saved:
    """
    One disk's part of a snapshot that libvirt knows.

    Attributes:
        image: The image whose view is the saved state: the one that was active
            before the snapshot was made, below the overlay that it led to.
        memory: The file that the guest's memory was saved to; None: it was not.
        memory_size: Of that file, in bytes; None where it is gone.
    """

    image: Path
    memory: Path | None = None
    memory_size: int | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """
    A domain as it is now.

    Attributes:
        live: Disks by target as the running QEMU has them; empty where it is off.
        persistent: Disks by target as the next start will have them; empty for
            a transient domain.
        managed_save: It has a saved memory image that pins its disks.
        checkpoints: Names of its backup checkpoints.
        transient: It has no definition: once off, it is gone.
        beside: What belongs to its state and is in none of its disks, in words.
        deepest: Images in a chain that its libvirt can live with; None: any number.
    """

    name: str
    state: DomainState
    live: Mapping[str, Source] = field(default_factory=dict)
    persistent: Mapping[str, Source] = field(default_factory=dict)
    managed_save: bool = False
    checkpoints: tuple[str, ...] = ()
    transient: bool = False
    beside: tuple[str, ...] = ()
    deepest: int | None = None

    @property
    def on(self) -> bool:
        """True while a QEMU process has its disks open."""
        return self.state != "shut-off"

    @property
    def disks(self) -> Mapping[str, Source]:
        """What it uses now, or will use at its next start."""
        return self.live if self.on else self.persistent
