"""Snapshots of a guest with drives of every kind, and snapshots that libvirt refuses."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.guests.scene import Scene
from tests.guests.world import World

FLOPPY = """\
<disk type='file' device='floppy'><driver name='qemu' type='raw'/>
<source file='{folder}/drivers.vfd'/><target dev='fda' bus='fdc'/></disk>"""
CD_ROMS = """\
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
<source file='{folder}/tools.iso'/><target dev='hda' bus='ide'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='hdb' bus='ide'/><readonly/></disk>"""
NETWORK = """\
<disk type='network' device='disk'><driver name='qemu' type='raw'/>
<source protocol='nbd'><host transport='unix' socket='{folder}/nbd.sock'/></source>
<target dev='vdg' bus='virtio'/></disk>"""
RAW = """\
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='{folder}/shared.img'/><target dev='vdb' bus='virtio'/><shareable/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='{folder}/fixed.img'/><target dev='vdc' bus='virtio'/><readonly/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='{folder}/unlisted.img'/><target dev='vdd' bus='virtio'/></disk>"""
OTHERS = ("drivers.vfd", "tools.iso", "shared.img", "fixed.img", "unlisted.img")


@contextmanager
def served(world: World) -> Iterator[None]:
    """An NBD server of an image, at the socket that `NETWORK` names."""
    image, socket = world.images / "far.img", world.images / "nbd.sock"
    image.write_bytes(bytes(1024 * 1024))
    argv = ["qemu-nbd", "-t", "-f", "raw", "-k", str(socket), str(image)]
    with subprocess.Popen(argv) as server:
        until = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        try:
            yield
        finally:
            server.terminate()


def test_drives_of_every_kind_are_left_out_of_a_snapshot(world: World) -> None:
    folder = world.images
    for name in OTHERS:
        (folder / name).write_bytes(b"F" * 1474560)
    base = folder / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "64M"], check=True)
    guest = world.define("web", base)
    xml = world.xml("web", inactive=True)
    drives = (RAW + FLOPPY + CD_ROMS + NETWORK).format(folder=folder)
    world.define_xml(xml.replace("<controller", f"{drives}<controller", 1))
    scene = Scene(world, guest)
    with served(world):
        world.boot("web")
        guest.wait_for(5)
        before = {name: (folder / name).stat().st_ino for name in OTHERS}

        scene.want(vda="base <- mon")
        scene.apply()
        guest.wait_for(5)
        scene.want(vda="base <- mon <- tue")
        scene.apply()
        scene.want(vda="base <- tue")
        scene.apply()

        assert scene.observed() == (["base", "tue"], [])
        assert {name: (folder / name).stat().st_ino for name in OTHERS} == before
        assert scene.files() == {"base", "tue"}
        world.destroy("web")
        assert scene.records("tue", durable=guest.records()) >= guest.records()


def test_a_snapshot_that_libvirt_refused_leaves_nothing_behind(scene: Scene) -> None:
    """No guest agent answers, and the spec insists on a freeze."""
    scene.want(vda="base")
    scene.apply()
    for _ in range(2):
        scene.want('quiesce = "require"', vda="base <- mon")
        done = scene.run("apply", "-y")
        assert done.returncode == 1
        assert "guest agent" in done.stdout + done.stderr

        assert scene.files() == {"base"}
        assert "unfinished" not in next((scene.world.images / "state").glob("*.toml")).read_text()

    scene.want(vda="base")
    assert "Nothing to do" in scene.run("apply", "-y").stdout
    scene.want(vda="base <- tue")
    scene.apply()
    scene.guest.wait_for(5)

    assert scene.files() == {"base", "tue"}
    assert scene.guest.errors() == []


def test_a_refused_snapshot_that_an_interrupted_apply_had_begun_leaves_nothing(
    scene: Scene,
) -> None:
    scene.want('quiesce = "require"', vda="base <- mon")
    for at in range(1, 40):
        if "mon" in scene.files():
            break
        run = scene.run_killed(at, "apply", "-y")
        assert run.killed
    scene.apply_refused("guest agent")
    scene.want(vda="base")

    assert "Nothing to do" in scene.run("apply", "-y").stdout
    assert scene.files() == {"base"}
