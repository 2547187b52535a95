"""The text of a state file: TOML, decoded into the values of `disk_state`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import cattrs

from reconciler.engine.disk_state import DiskState
from reconciler.model.image import FileId
from reconciler.model.steps import Step, as_data, from_data

VERSION = 2
HEAD = (
    "# Written by virt-chain: what images cannot tell, down to `# end`. Losing it loses no data.\n"
)
END = "# end\n"
"""First and last line: a file that was cut at the end of a table is valid TOML, too."""
_LONG_KEY = re.compile(r"^[^=\"'\n]{1000}", re.MULTILINE)
"""A dotted key of 40 KB takes tomllib seconds and gigabytes."""
_ID_FIELDS = tuple(one.name for one in fields(FileId))


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
        data = tomllib.loads(text)
    except RecursionError:
        raise ValueError("its tables are nested too deep") from None
    if data.get("version") != VERSION:
        raise ValueError(f"its version is {data.get('version')!r}, this program has {VERSION}")
    try:
        return _converter(detailed=False).structure(data, Stored)
    except Exception:  # cattrs raises what the values raise; the reader gets a sentence
        return _explained(data)


def _explained(data: dict[str, Any]) -> Stored:
    """*data* decoded once more, so that an error names the key at fault."""
    try:
        return _converter(detailed=True).structure(data, Stored)
    except Exception as error:
        raise ValueError("; ".join(cattrs.transform_error(error)[:3])) from error


def dump_text(stored: Stored) -> str:
    """The text of a state file that holds *stored*."""
    import tomlkit  # takes a while, and only writing needs it

    data = _converter(detailed=False).unstructure(stored)
    return HEAD + tomlkit.dumps({"version": VERSION, **_without_none(data)}) + END


def _without_none(data: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    if isinstance(data, list | tuple):
        return [_without_none(value) for value in data]
    return data


@cache
def _converter(*, detailed: bool) -> cattrs.Converter:
    """Between values and TOML data; *detailed* is slower, and its errors name keys."""
    made = cattrs.Converter(
        forbid_extra_keys=True, omit_if_default=True, detailed_validation=detailed
    )
    made.register_structure_hook(Path, lambda value, _: _path(value))
    made.register_unstructure_hook(Path, str)
    made.register_structure_hook(FileId, lambda value, _: _file_id(value))
    made.register_unstructure_hook(FileId, lambda one: " ".join(map(str, _id_parts(one))))
    made.register_structure_hook(Step, lambda value, _: _step(value))
    made.register_unstructure_hook(Step, as_data)
    return made


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return Path(value)


def _id_parts(one: FileId) -> tuple[int, ...]:
    return tuple(getattr(one, name) for name in _ID_FIELDS)


def _file_id(value: object) -> FileId:
    parts = value.split(" ") if isinstance(value, str) else ()
    if len(parts) != len(_ID_FIELDS):
        raise ValueError(f"{value!r} is not {', '.join(_ID_FIELDS)} of a file")
    return FileId(*map(int, parts))


def _step(value: object) -> Step:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a step")
    step = from_data(value)
    if unknown := value.keys() - as_data(step).keys():
        raise ValueError(f"{step.action} has no {', '.join(sorted(unknown))}")
    return step
