"""The examples are valid specs in the layout that `fmt` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.spec import load
from tests.images.disks import command

ROOT = Path(__file__).parents[2]
SPECS = sorted(path for path in (ROOT / "examples").rglob("*.toml"))


def test_there_are_examples() -> None:
    assert len(SPECS) >= 10


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_is_valid_and_in_its_layout(spec: Path) -> None:
    assert load([spec]).disks
    assert command("fmt", "--check", spec).code == 0


@pytest.mark.parametrize("host", ["kvm1", "kvm2"])
def test_the_folder_of_a_host_is_one_spec(host: str) -> None:
    assert command("validate", ROOT / "examples" / "gitops" / "hosts" / host).code == 0


def test_the_hooks_call_commands_that_exist() -> None:
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text()
    entries = [line.split(": ")[1] for line in hooks.splitlines() if "entry:" in line]
    assert entries == ["virt-chain validate", "virt-chain fmt"]
    for entry in entries:
        assert command(entry.split()[1], "--help").code == 0
