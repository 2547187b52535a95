"""The first check of a spec: the JSON Schema, with its errors told as sentences."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.spec.document import quote
from reconciler.spec.positions import KeyPath
from reconciler.spec.shape import Shape, shape

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FORMS = {
    "version": "version = 1",
    "defaults": "a table, such as [defaults]",
    "domains": "a table, such as [domains.web.disks.vda]",
    "domain": "a table, such as [domains.web.disks.vda]",
    "disks": "a table of disks, such as [domains.web.disks.vda]",
    "disk": 'a table with the key chain, such as { chain = ["base.qcow2", "web.qcow2"] }',
    "chain": 'the images, base first, such as chain = ["base.qcow2", "web.qcow2"]',
    "entry": 'a file name, or a table such as { file = "base.qcow2", template = true }',
    "discard": 'a list of file names, such as ["old.qcow2"]',
    "file": 'a file name, such as file = "web.qcow2"',
    "active": 'a file name, such as active = "web.qcow2"',
    "name": 'a file name, such as "web.qcow2"',
    "size": 'bytes or a string such as "10G"',
    "template": "true or false",
    "restore_point": "true or false",
    "remove_base": "true or false",
    "shutdown_timeout": "whole seconds, such as shutdown_timeout = 120",
    "overlay_name": 'a pattern, such as "{domain}-{disk}-{time:%Y%m%d}.qcow2"',
    "description": "a text in quotes",
    "connection": 'a libvirt URI such as "qemu:///system", or leave the key out',
    "directory": 'a folder, such as "/var/lib/libvirt/images"',
    # the host's config
    "allowed_roots": 'absolute folders, such as allowed_roots = ["/var/lib/libvirt/images"]',
    "max_drops": "a number, such as max_drops = 10",
    "allow": 'a list of "create", "merge", "discard", "restart"',
    "specs": 'absolute files or folders, such as specs = ["/etc/virt-chain/specs"]',
    "quarantine": 'how long, such as quarantine = "7d", or "0"',
    "limits": 'a table, such as [limits] with memory = "4G"',
    "memory": 'bytes or a string such as "4G"',
    "seconds": "whole seconds, such as seconds = 300",
    "output": 'bytes or a string such as "256M"',
}
"""What to write for each key, told where something else stands there."""

MOST = 5000
"""Faults after which no more are looked for: a file of garbage has millions."""

_TYPES = {bool: "a boolean", int: "an integer", float: "a float", list: "a list", dict: "a table"}


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One way in which data breaks the schema.

    Attributes:
        path: The key at fault.
        what: What is wrong, and what to write instead.
        key_itself: The key should not be there, under this name; what its
            value says is another matter.
    """

    path: KeyPath
    what: str
    key_itself: bool = False


def schema(name: str = "chain") -> dict[str, Any]:
    """
    The JSON Schema of a spec (``chain``), a plan file (``plan``) or the host's ``config``.

    It comes from the installed package, else from the source tree.
    """
    file = f"{name}.schema.json"
    installed = Path(__file__).parents[1] / "schemas" / file
    in_tree = Path(__file__).parents[2] / "schemas" / file
    text = (installed if installed.is_file() else in_tree).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check(data: dict[str, Any], name: str = "chain") -> tuple[Fault, ...]:
    """
    Every way in which *data* breaks the schema *name*.

    Of another version nothing else can be judged, so that is told alone.  After
    `MOST` the rest is not looked for.
    """
    if _shapes(name)[""](data):
        return ()
    errors = _validator(name).iter_errors(_suspect(data, name))
    found = (fault for error in errors for fault in _faults(error))
    faults = dict.fromkeys(islice(found, MOST))
    other_version = tuple(fault for fault in faults if fault.path == ("version",))
    return other_version or tuple(faults)


def _suspect(data: dict[str, Any], name: str) -> dict[str, Any]:
    """*data* without the domains that keep to the schema: ten thousand take jsonschema 10 s."""
    domains = data.get("domains")
    if name != "chain" or not isinstance(domains, dict):
        return data
    named, fits = _shapes(name)["name"], _shapes(name)["domain"]
    rest = {key: one for key, one in domains.items() if not (named(key) and fits(one))}
    return data | {"domains": rest}


@cache
def _shapes(name: str) -> dict[str, Shape]:
    """The shape of the schema *name* under ``""``, and of each of its definitions."""
    whole = schema(name)
    parts = whole.get("$defs", {})
    return {"": shape(whole, parts)} | {key: shape(one, parts) for key, one in parts.items()}


def plan_fault(data: Any) -> str | None:
    """The first way in which *data* breaks the schema of a plan file; None: it is one."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema("plan")).iter_errors(data))
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    message = error.message if len(error.message) < 300 else f"{error.message[:300]}..."
    return f"{where or 'the document'}: {message}"


@cache
def _validator(name: str) -> Validator:
    # jsonschema takes 90 ms to import: specs that keep to their schema go without.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON has one kind of number; in TOML 1.0 is a float, and no size.
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    strict = extend(Draft202012Validator, type_checker=types)  # type: ignore[no-untyped-call]
    validator: Validator = strict(schema(name))
    return validator


def _faults(error: Any) -> Iterator[Fault]:
    """*error*, a jsonschema ValidationError, as it reads for the author of a spec."""
    path: KeyPath = tuple(error.absolute_path)
    value, rule = error.instance, error.validator_value
    if "propertyNames" in error.absolute_schema_path:
        what = "is empty" if error.validator == "minLength" else "has a control character"
        what = f"the name {quote(value)} {what}; write the name that libvirt shows"
        yield Fault((*path, value), what, key_itself=True)
        return
    match error.validator:
        case "additionalProperties":
            known = list(error.schema["properties"])
            for key in (key for key in value if key not in known):
                yield Fault((*path, key), _unknown(key, known), key_itself=True)
        case "required":
            for key in (key for key in rule if key not in value):
                yield Fault(path, f"{key} is missing; write {FORMS[key]}")
        case "const":
            what = f"version is {_shown(value)}; this virt-chain reads version = {rule}"
            yield Fault(path, what)
        case "enum":
            choices = " or ".join(quote(choice) for choice in rule)
            yield Fault(path, f"{_subject(path)} is {_shown(value)}; write {choices}")
        case "type":
            yield Fault(path, f"{_subject(path)} is {_type(value)}; write {FORMS[_form(path)]}")
        case "not":
            advice = "write the name without it"
            yield Fault(path, f"{_subject(path)} has a control character; {advice}")
        case "minItems" | "minLength" | "minProperties":
            yield Fault(path, f"{_subject(path)} is empty; write {FORMS[_form(path)]}")
        case "maxLength":
            what = f"{_subject(path)} has {len(value)} characters; write {FORMS[_form(path)]}"
            yield Fault(path, what)
        case "pattern":
            yield Fault(path, f"{_subject(path)} is {_shown(value)}; write {FORMS[_form(path)]}")
        case "minimum" | "maximum":
            of_disk = "a disk has from 512 bytes to 8 EiB"
            advice = of_disk if _form(path) == "size" else f"write {FORMS[_form(path)]}"
            yield Fault(path, f"{_subject(path)} is out of range; {advice}")
        case _:
            yield Fault(path, f"{_subject(path)}: {error.message}")


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {quote(near[0])}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {quote(key)}; {advice}"


def _subject(path: KeyPath) -> str:
    """The key at *path* in a sentence; list elements count from 1."""
    match path:
        case (*_, str(key), int(index)):
            return f"entry {index + 1} of {key}"
        case (*_, key) if str(key).isprintable() and key:
            return str(key)
        case (*_, key):
            return quote(str(key))
    return "the spec"


def _form(path: KeyPath) -> str:
    """The key of FORMS that tells what belongs at *path*."""
    match path:
        case (*_, "chain", int()):
            return "entry"
        case ("allowed_roots" | "specs" as key, int()):
            return str(key)
        case (*_, int()):
            return "name"
        case ("domains", _):
            return "domain"
        case ("domains", _, "disks", _):
            return "disk"
    return str(path[-1])


def _type(value: object) -> str:
    return "a string" if isinstance(value, str) else _TYPES.get(type(value), "a date or time")


def _shown(value: object) -> str:
    """*value* as TOML has it, where that is short; else its type."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) and abs(value) < 10**9 else _type(value)
