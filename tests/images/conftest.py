"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.disks import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An empty folder for the images of one disk, with its own state directory."""
    return Disk(tmp_path)
