"""`plan` and `apply` on guests that run and write all the time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guests.guest import Guest
from tests.guests.records import records_in
from tests.guests.world import World

COMMAND = [sys.executable, "-m", "reconciler"]


@dataclass
class Scene:
    """One domain `web`, its spec, and what its guest has seen."""

    world: World
    guest: Guest
    chains: dict[str, list[str]] = field(default_factory=dict)

    @property
    def spec(self) -> Path:
        return self.world.images / "web.toml"

    def want(self, rest: str = "", **chains: str) -> None:
        """Write the spec: the chain of each target as ``base <- mon``."""
        lines = ["version = 1", f'defaults.connection = "{self.world.uri}"']
        for target, chain in chains.items():
            listed = ", ".join(f'"{name.strip()}.qcow2"' for name in chain.split("<-"))
            lines += [f"[domains.web.disks.{target}]", f"chain = [{listed}]", rest]
        self.spec.write_text("\n".join(lines) + "\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [*COMMAND, *words, "--state-dir", str(self.world.images / "state")]
        return subprocess.run([*argv, str(self.spec)], text=True, capture_output=True, check=False)

    def apply(self) -> str:
        done = self.run("apply", "-y")
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout, done.stderr)
        return done.stdout

    def plan(self) -> dict:
        done = self.run("plan", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def chain(self, target: str = "vda") -> list[str]:
        """Names of the observed chain, base first."""
        shown = json.loads(self.run("show", "--json").stdout)
        disk = next(one for one in shown["disks"] if one["target"] == target)
        return [Path(image["path"]).stem for image in disk["images"]]

    def records(self, name: str, *, durable: int = 0) -> int:
        """The highest record in the view of an image, all up to *durable* being there."""
        return records_in(self.world.images / f"{name}.qcow2", durable=durable)


@pytest.fixture
def scene(world: World) -> Scene:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(world.images / "base.qcow2"), "64M"]
    subprocess.run(argv, check=True)
    guest = world.define("web", world.images / "base.qcow2")
    world.boot("web")
    guest.wait_for(10)
    return Scene(world, guest)


def grown(scene: Scene, *names: str) -> None:
    """Let the chain grow by *names*, records in each."""
    chain = scene.chain() if scene.spec.exists() else ["base"]
    for name in names:
        chain.append(name)
        scene.want(vda=" <- ".join(chain))
        scene.apply()
        scene.guest.wait_for(8)


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


def test_a_chain_stays_short_for_many_days_without_a_stop(scene: Scene) -> None:
    """Three restore points are kept; each day the oldest goes and a new one comes."""
    days = [f"d{number}" for number in range(12)]
    chain = ["base"]
    views: dict[str, int] = {}
    for day in days:
        if len(chain) > 1:
            views[chain[-1]] = 0
        chain = ["base", *chain[1:][-3:], day]
        scene.want(vda=" <- ".join(chain))
        scene.apply()
        for name in chain[:-1]:
            views[name] = scene.records(name) if not views.get(name) else views[name]
            assert scene.records(name) == views[name]
        scene.guest.wait_for(4)
        assert scene.chain() == chain

    scene.world.shutdown("web")
    scene.apply()

    names = {path.stem for path in scene.world.images.glob("*.qcow2")}
    assert names == set(chain)
    assert {name: scene.records(name) for name in chain[:-1]} == {n: views[n] for n in chain[:-1]}
    assert scene.records(chain[-1], durable=scene.guest.records()) == scene.guest.records()
    assert scene.world.boot("web").boot_verdicts()["vda"].ok
