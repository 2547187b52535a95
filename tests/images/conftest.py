"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.cases import B, P, X
from tests.images.disks import NOBODY, Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An empty folder for the images of one disk, with its own state directory."""
    return Disk(tmp_path)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that belongs to an unprivileged user, in a folder that every user can enter."""
    assert os.geteuid() == 0, "only root can give files to another user; run the tests as root"
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    disk = Disk(folder)
    disk.chain({"b": B, "p": P, "x": X})
    disk.state.mkdir()
    disk.spec("b <- p <- x", active="x.qcow2")
    config = folder / "config.toml"
    config.touch(mode=0o600)
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(config))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    yield disk
    shutil.rmtree(folder)
