"""From data that keeps to the schema to the disks it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.model.desired import DesiredDisk, Entry, Location
from reconciler.model.errors import Problem
from reconciler.model.units import parse_size
from reconciler.spec.document import Document, quote
from reconciler.spec.overlay_names import fault
from reconciler.spec.positions import KeyPath
from reconciler.spec.rules import RealPaths, WrittenDisk, problems_between, problems_of


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of a default, and where it was written."""

    value: Any
    location: Location
    folder: Path


Settings = dict[str, Setting]


@dataclass(frozen=True, slots=True)
class ReadDisk:
    """
    A disk, and what it was read from.

    Attributes:
        settings: What holds for its domain.
        problems: Of its own keys.
    """

    document: Document
    settings: Settings
    written: WrittenDisk
    problems: tuple[Problem, ...]


KnownDisks = dict[tuple[Path, KeyPath], ReadDisk]
"""Disks that were read before, by file and key."""

_PLAIN = (
    "remove_base",
    "bitmaps",
    "format",
    "connection",
    "on_running",
    "quiesce",
    "shutdown_timeout",
    "overlay_name",
)
"""Settings that a desired disk has as they are written."""


def meaning(
    specs: Sequence[Sequence[Document]], known: KnownDisks | None = None
) -> tuple[tuple[DesiredDisk, ...], list[Problem]]:
    """
    The disks of *specs* in the order of the files, and every problem of theirs.

    Each spec is the documents that are read as one; their defaults hold for
    all of them, and domains of the same name are one domain.

    Args:
        known: Kept between two calls, so that a disk is read again only when its
            document or the settings of its domain changed.
    """
    problems: list[Problem] = []
    known = {} if known is None else known
    written = [disk for spec in specs for disk in _read_disks(spec, known, problems)]
    for gone in known.keys() - {(one.document.file, one.path) for one in written}:
        del known[gone]
    for disk in written:
        problems += problems_of(disk)
    problems += problems_between(written)
    return tuple(one.disk for one in written), problems


def _read_disks(
    spec: Sequence[Document], known: KnownDisks, problems: list[Problem]
) -> Iterator[WrittenDisk]:
    """The disks of *spec*; those that are not *known* as they are now become so."""
    defaults = _settings(spec, ("defaults",), problems)
    real = RealPaths()
    documents: dict[str, list[Document]] = {}
    for document in spec:
        for name in document.data.get("domains", ()):
            documents.setdefault(name, []).append(document)
    domains = {
        name: defaults | _settings(those, ("domains", name), problems)
        for name, those in documents.items()
    }
    for document in spec:
        for name, domain in document.data.get("domains", {}).items():
            for target in domain.get("disks", ()):
                path = ("domains", name, "disks", target)
                read = known.get((document.file, path))
                if read is None or read.document is not document or read.settings != domains[name]:
                    read = _read_disk(document, path, domains[name], real)
                    known[document.file, path] = read
                problems += read.problems
                yield replace(read.written, real=real)  # links may lead elsewhere by now


def _settings(spec: Sequence[Document], path: KeyPath, problems: list[Problem]) -> Settings:
    """What the table at *path* sets; two files that set a key must agree on it."""
    settings: Settings = {}
    for document in spec:
        for key, value in _table(document, path).items():
            first = settings.get(key)
            if first is None:
                settings[key] = Setting(value, document.locate((*path, key)), document.folder)
            elif key != "disks" and first.value != value:
                what = f"{key} is {_shown(value)} here and {_shown(first.value)} at"
                what = f"{what} {first.location}; write one value"
                problems.append(document.problem((*path, key), what))
            if key == "overlay_name" and (wrong := fault(value)):
                problems.append(document.problem((*path, key), f"overlay_name: {wrong}"))
    settings.pop("disks", None)
    return settings


def _table(document: Document, path: KeyPath) -> dict[str, Any]:
    table: Any = document.data
    for key in path:
        table = table.get(key, {})
    return dict(table)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else quote(str(value))


def _read_disk(
    document: Document,
    path: tuple[str, str, str, str],
    around: Settings,
    real: RealPaths,
) -> ReadDisk:
    """The disk at *path*, whose domain has the settings *around*."""
    problems: list[Problem] = []
    settings = around | _settings([document], path, problems)
    values = {key: setting.value for key, setting in settings.items()}
    directory = document.folder
    if "directory" in settings:
        directory = settings["directory"].folder / values["directory"]
    chain = tuple(
        _read_entry(document, (*path, "chain", index), directory, item, problems)
        for index, item in enumerate(values["chain"])
    )
    disk = DesiredDisk(
        domain=path[1],
        target=path[3],
        chain=chain,
        where=document.locate(path),
        directory=directory,
        discard=tuple(directory / name for name in values.get("discard", ())),
        active=directory / values["active"] if "active" in values else None,
        **{key: values[key] for key in _PLAIN if key in values},
    )
    discard, active = tuple(values.get("discard", ())), values.get("active", "")
    written = WrittenDisk(disk, document, path, real, discard, active)
    return ReadDisk(document, around, written, tuple(problems))


def _read_entry(
    document: Document, path: KeyPath, directory: Path, item: Any, problems: list[Problem]
) -> Entry:
    """The image that *item* of a chain writes; a size that is none is a problem."""
    table: dict[str, Any] = {"file": item} if isinstance(item, str) else item
    size = None
    if "size" in table:
        try:
            size = parse_size(table["size"])
        except ValueError as error:
            problems.append(document.problem((*path, "size"), str(error)))
    return Entry(
        path=directory / table["file"],
        name=table["file"],
        format=table.get("format"),
        size=size,
        template=table.get("template", False),
        restore_point=table.get("restore_point", True),
        description=table.get("description"),
    )
