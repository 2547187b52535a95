"""Where images lie: mounts, full filesystems, files that nobody may change, and long names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.images.cases import BIG_P, B, X
from tests.images.disks import Disk, assert_done, assert_quiet


@contextmanager
def mounted(*argv: str | Path) -> Iterator[None]:
    """``mount ARGV``, whose last word is the folder, for a while."""
    if subprocess.run(["mount", *argv], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", argv[-1]], check=True)


def test_nothing_is_renamed_across_a_bind_mount_of_one_filesystem(disk: Disk) -> None:
    there, folder = disk.root / "there", disk.images / "fast"
    there.mkdir()
    folder.mkdir()
    with mounted("--bind", there, folder):
        disk.add("b", B)
        disk.add("p", BIG_P, on="b")
        disk.add("x", X, on="p", style="absolute", folder="fast")
        disk.keep()
        disk.spec("b <- x", active="fast/x.qcow2")
        outcome = disk.apply()

        # x into p is the cheaper way, and ends in a rename from one mount to the other
        assert outcome.code == 0, outcome.err
        assert "pull" in outcome.err
        assert_done(disk, "b <- x", current="x", gone=["p"])
        assert_quiet(disk)
