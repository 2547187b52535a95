"""The quick yes to a spec: it is given only where jsonschema says yes as well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.spec import schema
from reconciler.spec.shape import shape

CHAIN: dict[str, Any] = {
    "version": 1,
    "defaults": {"directory": "images", "format": "raw", "quiesce": "try"},
    "domains": {
        "web": {
            "connection": "qemu:///system",
            "disks": {
                "vda": {
                    "chain": [
                        {"file": "base", "size": "10G", "template": True, "description": ""},
                        {"file": "mon", "size": 512, "format": "qcow2", "restore_point": False},
                        "tue",
                    ],
                    "discard": ["old"],
                    "active": "mon",
                    "shutdown_timeout": 5,
                    "remove_base": False,
                    "overlay_name": "{domain}.qcow2",
                    "bitmaps": "drop",
                    "on_running": "restart",
                }
            },
        }
    },
}
CONFIG: dict[str, Any] = {
    "allowed_roots": ["/srv"],
    "specs": ["/srv/specs"],
    "max_drops": 0,
    "quarantine": "7d",
    "allow": ["create", "merge"],
    "limits": {"memory": "4G", "seconds": 1, "output": 512},
}
ODD = ["", "a\nb", "x", 0, 1, -1, True, 1.0, 2**63, [], ["x", "x"], {}, {"file": "x"}, date.max]


def nodes(data: Any) -> list[tuple[Any, Any]]:
    """Every place in *data*: what holds it, and its key."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, one in items:
        found += [(data, key), *(nodes(one) if isinstance(one, (dict, list)) else ())]
    return found


def jsonschema_accepts(data: Any, name: str) -> bool:
    return not list(schema._validator(name).iter_errors(data))


def cut(holder: Any, key: Any, _: Any) -> None:
    del holder[key]


def swap(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def add(holder: Any, key: Any, value: Any) -> None:
    holder.append(value) if isinstance(holder, list) else holder.update({str(value): value})


@pytest.mark.parametrize(("name", "data"), [("chain", CHAIN), ("config", CONFIG)])
def test_every_key_of_a_schema_is_understood(name: str, data: dict[str, Any]) -> None:
    """What has all keys is accepted at once; jsonschema is not even loaded for it."""
    used = {key for _, key in nodes(data) if isinstance(key, str)}

    assert schema._shapes(name)[""](data)
    assert jsonschema_accepts(data, name)
    assert used >= set(schema.schema(name)["properties"])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["chain", "config"]), st.data())
def test_a_quick_yes_is_jsonschemas_yes(name: str, choose: st.DataObject) -> None:
    data = copy.deepcopy(CHAIN if name == "chain" else CONFIG)
    for _ in range(choose.draw(st.integers(1, 2))):
        holder, key = choose.draw(st.sampled_from(nodes(data)))
        change: Callable[..., None] = choose.draw(st.sampled_from([cut, swap, add]))
        change(holder, key, copy.deepcopy(choose.draw(st.sampled_from(ODD))))

    if schema._shapes(name)[""](data):
        assert jsonschema_accepts(data, name)


def test_a_keyword_that_is_not_understood_is_left_to_jsonschema() -> None:
    assert not shape({"type": "string", "format": "date"}, {})("2026-01-01")
    assert not shape({"$ref": "#/$defs/x", "minLength": 2}, {"x": {"type": "string"}})("abc")
    assert not shape({}, {})("anything")


def test_faults_are_told_of_the_domains_that_have_some() -> None:
    """The others are not gone through again, which would take 1 ms for each disk."""
    data = copy.deepcopy(CHAIN)
    data["domains"] |= {f"vm{n}": copy.deepcopy(CHAIN["domains"]["web"]) for n in range(50)}
    data["domains"]["vm7"]["disks"]["vda"]["chian"] = data["domains"]["vm7"]["disks"]["vda"].pop(
        "chain"
    )

    assert list(schema._suspect(data, "chain")["domains"]) == ["vm7"]
    assert sorted(fault.what for fault in schema.check(data)) == [
        f"chain is missing; write {schema.FORMS['chain']}",
        'unknown key "chian"; did you mean "chain"?',
    ]
