"""What a spec asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from reconciler.model.host import Host
from reconciler.model.image import Format

OVERLAY_NAME = "{domain}-{disk}-{time:%Y%m%dT%H%M%S}.qcow2"
"""Names of new overlays where the spec has no pattern of its own."""


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in a spec file; line and column count from 1."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One image of a desired chain.

    Attributes:
        path: Absolute, made from ``directory`` and ``file``; links unresolved.
        name: The file name as the user wrote it.
        format: None: the spec names none for this image.
        size: Virtual size in bytes; None: the spec names none.
    """

    path: Path
    name: str
    format: Format | None = None
    size: int | None = None
    template: bool = False
    restore_point: bool = True
    description: str | None = None


@dataclass(frozen=True, slots=True)
class DesiredDisk:
    """
    The desired chain of one disk, with every default filled in.

    Attributes:
        chain: Base first, active last; at least one entry.
        discard: Absolute paths of images whose data may be thrown away.
        active: Absolute path of the image that is active before the first
            ``apply``; None: the spec names none.
        overlay_name: The pattern of names for new overlays.
        shutdown_timeout: Seconds that a guest has to shut down before it is forced off.
        format: Default format, for images to be created.
        directory: The folder that relative file names start from.
        where: The key of this disk in its spec file.
    """

    domain: str
    target: str
    chain: tuple[Entry, ...]
    where: Location
    directory: Path
    discard: tuple[Path, ...] = ()
    active: Path | None = None
    remove_base: bool = False
    bitmaps: Literal["keep", "drop"] = "keep"
    format: Format = "qcow2"
    connection: str | None = None
    on_running: Literal["refuse", "restart"] = "refuse"
    quiesce: Literal["never", "try", "require"] = "never"
    shutdown_timeout: int = 60
    overlay_name: str = OVERLAY_NAME

    @property
    def label(self) -> str:
        """``domain:target``, as commands and reports write it."""
        return f"{self.domain}:{self.target}"


@dataclass(frozen=True, slots=True)
class Spec:
    """
    Every disk of the specs that were loaded, in the order of the files.

    Attributes:
        host: What this host allows, which no spec can widen.
    """

    sources: tuple[Path, ...]
    disks: tuple[DesiredDisk, ...]
    host: Host = field(default_factory=Host)

    def on(self, host: Host) -> Spec:
        """The same disks, as far as *host* allows."""
        return replace(self, host=host)

    def through(self, connection: str | None) -> Spec:
        """The same disks on another connection; None: on their own."""
        if connection is None:
            return self
        return replace(
            self, disks=tuple(replace(disk, connection=connection) for disk in self.disks)
        )
