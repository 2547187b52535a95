"""
Thousands of chains in seconds, for what is measured or counted on many disks.

An image is a copy of one empty overlay of 16 KiB that qemu-img has made, with
the name of its own backing file written over the first one.  Source: the qcow2
specification, "Header": the name lies where bytes 8 to 15 say, and bytes 16 to
19 are its length; nothing follows it in the first cluster.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CLUSTER = 4096
IMAGES = 5
"""Images of each chain, the base included."""
LONGEST = 1023
"""Bytes of a backing name.  Source: the qcow2 specification."""

Tree = Literal["flat", "folders"]
Base = Literal["shared", "own", "templates"]
Specs = Literal["one", "each"]


class Overlays:
    """Makes empty overlays on any backing file."""

    def __init__(self, size: str = "1M") -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}"]
            subprocess.run([*create, "b", size], cwd=folder, check=True)
            subprocess.run([*create, "-b", "b", "-F", "qcow2", "o"], cwd=folder, check=True)
            self.base = (folder / "b").read_bytes()
            overlay = (folder / "o").read_bytes()
        (self._at,) = struct.unpack_from(">Q", overlay, 8)
        self._head, self._tail = overlay[:CLUSTER], overlay[CLUSTER:]

    def on(self, backing: str) -> bytes:
        """An empty overlay whose backing file, a qcow2, is recorded as *backing*."""
        name = backing.encode()
        assert len(name) <= min(LONGEST, CLUSTER - self._at)
        head = bytearray(self._head[: self._at])
        struct.pack_into(">I", head, 16, len(name))
        return bytes(head + name).ljust(CLUSTER, b"\0") + self._tail


@dataclass(frozen=True, slots=True)
class Many:
    """
    Many disks, and their spec.

    Attributes:
        tree: All images in one folder, or a folder for each disk.
        base: One template below all, or a base or a template for each.
        actives: The active image of each disk.
    """

    root: Path
    tree: Tree
    base: Base
    actives: tuple[Path, ...]

    def spec(self, kind: Specs) -> Path:
        """What to give to virt-chain: one file, or a folder with a file for each disk."""
        written = [self._disk(number) for number in range(len(self.actives))]
        head = f'version = 1\ndefaults.directory = "{self.root / "images"}"\n'
        if kind == "one":
            path = self.root / "all.toml"
            path.write_text(head + "".join(written))
            return path
        folder = self.root / "specs"
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(written):
            (folder / f"vm{number}.toml").write_text(head + text)
        return folder

    def _disk(self, number: int) -> str:
        own = [f'"{name}"' for name in _names(self.tree, number)]
        base = own[0]
        if self.base != "own":
            name = '"base.qcow2"' if self.base == "shared" else base
            base = f"{{ file = {name}, template = true }}"
        return f"[domains.vm{number}.disks.vda]\nchain = [{', '.join([base, *own[1:]])}]\n"


def make(root: Path, disks: int, tree: Tree, base: Base) -> Many:
    """*disks* chains of IMAGES images below *root*, all empty."""
    overlays = Overlays()
    images = root / "images"
    images.mkdir(parents=True)
    if base == "shared":
        (images / "base.qcow2").write_bytes(overlays.base)
    actives = []
    for number in range(disks):
        names = _names(tree, number)
        (images / names[0]).parent.mkdir(exist_ok=True)
        if base != "shared":
            (images / names[0]).write_bytes(overlays.base)
            below = Path(names[0]).name
        else:
            below = "base.qcow2" if tree == "flat" else "../base.qcow2"
        for name in names[1:]:
            (images / name).write_bytes(overlays.on(below))
            below = Path(name).name
        actives.append(images / names[-1])
    return Many(root, tree, base, tuple(actives))


def _names(tree: Tree, number: int) -> list[str]:
    between = "/" if tree == "folders" else "_"
    return [f"vm{number}{between}{level}.qcow2" for level in range(IMAGES)]


def sample(actives: tuple[Path, ...], count: int) -> Iterator[Path]:
    """*count* of *actives*, the first and the last among them."""
    step = max((len(actives) - 1) // max(count - 1, 1), 1)
    yield from actives[::step]
