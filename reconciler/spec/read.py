"""From the paths of spec files to the disks they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.model.desired import Location, Spec
from reconciler.model.errors import Problem, SpecError
from reconciler.spec import schema
from reconciler.spec.document import Document, read_document
from reconciler.spec.meaning import KnownDisks, meaning
from reconciler.spec.positions import KeyPath
from reconciler.spec.rules import RealPaths
from reconciler.tools.garbage import without_collecting
from reconciler.tools.lookups import Lookups, Memory


@dataclass(slots=True)
class Known:
    """What was read before: files through one look at the filesystem, and disks."""

    lookups: Lookups
    memory: Memory
    disks: KnownDisks


def load(
    paths: Sequence[Path], texts: Mapping[Path, str] | None = None, known: Known | None = None
) -> Spec:
    """
    Every disk that the specs at *paths* ask for, with every default filled in.

    Each path is a file, or a folder whose ``*.toml`` files are read as one
    spec.  Every spec has defaults of its own; no disk and no active image may
    be in two of them.

    Args:
        texts: What files will say that are not written yet, by path with links resolved.
        known: Kept between two calls, so that what has not changed is not read again.

    Raises:
        SpecError: The specs have problems; it carries all of them.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    with without_collecting():
        specs = [_read_spec(path, seen, problems, texts or {}, known) for path in paths]
        disks, found = meaning(specs, known.disks if known else None)
    problems += found
    if problems:
        raise SpecError(problems)
    sources = tuple(document.file.absolute() for documents in specs for document in documents)
    return Spec(sources=sources, disks=disks)


@dataclass(slots=True)
class Remembering:
    """Loads the same specs again and again; what has not changed costs a look at its times."""

    _memory: Memory = field(default_factory=Memory)
    _disks: KnownDisks = field(default_factory=dict)

    def load(self, paths: Sequence[Path]) -> Spec:
        """As `load` has it; the very same spec while all files are the same."""
        lookups = Lookups(self._memory)
        known = Known(lookups, self._memory, self._disks)
        key = ("spec", *paths)
        return self._memory.of(key, lookups, lambda: load(paths, known=known))


def _read_spec(
    path: Path,
    seen: set[str],
    problems: list[Problem],
    texts: Mapping[Path, str],
    known: Known | None,
) -> list[Document]:
    """The files of one spec, as far as they keep to the schema."""
    documents = []
    found: list[Problem] = []
    domains = False
    real = RealPaths()
    try:
        files = spec_files(path, texts, known.lookups if known else None)
    except SpecError as error:
        problems += error.problems
        return []
    for file in files:
        identity = real(str(file))
        if identity in seen:
            found.append(_problem(file, "this file is given twice; name it once"))
            continue
        seen.add(identity)
        try:
            text = texts.get(Path(identity)) if texts else None
            document, faults = _read(file, text, known)
        except SpecError as error:
            found += error.problems
            continue
        domains = domains or bool(document.data.get("domains"))
        found += faults
        documents.append(document)
    if not domains and not found:
        example = '[domains.web.disks.vda] with chain = ["web.qcow2"]'
        found.append(_problem(path, f"no domains; write a disk, such as {example}"))
    problems += found
    return documents


def _read(
    file: Path, text: str | None, known: Known | None
) -> tuple[Document, tuple[Problem, ...]]:
    """
    The spec file *file*, as far as it keeps to the schema, and where it does not.

    Args:
        text: What it will say; None: what it says now.
    """
    if text is not None:
        document = read_document(file, text)
        return document, tuple(_check(document))
    if known is None:
        return _read_now(file)
    key = ("spec file", file)
    return known.memory.of(key, known.lookups, lambda: _read_now(file, known.lookups))


def _read_now(file: Path, lookups: Lookups | None = None) -> tuple[Document, tuple[Problem, ...]]:
    """The file as it is; *lookups* are asked who it is before it is read."""
    if lookups is not None:
        lookups.stat(str(file.absolute()))
    document = read_document(file)
    return document, tuple(_check(document))


def spec_files(
    path: Path, texts: Mapping[Path, str] | None = None, lookups: Lookups | None = None
) -> list[Path]:
    """
    The file *path*, or the spec files of the folder *path* in the order of their names.

    Raises:
        SpecError: The folder cannot be read, or has none.
    """
    lookups = lookups or Lookups()
    folder = lookups.real(str(path.absolute()))
    if not lookups.is_folder(folder):
        return [path]
    coming = {file.name for file in texts or () if folder == str(file.parent)}
    names = lookups.names(folder)
    if names is None:
        what = "the folder cannot be read; make it readable"
        raise SpecError([_problem(path, what)])
    there = {name for name in names if name[0] != "." and name.endswith(".toml")}
    # a link to a folder is not a spec; one that leads nowhere is, and reading it tells why
    there = {name for name in there if not lookups.is_folder(lookups.real(f"{folder}/{name}"))}
    files = [path / name for name in sorted(there | coming) if name.endswith(".toml")]
    if not files:
        what = "the folder has no *.toml files; write one, or name another folder"
        raise SpecError([_problem(path, what)])
    return files


def _problem(path: Path, what: str) -> Problem:
    return Problem(Location(path, 1, 1), "spec", what)


def _check(document: Document) -> Iterator[Problem]:
    """
    What breaks the schema in *document*; the parts at fault are dropped from its data.

    The rest keeps to the schema, so the meaning of it can be checked as well.
    """
    faults = schema.check(document.data)
    for fault in faults:
        where = fault.path[:-1] if fault.key_itself else fault.path
        yield document.problem(fault.path, fault.what, where=where)
        _drop(document.data, fault.path if fault.key_itself else _unit(fault.path))
    if len(faults) >= schema.MOST:
        document.data.clear()  # there may be more, so nothing of the rest is sure


def _unit(path: KeyPath) -> KeyPath:
    """The smallest part around *path* that has a meaning without what is at fault."""
    if path[:1] == ("domains",):
        return path[:4] if path[2:3] == ("disks",) else path[:2]
    return path


def _drop(data: dict[str, Any], path: KeyPath) -> None:
    if path == ("version",):
        data.clear()  # nothing of another version is understood
    table: Any = data
    with suppress(KeyError, IndexError, TypeError):  # gone already, with its parent
        for key in path[:-1]:
            table = table[key]
        del table[path[-1]]
