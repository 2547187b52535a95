"""From data that keeps to the schema to the disks it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from reconciler.model.desired import DesiredDisk, Entry, Location
from reconciler.model.errors import Problem
from reconciler.model.units import parse_size
from reconciler.spec import schema
from reconciler.spec.document import Document, quote
from reconciler.spec.overlay_names import fault
from reconciler.spec.places import folder_at, is_homeless, placed
from reconciler.spec.positions import KeyPath
from reconciler.spec.rules import RealPaths, WrittenDisk, homeless, problems_between, problems_of


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of a default, and where it was written: in a file of *folder*."""

    value: Any
    folder: str
    location: Location = field(compare=False)


Settings = dict[str, Setting]
Entries = dict[tuple[Path, tuple[Any, ...]], Entry]
"""Entries with more than a name, by directory and content: a template is one for all its disks."""

KnownDisks = dict[tuple[Path, KeyPath], tuple[Document, Settings, WrittenDisk, tuple[Problem, ...]]]
"""
Disks that were read before, by file and key: from which document, with which settings of
their domain, and what was found.
"""

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
    before = {} if known is None else dict(known)
    read: KnownDisks | None = None if known is None else {}
    written = [disk for spec in specs for disk in _read_disks(spec, before, read, problems)]
    if known is not None and read is not None:
        known.clear()
        known.update(read)
    for disk in written:
        problems += islice(problems_of(disk), max(schema.MOST - len(problems), 0))
    problems += islice(problems_between(written), schema.MOST)
    return tuple(one.disk for one in written), problems


def _read_disks(
    spec: Sequence[Document], before: KnownDisks, read: KnownDisks | None, problems: list[Problem]
) -> Iterator[WrittenDisk]:
    """The disks of *spec*; what is known of them from *before* is taken over into *read*."""
    defaults = _settings(spec, ("defaults",), problems)
    real = RealPaths()
    entries: Entries = {}
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
                known = before.get((document.file, path)) if before else None
                if known is None or known[0] is not document or known[1] != domains[name]:
                    found: list[Problem] = []
                    own = _settings([document], path, found)
                    reading = Reading(document, path, entries, found)
                    disk = reading.disk(domains[name] | own, real)
                    known = (document, domains[name], disk, tuple(found))
                elif known[2].real is not real:
                    # links may lead elsewhere by now
                    known = (*known[:2], replace(known[2], real=real), known[3])
                if read is not None:
                    read[document.file, path] = known
                problems += known[3]
                yield known[2]


def _settings(spec: Sequence[Document], path: KeyPath, problems: list[Problem]) -> Settings:
    """What the table at *path* sets; two files that set a key must agree on it."""
    settings: Settings = {}
    for document in spec:
        for key, value in _table(document, path).items():
            if key == "disks":
                continue
            first = settings.get(key)
            if first is None:
                settings[key] = Setting(value, document.folder, document.locate((*path, key)))
            elif first.value != value:
                what = f"{key} is {_shown(value)} here and {_shown(first.value)} at"
                what = f"{what} {first.location}; write one value"
                problems.append(document.problem((*path, key), what))
            if key == "overlay_name" and (wrong := fault(value)):
                problems.append(document.problem((*path, key), f"overlay_name: {wrong}"))
            if key == "directory" and is_homeless(value):
                problems.append(document.problem((*path, key), f"directory: {homeless(value)}"))
    return settings


def _table(document: Document, path: KeyPath) -> dict[str, Any]:
    table: Any = document.data
    for key in path:
        table = table.get(key, {})
    found: dict[str, Any] = table
    return found


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else quote(str(value))


@dataclass(frozen=True, slots=True)
class Reading:
    """One disk of *document* while it is read; what is wrong with it goes to *problems*."""

    document: Document
    path: tuple[str, str, str, str]
    entries: Entries
    problems: list[Problem]

    def disk(self, settings: Settings, real: RealPaths) -> WrittenDisk:
        """The disk, with all that holds for it."""
        document, path = self.document, self.path
        values = {key: setting.value for key, setting in settings.items()}
        directory = Path(document.folder)
        if "directory" in settings:
            directory = folder_at(settings["directory"].folder, values["directory"])
        disk = DesiredDisk(
            domain=path[1],
            target=path[3],
            chain=tuple(
                self._entry(index, directory, item) for index, item in enumerate(values["chain"])
            ),
            where=document.locate(path),
            directory=directory,
            discard=tuple(placed(directory, name) for name in values.get("discard", ())),
            active=placed(directory, values["active"]) if "active" in values else None,
            **{key: values[key] for key in _PLAIN if key in values},
        )
        discard, active = tuple(values.get("discard", ())), values.get("active", "")
        return WrittenDisk(disk, document, path, real, discard, active)

    def _entry(self, index: int, directory: Path, item: Any) -> Entry:
        """The image that *item* of the chain writes; a size that is none is a problem."""
        if isinstance(item, str):
            return Entry(placed(directory, item), item)
        key = (directory, tuple(item.items()))
        if key not in self.entries:
            size = None
            if "size" in item:
                try:
                    size = parse_size(item["size"])
                except ValueError as error:
                    where = (*self.path, "chain", index, "size")
                    self.problems.append(self.document.problem(where, str(error)))
            entry = Entry(
                path=placed(directory, item["file"]),
                name=item["file"],
                format=item.get("format"),
                size=size,
                template=item.get("template", False),
                restore_point=item.get("restore_point", True),
                description=item.get("description"),
            )
            if "size" in item and size is None:
                return entry  # the next one that says so is told as well
            self.entries[key] = entry
        return self.entries[key]
