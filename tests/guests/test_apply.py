"""`plan` and `apply` on guests that run and write all the time."""

from __future__ import annotations

import os

from tests.guests.scene import Scene, grown

DAYS = int(os.environ.get("VIRT_CHAIN_DAYS", "20"))


def test_a_snapshot_a_pull_and_an_active_commit_while_the_guest_writes(scene: Scene) -> None:
    grown(scene, "mon", "tue", "wed")
    mon = scene.records("mon")
    assert scene.chain() == ["base", "mon", "tue", "wed"]

    scene.want(vda="base <- mon <- wed")
    scene.apply()
    assert scene.chain() == ["base", "mon", "wed"]
    assert not (scene.world.images / "tue.qcow2").exists()

    scene.guest.wait_for(5)
    scene.want(vda="base <- mon")
    scene.apply()
    scene.guest.wait_for(5)

    assert scene.chain() == ["base", "mon"]
    assert not (scene.world.images / "wed.qcow2").exists()
    assert scene.guest.errors() == []
    assert scene.guest.read_back()["vda"].ok
    scene.world.kill_qemu("web")
    assert scene.records("mon", durable=scene.guest.records()) > mon


def test_a_middle_restore_point_goes_by_a_link_and_gets_its_name_when_the_guest_is_off(
    scene: Scene,
) -> None:
    grown(scene, "mon", "tue", "wed", "thu")
    tue, wed = scene.records("tue"), scene.records("wed")

    scene.want(vda="base <- mon <- wed <- thu")
    scene.apply()

    assert scene.chain() == ["base", "mon", "wed", "thu"]
    assert scene.records("wed") == wed > tue
    images = scene.world.images
    assert (images / "wed.qcow2").samefile(images / "tue.qcow2")
    waiting = scene.plan()
    assert [
        (step["action"], step["deferred"] is not None)
        for step in waiting["domains"][0]["disks"][0]["steps"]
    ] == [("rename", True)]
    assert scene.run("plan", "--detailed-exitcode").returncode == 0

    scene.guest.wait_for(5)
    scene.world.shutdown("web")
    scene.apply()

    assert not (images / "tue.qcow2").exists()
    assert scene.plan()["domains"][0]["disks"][0]["steps"] == []
    assert scene.records("thu", durable=scene.guest.records()) == scene.guest.records()
    assert scene.records("wed") == wed
    assert scene.world.boot("web").boot_verdicts()["vda"].ok
    assert scene.guest.errors() == []


def test_a_chain_stays_short_for_weeks_without_a_stop(scene: Scene) -> None:
    """Three restore points are kept; each day the oldest goes and a new one comes."""
    chain, views = ["base"], {}
    for day in range(DAYS):
        chain = ["base", *chain[1:][-3:], f"d{day}"]
        scene.want(vda=" <- ".join(chain))
        scene.apply()
        views[chain[-2]] = scene.records(chain[-2])
        scene.guest.wait_for(1)
    assert scene.chain() == chain

    assert scene.guest.errors() == []
    scene.world.shutdown("web")
    scene.apply()

    assert scene.files() == set(chain)
    assert scene.views(chain[:-1]) == {name: views[name] for name in chain[:-1]}
    assert scene.records(chain[-1], durable=scene.guest.records()) == scene.guest.records()
    assert scene.world.boot("web").boot_verdicts()["vda"].ok
