"""Where each key of a TOML text stands; tomli and tomlkit tell no positions."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from typing import cast

import tomli

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root, such as ``("domains", "web", "disks", "vda")``."""

_BASIC = r'"(?:[^"\\\n]|\\[^\n])*+"'
_LITERAL = r"'[^'\n]*+'"

STRING = (
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*+"{3,5}'
    r"|'''(?:[^']|'(?!''))*+'{3,5}"
    rf'|(?!""")(?:{_BASIC})'
    rf"|(?!''')(?:{_LITERAL})"
)
"""Any TOML string; a multi-line one may end with two quotes of its own."""

_GAP = re.compile(r"(?:\s|#[^\n]*)*+")
_KEY = re.compile(rf"{_BASIC}|{_LITERAL}|[A-Za-z0-9_-]++")
_SCALAR = re.compile(rf"{STRING}|\d{{4}}-\d\d-\d\d \d[^\s,\[\]{{}}#]*+|[^\s,\[\]{{}}#]++")


class Positions:
    """
    Line and column of every key and list element of a TOML text.

    A key that is written several times, as ``web`` is in
    ``[domains.web.disks.vda]`` and ``[domains.web.disks.vdb]``, stands where it
    is written first.

    Args:
        text: A text that tomli accepts.

    Raises:
        ValueError: The text is no TOML.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._places: dict[KeyPath, int] = {}
        self._tables_in: dict[KeyPath, int] = {}
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._read_document()

    def find(self, path: KeyPath) -> tuple[int, int]:
        """
        Line and column of the key at *path*, both from 1, in characters.

        A list element stands where its value starts.  A path without a key of
        its own stands where its nearest parent does, the root at 1, 1.
        """
        while path and path not in self._places:
            path = path[:-1]
        offset = self._places.get(path, 0)
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def offset(self, path: KeyPath) -> int | None:
        """Where the key at *path* begins, in characters; None where it has no place of its own."""
        return self._places.get(path)

    def paths(self) -> tuple[KeyPath, ...]:
        """Every path that has a place of its own, in the order of the text."""
        return tuple(self._places)

    def _read_document(self) -> None:
        table: KeyPath = ()
        self._take(_GAP)
        while self._at < len(self._text):
            start = self._at
            if self._accept("[["):
                array = self._read_key(())
                table = (*array, self._tables_in.get(array, 0))
                self._tables_in[array] = self._tables_in.get(array, 0) + 1
                self._places[table] = start
                self._expect("]]")
            elif self._accept("["):
                table = self._read_key(())
                self._expect("]")
            else:
                self._read_pair(table)
            self._take(_GAP)

    def _read_pair(self, table: KeyPath) -> None:
        path = self._read_key(table)
        self._expect("=")
        self._read_value(path)

    def _read_key(self, table: KeyPath) -> KeyPath:
        """The path of the dotted key at hand; a list of tables is entered at its last one."""
        path = table
        while True:
            if path in self._tables_in:
                path = (*path, self._tables_in[path] - 1)
            self._take(_GAP)
            start = self._at
            path = (*path, _plain(self._take(_KEY)))
            self._places.setdefault(path, start)
            self._take(_GAP)
            if not self._accept("."):
                return path

    def _read_value(self, path: KeyPath) -> None:
        self._take(_GAP)
        if self._accept("["):
            self._read_elements(path)
        elif self._accept("{"):
            while not self._closes("}"):
                self._read_pair(path)
        else:
            self._take(_SCALAR)

    def _read_elements(self, path: KeyPath) -> None:
        index = 0
        while not self._closes("]"):
            self._places[(*path, index)] = self._at
            self._read_value((*path, index))
            index += 1

    def _closes(self, bracket: str) -> bool:
        """Whether *bracket* ends the list or table here; else the next item is at hand."""
        self._take(_GAP)
        if self._accept(","):
            self._take(_GAP)
        return self._accept(bracket)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no TOML at character {self._at}")
        self._at = match.end()
        return match[0]

    def _accept(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise ValueError(f"no {mark!r} at character {self._at}")


class Places:
    """The places in *text*, which is gone through when the first of them is asked for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find(self, path: KeyPath) -> tuple[int, int]:
        """As `Positions` has it."""
        return self._positions.find(path)

    @cached_property
    def _positions(self) -> Positions:
        return Positions(self._text)


def _plain(key: str) -> str:
    """The key itself, without the quotes and escapes it is written with."""
    if key.startswith("'"):
        return key[1:-1]
    if key.startswith('"'):
        return cast(str, tomli.loads(f"k = {key}")["k"])
    return key
