"""The many images that measures and counts are taken on are what they claim to be."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.many import IMAGES, make


def test_the_images_of_many_disks_are_images_to_qemu(tmp_path: Path) -> None:
    many = make(tmp_path, 2, "folders", "shared")
    for active in many.actives:
        for image in sorted(active.parent.iterdir()):
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
        told = subprocess.run(
            ["qemu-img", "info", "--backing-chain", "-f", "qcow2", active],
            check=True,
            capture_output=True,
            text=True,
        )

        assert told.stdout.count("\nfile format: qcow2") == IMAGES
        assert told.stdout.count("backing file format: qcow2") == IMAGES - 1
