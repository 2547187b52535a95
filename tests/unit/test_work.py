"""
How much work a plan with nothing to do is, counted and not timed.

Counted is what this process asks the kernel for: files opened, names looked
up, folders listed, programs started.  Twice the disks may cost twice the work.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli import main
from reconciler.engine import looking
from tests.many import IMAGES, Base, Many, Specs, Tree, make

FEW, MORE = 10, 40
"""Disks."""
LOOKUPS = ("stat", "lstat", "readlink", "access")
PER_DISK = {
    "opened": IMAGES + 5,  # each image once; the spec, the state file, and what locks them
    "looked up": 12 * IMAGES,  # a name has about nine parts here, and each image two or three names
    "listed": 4,
    "started": 0,
}
"""The most that a disk may cost."""
START = {"opened": 40, "looked up": 200, "listed": 20, "started": 0}
"""The most that one run may cost, whatever it does."""

_counted: list[str] | None = None
_KINDS = {
    "open": "opened",
    "os.listdir": "listed",
    "os.scandir": "listed",
    "subprocess.Popen": "started",
    "os.posix_spawn": "started",
    "os.fork": "started",
    "os.exec": "started",
}


def _hear(event: str, _: tuple[Any, ...]) -> None:
    if _counted is not None and event in _KINDS:
        _counted.append(_KINDS[event])


sys.addaudithook(_hear)


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One word for each thing that is asked of the kernel meanwhile."""
    global _counted
    with patch.context() as patched:
        found: list[str] = []
        for name in LOOKUPS:
            patched.setattr(os, name, _noted(getattr(os, name), found))
        _counted = found
        try:
            yield found
        finally:
            _counted = None


def _noted(call: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        found.append("looked up")
        return call(*arguments, **options)

    return noted


def work(many: Many, spec: Path, patch: pytest.MonkeyPatch, *, recorded: bool) -> Counter[str]:
    """What a plan of *many* with nothing to do asks the kernel for."""
    states = ["--state-dir", str(many.root / "state")]
    if recorded:
        assert main.run(["apply", "-y", *states, str(spec)]) == 0
    plan = ["plan", *states, str(spec)]
    assert main.run(plan) == 0  # all modules are loaded
    with counting(patch) as found:
        assert main.run(plan) == 0
    return Counter(found)


@pytest.mark.parametrize("recorded", [True, False], ids=["with state files", "without"])
@pytest.mark.parametrize("specs", ["one", "each"])
@pytest.mark.parametrize(
    ("tree", "base"), [("flat", "shared"), ("folders", "shared"), ("folders", "own")]
)
def test_a_disk_with_nothing_to_do_costs_the_same_among_few_and_among_many(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tree: Tree,
    base: Base,
    specs: Specs,
    recorded: bool,
) -> None:
    few, more = (make(tmp_path / str(disks), disks, tree, base) for disks in (FEW, MORE))
    less = work(few, few.spec(specs), monkeypatch, recorded=recorded)
    found = work(more, more.spec(specs), monkeypatch, recorded=recorded)

    each = {kind: (found[kind] - less[kind]) / (MORE - FEW) for kind in PER_DISK}
    dear = {kind: cost for kind, cost in each.items() if cost > PER_DISK[kind]}
    start = {kind: less[kind] - FEW * each[kind] for kind in PER_DISK}
    # where the work grows with the square, the line through both has a negative start
    bent = {kind: cost for kind, cost in start.items() if not -FEW / 2 <= cost <= START[kind]}
    assert (dear, bent) == ({}, {})


def calls(many: Many, *, recorded: bool) -> int:
    """How many Python functions a plan of *many* with nothing to do calls, or goes on with."""
    states, spec = ["--state-dir", str(many.root / "state")], str(many.spec("one"))
    if recorded:
        assert main.run(["apply", "-y", *states, spec]) == 0
    assert main.run(["plan", *states, spec]) == 0  # all modules are loaded
    found = Counter[str]()
    sys.setprofile(lambda *told: found.update((told[1],)))
    try:
        assert main.run(["plan", *states, spec]) == 0
    finally:
        sys.setprofile(None)
    return found["call"]


@pytest.mark.parametrize("recorded", [True, False], ids=["with state files", "without"])
@pytest.mark.parametrize(
    ("tree", "base"), [("flat", "shared"), ("folders", "own"), ("folders", "templates")]
)
def test_no_disk_is_compared_with_every_other_one(
    tmp_path: Path, tree: Tree, base: Base, recorded: bool
) -> None:
    few, more, most = (
        calls(make(tmp_path / str(disks), disks, tree, base), recorded=recorded)
        for disks in (FEW, 25, MORE)
    )
    # one call for each pair would make the second step of 15 disks dearer by 15 * 15 pairs
    assert abs((most - more) - (more - few)) < 15 * 15, (few, more, most)


def test_applying_to_a_disk_costs_the_same_among_few_and_among_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All disks are surveyed once a round, and not again for each disk that is changed."""
    monkeypatch.setattr(looking, "SHARE", 10_000)  # however slow this machine is
    looked = []
    for disks in (5, 20):
        many = make(tmp_path / str(disks), disks, "folders", "shared")
        text = many.spec("one").read_text()
        for number in range(disks):
            last = f'"vm{number}/{IMAGES - 1}.qcow2"'
            text = text.replace(f"{last}]", f'{last}, "vm{number}/new.qcow2"]')
        spec = many.root / "all.toml"
        spec.write_text(text)
        with counting(monkeypatch) as found:
            assert (
                main.run(["apply", "-y", "--state-dir", str(many.root / "state"), str(spec)]) == 0
            )
        assert (many.root / f"images/vm{disks - 1}/new.qcow2").exists()
        looked.append(Counter(found)["looked up"] / disks)

    few, more = looked
    assert more < 1.1 * few
