"""What a domain may be found in: paused, off, saved, busy with somebody's job, or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import libvirt
import pytest

from reconciler.tools.hypervisor import deepest_chain
from tests.guests.domain_xml import DiskSource, Witness
from tests.guests.records import records_in
from tests.guests.scene import Scene, grown
from tests.guests.world import World

DISK_ONLY, ATOMIC, NO_METADATA = 16, 128, 4
"""VIR_DOMAIN_SNAPSHOT_CREATE_* of libvirt."""

ACTIVE = 4
"""VIR_DOMAIN_BLOCK_COMMIT_ACTIVE of libvirt."""

SLOW = ("--bandwidth", "128K")


def qcow2(path: Path, backing: str | None = None, backing_format: str = "qcow2") -> Path:
    below = ["-b", backing, "-F", backing_format] if backing else []
    size = [] if backing else ["64M"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), *size]
    subprocess.run(argv, check=True, cwd=path.parent)
    return path


def refused(scene: Scene, *said: str) -> str:
    """`apply` refuses, says so, and leaves every file as it is."""
    before = {path: path.stat().st_ino for path in scene.images()}
    done = scene.run("apply", "-y")
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert [word for word in said if word not in text] == [], text
    assert {p: p.stat().st_ino for p in scene.images()} == before
    return text


def source(scene: Scene, *, inactive: bool = True, target: str = "vda") -> Path:
    """The image that the XML of the domain has as a disk."""
    xml = scene.world.xml("web", inactive=inactive)
    disk = next(one for one in re.findall(r"<disk .*?</disk>", xml, re.S) if target in one)
    found = re.search(r"<source file='([^']*)'", disk)
    assert found
    return Path(found[1])


@contextmanager
def slow_apply(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    """`apply` with a job that takes seconds, once the job runs."""
    argv = scene.argv("apply", "-y", *SLOW)
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=subprocess.STDOUT, text=True) as apply:
        until = time.monotonic() + 30
        while "<blockjobs active='yes'>" not in scene.world.status_xml("web"):
            assert apply.poll() is None, apply.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield apply


def test_a_foreign_job_is_named_and_waited_for_by_the_operator(scene: Scene) -> None:
    grown(scene, "mon", "tue")
    scene.world.start_pull("web", "vda", str(scene.path("base")), bandwidth=64 * 1024)
    scene.want(vda="base <- mon <- tue <- wed")
    refused(scene, "pull job runs on web:vda")
    assert "pull" in scene.run("show").stdout

    scene.world.abort_job("web", "vda")
    scene.apply()

    assert scene.chain() == ["base", "mon", "tue", "wed"]
    assert scene.guest.errors() == []


def test_a_paused_guest_gets_overlays_and_keeps_its_merges_for_later(scene: Scene) -> None:
    grown(scene, "mon", "tue")
    scene.world.suspend("web")
    scene.want(vda="base <- mon <- tue <- wed")
    scene.apply()
    assert scene.world.state("web") == "paused"
    assert scene.chain() == ["base", "mon", "tue", "wed"]

    scene.want(vda="base <- mon <- wed")
    said = scene.apply()

    assert "paused" in said
    assert [waits for _, waits in scene.steps()] == [True, True]
    assert scene.chain() == ["base", "mon", "tue", "wed"]
    assert scene.world.state("web") == "paused"

    scene.world.resume("web")
    scene.guest.wait_for(5)
    scene.apply()

    assert scene.observed() == (["base", "mon", "wed"], [])
    assert scene.guest.read_back()["vda"].ok
    assert scene.guest.errors() == []


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("base <- mon <- wed", ["base", "mon"]),
        ("base <- tue <- wed", ["base", "tue"]),
        ("base <- mon <- tue", ["base", "mon"]),
    ],
    ids=["pull", "link", "pivot"],
)
def test_a_guest_that_powers_off_in_the_middle_of_a_job(
    scene: Scene, wanted: str, kept: list[str]
) -> None:
    grown(scene, "mon", "tue", "wed")
    views = scene.views(kept)
    scene.want(vda=wanted)
    with slow_apply(scene) as apply:
        scene.guest.say_stop()
        said, _ = apply.communicate(timeout=60)
    assert apply.returncode == 1, said
    assert "Traceback" not in said

    scene.apply()

    last = wanted.split(" <- ")[-1]
    assert scene.observed() == (wanted.split(" <- "), [])
    assert scene.records(last, durable=scene.guest.records()) == scene.guest.records()
    assert scene.views(kept) == views
    assert scene.world.boot("web").boot_verdicts()["vda"].ok


def test_a_guest_that_starts_between_the_steps_of_an_offline_apply(scene: Scene) -> None:
    grown(scene, "mon", "tue", "wed")
    scene.world.shutdown("web")
    durable = scene.guest.records()
    views = scene.views(["base", "tue"])
    wanted = ["base", "tue", "wed"]
    for at in range(1, 60):
        scene.want(vda="base <- tue <- wed")
        run = scene.run_killed(at, "apply", "-y")
        if not run.killed:
            break
        assert scene.records("wed", durable=durable) == durable, run.steps
        if at not in (3, 6):
            continue
        # the guest boots whatever was interrupted
        assert scene.world.boot("web").boot_verdicts()["vda"].ok, run.steps
        scene.guest.wait_for(3)
        done = scene.run("apply", "-y")
        assert done.returncode == 0 or "off" in done.stdout + done.stderr
        scene.world.shutdown("web")
        durable = scene.guest.records()
    scene.apply()
    assert scene.observed() == (wanted, [])
    assert scene.views(["base", "tue"]) == views
    assert scene.records("wed", durable=durable) == durable
    assert scene.world.boot("web").boot_verdicts()["vda"].ok


def test_the_active_image_goes_down_into_one_with_two_names(scene: Scene) -> None:
    grown(scene, "mon", "tue", "wed")
    scene.want(vda="base <- tue <- wed")
    scene.apply()
    scene.want(vda="base <- tue")
    scene.apply()
    scene.guest.wait_for(3)
    assert scene.chain() == ["base", "tue"]
    scene.world.shutdown("web")
    scene.apply()
    assert scene.files() == {"base", "tue"}
    assert source(scene) == scene.path("tue")
    assert scene.records("tue", durable=scene.guest.records()) == scene.guest.records()
    assert scene.world.boot("web").boot_verdicts()["vda"].ok


def test_a_saved_guest_is_merged_under_and_never_rolled_back(scene: Scene) -> None:
    grown(scene, "mon", "tue", "wed")
    scene.world.managed_save("web")
    scene.want(vda="base <- mon <- wed")
    scene.apply()
    assert scene.chain() == ["base", "mon", "wed"]
    assert scene.world.has_managed_save("web")

    scene.want('discard = ["wed.qcow2"]', vda="base <- mon <- thu")
    refused(scene, "managed save", "virsh managedsave-remove")
    scene.want(vda="base <- mon <- wed <- thu")
    refused(scene, "managed save", "virsh managedsave-remove")

    scene.want(vda="base <- mon <- wed")
    scene.world.start("web")
    scene.guest.wait_for(5)
    assert scene.guest.read_back()["vda"].ok
    assert scene.guest.errors() == []
    scene.want(vda="base <- mon <- wed <- thu")
    scene.apply()
    scene.guest.wait_for(3)


def test_a_rollback_while_the_guest_is_off(scene: Scene) -> None:
    grown(scene, "mon", "tue")
    scene.want('discard = ["tue.qcow2"]', vda="base <- mon <- wed")
    refused(scene, "running", "on_running")
    scene.world.shutdown("web")
    mon = scene.records("mon")

    scene.apply()

    assert scene.observed() == (["base", "mon", "wed"], [])
    assert source(scene) == scene.path("wed")
    assert scene.records("wed") == mon
    assert not scene.path("tue").exists()
    verdict = scene.world.boot("web").boot_verdicts()["vda"]
    assert verdict.ok
    assert verdict.highest == mon

    scene.guest.wait_for(3)
    scene.world.shutdown("web")
    scene.want('discard = ["wed.qcow2"]', vda="base <- mon")
    scene.apply()

    assert source(scene) == scene.path("mon")
    assert scene.records("mon") == mon
    assert scene.files() == {"base", "mon"}


def test_overlays_of_two_disks_while_the_guest_is_off(world: World) -> None:
    one, two = qcow2(world.images / "one.qcow2"), qcow2(world.images / "two.qcow2")
    guest = world.define("web", one, two)
    world.boot("web")
    guest.wait_for(8)
    world.shutdown("web")
    scene = Scene(world, guest)
    scene.want(vda="one <- one1", vdb="two <- two1")
    scene.apply()

    assert source(scene) == scene.path("one1")
    assert source(scene, target="vdb") == scene.path("two1")
    assert scene.steps("vda") == scene.steps("vdb") == []
    verdicts = world.boot("web").boot_verdicts()
    assert [verdict.ok for verdict in verdicts.values()] == [True, True]
    guest.wait_for(3)

    # one disk that cannot be done leaves the other right
    scene.path("two2").write_bytes(b"somebody's")
    scene.want(vda="one <- one1 <- one2", vdb="two <- two1 <- two2")
    done = scene.run("apply", "-y")
    assert done.returncode == 1
    assert "web:vdb" in done.stdout
    assert "two2.qcow2" in done.stdout
    assert scene.path("two2").read_bytes() == b"somebody's"
    assert world.active_in_qemu("web")["vdb"] == str(two.with_name("two1.qcow2"))
    assert guest.read_back()["vda"].ok


def taken(scene: Scene, name: str, *, memory: Path | None = None) -> None:
    """A snapshot of libvirt's own, with metadata; the guest goes on in the image *name*."""
    disk = f"<disk name='vda'><source file='{scene.path(name)}'/></disk>"
    saved = f"<memory snapshot='external' file='{memory}'/>" if memory else ""
    text = f"<domainsnapshot><name>{name}</name>{saved}<disks>{disk}</disks></domainsnapshot>"
    scene.world.create_snapshot("web", text, ATOMIC | (0 if memory else DISK_ONLY))
    scene.guest.wait_for(5)


def books(scene: Scene) -> dict[str, str]:
    """The image that holds the state of each snapshot, as libvirt's metadata has it."""
    found = {}
    for name in scene.world.snapshots("web"):
        xml = scene.world.snapshot_xml("web", name).partition("<domain ")[2]
        then = re.search(r"<source file='([^']*)'", xml)
        assert then
        found[name] = Path(then[1]).stem
    return found


def test_libvirts_books_never_name_a_state_that_reads_otherwise(scene: Scene) -> None:
    """Each snapshot means the image below the overlay that its creation made."""
    world = scene.world
    for name in ("s1", "s2", "s3", "s4"):
        taken(scene, name)
    scene.want(vda="base <- s1 <- s2 <- s3 <- s4")
    scene.apply()
    assert books(scene) == {"s1": "base", "s2": "s1", "s3": "s2", "s4": "s3"}

    scene.want(vda="base <- s2 <- s3 <- s4")  # while it runs: the state of s1 is that of s2
    scene.apply()
    assert books(scene) == {"s1": "base", "s3": "s2", "s4": "s3"}

    scene.want(vda="base <- s2 <- s4")
    scene.apply()
    assert books(scene) == {"s1": "base", "s3": "s2"}

    scene.want(vda="base <- s2")  # the guest writes to s2 again
    scene.apply()
    assert books(scene) == {"s1": "base"}

    world.stop("web")
    scene.want('discard = ["s2.qcow2"]', vda="base")
    scene.apply()
    assert world.snapshots("web") == []


def test_metadata_goes_with_an_image_whose_removal_was_interrupted(scene: Scene) -> None:
    """Killed after the merge, before the file goes: nothing names it at last."""
    taken(scene, "mon")
    taken(scene, "tue")
    scene.want(vda="base <- tue")
    for at in range(1, 60):
        run = scene.run_killed(at, "apply", "-y")
        gone = scene.chain() == ["base", "tue"]
        if gone or not run.killed:
            break
    scene.apply()

    assert scene.files() == {"base", "tue"}
    assert scene.world.snapshots("web") == ["mon"]


def test_memory_of_a_forgotten_snapshot_is_named_and_stays(scene: Scene) -> None:
    memory = scene.world.images / "saved.mem"
    taken(scene, "mon")
    taken(scene, "tue", memory=memory)
    scene.want(vda="base <- tue")

    said = scene.apply()

    assert f"{memory} (" in said.replace("\n", "")
    assert memory.exists()
    assert scene.world.snapshots("web") == ["mon"]
    assert scene.guest.read_back()["vda"].ok


def test_an_image_that_another_domain_stands_on_stays(scene: Scene) -> None:
    world = scene.world
    grown(scene, "mon", "tue", "wed")
    world.define("other", qcow2(world.images / "clone.qcow2", str(scene.path("mon"))))
    mon = scene.path("mon").read_bytes()
    clone = scene.path("clone").read_bytes()

    # dropped, but shared: its data goes up, and it stays
    scene.want(vda="base <- wed")
    scene.apply()
    assert scene.chain() == ["base", "wed"]
    assert scene.path("mon").read_bytes() == mon
    assert scene.path("clone").read_bytes() == clone

    # what another domain has as its own disk is not written to
    scene.guest.wait_for(3)
    grown(scene, "thu")
    world.define("third", scene.path("wed"))
    scene.want(vda="base <- wed")
    wed = scene.path("wed").read_bytes()
    done = scene.run("apply", "-y")
    text = done.stdout + done.stderr
    assert "third" in text
    assert done.returncode == 1 or "deferred" in text
    assert scene.path("wed").read_bytes() == wed
    assert scene.chain() == ["base", "wed", "thu"]


def test_relative_names_stay_relative(world: World) -> None:
    qcow2(world.images / "base.qcow2")
    for name, below in (("mon", "base"), ("tue", "mon"), ("wed", "tue")):
        qcow2(world.images / f"{name}.qcow2", f"{below}.qcow2")
    guest = world.define("web", world.images / "wed.qcow2")
    world.boot("web")
    guest.wait_for(5)
    scene = Scene(world, guest)

    def recorded(name: str) -> str:
        argv = ["qemu-img", "info", "-U", str(scene.path(name))]
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        found = re.search(r"backing file: (\S+)", told)
        return found[1] if found else ""

    scene.want(vda="base <- mon <- tue <- wed <- thu")
    scene.apply()
    guest.wait_for(3)
    assert recorded("thu") == "wed.qcow2"

    scene.want(vda="base <- mon <- tue <- thu")  # pull
    scene.apply()
    assert recorded("thu") == "tue.qcow2"

    scene.want(vda="base <- tue <- thu")  # commit and link
    scene.apply()
    guest.wait_for(3)
    world.shutdown("web")
    scene.apply()

    assert (recorded("tue"), recorded("thu")) == ("base.qcow2", "tue.qcow2")
    assert scene.files() == {"base", "tue", "thu"}
    assert scene.records("thu", durable=guest.records()) == guest.records()
    assert world.boot("web").boot_verdicts()["vda"].ok


def test_a_raw_base(world: World) -> None:
    raw = world.images / "base.raw"
    raw.write_bytes(b"")
    with raw.open("r+b") as file:
        file.truncate(64 * 1024 * 1024)
    guest = world.define("web", DiskSource(raw, format="raw"))
    world.boot("web")
    guest.wait_for(5)
    scene = Scene(world, guest)

    def want(*names: str) -> None:
        scene.want(vda=" <- ".join(names))
        text = scene.spec.read_text().replace(
            '"base.qcow2"', '{ file = "base.raw", format = "raw" }'
        )
        scene.spec.write_text(text)

    want("base", "mon")
    scene.apply()
    guest.wait_for(5)
    want("base", "mon", "tue")
    scene.apply()
    guest.wait_for(5)
    base = records_in(raw, format="raw")
    want("base", "tue")
    scene.apply()
    assert scene.observed() == (["base", "tue"], [])
    assert records_in(raw, format="raw") == base

    want("base")  # back into the raw image
    scene.apply()
    guest.wait_for(5)

    assert scene.observed() == (["base"], [])
    assert guest.errors() == []
    assert guest.read_back()["vda"].ok
    world.shutdown("web")
    assert records_in(raw, format="raw", durable=guest.records()) == guest.records()
    assert world.boot("web").boot_verdicts()["vda"].ok


def test_the_active_image_grows_while_the_guest_runs(scene: Scene) -> None:
    grown(scene, "mon")
    text = scene.spec.read_text().replace('"mon.qcow2"', '{ file = "mon.qcow2", size = "96M" }')
    scene.spec.write_text(text)
    scene.apply()

    argv = ["qemu-img", "info", "-U", str(scene.path("mon"))]
    assert "96 MiB" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert scene.steps() == []
    scene.guest.wait_for(3)
    assert scene.guest.read_back()["vda"].ok
    assert scene.guest.errors() == []


def test_what_libvirt_does_not_have_as_the_spec_says_is_refused(world: World) -> None:
    base = qcow2(world.images / "base.qcow2")
    guest = world.define("web", base)
    scene = Scene(world, guest)
    scene.want(vdz="base <- mon")
    refused(scene, "no disk vdz", "vda")
    scene.want(vda="base <- mon")
    scene.spec.write_text(scene.spec.read_text().replace("domains.web", "domains.nobody"))
    refused(scene, "no domain nobody", "web")

    xml = world.xml("web", inactive=True)
    scene.want(vda="base <- mon")
    disk = re.search(r"<source file='[^']*'/>", xml)
    assert disk
    for kind, there in (
        ("network", "<source protocol='nbd' name='x'><host name='localhost'/></source>"),
        ("block", "<source dev='/dev/null'/>"),
        ("volume", "<source pool='default' volume='x'/>"),
    ):
        changed = xml.replace("<disk type='file'", f"<disk type='{kind}'")
        world.define_xml(changed.replace(disk[0], there))
        refused(scene, f"type {kind}")
    world.define_xml(xml.replace(disk[0], f"{disk[0]}<transient/>"))
    refused(scene, "a transient disk", "<transient/>")
    world.define_xml(xml)

    world.start("web")
    other = qcow2(world.images / "other.qcow2")
    world.define_xml(xml.replace(str(base), str(other)))
    refused(scene, str(other), "definition")
    world.define_xml(xml)
    scene.apply()
    assert scene.chain() == ["base", "mon"]


def test_a_commit_that_was_given_up_leaves_locks_and_no_lost_track(scene: Scene) -> None:
    """QEMU 7.2 keeps the base of an aborted active commit open for writing."""
    grown(scene, "mon")
    scene.world.start_commit(
        "web", "vda", str(scene.path("base")), bandwidth=64 * 1024, flags=ACTIVE
    )
    scene.world.abort_job("web", "vda")
    scene.world.wait_no_job("web", "vda")
    assert scene.steps() == []

    scene.adopt()  # the commit may have written to base, whose restore point is another one then
    grown(scene, "tue", "wed")
    scene.want(vda="base <- mon <- wed")
    scene.apply()
    scene.adopt()  # and QEMU, which has it open for writing, writes its tables when it flushes
    scene.want(vda="base")
    scene.apply()
    scene.guest.wait_for(5)

    assert scene.chain() == ["base"]
    assert scene.guest.read_back()["vda"].ok
    assert scene.guest.errors() == []


def test_a_definition_that_spells_an_old_chain_is_put_right(scene: Scene) -> None:
    grown(scene, "mon", "tue")
    scene.world.stop("web")
    argv = ["qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b"]
    subprocess.run([*argv, str(scene.path("base")), str(scene.path("tue"))], check=True)
    scene.path("mon").unlink()
    scene.want(vda="base <- tue")

    chain, steps = scene.observed()
    assert chain == ["base", "tue"]
    assert [step["action"] for step in steps] == ["attach"]
    assert "spells the chain out as base <- mon <- tue" in steps[0]["reason"]
    scene.apply()

    assert scene.steps() == []
    assert scene.world.boot("web").boot_verdicts()["vda"].ok


def test_a_transient_domain_is_not_stopped_for_a_rollback(scene: Scene) -> None:
    grown(scene, "mon")
    scene.world.undefine("web")
    rest = 'discard = ["mon.qcow2"]\non_running = "restart"\nshutdown_timeout = 15'
    scene.want(rest, vda="base <- tue")

    scene.apply_refused("web is transient: once stopped, it is gone")

    assert scene.world.state("web") == "running"
    assert scene.chain() == ["base", "mon"]
    scene.guest.wait_for(3)


def test_a_limit_of_the_speed_never_keeps_the_active_image_from_going_down(world: World) -> None:
    """The guest writes faster than the limit copies: at the end the limit is lifted."""
    guest = world.define("web", qcow2(world.images / "base.qcow2"), witness=Witness(pause_ms=0))
    world.boot("web")
    guest.wait_for(10)
    scene = Scene(world, guest)
    grown(scene, "mon")
    scene.want(vda="base")

    done = scene.run("apply", "-y", "--bandwidth", "64K")

    assert done.returncode == 0, done.stdout + done.stderr
    assert scene.chain() == ["base"]
    assert guest.errors() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to give")
def test_what_becomes_active_belongs_to_whom_the_active_image_did(scene: Scene) -> None:
    grown(scene, "mon")
    os.chown(scene.path("mon"), 4711, 4711)
    scene.path("mon").chmod(0o600)
    scene.path("base").chmod(0o644)
    scene.want(vda="base")

    scene.apply()

    there = scene.path("base").stat()
    assert (there.st_uid, there.st_gid, there.st_mode & 0o7777) == (4711, 4711, 0o600)


def test_a_paused_guest_is_left_to_whoever_works_at_its_disk(scene: Scene) -> None:
    """Another apply may have paused it just now, for its flush."""
    grown(scene, "mon")
    scene.want(vda="base <- mon <- tue")
    for at in range(1, 60):
        run = scene.run_killed(at, "apply", "-y")
        assert run.killed
        if "unfinished" in next((scene.world.images / "state").glob("*.toml")).read_text():
            break
    scene.world.suspend("web")
    lock = next((scene.world.images / "state" / "locks").glob("*vda"))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = scene.run("apply", "-y", "--lock-timeout", "0.2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert scene.world.state("web") == "paused"

    done = scene.run("apply", "-y")

    assert scene.world.state("web") == "running"
    assert "stood still for a flush" in done.stdout + done.stderr


def test_a_domain_whose_image_is_gone_goes_on_from_one_that_is_there(scene: Scene) -> None:
    """The definition names the lost image: adopting writes the other one there."""
    grown(scene, "mon")
    scene.world.shutdown("web")
    scene.path("mon").unlink()
    error = scene.run("plan", "--json").stdout
    assert "virt-chain adopt web:vda base.qcow2" in error
    assert "is its folder mounted?" in error
    assert scene.files() == {"base"}

    scene.adopt("base.qcow2")
    scene.want(vda="base <- tue")
    scene.apply()

    assert scene.chain() == ["base", "tue"]
    scene.world.boot("web")
    scene.guest.wait_for(5)


def test_a_chain_never_grows_so_deep_that_libvirt_loses_the_guest(world: World) -> None:
    """Each command opens libvirt's driver anew, which meets the guest as a restarted libvirtd."""
    names = [f"i{number}" for number in range(26)]
    for below, name in pairwise([None, *names[:22]]):
        qcow2(world.images / f"{name}.qcow2", below and f"{below}.qcow2")
    guest = world.define("web", world.images / "i21.qcow2")
    world.boot("web")
    guest.wait_for(5)
    scene = Scene(world, guest)
    scene.want(vda=" <- ".join(names))
    limited = deepest_chain(libvirt.getVersion())
    there = names[:limited]

    if limited:
        refused(scene, "the chain would grow to", f"with more than {limited}", "libvirt 12.0")
    else:
        scene.apply()

    assert scene.chain() == there
    assert world.state("web") == "running"
    guest.wait_for(5)
    world.destroy("web")
    assert world.boot("web").boot_verdicts()["vda"].ok
    scene.want(vda=" <- ".join([names[0], *there[4:]]))
    scene.apply()
    guest.wait_for(5)
