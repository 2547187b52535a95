"""A saved plan and a state file are data: what others write there changes no other file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images.disks import facts, folder_facts, tool
from tests.untrusted.scene import Scene, bounded, empty, traced


@pytest.fixture
def drop(scene: Scene) -> Scene:
    """Three images, of which the spec has two."""
    scene.disk.chain({"b": "64k:A", "p": "64k:P 64k:P", "x": "64k:X"})
    scene.spec("b <- x", active="x.qcow2")
    return scene


@pytest.fixture
def saved(drop: Scene) -> dict[str, Any]:
    plan = drop.root / "plan.json"
    assert drop.run("plan", "-o", plan).code == 0
    data: dict[str, Any] = json.loads(plan.read_text())
    return data


def strings(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every string in *tree*."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from strings(value, (*path, key))
        elif isinstance(value, str):
            yield (*path, key)


def edited(data: Any, path: tuple[Any, ...], value: object) -> Any:
    made = copy.deepcopy(data)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def test_no_edit_of_a_saved_plan_reaches_another_file(drop: Scene, saved: dict[str, Any]) -> None:
    """Every string in turn names the canary: refused, or without any effect."""
    before, images = folder_facts(drop.outside), folder_facts(drop.images)
    plan = drop.root / "plan.json"
    tried = 0
    for path in strings(saved):
        if path[0] == "spec" or path[-1] in ("reason", "connection"):
            continue
        plan.write_text(json.dumps(edited(saved, path, str(drop.canary_image))))
        # what a plan says beside its steps is for people; so it is planned, not applied, here
        from reconciler.model.errors import ReconcilerError
        from reconciler.spec.planfile import read_plan

        inert = path[-1] not in ("name", "target", "fingerprint") and "steps" not in path
        try:
            same = read_plan(plan).disks == _disks(drop, saved)
        except ReconcilerError:
            same = False
        assert same == inert or not same, path
        if same:
            continue
        outcome = bounded(
            "apply", "--state-dir", drop.root / "state", plan, drop.root / "chain.toml"
        )
        tried += 1
        assert outcome.code == 1, path
        assert folder_facts(drop.images) == images, path
    assert tried >= 5
    assert folder_facts(drop.outside) == before


def _disks(scene: Scene, saved: dict[str, Any]) -> Any:
    from reconciler.spec.planfile import read_plan

    path = scene.root / "good.json"
    path.write_text(json.dumps(saved))
    return read_plan(path).disks


def test_a_plan_that_names_another_spec_opens_no_other_file(
    drop: Scene, saved: dict[str, Any]
) -> None:
    """It does not choose the spec: the command line does."""
    plan = drop.root / "plan.json"
    plan.write_text(json.dumps({**saved, "spec": [str(drop.canary)]}))
    before = folder_facts(drop.outside), folder_facts(drop.images)

    outcome = bounded("apply", "--state-dir", drop.root / "state", plan)

    assert outcome.code == 1
    assert (folder_facts(drop.outside), folder_facts(drop.images)) == before


# The state file


def step(action: str, **values: object) -> str:
    words = ", ".join(
        f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        for key, value in {"action": action, **values}.items()
    )
    return f"{{ {words} }}"


def leftover(path: Path) -> str:
    found = path.stat()
    return (
        f'{{ path = "{path}", device = {found.st_dev}, inode = {found.st_ino}, '
        f"changed = {found.st_mtime_ns} }}"
    )


def write_state(scene: Scene, text: str) -> None:
    state = scene.root / "state"
    state.mkdir(exist_ok=True)
    (state / "vm.toml").write_text(f'version = 1\ndomain = "vm"\n[disks.vda]\n{text}\n')


def unfinished(scene: Scene, *steps: str, links: str = "", remove: str = "") -> str:
    return (
        f'[disks.vda.unfinished]\nbegun = "2020"\nsteps = [{", ".join(steps)}]\n'
        f"links = [{links}]\nremove = [{remove}]"
    )


# fmt: off
# ruff: noqa: E501
STATES: list[tuple[str, Callable[[Scene], str]]] = [
    ("active", lambda s: f'active = "{s.canary_image}"'),
    ("leftover", lambda s: f"leftovers = [{leftover(s.canary_image)}]"),
    ("names", lambda s: f'names = [{{ qemu = "{s.images}/x.qcow2", spec = "{s.canary_image}" }}]'),
    ("create", lambda s: unfinished(s, step("create", image=s.canary_image, backing=s.images / "x.qcow2", format="qcow2", size=1 << 20))),
    ("remove", lambda s: unfinished(s, step("remove", image=s.canary_image))),
    ("remove after", lambda s: unfinished(s, step("resize", image=s.images / "x.qcow2", size=1 << 21), remove=leftover(s.canary_image))),
    ("rename over", lambda s: unfinished(s, step("rename", source=s.images / "x.qcow2", target=s.canary_image, link=False))),
    ("rename away", lambda s: unfinished(s, step("rename", source=s.canary_image, target=s.images / "x.qcow2", link=False))),
    ("resize", lambda s: unfinished(s, step("resize", image=s.canary_image, size=1 << 21))),
    ("commit", lambda s: unfinished(s, step("commit", top=s.images / "x.qcow2", base=s.canary_image, relink=True))),
    ("pull", lambda s: unfinished(s, step("pull", into=s.canary_image))),
    ("rebase", lambda s: unfinished(s, step("rebase", image=s.images / "x.qcow2", backing=s.canary_image))),
    ("link back", lambda s: unfinished(s, step("pull", into=s.images / "x.qcow2", base=s.images / "b.qcow2"), links=f'{{ image = "{s.images}/x.qcow2", backing = "{s.canary_image}", format = "qcow2", changed = 1 }}')),
]
# fmt: on


@pytest.mark.parametrize("text", [pytest.param(one, id=name) for name, one in STATES])
def test_no_state_file_reaches_a_file_outside_of_the_roots(
    drop: Scene, text: Callable[[Scene], str]
) -> None:
    write_state(drop, text(drop))
    before = folder_facts(drop.outside)

    seen = traced(drop.root, *drop.words("apply"))

    assert folder_facts(drop.outside) == before
    assert str(drop.canary_image) not in seen.opened
    current = drop.images / "x.qcow2"
    assert current.exists(), seen.outcome
    assert drop.disk.read("x") == drop.disk.golden["x"]


STRANGE = [
    "version = 1\na = " + "[" * 100_000,
    "version = 1\n[disks.vda]\nleftovers = [{ path = 'a', device = inf, inode = 1, changed = 1 }]",
    "version = 1\n[disks.vda]\nleftovers = [{ path = 'a', device = nan, inode = 1, changed = 1 }]",
    "version = 1\n[disks.vda]\nactive = 1",
    'version = 1\n[disks.vda]\nactive = "a\\u0000b"',
    "version = 1\n[disks.vda]\nactive = ''",
    "version = 1\n[disks.vda]\napplied = 1979-05-27",
    "version = 1\n[disks]\nvda = 1",
    "version = 1\ndisks = [1]",
    "version = 1\n[disks.vda.unfinished]\nsteps = [1]",
    "version = 1\n[disks.vda.unfinished]\nsteps = []\nlinks = [{ image = 'a', backing = 1 }]",
    "version = 1\n[disks.vda.unfinished]\nsteps = 1",
    "version = 1\n[disks.vda]\nnames = [{ qemu = 1, spec = 2 }]",
    'version = 1\ndomain = "\\u001b[31m"\n[disks.vda.unfinished]\nsteps = []\nbegun = "\\u001b"',
    "version = '\\u001b'",
    "version = 99999999999999999999999999",
]


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: ascii(text[12:60]))
def test_a_strange_state_file_is_told_and_no_image_changes(drop: Scene, text: str) -> None:
    state = drop.root / "state"
    state.mkdir()
    (state / "vm.toml").write_text(text)
    before = folder_facts(drop.images)

    outcome = drop.run("plan")

    assert outcome.code in (0, 1)
    assert folder_facts(drop.images) == before


def test_a_state_file_that_is_no_file_is_told(drop: Scene) -> None:
    state = drop.root / "state"
    state.mkdir()
    os.mkfifo(state / "vm.toml")

    assert drop.run("plan").code == 1


def test_a_state_file_of_a_gigabyte_is_told(drop: Scene) -> None:
    state = drop.root / "state"
    state.mkdir()
    (state / "vm.toml").touch()
    os.truncate(state / "vm.toml", 4 * 2**30)

    assert drop.run("plan").code == 1


def test_the_state_file_is_not_written_through_a_link(drop: Scene) -> None:
    state = drop.root / "state"
    state.mkdir()
    (state / ".vm.toml.new").symlink_to(drop.canary)
    before = facts(drop.canary)

    drop.run("apply")

    assert facts(drop.canary) == before
    tool("qemu-img", "check", "-q", drop.images / "x.qcow2")


def test_an_empty_image_is_made_by_hand_as_qemu_has_it(scene: Scene) -> None:
    tool("qemu-img", "check", "-q", "-f", "qcow2", empty(scene.images / "x.qcow2"))
