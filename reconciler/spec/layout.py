"""
One canonical layout for specs; comments stay with what they are about.

Keys come in the order version, defaults, domains; a disk has a table of its own
with its chain first; tables stand apart by one blank line; strings are in
double quotes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Array, Comment, InlineTable, Table, Whitespace

from reconciler.model.errors import SpecError
from reconciler.spec import schema
from reconciler.spec.arrays import Token, read_array
from reconciler.spec.document import read_document
from reconciler.spec.edit import WIDTH, key, string

TablePath = tuple[str, ...]
INLINE = 2
"""Images of the longest chain that stands on one line."""


@dataclass(slots=True)
class _Value:
    """A key of a table, as its lines will be; *lead* are the comments above it."""

    name: str
    lines: list[str]
    lead: list[str]


@dataclass(slots=True)
class _Table:
    """
    A table as it will be written.

    Attributes:
        lead: Comments above its header; an empty line is one.
        comment: Behind its header.
        tail: Comments below its last key.
    """

    lead: list[str] = field(default_factory=list)
    comment: str = ""
    values: list[_Value] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


def formatted(text: str, file: Path) -> str:
    """
    *text* in the canonical layout; formatting it again changes nothing.

    Args:
        file: Where it is, for messages.

    Raises:
        SpecError: It is no TOML, or breaks the schema.
    """
    document = read_document(file, text)
    problems = [document.problem(one.path, one.what) for one in schema.check(document.data)]
    if problems:
        raise SpecError(problems)
    newline = "\r\n" if "\r\n" in text else "\n"
    try:
        parsed = tomlkit.parse(text.replace("\r\n", "\n"))
    except TOMLKitError as error:
        raise SpecError([document.problem((), f"tomlkit cannot read it: {error}")]) from error
    new = _Formatter().run(parsed, document.data)
    if tomli.loads(new) != tomli.loads(text):
        what = (
            "cannot be formatted without a change of its meaning; this is a bug, please report it"
        )
        raise SpecError([document.problem((), what)])
    return new.replace("\n", newline)


class _Formatter:
    """Collects the tables of one document, in the order in which they were first written."""

    def __init__(self) -> None:
        self.tables: dict[TablePath, _Table] = {}
        self.head: list[str] = []
        self.pending: list[str] = []
        self.last: _Table | None = None

    def run(self, document: tomlkit.TOMLDocument, data: dict[str, Any]) -> str:
        self._walk(document.body, ())
        self.pending.append("")
        self._end_of_table()
        rest = _paragraphs(self.pending)
        lines = list(self._lines(data))
        if rest:
            lines += ["", *rest]
        return "\n".join(lines).strip("\n") + "\n"

    def _walk(self, body: Iterable[tuple[Any, Any]], path: TablePath) -> None:
        for name, item in body:
            if isinstance(item, Whitespace):
                self.pending += [""] * ("\n" in item.s)
            elif isinstance(item, Comment):
                self.pending.append(item.as_string().strip())
            elif name is not None:
                self._item(name, item, (*path, name.key))

    def _item(self, name: Any, item: Any, path: TablePath) -> None:
        if isinstance(item, Table):
            if not item.is_super_table() and not name.is_dotted():
                self._header(path, item.trivia.comment)
            self._walk(item.value.body, path)
        elif isinstance(item, InlineTable) and len(path) <= 4:
            if item.trivia.comment:
                self.pending.append(item.trivia.comment)
            if not item and path == ("defaults",):
                self.tables.setdefault(path, _Table())
            self._walk(item.value.body, path)
        else:
            self._value(path, item)

    def _header(self, path: TablePath, comment: str) -> None:
        self._end_of_table()
        if path != ("defaults",) and not (path[0] == "domains" and len(path) in (2, 4)):
            self.pending += [comment] if comment else []
            return
        table = self._table(path)
        table.lead += self._lead()
        table.comment = comment

    def _end_of_table(self) -> None:
        """Comments right below the last key belong to it, where an empty line ends them."""
        if self.last is None or not self.pending or self.pending[0] == "":
            return
        at_end = [*self.pending, ""]
        count = at_end.index("")
        if count < len(self.pending):
            self.last.tail += self.pending[:count]
            del self.pending[:count]

    def _table(self, path: TablePath) -> _Table:
        if not self.tables:
            self._take_head(path)
        self.last = self.tables.setdefault(path, _Table())
        return self.last

    def _take_head(self, path: TablePath) -> None:
        """What stands at the top of the file, apart from its first key, stays there."""
        lines = self.pending
        while lines and not lines[0]:
            del lines[0]
        if "" in lines:
            count = len(lines) - lines[::-1].index("")
        else:
            count = 0 if path == () else sum(line.startswith("#:") for line in lines)
        self.head, self.pending = lines[:count], lines[count:]

    def _lead(self) -> list[str]:
        lead, self.pending = _paragraphs(self.pending, keep_end=True), []
        return lead

    def _value(self, path: TablePath, item: Any) -> None:
        new = path[:-1] not in self.tables
        table = self._table(path[:-1])
        lead = self._lead()
        while lead and not lead[-1]:
            lead.pop()
        if new and path[:-1]:
            table.lead += lead
            lead = []
        comment = "" if isinstance(item, AoT) else item.trivia.comment
        table.values.append(_Value(path[-1], _value_lines(path[-1], item, comment), lead))

    def _lines(self, data: dict[str, Any]) -> Iterator[str]:
        yield from _paragraphs(self.head)
        root = self.tables.pop((), _Table())
        if self.head:
            yield ""
        yield from _body(root)
        order: list[TablePath] = [("defaults",)] if ("defaults",) in self.tables else []
        for name, domain in data.get("domains", {}).items():
            order += [("domains", name)] if ("domains", name) in self.tables else []
            order += [("domains", name, "disks", disk) for disk in domain["disks"]]
        if data.get("domains") == {}:
            order.append(("domains",))
        for path in order:
            table = self.tables.get(path, _Table())
            yield ""
            yield from table.lead
            comment = f"  {table.comment}" if table.comment else ""
            yield f"[{'.'.join(map(key, path))}]{comment}"
            yield from _body(table)


def _body(table: _Table) -> Iterator[str]:
    for value in sorted(table.values, key=lambda one: one.name != "chain"):
        yield from value.lead
        yield from value.lines
    yield from table.tail


def _paragraphs(lines: Iterable[str], *, keep_end: bool = False) -> list[str]:
    """*lines* without empty ones at the ends, and never two of them in a row."""
    found: list[str] = []
    for line in lines:
        if line or (found and found[-1]):
            found.append(line)
    if found and not found[-1] and not keep_end:
        found.pop()
    return found


@dataclass(slots=True)
class _Element:
    text: str
    lead: list[str] = field(default_factory=list)
    comment: str = ""


def _value_lines(name: str, item: Any, comment: str) -> list[str]:
    behind = f"  {comment}" if comment else ""
    if isinstance(item, Array):
        elements, tail = _elements(read_array(item.as_string(), 0).tokens)
    elif isinstance(item, AoT):
        elements, tail = [_from_table(table) for table in item.body], []
    else:
        return [f"{key(name)} = {_scalar(item.unwrap())}{behind}"]
    one_line = f"{key(name)} = [{', '.join(one.text for one in elements)}]"
    plain = not tail and not any(one.lead or one.comment for one in elements)
    few = name != "chain" or len(elements) <= INLINE
    if plain and few and len(one_line) <= WIDTH:
        return [f"{one_line}{behind}"]
    lines = [f"{key(name)} = ["]
    for one in elements:
        lines += [f"  {line}" for line in one.lead]
        lines.append(f"  {one.text}," + (f"  {one.comment}" if one.comment else ""))
    return [*lines, *(f"  {line}" for line in tail), f"]{behind}"]


def _elements(tokens: Sequence[Token]) -> tuple[list[_Element], list[str]]:
    """The elements of a list with their comments, and the comments below the last."""
    found: list[_Element] = []
    lead: list[str] = []
    on_line = False
    for token in tokens:
        if token.kind == "newline":
            on_line = False
        elif token.kind == "comment" and on_line and found and not found[-1].comment:
            found[-1].comment = token.text.rstrip()
        elif token.kind == "comment":
            lead.append(token.text.rstrip())
        elif token.kind == "value":
            value = tomli.loads(f"x = {token.text}")["x"]
            found.append(_Element(_scalar(value), lead))
            lead, on_line = [], True
    return found, lead


def _from_table(table: Any) -> _Element:
    """An element of a chain that was written as ``[[…chain]]``."""
    lead = [table.trivia.comment] if table.trivia.comment else []
    for _, item in table.value.body:
        if isinstance(item, Comment):
            lead.append(item.as_string().strip())
        elif not isinstance(item, Whitespace) and item.trivia.comment:
            lead.append(item.trivia.comment)
    return _Element(_scalar(table.unwrap()), lead)


def _scalar(value: Any) -> str:
    """*value* as TOML on one line; an image's file name first."""
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda one: one[0] != "file")
        return f"{{ {', '.join(f'{key(name)} = {_scalar(one)}' for name, one in items)} }}"
    if isinstance(value, bool):
        return str(value).lower()
    return string(value) if isinstance(value, str) else str(value)
