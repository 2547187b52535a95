"""Lists in a TOML text, edited token by token, so that every other character stays as it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from reconciler.spec.positions import STRING

Kind = Literal["space", "newline", "comment", "comma", "value"]

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)|(?P<newline>\r?\n)|(?P<comment>#[^\r\n]*)|(?P<comma>,)|(?P<close>\])"
)
_INSIDE = re.compile(rf"{STRING}|#[^\n]*|[\[{{]|[\]}}]|[^\"'#\[\]{{}}]+")
_SCALAR = re.compile(rf"{STRING}|[^\s,\[\]{{}}#\"']+")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a list between its brackets."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Array:
    """
    A list as it is written.

    Attributes:
        tokens: All between the brackets.
        start, end: Offsets of the brackets in the text, the end excluded.
    """

    tokens: tuple[Token, ...]
    start: int
    end: int

    @property
    def values(self) -> tuple[str, ...]:
        """The text of each element."""
        return tuple(token.text for token in self.tokens if token.kind == "value")


def read_array(text: str, start: int) -> Array:
    """
    The list whose ``[`` is at *start* of a text that tomli accepts.

    Raises:
        ValueError: There is no list.
    """
    if text[start : start + 1] != "[":
        raise ValueError(f"no list at character {start}")
    tokens: list[Token] = []
    at = start + 1
    while True:
        found = _TOKEN.match(text, at)
        if found is None:
            end = _value_end(text, at)
            tokens.append(Token("value", text[at:end]))
        elif found.lastgroup == "close":
            return Array(tuple(tokens), start, found.end())
        else:
            kind: Kind = found.lastgroup  # type: ignore[assignment]
            tokens.append(Token(kind, found[0]))
            end = found.end()
        at = end


def _value_end(text: str, at: int) -> int:
    """Just behind the value that begins at *at*."""
    if text[at] not in "[{":
        found = _SCALAR.match(text, at)
        if found is None:
            raise ValueError(f"no value at character {at}")
        return found.end()
    depth = 0
    while True:
        found = _INSIDE.match(text, at)
        if found is None:
            raise ValueError(f"no value at character {at}")
        at = found.end()
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return at


def joined(tokens: Sequence[Token]) -> str:
    """The list of *tokens* as text, brackets included."""
    return f"[{''.join(token.text for token in tokens)}]"


def with_added(tokens: Sequence[Token], value: str, newline: str) -> list[Token]:
    """
    *tokens* with *value* as the last element, written as its neighbours are.

    A list with an element a line gets a line, with their indentation and their
    habit of trailing commas; one on a line stays on it.
    """
    found = list(tokens)
    new, comma = Token("value", value), Token("comma", ",")
    values = _values(found)
    if not values:
        broken = any(token.kind == "newline" for token in found)
        tail = [Token("space", "  "), new, comma, Token("newline", newline)]
        return [*found, *tail] if broken else [new]
    last = values[-1]
    prefix = _line_start(found, last)
    if prefix is None:
        between = found[values[-2] + 1 : last] if len(values) > 1 else []
        plain = between and all(token.kind in ("comma", "space") for token in between)
        separator = between if plain else [comma, Token("space", " ")]
        return [*found[: last + 1], *separator, new, *found[last + 1 :]]
    line = [Token("newline", newline), *prefix, new]
    comma_first = any(token.kind == "comma" for token in prefix)
    trailing = _trailing_comma(found)
    end = _line_end(found, last if trailing is None else trailing)
    if comma_first and trailing is not None:
        del found[trailing]
        return with_added(found, value, newline)
    if trailing is not None:
        line.append(comma)
    elif not comma_first:
        found.insert(last + 1, comma)
        end += 1
    return [*found[:end], *line, *found[end:]]


def without(tokens: Sequence[Token], gone: Collection[int]) -> list[Token]:
    """*tokens* without the elements of the numbers *gone*; a line of its own goes whole."""
    if _has_commas_first(tokens):
        left = _without_commas_first(tokens, gone)
        if _well_formed(left):
            return left
    habit = _trailing_comma(tokens) is not None
    found = [token for token in tokens if token.kind != "comma"]
    places = _values(found)
    for number in sorted(gone, reverse=True):
        _remove(found, places[number])
    for at in reversed(_values(found)[: None if habit else -1]):
        found.insert(at + 1, Token("comma", ","))
    return found


def _without_commas_first(tokens: Sequence[Token], gone: Collection[int]) -> list[Token]:
    """The same for lists whose commas stand before their elements."""
    found = list(tokens)
    places = _values(found)
    for number in sorted(gone, reverse=True):
        at = places[number]
        begin = at
        while begin and found[begin - 1].kind in ("space", "comma"):
            begin -= 1
        end = _line_end(found, at)
        alone = all(token.kind != "value" for token in found[at + 1 : end])
        ended = end < len(found) and found[end].kind == "newline"
        if alone and ended and begin and found[begin - 1].kind == "newline":
            begin -= 1
        else:
            end = at + 1
        del found[begin:end]
    if 0 in gone:
        first = _values(found)[0]
        prefix = _line_start(found, first) or []
        found[first - len(prefix) : first] = _line_start(tokens, places[0]) or []
    return found


def _has_commas_first(tokens: Sequence[Token]) -> bool:
    """True where an element has its comma before it on its line."""
    starts = [_line_start(tokens, at) for at in _values(tokens)]
    return any(token.kind == "comma" for start in starts if start for token in start)


def _well_formed(tokens: Sequence[Token]) -> bool:
    """True where a comma stands between two elements, and nowhere else but at the end."""
    marks = [token.kind for token in tokens if token.kind in ("value", "comma")]
    return all(kind == ("comma" if at % 2 else "value") for at, kind in enumerate(marks))


def _remove(found: list[Token], at: int) -> None:
    """Take the element at index *at* out of a list without commas."""
    prefix, end = _line_start(found, at), _line_end(found, at)
    alone = prefix is not None and all(token.kind != "value" for token in found[at + 1 : end])
    if prefix is not None and alone and end < len(found) and found[end].kind == "newline":
        del found[at - len(prefix) - 1 : end]  # with the line break before it
        return
    begin, end = at, at + 1
    if end < len(found) and found[end].kind == "space" and prefix is not None and not alone:
        end += 1
    elif begin and found[begin - 1].kind == "space":
        begin -= 1
    elif end < len(found) and found[end].kind == "space":
        end += 1
    at_line_start = begin > 0 and found[begin - 1].kind == "newline"
    at_end = all(token.kind == "space" for token in found[end:])
    if at_line_start and at_end and not (begin > 1 and found[begin - 2].kind == "comment"):
        begin -= 1  # the bracket moves up to the element before
    del found[begin:end]


def _values(tokens: Sequence[Token]) -> list[int]:
    return [index for index, token in enumerate(tokens) if token.kind == "value"]


def _trailing_comma(tokens: Sequence[Token]) -> int | None:
    """The index of a comma behind the last element."""
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index].kind == "comma":
            return index
        if tokens[index].kind == "value":
            return None
    return None


def _line_start(tokens: Sequence[Token], at: int) -> list[Token] | None:
    """What stands before the element on its line; None where it is not the first there."""
    begin = at
    while begin and tokens[begin - 1].kind in ("space", "comma"):
        begin -= 1
    if begin and tokens[begin - 1].kind == "newline":
        return list(tokens[begin:at])
    return None


def _line_end(tokens: Sequence[Token], at: int) -> int:
    """The index of the line break behind the element; without one, where its line's text ends."""
    for index in range(at + 1, len(tokens)):
        if tokens[index].kind == "newline":
            return index
    end = len(tokens)
    while end > at + 1 and tokens[end - 1].kind == "space":
        end -= 1
    return end
