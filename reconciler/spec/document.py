"""One spec file: its data, and the place of every key."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tomli

from reconciler.model.desired import Location
from reconciler.model.errors import Problem, SpecError
from reconciler.spec.positions import STRING, KeyPath, Places

MAX_BYTES = 8 * 1024 * 1024
"""Largest spec file; a folder of them may hold more."""

MAX_DEPTH = 32
"""Most levels of dotted keys, lists and tables inside one another; a spec has 8."""

MAX_VALUES = 300_000
"""Most keys, values and tables of a file together; 10,000 disks of 5 images have 120,000."""

MAX_WORD = 1024
"""Longest key, number or date, in characters; Python writes no integer of 4300 digits."""

_SPLIT = "split it into several files of one folder"
_TOKEN = re.compile(
    rf"(?P<string>{STRING})|(?P<comment>#[^\n]*+)"
    rf"|(?P<mark>[\n,.=\[\]{{}}])|(?P<word>[^\s\"'#,.=\[\]{{}}]++)|(?P<quote>[\"'])"
)
_NAME = r"[A-Za-z0-9_-]{1,100}+"
_KEY = rf"{_NAME}(?:\.{_NAME}){{0,7}}+"
_PLAIN = r"(?:\"[^\"\\\n]*+\"(?!\")|'[^'\n]*+'(?!')|[A-Za-z0-9_+:-]{1,100}+)"
_PAIR = rf"{_NAME}[ \t]*+=[ \t]*+{_PLAIN}[ \t]*+"
_INLINE = rf"\{{[ \t]*+{_PAIR}(?:,[ \t]*+{_PAIR})*+\}}"
_ANY_GAP = r"(?:[ \t\n]|#[^\n]*+\n)*+"
_ONE = rf"(?:{_PLAIN}|{_INLINE}){_ANY_GAP}"
_LIST = rf"\[{_ANY_GAP}(?:{_ONE}(?:,{_ANY_GAP}{_ONE})*+(?:,{_ANY_GAP})?+)?+\]"
_COMMON = re.compile(
    rf"(?:[ \t]*+(?:\[{_KEY}\]|{_KEY}[ \t]*+=[ \t]*+(?:{_PLAIN}|{_INLINE}|{_LIST}))?+"
    r"[ \t]*+(?:#[^\n]*+)?+\n)*+"
)
"""
The lines that a spec is usually made of: headers, and keys with a plain value or a flat list.

They are within the limits as they stand, and are passed over at once.
"""
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """
    A spec file as it was read.

    Attributes:
        file: The path as the user gave it; in a folder, joined to the folder's.
        data: What the TOML says.
        folder: The folder of the file, absolute; links unresolved.
    """

    file: Path
    data: dict[str, Any]
    places: Places
    folder: str = field(init=False)

    def __post_init__(self) -> None:
        folder = os.path.dirname(os.path.join(os.getcwd(), self.file))
        object.__setattr__(self, "folder", folder)

    def locate(self, path: KeyPath) -> Location:
        """The place of the key at *path*, or of its nearest parent."""
        return Location.sought(self.file, partial(self.places.find, path))

    def problem(self, path: KeyPath, what: str, *, where: KeyPath | None = None) -> Problem:
        """A problem of the key at *path*, told as one of *where* (default: the same)."""
        return Problem(self.locate(path), where_of(path if where is None else where), what)


def where_of(path: KeyPath) -> str:
    """``domain.disk`` for a path inside a disk, else the path itself, or ``spec`` for the root."""
    if len(path) >= 4 and path[0] == "domains" and path[2] == "disks":
        path = (path[1], path[3])
    return ".".join(_plain(str(part)) for part in path) or "spec"


def quote(text: str) -> str:
    """*text* in double quotes for one line of a message: escaped, and cut where it is long."""
    if len(text) > 80:
        text = f"{text[:77]}..."
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _plain(part: str) -> str:
    return part if part.isprintable() and 0 < len(part) <= 80 else quote(part)


def read_document(file: Path, text: str | None = None) -> Document:
    """
    The spec file at *file*.

    Args:
        text: What it will say; None: what it says.

    Raises:
        SpecError: The file cannot be read, is no TOML, or is beyond the limits.
    """
    if text is None:
        text = read_text(file)
    _check_limits(file, text)
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise _syntax_error(file, text, str(error)) from error
    except (ValueError, RecursionError) as error:
        # tomli lets some errors of int() and of the interpreter through.
        raise _at(file, text, 0, f"not valid TOML: {error}") from error
    if not data:
        example = (
            'version = 1, and a disk such as [domains.web.disks.vda] with chain = ["web.qcow2"]'
        )
        raise _at(file, text, 0, f"the file is empty; write {example}")
    return Document(file, data, Places(text))


def read_text(file: Path) -> str:
    """What the spec file at *file* says; SpecError where that cannot be read."""
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):
            raise _at(file, "", 0, "is no regular file; name a file, or a folder of *.toml files")
        raw = _bytes_of(file, found.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _at(
            file, "", 0, "there is no such file or folder; name a spec that exists"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise _at(file, "", 0, f"cannot be read: {reason}; name a file that can be read") from error
    if len(raw) > MAX_BYTES:
        raise _at(file, "", 0, f"the file is larger than {MAX_BYTES // 1024**2} MiB; {_SPLIT}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        raise _at(file, before, len(before), "not UTF-8; save the file as UTF-8") from error
    if text.startswith("\ufeff"):
        advice = "save the file as UTF-8 without one"
        raise _at(file, text, 0, f"the file starts with a byte order mark; {advice}")
    return text


def _bytes_of(file: Path, size: int) -> bytes:
    """What is in *file*, of about *size* bytes; one more than `MAX_BYTES` at most."""
    raw = b""
    # whoever puts a FIFO in its place meanwhile does not keep us waiting
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while len(raw) <= MAX_BYTES and (
            part := os.read(descriptor, min(size, MAX_BYTES) + 1 - len(raw) or 1)
        ):
            raw += part
            size = max(size, len(raw) + 65536)
    finally:
        os.close(descriptor)
    return raw


def _check_limits(file: Path, text: str) -> None:
    """
    Refuse a text on which tomli would spend minutes or run out of stack.

    Up to its first syntax error, tomli sees the same tokens as this loop,
    and there it stops; so does the loop at a string without an end.

    Source: with Python 3.11 a dotted key of 40 KB takes 4 s and 1.5 GiB.
    """
    outer: list[int] = []
    depth = dots = 0
    start = values = 0
    if sum(map(text.count, "=,[")) <= MAX_VALUES and (common := _COMMON.match(text)):
        start = common.end()
    for match in _TOKEN.finditer(text, start):
        kind, mark = match.lastgroup, match[0]
        if kind == "quote":
            return
        if mark in ("=", ",", "["):
            values += 1
            if values > MAX_VALUES:
                what = f"the file has more than {MAX_VALUES:,} keys and values; {_SPLIT}"
                raise _at(file, text, start, what)
        if mark == ".":
            dots += 1
        elif mark in ("[", "{"):
            outer.append(dots + 1)
            depth += dots + 1
        elif mark in ("]", "}") and outer:
            depth -= outer.pop()
        length = len(mark) if kind == "word" else match.start() - start if mark == "=" else 0
        if length > MAX_WORD:
            what = f"a key or number has more than {MAX_WORD} characters; write a shorter one"
            raise _at(file, text, start, what)
        if depth + dots > MAX_DEPTH:
            what = f"keys are nested more than {MAX_DEPTH} levels deep; a spec needs 8"
            raise _at(file, text, start, what)
        if mark in ("\n", ",", "[", "{"):
            dots, start = 0, match.end()


def _syntax_error(file: Path, text: str, message: str) -> SpecError:
    """tomli's complaint, at the place that it names."""
    place = _PLACE.search(message)
    what = f"not valid TOML: {_PLACE.sub('', message)}"
    if place and place[1]:
        location = Location(file, int(place[1]), int(place[2]))
        return SpecError([Problem(location, "spec", what)])
    return _at(file, text, len(text.rstrip()), what)


def _at(file: Path, text: str, offset: int, what: str) -> SpecError:
    line_start = text.rfind("\n", 0, offset) + 1
    location = Location(file, text.count("\n", 0, offset) + 1, offset - line_start + 1)
    return SpecError([Problem(location, "spec", what)])
