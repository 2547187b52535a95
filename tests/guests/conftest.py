"""Fixtures of tests with real guests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests.boot import Boot, build_boot
from tests.guests.scene import Scene
from tests.guests.world import World

CACHE = Path(tempfile.gettempdir()) / f"virt-chain-guests-{os.geteuid()}"
"""Keeps the initramfs and libvirt's knowledge of QEMU between test sessions."""


@pytest.fixture(scope="session")
def guest_boot() -> Boot:
    return replace(build_boot(CACHE), saved=CACHE / "saved")


@pytest.fixture
def world(guest_boot: Boot) -> Iterator[World]:
    """An empty libvirt root; its guests end with the test."""
    root = Path(tempfile.mkdtemp(prefix="vc"))  # short: sockets have 107 characters
    world = World(root, guest_boot, CACHE)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def scene(world: World) -> Scene:
    """A guest `web` that runs on one image, `base`."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(world.images / "base.qcow2"), "64M"]
    subprocess.run(argv, check=True)
    guest = world.define("web", world.images / "base.qcow2")
    world.boot("web")
    guest.wait_for(10)
    return Scene(world, guest)
