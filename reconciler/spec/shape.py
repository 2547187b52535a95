"""
A quick yes to data that keeps to a JSON Schema.

jsonschema tells what is wrong, and takes 100 times as long to find that nothing
is.  A shape says yes only to data that jsonschema accepts; whatever it does not
understand, in the schema or in the data, is left to jsonschema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Shape = Callable[[Any], bool]
"""True: the value keeps to the schema.  False: jsonschema has to judge it."""

_TOLD = {"description", "default", "title", "$schema", "$id", "$defs"}
"""Keywords that decide nothing."""
_OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "not"},
    "integer": {"minimum", "maximum"},
    "boolean": set[str](),
    "array": {"items", "minItems", "uniqueItems"},
    "object": {
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
    },
}
_UNDERSTOOD = {"type", "enum", "const", "$ref"} | _TOLD | set[str]().union(*_OF_TYPE.values())
_NAMES = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object"}


def shape(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Shape:
    """
    The shape of *schema*.

    Args:
        definitions: What a ``$ref`` in it may name; none leads back to itself.
    """
    if "$ref" in schema and schema.keys() <= _TOLD | {"$ref"}:
        return shape(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "$ref" in schema or schema.keys() - _UNDERSTOOD:
        return _unsure
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is not None:
        return _one_of(schema, choices)
    types = schema.get("type", [])
    names = {types} if isinstance(types, str) else set(types)
    makers: dict[type, Callable[..., Shape]] = {str: _string, int: _integer, bool: _boolean}
    makers |= {list: _array, dict: _table}
    shapes = {
        kind: make(schema, definitions) for kind, make in makers.items() if _NAMES[kind] in names
    }

    def fits(value: Any) -> bool:
        of_type = shapes.get(type(value))
        return of_type is not None and of_type(value)

    return fits


def _unsure(_: Any) -> bool:
    return False


def _one_of(schema: Mapping[str, Any], choices: list[Any]) -> Shape:
    if schema.keys() - _TOLD - {"enum", "const"}:
        return _unsure
    known = {(type(choice), choice) for choice in choices}
    return lambda value: isinstance(value, (str, int)) and (type(value), value) in known


def _boolean(_: Mapping[str, Any], __: Mapping[str, Any]) -> Shape:
    return lambda _: True


def _integer(schema: Mapping[str, Any], _: Mapping[str, Any]) -> Shape:
    least, most = schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))
    return lambda value: bool(least <= value <= most)


def _string(schema: Mapping[str, Any], _: Mapping[str, Any]) -> Shape:
    least, most = schema.get("minLength", 0), schema.get("maxLength", float("inf"))
    unwanted = schema.get("not", {"type": "string", "pattern": r"(?!)"})
    if unwanted.keys() != {"type", "pattern"} or unwanted["type"] != "string":
        return _unsure
    bad = re.compile(unwanted["pattern"]).search
    good = re.compile(schema.get("pattern", "")).search
    any_good = "pattern" not in schema
    return lambda value: (
        least <= len(value) <= most and not bad(value) and (any_good or good(value) is not None)
    )


def _array(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Shape:
    least = schema.get("minItems", 0)
    fits = shape(schema["items"], definitions) if "items" in schema else _unsure
    once = schema.get("uniqueItems", False)
    return lambda value: (
        len(value) >= least
        and all(map(fits, value))
        and (not once or len(set(map(repr, value))) == len(value))
    )


def _table(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Shape:
    least, required = schema.get("minProperties", 0), tuple(schema.get("required", ()))
    known = {key: shape(one, definitions) for key, one in schema.get("properties", {}).items()}
    others = schema.get("additionalProperties")
    rest = shape(others, definitions) if isinstance(others, dict) else _unsure
    named = shape(schema["propertyNames"], definitions) if "propertyNames" in schema else None

    def fits(value: Any) -> bool:
        if len(value) < least or not all(key in value for key in required):
            return False
        for key, item in value.items():
            if not known.get(key, rest)(item) or (named is not None and not named(key)):
                return False
        return True

    return fits
