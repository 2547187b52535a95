"""A default format is for images that name none; one that names its own has that."""

from __future__ import annotations

from tests.images.cases import B
from tests.images.disks import Disk, assert_quiet


def test_a_new_overlay_has_its_own_format_whatever_the_default(disk: Disk) -> None:
    disk.add("b", B)
    disk.keep()
    disk.spec("b <- x", formats={"b": "qcow2", "x": "qcow2"}, format="raw")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert disk.stack("x") == "b <- x"
    assert_quiet(disk)
