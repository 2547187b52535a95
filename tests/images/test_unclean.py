"""Images that were not closed cleanly: lazy refcounts, and a host that lost its power."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.images.cases import BIG_P, X
from tests.images.disks import Disk, assert_done, assert_quiet, assert_untouched, tool

OPEN = "448k:A 64k:-"
"""A base with a cluster that is not yet allocated."""


def make(disk: Disk, dirty: str, **texts: str) -> Disk:
    """A chain with lazy refcounts, whose image *dirty* was open when its QEMU was killed."""
    disk.chain(texts)
    for name, path in disk.paths.items():
        tool("qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
        if name == dirty:
            kill_while_open(path)
    disk.keep()
    return disk


def kill_while_open(image: Path) -> None:
    words = ["qemu-io", "-f", "qcow2", "-c", "write -P 75 448k 64k", "-c", "sigraise 9", image]
    subprocess.run(words, capture_output=True)

    assert is_dirty(image)


def is_dirty(image: Path) -> bool:
    return bool(image.read_bytes()[79] & 1)


@pytest.mark.parametrize("dirty", ["b", "p", "x"])
def test_a_dirty_image_is_repaired_before_a_merge(disk: Disk, dirty: str) -> None:
    make(disk, dirty, b=OPEN, p=BIG_P, x=X)
    disk.spec("b <- x", active="x.qcow2")
    steps = disk.plan().steps
    outcome = disk.apply()

    assert steps[0] == f"repair {dirty}"
    assert outcome.code == 0, outcome.err
    assert_done(disk, "b <- x", current="x", gone=["p"])
    assert_quiet(disk)


def test_a_dirty_image_that_is_only_read_stays_dirty(disk: Disk) -> None:
    make(disk, "x", b=OPEN, x=X)
    disk.spec("b <- x <- y", active="x.qcow2")
    outcome = disk.apply()

    assert outcome.code == 0, outcome.err
    assert is_dirty(disk.path("x"))
    assert_untouched(disk, "b", "x")


def test_a_dirty_template_is_left_alone_and_data_is_pulled_up(disk: Disk) -> None:
    make(disk, "b", b=OPEN, p=BIG_P, x=X)
    disk.spec("b <- x", active="x.qcow2", templates=["b"])
    steps = disk.plan().steps
    outcome = disk.apply()

    assert steps == ["pull into x down to b, 320k", "remove p"]
    assert outcome.code == 0, outcome.err
    assert_untouched(disk, "b")
    tool("qemu-img", "check", "-q", "-r", "all", disk.path("b"))
    assert_done(disk, "b <- x", current="x", gone=["p"])


def test_an_image_that_was_repaired_by_hand_needs_no_step(disk: Disk) -> None:
    make(disk, "p", b=OPEN, p=BIG_P, x=X)
    disk.spec("b <- x", active="x.qcow2")
    tool("qemu-img", "check", "-q", "-r", "all", disk.path("p"), code=None)

    assert not any("repair" in step for step in disk.plan().steps)
