"""Fixtures of the tests on untrusted input."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.disks import Disk
from tests.untrusted.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A disk in a folder, and beside it files that nobody may open."""
    return Scene(tmp_path)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The host's own config, empty."""
    path = tmp_path / "config.toml"
    path.touch(mode=0o600)
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(path))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An empty folder for the images of one disk."""
    return Disk(tmp_path)
