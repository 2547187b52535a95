"""The guests themselves: what the other tests of this folder rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests.killing import Run
from tests.guests.records import SLOT, RecordLost, records_in, slot_of
from tests.guests.world import World

DISK_ONLY, ATOMIC, NO_METADATA = 16, 128, 4
"""VIR_DOMAIN_SNAPSHOT_CREATE_* of libvirt."""


def qcow2(path: Path, backing: str | None = None) -> Path:
    below = ["-b", backing, "-F", "qcow2"] if backing else []
    size = [] if backing else ["64M"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), *size]
    subprocess.run(argv, check=True, cwd=path.parent)
    return path


def test_a_killed_guest_left_every_record_it_called_durable(world: World) -> None:
    base = qcow2(world.images / "base.qcow2")
    guest = world.define("web", base)
    world.boot("web")
    guest.wait_for(50)
    world.kill_qemu("web")

    assert records_in(base, durable=guest.records()) >= 50

    before = guest.records()
    assert world.state("web") == "shutoff"
    verdict = world.boot("web").boot_verdicts()["vda"]
    assert verdict.ok
    assert verdict.highest >= before
    guest.wait_for(5)
    assert guest.read_back()["vda"].ok
    assert guest.errors() == []
    world.shutdown("web")
    assert world.state("web") == "shutoff"
    assert records_in(base, durable=guest.records()) == guest.records()


def test_a_snapshot_under_load_is_a_moment_of_both_disks(world: World) -> None:
    one, two = qcow2(world.images / "one.qcow2"), qcow2(world.images / "two.qcow2")
    guest = world.define("web", one, two)
    world.boot("web")
    guest.wait_for(20)
    before = {disk: guest.records(disk) for disk in guest.disks}
    world.create_snapshot(
        "web",
        f"""<domainsnapshot><disks>
        <disk name='vda'><source file='{world.images}/one-active.qcow2'/></disk>
        <disk name='vdb'><source file='{world.images}/two-active.qcow2'/></disk>
        </disks></domainsnapshot>""",
        DISK_ONLY | ATOMIC | NO_METADATA,
    )
    guest.wait_for(20)

    assert records_in(one, durable=before["vda"]) < guest.records("vda")
    assert records_in(two, disk="vdb", durable=before["vdb"]) < guest.records("vdb")
    world.stop("web")
    for name, disk in (("one", "vda"), ("two", "vdb")):
        active = world.images / f"{name}-active.qcow2"
        assert records_in(active, disk=disk, durable=guest.records(disk)) == guest.records(disk)


def test_a_lost_record_is_found_by_host_and_guest(world: World) -> None:
    base = qcow2(world.images / "base.qcow2")
    guest = world.define("web", base)
    world.boot("web")
    guest.wait_for(10)
    world.destroy("web")
    slots = 16 * 1024 * 1024 // SLOT
    offset = slot_of(3, slots) * SLOT
    write = f"write -P 0 {offset} {SLOT}"
    subprocess.run(["qemu-io", "-c", write, str(base)], check=True, capture_output=True)

    with pytest.raises(RecordLost) as lost:
        records_in(base)

    assert (lost.value.want, lost.value.got) == (3, 0)
    world.start("web")
    verdict = guest.wait_booted()["vda"]
    assert verdict.text == f"B vda bad {offset // SLOT} want=3 got=0 count=1"


SNAPSHOT = """
import libvirt, os, sys, threading
libvirt.virEventRegisterDefaultImpl()
def loop():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=loop, daemon=True).start()
domain = libvirt.open(sys.argv[1]).lookupByName("web")
domain.blockInfo("vda")
domain.snapshotCreateXML(sys.argv[2], int(sys.argv[3]))
os._exit(0)
"""


def test_a_kill_after_a_snapshot_leaves_libvirt_with_the_old_image(world: World) -> None:
    base, one, two = (world.images / f"{name}.qcow2" for name in ("base", "one", "two"))
    world.define("web", qcow2(base))
    guest = world.boot("web")

    def snapshot(overlay: Path, kill_at: int) -> Run:
        disk = f"<disk name='vda'><source file='{overlay}'/></disk>"
        xml = f"<domainsnapshot><disks>{disk}</disks></domainsnapshot>"
        flags = str(DISK_ONLY | ATOMIC | NO_METADATA)
        return world.run_killed([sys.executable, "-c", SNAPSHOT, world.uri, xml, flags], kill_at)

    whole = snapshot(one, kill_at=0)

    assert (whole.returncode, whole.killed) == (0, False)

    after_the_switch = whole.steps.index("qmp transaction") + 2
    assert snapshot(two, kill_at=after_the_switch).killed
    assert world.active_in_qemu("web") == {"vda": str(two)}
    assert str(two) not in world.xml("web")
    assert guest.read_back()["vda"].ok
