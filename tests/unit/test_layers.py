"""The rooms of the package: who may import whom, and where each outside library is at home."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import reconciler

ROOT = Path(reconciler.__file__).parent
LAYERS = ("model", "planner", "tools", "spec", "backends", "engine", "watch", "cli")
ALLOWED = {
    "model": set(),
    "planner": {"model"},
    "tools": {"model"},
    "spec": {"model", "tools"},
    "backends": {"model", "tools"},
    "engine": {"model", "planner", "tools", "backends"},
    "watch": {"model", "tools", "engine"},
    "cli": {"model", "spec", "engine", "watch"},
}
"""`cli` and `engine` see everything below except what others keep to themselves."""

HOMES = {
    "jsonschema": {"spec"},
    "rich": {"cli"},
    "typer": {"cli"},
    "tomlkit": {"spec"},
    "tomli_w": {"engine"},
    "subprocess": {"tools"},
    "ctypes": {"tools"},
    "libvirt": {"tools"},
    "fcntl": {"tools"},
    "watchdog": {"watch"},
    "prometheus_client": {"watch"},
    "cattrs": {"tools"},
}


@functools.cache
def nodes() -> tuple[tuple[Path, ast.AST], ...]:
    """Every node of every module."""
    return tuple(
        (file, node)
        for file in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
    )


@functools.cache
def imports() -> tuple[tuple[Path, str], ...]:
    """Each module and what it imports."""
    return tuple(_imports())


def _imports() -> Iterator[tuple[Path, str]]:
    for file, node in nodes():
        if isinstance(node, ast.Import):
            for name in node.names:
                yield file.relative_to(ROOT), name.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield file.relative_to(ROOT), node.module


def test_every_module_lies_in_a_room():
    rooms = {file.parts[0] for file, _ in imports() if len(file.parts) > 1}

    assert rooms == set(LAYERS)


@pytest.mark.parametrize("room", LAYERS)
def test_a_room_imports_only_from_the_rooms_it_may(room):
    used = {
        module.split(".")[1]
        for file, module in imports()
        if file.parts[0] == room and module.startswith("reconciler.")
    }

    assert used - {room} <= ALLOWED[room]


@pytest.mark.parametrize("library", HOMES)
def test_an_outside_library_has_one_home(library):
    homes = {file.parts[0] for file, module in imports() if module.split(".")[0] == library}

    assert homes == HOMES[library]


def test_only_one_module_starts_programs():
    starters = {file.name for file, module in imports() if module == "subprocess"}
    calls = {
        file.name
        for file, node in nodes()
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("os.system", "os.popen", "os.fork", "os.execv", "os.spawnv")
    }

    assert (starters, calls) == ({"process.py"}, set())


def test_nothing_is_applied_that_no_gate_has_let_through():
    """`Gate.enter` alone makes an Admitted, and Reconciling, which takes one, alone applies."""
    calls = [
        (str(file.relative_to(ROOT)), ast.unparse(node.func))
        for file, node in nodes()
        if isinstance(node, ast.Call)
    ]

    assert {file for file, name in calls if name.split(".")[-1] == "Admitted"} == {"engine/gate.py"}
    assert [one for one in calls if one[1].endswith("applier.apply")] == [
        ("engine/reconciling.py", "self.applier.apply")
    ]
