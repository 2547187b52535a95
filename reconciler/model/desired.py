"""What a spec asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import total_ordering
from pathlib import Path
from typing import Literal

from reconciler.model.host import Host
from reconciler.model.image import Format

OVERLAY_NAME = "{domain}-{disk}-{time:%Y%m%dT%H%M%S}.qcow2"
"""Names of new overlays where the spec has no pattern of its own."""


@total_ordering
class Location:
    """
    A place in a spec file; line and column count from 1.

    A place that is `sought` is found when somebody first asks for its line:
    finding it means going through the whole text, and most are never told.
    """

    __slots__ = ("_place", "file")

    def __init__(self, file: Path, line: int, column: int) -> None:
        self.file = file
        self._place: tuple[int, int] | Callable[[], tuple[int, int]] = (line, column)

    @classmethod
    def sought(cls, file: Path, find: Callable[[], tuple[int, int]]) -> Location:
        """The place in *file* whose line and column *find* tells."""
        location = cls(file, 0, 0)
        location._place = find
        return location

    @property
    def line(self) -> int:
        return self._found()[0]

    @property
    def column(self) -> int:
        return self._found()[1]

    def _found(self) -> tuple[int, int]:
        if not isinstance(self._place, tuple):
            self._place = self._place()
        return self._place

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def __repr__(self) -> str:
        return f"Location({self.file!r}, {self.line}, {self.column})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Location):
            return NotImplemented
        return self.file == other.file and self._found() == other._found()

    def __lt__(self, other: Location) -> bool:
        return (self.file, self._found()) < (other.file, other._found())

    def __hash__(self) -> int:
        return hash((self.file, self._found()))


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
