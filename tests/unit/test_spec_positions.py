"""Positions of keys: what an editor would show for each path of a TOML text."""

from __future__ import annotations

import re
import tomllib
from datetime import date, datetime
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.spec.positions import KeyPath, Positions

CASES = [
    # id, text, path, line, column
    ("root", "a = 1", (), 1, 1),
    ("key on the first line", "a = 1", ("a",), 1, 1),
    ("key after blank lines and comments", "\n# x = 2\n  x = 1", ("x",), 3, 3),
    ("key in a table", "[t]\nx = 1", ("t", "x"), 2, 1),
    ("table of its own", "[a.b]\nx = 1", ("a", "b"), 1, 4),
    ("parent that only headers name", "[a.b]\n[a.c]", ("a",), 1, 2),
    ("header with spaces", "[ a . b ]", ("a", "b"), 1, 7),
    ("dotted key", "a.b . c = 1", ("a", "b", "c"), 1, 7),
    ("quoted key with a dot and a hash", 'x."a.#b" = 1', ("x", "a.#b"), 1, 3),
    ("quoted key with an escape", r'"\u0061\"" = 1', ('a"',), 1, 1),
    ("literal key", r"'a\' = 1", ("a\\",), 1, 1),
    ("inline table", "t = { a = 1, b = 2 }", ("t", "b"), 1, 14),
    ("dotted key in an inline table", "t = { a.b = 1 }", ("t", "a", "b"), 1, 9),
    ("element of a list", 'c = ["a", "b"]', ("c", 1), 1, 11),
    ("element after comments", 'c = [ # ]\n  "a", # "b"\n  "c",\n]', ("c", 1), 3, 3),
    ("element of a nested list", "c = [[1], [2, 3]]", ("c", 1, 1), 1, 15),
    ("key of a table in a list", "c = [1, { f = 2 }]", ("c", 1, "f"), 1, 11),
    ("list of tables", "[[l]]\nx = 1\n[[l]]\nx = 2", ("l", 1, "x"), 4, 1),
    ("one of a list of tables", "[[l]]\nx = 1\n[[l]]\nx = 2", ("l", 1), 3, 1),
    (
        "table in a list of tables",
        "[[l]]\n[l.t]\nx = 1\n[[l]]\n[l.t]\nx = 2",
        ("l", 1, "t", "x"),
        6,
        1,
    ),
    ("list in a list of tables", "[[l]]\n[[l.m]]\n[[l.m]]\nx = 1", ("l", 0, "m", 1, "x"), 4, 1),
    ("after a string with brackets", 'a = "]}#"\nb = 1', ("b",), 2, 1),
    ("after a string with escapes", r'a = ["\\", "\"]", 1]', ("a", 2), 1, 19),
    ("after a multi-line string", 'a = """\nb = 2\n\\""""""\nb = 1', ("b",), 4, 1),
    ("after a multi-line literal", "a = '''\nb = 2'''''\nb = 1", ("b",), 3, 1),
    ("after empty strings", "a = [\"\", '', \"\"\"\"\"\", '''''', 1]", ("a", 4), 1, 30),
    ("after a date with a space", "a = [1979-05-27 07:32:00, 1]", ("a", 1), 1, 27),
    ("columns count characters", 't = { "äß€😀" = 1, b = 2 }', ("t", "b"), 1, 19),
    ("lines that end as on Windows", "a = 1\r\n b = 2\r\n", ("b",), 2, 2),
    ("a path without a key falls back to its parent", "[t]\nx = [1]", ("t", "x", 7, "y"), 2, 1),
    ("a path without any key falls back to the root", "\nx = 1", ("y", "z"), 1, 1),
]


@pytest.mark.parametrize(
    ("text", "path", "line", "column"), [pytest.param(*case, id=name) for name, *case in CASES]
)
def test_position(text: str, path: KeyPath, line: int, column: int) -> None:
    tomllib.loads(text)

    assert Positions(text).find(path) == (line, column)


@pytest.mark.parametrize("text", ["a", "a = ", "[a", "a = [1", '"a = 1', "= 1"])
def test_a_text_that_is_no_toml_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        Positions(text)


class Writer:
    """Writes data as TOML in one of its many spellings, and notes the place of each key."""

    def __init__(self, data: st.DataObject) -> None:
        self.text = ""
        self.places: dict[KeyPath, tuple[int, int]] = {}
        self._data = data

    def document(self, table: dict[str, Any]) -> None:
        self._table(table, [], ())

    def _choose(self, *choices: str) -> str:
        return self._data.draw(st.sampled_from(choices))

    def _gap(self, *, lines: bool = False) -> None:
        more = ("\n ", "\r\n", " # it's [\"\n", '\n#"""]}\n') if lines else ()
        self.text += self._choose("", " ", "\t ", *more)

    def _mark(self, path: KeyPath) -> None:
        column = len(self.text) - self.text.rfind("\n")
        self.places.setdefault(path, (self.text.count("\n") + 1, column))

    def _table(
        self, table: dict[str, Any], trail: list[tuple[str, KeyPath]], path: KeyPath
    ) -> None:
        """Pairs first, since a header starts a table of its own; *trail* is the header above."""
        headers = {key: value for key, value in table.items() if self._as_header(value)}
        for key, value in table.items():
            if key not in headers:
                self._gap(lines=True)
                self._pair(path, key, value)
                self._gap()
                self.text += self._choose("\n", "\r\n", "# = [\n")
        for key, value in headers.items():
            inner = (*path, key)
            if isinstance(value, dict):
                self._header("[", "]", [*trail, (key, inner)])
                self._table(value, [*trail, (key, inner)], inner)
                continue
            for index, one in enumerate(value):
                self.text += "\n"
                self._mark((*inner, index))
                self._header("[[", "]]", [*trail, (key, inner)])
                self._table(one, [*trail, (key, inner)], (*inner, index))

    def _as_header(self, value: object) -> bool:
        tables = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
        return bool(isinstance(value, dict) or tables) and self._choose("yes", "no") == "yes"

    def _header(self, start: str, end: str, trail: list[tuple[str, KeyPath]]) -> None:
        self.text += start if start == "[[" else f"\n{start}"
        for number, (key, path) in enumerate(trail):
            self.text += "." if number else ""
            self._gap()
            self._key(key, path)
            self._gap()
        self.text += f"{end}\n"

    def _pair(self, path: KeyPath, key: str, value: object) -> None:
        """``key = value``, or a dotted key where the value is a table of one pair."""
        self._key(key, (*path, key))
        self._gap()
        if isinstance(value, dict) and len(value) == 1 and self._choose("dot", "table") == "dot":
            self.text += "."
            self._gap()
            [(inner, one)] = value.items()
            self._pair((*path, key), inner, one)
            return
        self.text += "="
        self._gap()
        self._value((*path, key), value)

    def _key(self, key: str, path: KeyPath) -> None:
        self._mark(path)
        spellings = [_basic(key)]
        if re.fullmatch("[A-Za-z0-9_-]+", key):
            spellings.append(key)
        if not re.search("['\n]", key):
            spellings.append(f"'{key}'")
        self.text += self._choose(*spellings)

    def _value(self, path: KeyPath, value: object) -> None:
        match value:
            case str():
                self.text += self._choose(*_strings(value))
            case bool():
                self.text += str(value).lower()
            case datetime():
                self.text += value.isoformat(sep=self._choose(" ", "T"))
            case date():
                self.text += value.isoformat()
            case dict():
                self.text += "{"
                for number, (key, one) in enumerate(value.items()):
                    self.text += "," if number else ""
                    self._gap()
                    self._pair(path, key, one)
                    self._gap()
                self.text += "}"
            case list():
                self.text += "["
                for number, one in enumerate(value):
                    self._gap(lines=True)
                    self._mark((*path, number))
                    self._value((*path, number), one)
                    self._gap(lines=True)
                    self.text += "," if number + 1 < len(value) else self._choose("", ",")
                self._gap(lines=True)
                self.text += "]"
            case _:
                self.text += str(value)


def _basic(text: str) -> str:
    for plain, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("é", "\\u00e9")):
        text = text.replace(plain, escape)
    return f'"{text}"'


def _strings(text: str) -> list[str]:
    escaped = text.replace("\\", "\\\\").replace('"""', '""\\"')
    spellings = [_basic(text), f'"""\n{escaped}"""']
    if not text.startswith(" "):  # a line that ends in a backslash eats the spaces of the next
        spellings.append(f'"""\\\n{_basic(text)[1:-1]}"""')
    if not re.search("['\n]", text):
        spellings.append(f"'{text}'")
    if "'''" not in text:
        spellings.append(f"'''\n{text}'''")
    return spellings


TEXTS = st.text("ab1-\"'\\\n#[]{}=,. é😀", max_size=8)
SCALARS = TEXTS | st.integers() | st.booleans() | st.floats(0, 9).map(lambda f: round(f, 2))
SCALARS |= st.datetimes().map(lambda t: t.replace(microsecond=0)) | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXTS, v, max_size=4),
    max_leaves=12,
)


def paths_of(data: object, path: KeyPath = ()) -> set[KeyPath]:
    """Every key and every list element of *data*."""
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    inner = [paths_of(value, (*path, key)) for key, value in items]
    return {path}.union(*inner)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.data())
def test_every_key_is_found_where_it_was_written(
    table: dict[str, Any], data: st.DataObject
) -> None:
    writer = Writer(data)
    writer.document(table)
    positions = Positions(writer.text)

    assert tomllib.loads(writer.text) == table
    assert {path: positions.find(path) for path in writer.places} == writer.places
    assert {(), *positions.paths()} == paths_of(table)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_every_key_is_found_in_what_tomlkit_writes(table: dict[str, Any]) -> None:
    text = tomlkit.dumps(table)
    lines = text.split("\n")
    positions = Positions(text)

    assert {(), *positions.paths()} == paths_of(tomllib.loads(text))
    for path in positions.paths():
        line, column = positions.find(path)
        rest = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
        if isinstance(path[-1], str):
            written = re.match(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""", rest)
            assert written
            assert tomllib.loads(f"{written[0]} = 1") == {path[-1]: 1}
