"""A guest that is stopped for a rollback runs again, wherever `apply` is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.guests.scene import Scene, grown
from tests.guests.test_several import two_disks
from tests.guests.world import World

BACK = 'discard = ["mon.qcow2"]\non_running = "restart"\nshutdown_timeout = 15'
KILLER = """\
#!/bin/bash
if [ "$1" = create ] && [ "{when}" = before ]; then kill -9 $PPID; exit 1; fi
/usr/bin/env -i PATH=/usr/bin:/bin qemu-img "$@"; ended=$?
if [ "$1" = create ] && [ "{when}" = after ]; then kill -9 $PPID; fi
exit $ended
"""


@pytest.fixture
def rollback(scene: Scene) -> Scene:
    """A guest that runs, and is to be stopped for a rollback."""
    grown(scene, "mon")
    scene.want(BACK, vda="base <- tue")
    return scene


def state_text(scene: Scene) -> str:
    return next((scene.world.images / "state").glob("*.toml")).read_text()


def killed_when(scene: Scene, there: Callable[[], bool]) -> None:
    """Run `apply`, and kill it as soon as something is there."""
    with subprocess.Popen(
        scene.argv("apply", "-y"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as apply:
        until = time.monotonic() + 60
        while not there():
            assert apply.poll() is None
            assert time.monotonic() < until
            time.sleep(0.001)
        os.kill(apply.pid, signal.SIGKILL)


def runs(scene: Scene) -> bool:
    try:
        return scene.world.qemu_pid("web") > 0
    except ProcessLookupError:
        return False


def killed_before_it_stops(scene: Scene, _: Path) -> None:
    killed_when(scene, lambda: "restart = true" in state_text(scene))


def killed_as_it_stops(scene: Scene, _: Path) -> None:
    killed_when(scene, lambda: not runs(scene))


def killed_by_qemu_img(scene: Scene, folder: Path, when: str) -> None:
    fake = folder / "qemu-img"
    fake.write_text(KILLER.format(when=when))
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        scene.run("apply", "-y")
    assert not runs(scene)


def killed_before_the_overlay(scene: Scene, folder: Path) -> None:
    killed_by_qemu_img(scene, folder, "before")


def killed_after_the_overlay(scene: Scene, folder: Path) -> None:
    killed_by_qemu_img(scene, folder, "after")


def killed_before_it_starts(scene: Scene, _: Path) -> None:
    config = scene.world.root / "etc" / "qemu" / "web.xml"
    killed_when(scene, lambda: "tue.qcow2" in config.read_text())


KILLS = [
    killed_before_it_stops,
    killed_as_it_stops,
    killed_before_the_overlay,
    killed_after_the_overlay,
    killed_before_it_starts,
]


@pytest.mark.parametrize("kill", KILLS)
def test_the_next_apply_ends_it_and_the_guest_runs(
    rollback: Scene, tmp_path: Path, kill: Callable[[Scene, Path], None]
) -> None:
    base = rollback.records("base")
    kill(rollback, tmp_path)

    rollback.apply()

    assert rollback.world.state("web") == "running"
    assert rollback.chain() == ["base", "tue"]
    assert rollback.files() == {"base", "tue"}
    assert "restart" not in state_text(rollback)
    assert rollback.records("base") == base


@pytest.mark.parametrize("kill", [killed_as_it_stops, killed_before_the_overlay])
def test_another_spec_starts_the_guest_again_too(
    rollback: Scene, tmp_path: Path, kill: Callable[[Scene, Path], None]
) -> None:
    kill(rollback, tmp_path)
    rollback.want(vda="base <- mon")

    rollback.apply()

    assert rollback.world.state("web") == "running"
    assert "restart" not in state_text(rollback)
    assert rollback.chain() == ["base", "mon"]


def test_the_guest_runs_again_where_the_spec_has_lost_the_disk_it_was_stopped_for(
    world: World, tmp_path: Path
) -> None:
    scene = two_disks(world)
    scene.want(vda="a <- mon", vdb="b")
    scene.apply()
    scene.want(BACK, vda="a <- tue", vdb="b")
    killed_before_the_overlay(scene, tmp_path)
    scene.want(vdb="b")

    scene.apply()

    assert world.state("web") == "running"
    assert "restart" not in state_text(scene)


def test_a_plan_that_is_refused_starts_the_guest_again_too(rollback: Scene, tmp_path: Path) -> None:
    killed_before_the_overlay(rollback, tmp_path)
    rollback.want(vda="base <- gone <- mon")

    rollback.apply_refused("gone.qcow2 does not exist")

    assert rollback.world.state("web") == "running"


def test_a_guest_that_ran_before_and_was_shut_off_by_a_person_stays_off(rollback: Scene) -> None:
    rollback.apply()
    rollback.world.destroy("web")

    rollback.apply()

    assert rollback.world.state("web") == "shutoff"


def test_a_held_disk_that_is_not_in_the_spec_keeps_its_guest_running(rollback: Scene) -> None:
    held = ["hold", "web:vdb", "--reason", "backup", "--state-dir"]
    xml = (
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='{rollback.world.images}/other.img'/><target dev='vdb' bus='virtio'/></disk>"
    )
    (rollback.world.images / "other.img").write_bytes(bytes(1024 * 1024))
    rollback.world.attach_disk("web", xml, 1)
    done = forked.run([*held, str(rollback.world.images / "state")])
    assert done.returncode == 0, done.stdout + done.stderr

    rollback.apply_refused("held by")

    assert rollback.world.state("web") == "running"
    assert rollback.chain() == ["base", "mon"]
