"""Fixtures of the tests of watch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.disks import Disk
from tests.watch.watcher import Watcher


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A chain b <- p <- q <- x in a folder of its own, and a spec that asks for it."""
    made = Disk(tmp_path)
    made.chain({"b": "256k:A", "p": "64k:P", "q": "64k:- 64k:Q", "x": "128k:- 64k:X"})
    made.spec("b <- p <- q <- x")
    return made


@pytest.fixture
def watcher(disk: Disk) -> Iterator[Watcher]:
    """Watches of that disk's spec; all end with the test."""
    made = Watcher(disk)
    try:
        yield made
    finally:
        made.end()
