"""Scenes as files: made once with qemu-img and qemu-io, copied for every repetition."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.scenes import CLUSTER, Layer, Scene

SPEC = "vm.toml"
"""Name of the spec file beside the images."""


class WrongResult(Exception):
    """A contender left another chain, or other content, than the scene asks for."""


def make(scene: Scene, folder: Path) -> Path:
    """The images of *scene* and its spec, in a new *folder*."""
    folder.mkdir(parents=True)
    below: Layer | None = None
    for number, layer in enumerate(scene.layers, start=1):
        image = folder / f"{layer.name}.qcow2"
        backing = ["-F", "qcow2", "-b", f"{below.name}.qcow2"] if below else []
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(image), str(scene.size)]
        subprocess.run(argv, check=True)
        _fill(image, layer, number)
        below = layer
    (folder / SPEC).write_text(scene.spec)
    return folder


def _fill(image: Path, layer: Layer, number: int) -> None:
    """Write the byte *number* into every cluster of *layer*."""
    writes = []
    for run in layer.runs:
        if run.step == 1:
            writes.append((run.start, len(run)))
        else:
            writes.extend((cluster, 1) for cluster in run)
    commands = "\n".join(
        f"write -q -P {number} {start * CLUSTER} {count * CLUSTER}" for start, count in writes
    )
    argv = ["qemu-io", "-f", "qcow2", "-t", "writeback", str(image)]
    subprocess.run(
        argv, input=f"{commands}\nquit\n", text=True, stdout=subprocess.DEVNULL, check=True
    )


def fresh_copy(scene: Scene, master: Path, folder: Path) -> Path:
    """
    A copy of *master* in *folder*, durable, so that no earlier write is timed.

    The base is golden, so no contender writes to it: a hard link
    serves, and saves a third of the copying.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = f"{scene.layers[0].name}.qcow2"
    os.link(master / base, folder / base)
    for file in master.iterdir():
        if file.name == base:
            continue
        subprocess.run(["cp", "--sparse=never", str(file), str(folder)], check=True)
    os.sync()
    return folder


def confirm(scene: Scene, master: Path, folder: Path) -> None:
    """
    Compare what was left in *folder* with what *scene* asks for, by qemu-img alone.

    Raises:
        WrongResult: An image is missing or too many, or a kept view reads differently.
    """
    base = scene.layers[0].name
    wanted = {*scene.keep, base}
    there = {file.stem for file in folder.glob("*.qcow2")}
    if there != wanted:
        raise WrongResult(f"{scene.name}: {sorted(there)} are there, not {sorted(wanted)}")
    dropped_top = scene.layers[-1].name not in scene.keep
    for name in scene.keep:
        was = scene.layers[-1].name if dropped_top and name == scene.keep[-1] else name
        files = [str(master / f"{was}.qcow2"), str(folder / f"{name}.qcow2")]
        argv = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", *files]
        if subprocess.run(argv, check=False).returncode:
            raise WrongResult(f"{scene.name}: {name} reads differently")
