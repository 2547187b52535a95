"""Several disks and several domains: what happens together, and what does not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import forked
from tests.guests.guest import Guest
from tests.guests.scene import Scene
from tests.guests.world import World


def image(world: World, name: str, backing: str | None = None) -> None:
    below = ["-b", f"{backing}.qcow2", "-F", "qcow2"] if backing else []
    size = [] if backing else ["64M"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, f"{name}.qcow2", *size]
    subprocess.run(argv, check=True, cwd=world.images)


def two_disks(world: World) -> Scene:
    for name in ("a", "b"):
        image(world, name)
    guest = world.define("web", world.images / "a.qcow2", world.images / "b.qcow2")
    world.boot("web")
    guest.wait_for(10)
    return Scene(world, guest)


def span(scene: Scene, disk: str, number: int) -> tuple[int, int]:
    """Lines of the guest's log between which record *number* was the last of *disk*."""
    lines = scene.guest.lines()
    at = {int(line.split()[2]): n for n, line in enumerate(lines) if line.startswith(f"W {disk} ")}
    return at[number - 1], at[number + 1]


def test_a_snapshot_of_two_disks_is_one_moment(world: World) -> None:
    """Some moment in the guest's log fits what both disks had."""
    scene = two_disks(world)

    scene.want(vda="a <- a1 <- a2", vdb="b <- b1 <- b2")
    scene.apply()
    scene.guest.wait_for(5)

    for lower, upper in (("a", "b"), ("a1", "b1")):
        one = span(scene, "vda", scene.records(lower))
        two = span(scene, "vdb", scene.records(upper, disk="vdb"))
        assert max(one[0], two[0]) <= min(one[1], two[1])
    assert (scene.chain("vda"), scene.chain("vdb")) == (["a", "a1", "a2"], ["b", "b1", "b2"])
    assert scene.guest.errors() == []


def test_a_disk_that_cannot_be_planned_leaves_the_other_right(world: World) -> None:
    scene = two_disks(world)

    scene.want(vda="a <- a1", vdb="gone <- b <- b1")
    done = scene.run("apply", "-y")

    assert done.returncode == 1
    assert "gone.qcow2 does not exist" in done.stdout + done.stderr
    assert "1 disk not as the spec says" in done.stderr
    assert (scene.chain("vda"), scene.chain("vdb")) == (["a", "a1"], ["b"])


def test_both_disks_of_a_domain_that_is_off_are_attached_at_once(world: World) -> None:
    scene = two_disks(world)
    world.shutdown("web")

    scene.want(vda="a <- a1", vdb="b <- b1")
    scene.apply()

    inactive = world.xml("web", inactive=True)
    assert "/a1.qcow2" in inactive
    assert "/b1.qcow2" in inactive
    verdicts = world.boot("web").boot_verdicts()
    assert verdicts["vda"].ok
    assert verdicts["vdb"].ok
    scene.guest.wait_for(3)
    assert world.active_in_qemu("web") == {
        "vda": str(world.images / "a1.qcow2"),
        "vdb": str(world.images / "b1.qcow2"),
    }


def test_a_rollback_of_a_running_guest_restarts_it_where_the_spec_says_so(world: World) -> None:
    scene = two_disks(world)
    scene.want(vda="a <- a1", vdb="b")
    scene.apply()
    scene.guest.wait_for(10)
    then = scene.records("a")

    back = 'discard = ["a1.qcow2"]'
    scene.want(back, vda="a <- a2", vdb="b")
    refused = scene.run("plan")
    assert refused.returncode == 1
    assert 'on_running = "restart"' in refused.stdout

    scene.want(f'{back}\non_running = "restart"\nshutdown_timeout = 20', vda="a <- a2", vdb="b")
    assert "THE GUEST WILL BE STOPPED" in scene.run("plan").stdout
    scene.guest.note_start()
    scene.apply()

    assert world.state("web") == "running"
    assert scene.guest.wait_booted()["vda"].ok
    assert scene.guest.boot_verdicts()["vda"].highest == then
    assert not (world.images / "a1.qcow2").exists()
    assert scene.plan()["domains"][0]["disks"][0]["steps"] == []


def test_a_guest_that_does_not_start_gets_its_disk_back(world: World) -> None:
    scene = two_disks(world)
    scene.want(vda="a <- a1", vdb="b")
    scene.apply()
    scene.guest.wait_for(5)
    hook = (
        "import sys\n"
        "from reconciler.tools import hypervisor as h\n"
        "start, calls = h.Hypervisor.start, []\n"
        "def failing(self, name):\n"
        "    calls.append(name)\n"
        "    if len(calls) == 1:\n"
        "        raise h.HypervisorError('no memory left')\n"
        "    start(self, name)\n"
        "h.Hypervisor.start = failing\n"
        "from reconciler.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )

    rest = 'discard = ["a1.qcow2"]\non_running = "restart"'
    scene.want(rest, vda="a <- a2", vdb="b")
    scene.guest.note_start()
    argv = scene.argv("apply", "-y")
    argv[1:3] = ["-c", hook]
    done = subprocess.run(argv, text=True, capture_output=True, check=False)

    assert done.returncode == 1
    assert "no memory left; the domain has a1 as its disk again" in done.stderr
    assert world.state("web") == "running"
    assert scene.guest.wait_booted()["vda"].ok
    scene.want(vda="a <- a1", vdb="b")
    assert scene.chain() == ["a", "a1"]
    assert not (world.images / "a2.qcow2").exists()
    assert scene.plan()["domains"][0]["disks"][0]["steps"] == []


def test_a_guest_is_not_started_on_a_rollback_of_one_of_its_disks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = two_disks(world)
    scene.want('on_running = "restart"\nshutdown_timeout = 20', vda="a", vdb="b")
    where = ["--spec", str(scene.spec), "--state-dir", str(world.images / "state")]
    for name in ("mon", "tue"):
        assert forked.run(["snapshot", "web", name, "-y", *where], timeout=60).returncode == 0
        scene.guest.wait_for(4)
    text, there = scene.spec.read_text(), scene.files()
    fake = tmp_path / "qemu-img"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in create*vdb*) exit 1;; esac\nexec /usr/bin/qemu-img "$@"\n'
    )
    fake.chmod(0o755)
    scene.guest.note_start()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        failed = forked.run(["rollback", "web", "--to", "mon", "-y", *where], timeout=120)

    assert failed.returncode == 1
    assert "the domain has tue-vda as its disk again" in failed.stderr
    assert f"nothing of this was done to web:vda, web:vdb; {scene.spec} is as" in failed.stderr
    assert scene.spec.read_text() == text
    assert world.state("web") == "running"
    assert scene.guest.wait_booted()["vda"].ok
    assert scene.files() == there
    assert world.active_in_qemu("web") == {
        "vda": str(world.images / "tue-vda.qcow2"),
        "vdb": str(world.images / "tue-vdb.qcow2"),
    }


def test_domains_are_worked_on_side_by_side(world: World) -> None:
    lines = ["version = 1", f'defaults.connection = "{world.uri}"']
    guests: list[Guest] = []
    for name in ("one", "two"):
        image(world, name)
        guests.append(world.define(name, world.images / f"{name}.qcow2"))
        world.boot(name)
        chain = f'["{name}.qcow2", "{name}-next.qcow2"]'
        lines += [f"[domains.{name}.disks.vda]", f"chain = {chain}"]
    scene = Scene(world, guests[0])
    scene.spec.write_text("\n".join(lines) + "\n")

    done = scene.run("apply", "-y", "--jobs", "2", "--json")

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert sorted((one["domain"], one["status"]) for one in results) == [
        ("one", "applied"),
        ("two", "applied"),
    ]
    for guest in guests:
        guest.wait_for(3)
        assert guest.read_back()["vda"].ok


def test_a_freeze_that_is_required_and_not_possible_leaves_everything(world: World) -> None:
    scene = two_disks(world)

    scene.want('quiesce = "require"', vda="a <- a1", vdb="b")
    done = scene.run("apply", "-y")

    assert done.returncode == 1
    assert 'write quiesce = "try" to go on without a freeze' in done.stderr
    assert scene.chain() == ["a"]

    scene.want('quiesce = "try"', vda="a <- a1", vdb="b")
    assert "is not frozen" in scene.run("apply", "-y").stderr
    assert scene.chain() == ["a", "a1"]
