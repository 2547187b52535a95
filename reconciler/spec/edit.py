"""
Edits of a spec: text in, text out, and nothing else moves.

Each edit is checked before it is returned: what tomli reads in the new text
is what it reads in the old one, with the one disk changed as asked.  tomlkit
writes the strings and keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli
import tomlkit

from reconciler.model.errors import Mistake
from reconciler.model.image import Format
from reconciler.spec.arrays import Array, joined, read_array, with_added, without
from reconciler.spec.positions import KeyPath, Positions

WIDTH = 100
"""Columns of the longest line that is written."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_EQUALS = re.compile(r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*=[ \t]*""")


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An image to be written into a chain; *comment* stands behind it."""

    file: str
    format: Format | None = None
    template: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class NewDisk:
    """
    A disk to be written at the end of a spec.

    Attributes:
        settings: Other keys of the disk, in this order.
        comment: Stands behind its header.
    """

    domain: str
    target: str
    chain: tuple[NewEntry, ...]
    settings: dict[str, str] = field(default_factory=dict)
    comment: str = ""


def add_overlay(
    text: str, domain: str, disk: str, name: str, *, image_format: Format | None = None
) -> str:
    """
    *text* with the overlay *name* on top of a disk's chain.

    Args:
        image_format: Written where the spec's default is another one.
    """
    chain = _array(text, (*_path(domain, disk), "chain"))
    value = _like(chain.values, name, image_format)
    data = tomli.loads(text)
    entries = [*_disk(data, domain, disk)["chain"], tomli.loads(f"x = {value}")["x"]]
    new = joined(with_added(chain.tokens, value, _newline(text)))
    return _checked(text, _replaced(text, chain, new), domain, disk, chain=entries)


def drop_images(text: str, domain: str, disk: str, names: Collection[str]) -> str:
    """*text* without the entries of a disk's chain that have the file names *names*."""
    chain = _array(text, (*_path(domain, disk), "chain"))
    entries = _disk(tomli.loads(text), domain, disk)["chain"]
    gone = {number for number, entry in enumerate(entries) if file_of(entry) in names}
    if len(gone) == len(entries):
        raise Mistake(f"{domain}:{disk} would have no image left; keep one")
    left = [entry for number, entry in enumerate(entries) if number not in gone]
    new = joined(without(chain.tokens, gone))
    return _checked(text, _replaced(text, chain, new), domain, disk, chain=left)


def roll_back(
    text: str,
    domain: str,
    disk: str,
    *,
    to: str,
    name: str,
    discard: Sequence[str],
    image_format: Format | None = None,
) -> str:
    """
    *text*, where a disk goes on from the image *to* in the new overlay *name*.

    Args:
        discard: Images above *to*; they leave the chain, and their data may go.
    """
    entries = _disk(tomli.loads(text), domain, disk)["chain"]
    listed = [file_of(entry) for entry in entries]
    above = listed[listed.index(to) + 1 :]
    chain = _array(text, (*_path(domain, disk), "chain"))
    value = _like(chain.values, name, image_format)
    tokens = list(chain.tokens)
    if above and _one_a_line(chain):
        # the new line stands where the old ones were, with their comma
        tokens = with_added(tokens, value, _newline(text))
        tokens = without(tokens, range(listed.index(to) + 1, len(listed)))
    else:
        tokens = without(tokens, range(listed.index(to) + 1, len(listed)))
        tokens = with_added(tokens, value, _newline(text))
    wanted = [*entries[: listed.index(to) + 1], tomli.loads(f"x = {value}")["x"]]
    rolled = _checked(text, _replaced(text, chain, joined(tokens)), domain, disk, chain=wanted)
    return _with_discarded(rolled, domain, disk, discard)


def add_disk(text: str, disk: NewDisk) -> str:
    """*text* with *disk* in a table of its own at the end."""
    newline = _newline(text)
    table = ".".join(key(part) for part in ("domains", disk.domain, "disks", disk.target))
    header = f"[{table}]" + (f"  # {disk.comment}" if disk.comment else "")
    lines = [header, *_chain_lines(disk.chain)]
    lines += [f"{key(name)} = {string(value)}" for name, value in disk.settings.items()]
    return _appended(text, lines, newline)


def add_note(text: str, lines: Sequence[str]) -> str:
    """*text* with a comment at the end."""
    return _appended(text, [f"# {line}" for line in lines], _newline(text))


def file_of(entry: Any) -> str:
    """The file name that an entry of a chain writes."""
    return str(entry if isinstance(entry, str) else entry["file"])


def string(text: str, *, quote: str = '"') -> str:
    """*text* as a TOML string; in single quotes where that is asked for and possible."""
    return tomlkit.string(text, literal=quote == "'" and "'" not in text).as_string()


def key(name: str) -> str:
    """*name* as a TOML key: bare where it can be."""
    return name if _BARE.fullmatch(name) else string(name)


def entry_text(entry: NewEntry, *, quote: str = '"') -> str:
    """*entry* as TOML: its name, or a table where it says more."""
    name = string(entry.file, quote=quote)
    more = [f'format = "{entry.format}"'] if entry.format else []
    more += ["template = true"] if entry.template else []
    return f"{{ {', '.join([f'file = {name}', *more])} }}" if more else name


def _chain_lines(chain: Sequence[NewEntry]) -> list[str]:
    written = [entry_text(entry) for entry in chain]
    one_line = f"chain = [{', '.join(written)}]"
    if len(chain) == 1 and chain[0].comment:
        return [f"{one_line}  # {chain[0].comment}"]
    if len(written) <= 2 and len(one_line) <= WIDTH and not any(one.comment for one in chain):
        return [one_line]
    lines = [
        f"  {value}," + (f"  # {entry.comment}" if entry.comment else "")
        for value, entry in zip(written, chain, strict=True)
    ]
    return ["chain = [", *lines, "]"]


def _appended(text: str, lines: Sequence[str], newline: str) -> str:
    if text and not text.endswith("\n"):
        text += newline
    gap = newline if text.strip() and not text.endswith(newline * 2) else ""
    return text + gap + "".join(line + newline for line in lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _path(domain: str, disk: str) -> tuple[str, str, str, str]:
    return ("domains", domain, "disks", disk)


def _disk(data: dict[str, Any], domain: str, disk: str) -> dict[str, Any]:
    found: dict[str, Any] = data["domains"][domain]["disks"][disk]
    return found


def _array(text: str, path: KeyPath) -> Array:
    """The list that is written at *path*."""
    at = Positions(text).offset(path)
    found = None if at is None else _EQUALS.match(text, at)
    if found is None or not text.startswith("[", found.end()):
        where = ".".join(str(part) for part in path)
        raise Mistake(f"{where} is written as [[tables]]; write it as one list (virt-chain fmt)")
    return read_array(text, found.end())


def _replaced(text: str, array: Array, new: str) -> str:
    return text[: array.start] + new + text[array.end :]


def _like(values: Sequence[str], name: str, image_format: Format | None) -> str:
    """*name* as an entry, in the style of the entry that is on top now."""
    top = values[-1] if values else '"'
    quote = "'" if re.match(r"(\{\s*file\s*=\s*)?'(?!'')", top) else '"'
    all_tables = all(value.startswith("{") for value in values)
    if image_format is None and not (values and all_tables):
        return string(name, quote=quote)
    more = f', format = "{image_format}"' if image_format else ""
    space = "" if top.startswith("{") and not top[1:2].isspace() else " "
    return f"{{{space}file = {string(name, quote=quote)}{more}{space}}}"


def _one_a_line(chain: Array) -> bool:
    return any(token.kind == "newline" for token in chain.tokens)


def _with_discarded(text: str, domain: str, disk: str, names: Sequence[str]) -> str:
    """*text*, where the disk's `discard` has *names* too."""
    table = _disk(tomli.loads(text), domain, disk)
    new = [name for name in names if name not in table.get("discard", ())]
    wanted = [*table.get("discard", ()), *new]
    if not new:
        return text
    newline = _newline(text)
    if "discard" in table:
        listed = _array(text, (*_path(domain, disk), "discard"))
        tokens = list(listed.tokens)
        for name in new:
            values = [token.text for token in tokens if token.kind == "value"]
            quote = values[-1][0] if values else '"'
            tokens = with_added(tokens, string(name, quote=quote), newline)
        changed = _replaced(text, listed, joined(tokens))
    else:
        changed = _with_key_after_chain(text, domain, disk, new)
    return _checked(text, changed, domain, disk, discard=wanted)


def _with_key_after_chain(text: str, domain: str, disk: str, names: Sequence[str]) -> str:
    """*text* with a `discard` behind the chain: on the next line, or in the same inline table."""
    path = (*_path(domain, disk), "chain")
    chain = _array(text, path)
    quote = "'" if re.search(r"^\{?[^\"]*'", chain.values[-1]) else '"'
    values = [string(name, quote=quote) for name in names]
    written = f"discard = [{', '.join(values)}]"
    at = Positions(text).offset(path)
    assert at is not None
    prefix = text[text.rfind("\n", 0, at) + 1 : at]
    if (
        re.fullmatch(r"""[ \t]*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')[ \t]*\.[ \t]*)*""", prefix)
        is None
    ):
        return f"{text[: chain.end]}, {written}{text[chain.end :]}"
    newline = _newline(text)
    if len(prefix) + len(written) > WIDTH:
        indent = re.match(r"[ \t]*", prefix)
        margin = indent[0] if indent else ""
        lines = newline.join(f"{margin}  {value}," for value in values)
        written = f"discard = [{newline}{lines}{newline}{margin}]"
    end = text.find("\n", chain.end)
    if end == -1:
        return f"{text}{newline}{prefix}{written}"
    return f"{text[: end + 1]}{prefix}{written}{newline}{text[end + 1 :]}"


def _checked(before: str, after: str, domain: str, disk: str, **keys: Any) -> str:
    """*after*, where it says what *before* says, with *keys* of one disk changed."""
    wanted = tomli.loads(before)
    _disk(wanted, domain, disk).update(keys)
    try:
        found = tomli.loads(after)
    except tomli.TOMLDecodeError:
        found = {}
    if found != wanted:
        raise Mistake(
            f"{domain}:{disk} is written in a way that cannot be edited; run virt-chain fmt, or "
            "edit the spec by hand"
        )
    return after
