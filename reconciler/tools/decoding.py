"""JSON and TOML data of our own, read back into dataclasses: strict, and told in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


def decoded(kind: type[T], data: object) -> T:
    """
    The *kind* that *data* is.

    Raises:
        ValueError: A key is unknown or missing, or a value is of another type; it says which.
    """
    from cattrs import transform_error

    try:
        return _converter().structure(data, kind)
    except Exception as error:  # cattrs has a group of its own for each kind
        first = transform_error(error, format_exception=_told)[0]
        raise ValueError(first.replace(" @ $.", " at ").removesuffix(" @ $")) from error


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
def _converter() -> Converter:
    from cattrs import Converter  # takes a while, for a command that reads no such file too long
    from cattrs.gen import make_dict_structure_fn

    made = Converter(forbid_extra_keys=True)

    # cattrs alone takes 1 for "1", and a text for the list of its letters
    def fields(kind: type[Any]) -> Callable[[object, Any], Any]:
        structure = make_dict_structure_fn(kind, made, _cattrs_forbid_extra_keys=True)
        return lambda value, kind: structure(_checked(value, dict), kind)

    def items(value: object, kind: Any) -> Any:
        return tuple(made.structure(one, get_args(kind)[0]) for one in _checked(value, list))

    def table(value: object, kind: Any) -> Any:
        of = get_args(kind)[1]
        return {key: made.structure(one, of) for key, one in _checked(value, dict).items()}

    made.register_structure_hook_factory(is_dataclass, fields)
    made.register_structure_hook_func(lambda kind: _origin(kind) is tuple, items)
    made.register_structure_hook_func(lambda kind: _origin(kind) is dict, table)
    for kind in (str, int, bool, float):
        made.register_structure_hook(kind, _checked)
    return made


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
