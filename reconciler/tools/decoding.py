"""JSON and TOML data of our own, read back into dataclasses: strict, and told in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from reconciler.model.image import FileId
from reconciler.model.steps import Step, as_data, from_data

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
_ID_FIELDS = tuple(one.name for one in fields_of(FileId))


def decoded(kind: type[T], data: object) -> T:
    """
    The *kind* that *data* is.

    Raises:
        ValueError: A key is unknown or missing, or a value is of another type; it says which.
    """
    try:
        return _converter(detailed=False).structure(data, kind)
    except Exception:  # once more, slower, so that the error names the key
        return _explained(kind, data)


def _explained(kind: type[T], data: object) -> T:
    from cattrs import transform_error

    try:
        return _converter(detailed=True).structure(data, kind)
    except Exception as error:  # cattrs has a group of its own for each kind
        first = transform_error(error, format_exception=_told)[0]
        raise ValueError(first.replace(" @ $.", " at ").removesuffix(" @ $")) from error


def encoded(value: object) -> Any:
    """*value* as plain data that `decoded` takes; what has its default is left out."""
    return _converter(detailed=False).unstructure(value)


def moment(text: str) -> datetime:
    """
    The time that *text* tells, as ISO 8601 with its zone.

    Raises:
        ValueError: It tells none.
    """
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} is a time without its zone")
    return found


@cache
def _converter(*, detailed: bool) -> Converter:
    from cattrs import Converter  # takes a while, for a command that reads no such file too long
    from cattrs.gen import make_dict_structure_fn

    made = Converter(forbid_extra_keys=True, omit_if_default=True, detailed_validation=detailed)

    # cattrs alone takes 1 for "1", and a text for the list of its letters
    def fields(kind: type[Any]) -> Callable[[object, Any], Any]:
        structure = make_dict_structure_fn(
            kind,
            made,
            _cattrs_forbid_extra_keys=True,
            _cattrs_detailed_validation=detailed,
        )
        return lambda value, kind: structure(_checked(value, dict), kind)

    def items(value: object, kind: Any) -> Any:
        return tuple(made.structure(one, get_args(kind)[0]) for one in _checked(value, list))

    def table(value: object, kind: Any) -> Any:
        key, of = get_args(kind)
        return {
            made.structure(name, key): made.structure(one, of)
            for name, one in _checked(value, dict).items()
        }

    made.register_structure_hook_factory(is_dataclass, fields)
    made.register_structure_hook_func(lambda kind: _origin(kind) is tuple, items)
    made.register_structure_hook_func(lambda kind: _origin(kind) in (dict, Mapping), table)
    for kind in (str, int, bool, float):
        made.register_structure_hook(kind, _checked)
    made.register_structure_hook(Path, lambda value, _: _path(value))
    made.register_unstructure_hook(Path, str)
    made.register_structure_hook(FileId, lambda value, _: _file_id(value))
    made.register_unstructure_hook(FileId, lambda one: " ".join(map(str, _id_parts(one))))
    made.register_structure_hook(Step, lambda value, _: _step(value))
    made.register_unstructure_hook(Step, as_data)
    return made


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise TypeError(f"{_short(value)} is not an absolute path")
    return Path(value)


def _id_parts(one: FileId) -> tuple[int, ...]:
    return tuple(getattr(one, name) for name in _ID_FIELDS)


def _file_id(value: object) -> FileId:
    parts = value.split(" ") if isinstance(value, str) else ()
    if len(parts) != len(_ID_FIELDS):
        raise TypeError(f"{_short(value)} is not {', '.join(_ID_FIELDS)} of a file")
    return FileId(*map(int, parts))


def _step(value: object) -> Step:
    step = from_data(_checked(value, dict))
    if unknown := value.keys() - as_data(step).keys():  # type: ignore[attr-defined]
        raise ValueError(f"{step.action} has no {', '.join(sorted(unknown))}")
    return step


def _origin(kind: Any) -> object:
    return get_origin(kind)


_NAMES: dict[type[Any], str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _checked(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{_short(value)} is not {_NAMES[kind]}")
    return value


def _told(error: BaseException, _: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {', '.join(sorted(map(str, error.extra_fields)))}"
    if isinstance(error, KeyError):
        return "a missing key"
    return str(error).replace("not in literal typing.Literal", "is not one of ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
