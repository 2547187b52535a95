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
def disk(tmp_path: Path) -> Disk:
    """An empty folder for the images of one disk."""
    return Disk(tmp_path)
