"""The text of a state file: TOML, decoded into the values of `disk_state`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli
import tomli_w

from reconciler.engine.disk_state import DiskState
from reconciler.tools.decoding import decoded, encoded

VERSION = 2
HEAD = (
    "# Written by virt-chain: what images cannot tell, down to `# end`. Losing it loses no data.\n"
)
END = "# end\n"
"""First and last line: a file that was cut at the end of a table is valid TOML, too."""
_LONG_KEY = re.compile(r"^[^=\"'\n]{1000}", re.MULTILINE)
"""A dotted key of 40 KB takes tomli seconds and gigabytes."""
_SPEC_TABLE = re.compile(r"^[ \t]*\[[ \t]*(domains|defaults)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a state file holds."""

    version: int = VERSION
    domain: str = ""
    disks: Mapping[str, DiskState] = field(default_factory=dict)


def load_text(text: str) -> Stored:
    """
    What the state file with this *text* holds.

    Raises:
        ValueError: It is damaged, or another version of virt-chain wrote it; says how.
    """
    if _LONG_KEY.search(text):
        raise ValueError("it has a key of more than a thousand characters")
    if text.startswith(HEAD) and not text.endswith(END):
        raise ValueError(f"its last line is not {END.rstrip()!r}")
    try:
        data = tomli.loads(text)
    except RecursionError:
        raise ValueError("its tables are nested too deep") from None
    if data.get("version") != VERSION:
        raise ValueError(f"its version is {data.get('version')!r}, this program has {VERSION}")
    return decoded(Stored, data)


def is_spec(text: str) -> bool:
    """True where *text* says which chains are wanted, and nothing of what was done."""
    if _LONG_KEY.search(text) or text.startswith(HEAD):
        return False
    try:
        data = tomli.loads(text)
    except (ValueError, RecursionError):
        # somebody is editing it; a state file has no such table, damaged or not
        return bool(_SPEC_TABLE.search(text))
    return not data.keys().isdisjoint(("domains", "defaults")) and "disks" not in data


def dump_text(stored: Stored) -> str:
    """The text of a state file that holds *stored*."""
    data = encoded(stored)
    return HEAD + tomli_w.dumps({"version": VERSION, **_without_none(data)}) + END


def _without_none(data: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    if isinstance(data, list | tuple):
        return [_without_none(value) for value in data]
    return data
