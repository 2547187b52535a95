"""One guest, its spec, and the command line that brings its disks there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import forked
from tests.guests.guest import Guest
from tests.guests.killing import Run
from tests.guests.records import records_in
from tests.guests.world import World

COMMAND = [sys.executable, "-m", "reconciler"]


@dataclass
class Scene:
    """One domain `web`, its spec, and what its guest has seen."""

    world: World
    guest: Guest

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

    def argv(self, *words: str) -> list[str]:
        """The command line of ``virt-chain WORDS`` on the spec."""
        return [*COMMAND, *self.words(*words)]

    def words(self, *words: str) -> list[str]:
        """Those of ``virt-chain WORDS`` on the spec."""
        return [*words, "--state-dir", str(self.world.images / "state"), str(self.spec)]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return forked.run(self.words(*words), timeout=40)

    def run_killed(self, at: int, *words: str) -> Run:
        """Run ``virt-chain WORDS`` and kill it before its step *at*."""
        return self.world.run_killed(self.argv(*words), at)

    def apply(self) -> str:
        done = self.run("apply", "-y")
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout, done.stderr)
        return done.stdout

    def adopt(self, *words: str) -> None:
        """`adopt` what is there, for disk ``vda``."""
        state = ["--state-dir", str(self.world.images / "state"), "--spec", str(self.spec)]
        done = forked.run(["adopt", "web:vda", *words, "-y", *state], timeout=40)
        assert done.returncode == 0, done.stdout + done.stderr

    def apply_refused(self, said: str) -> str:
        """`apply` fails, and says *said*."""
        done = self.run("apply", "-y")
        assert done.returncode == 1, done.stdout + done.stderr
        assert said in done.stdout + done.stderr
        return done.stdout + done.stderr

    def plan(self) -> dict:
        done = self.run("plan", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def observed(self, target: str = "vda") -> tuple[list[str], list[dict]]:
        """The observed chain of a disk, and the steps that `plan` has for it."""
        disks = self.plan()["domains"][0]["disks"]
        disk = next(one for one in disks if one["target"] == target)
        return [Path(path).stem for path in disk["observed"]], disk["steps"]

    def steps(self, target: str = "vda") -> list[tuple[str, bool]]:
        """The action of each step that `plan` has for a disk, and whether it waits."""
        steps = self.observed(target)[1]
        return [(step["action"], step["deferred"] is not None) for step in steps]

    def chain(self, target: str = "vda") -> list[str]:
        """Names of the observed chain, base first."""
        shown = json.loads(self.run("show", "--json").stdout)
        disk = next(one for one in shown["disks"] if one["target"] == target)
        return [Path(image["path"]).stem for image in disk["images"]]

    def path(self, name: str) -> Path:
        return self.world.images / f"{name}.qcow2"

    def images(self) -> list[Path]:
        """All images on disk, half-made ones too."""
        return sorted(path for path in self.world.images.iterdir() if ".qcow2" in path.name)

    def files(self) -> set[str]:
        """The names of all images on disk, as a chain has them."""
        return {path.name.removesuffix(".qcow2") for path in self.images()}

    def records(self, name: str, *, durable: int = 0, disk: str = "vda") -> int:
        """The highest record in the view of an image, all up to *durable* being there."""
        return records_in(self.path(name), durable=durable, disk=disk)

    def views(self, names: Sequence[str]) -> dict[str, int]:
        """The highest record in the view of each image."""
        return {name: self.records(name) for name in names}


def grown(scene: Scene, *names: str) -> None:
    """Let the chain grow by *names*, records in each."""
    chain = scene.chain() if scene.spec.exists() else ["base"]
    for name in names:
        chain.append(name)
        scene.want(vda=" <- ".join(chain))
        scene.apply()
        scene.guest.wait_for(8)
