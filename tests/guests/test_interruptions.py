"""
`apply` is killed, or QEMU is, at each point that matters; the next `apply` ends it.

``VIRT_CHAIN_EVERY_KILL=1`` kills at every step instead of at a sample of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guests.scene import Scene, grown

EVERY = bool(os.environ.get("VIRT_CHAIN_EVERY_KILL"))

SLOW = ("--bandwidth", "128K")
"""A job that takes seconds."""


@dataclass
class Round:
    """
    One change of the chain that is interrupted.

    Attributes:
        wanted: The chain afterwards, base first.
        kept: Restore points that read the same before and after.
        views: What they read.
    """

    scene: Scene
    wanted: list[str]
    kept: list[str]
    views: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.scene.want(vda=" <- ".join(self.wanted))
        self.views = self.scene.views(self.kept)

    def recover(self) -> str:
        """
        Apply until the chain is there; where libvirt has lost track of the guest, shut it off.

        Returns:
            ``applied``; ``twice``; ``off``, the guest had to be shut off; or
            ``lost``, libvirt believed it off already.
        """
        said = ""
        for how in ("applied", "twice"):
            before = self._on_disk()
            done = self.scene.run("apply", "-y")
            said = done.stdout + done.stderr
            told = "guest off" in said
            if done.returncode == 0 and not told:
                return how
            if told:  # nothing is done, and the reason is said
                assert self._on_disk() == before, said
        assert "guest off" in said, said
        return self._off()

    def _off(self) -> str:
        world = self.scene.world
        state = world.state("web")
        lost = state == "shutoff"
        if lost:
            world.kill_qemu("web")
        else:
            assert state == "running"  # not left standing still
            world.shutdown("web")
        self.finish_off()
        return "lost" if lost else "off"

    def finish_off(self) -> None:
        """The guest is off: `apply` converges, and all is there; it boots again."""
        scene = self.scene
        scene.apply()
        durable = scene.guest.records()
        assert scene.records(self.wanted[-1], durable=durable) >= durable
        assert scene.views(self.kept) == self.views
        assert scene.observed() == (self.wanted, [])
        assert scene.files() == set(self.wanted) | {"base"}
        assert scene.world.boot("web").boot_verdicts()["vda"].ok
        scene.guest.wait_for(3)

    def check(self) -> None:
        """The running guest has the wanted chain, and lost nothing."""
        scene, guest = self.scene, self.scene.guest
        guest.wait_for(3)
        assert guest.errors() == []
        guest.hold()
        durable = guest.records()
        assert scene.records(self.wanted[-1], durable=durable) == durable
        guest.go_on()
        assert scene.views(self.kept) == self.views
        observed, waiting = scene.observed()
        assert observed == self.wanted
        assert [step for step in waiting if step["deferred"] is None] == []
        mine = [scene.path(name).stat().st_ino for name in ("base", *self.wanted)]
        left = {path.name for path in scene.images() if path.stat().st_ino not in mine}
        assert left == set()
        in_qemu = Path(scene.world.active_in_qemu("web")["vda"])
        assert in_qemu.samefile(scene.path(self.wanted[-1]))

    def _on_disk(self) -> dict[str, object]:
        """The file of each name, and when each kept one was written to."""
        scene = self.scene
        found: dict[str, object] = {path.name: path.stat().st_ino for path in scene.images()}
        written = {f"{name} written": scene.path(name).stat().st_mtime_ns for name in self.kept}
        return {**found, **written}


Rounds = Callable[[Scene], Iterator[Round]]


def creating(scene: Scene) -> Iterator[Round]:
    """A new overlay on the active image."""
    chain = ["base"]
    for number in range(1, 100):
        chain.append(f"x{number}")
        yield Round(scene, chain, chain[:-2])
        if len(chain) > 6:
            chain = ["base", chain[-1]]
            scene.want(vda=" <- ".join(chain))
            scene.apply()


def pulling(scene: Scene) -> Iterator[Round]:
    """The image below the active one is dropped: pulled up."""
    grown(scene, "kept", "x0")
    for number in range(1, 100):
        grown(scene, f"x{number}")
        yield Round(scene, ["base", "kept", f"x{number}"], ["base", "kept"])


def linking(scene: Scene) -> Iterator[Round]:
    """A restore point in the middle is dropped: the one above goes down, and gets a link."""
    grown(scene, "x0", "x1")
    for number in range(2, 100):
        grown(scene, f"x{number}")
        yield Round(scene, ["base", f"x{number - 1}", f"x{number}"], ["base", f"x{number - 1}"])


def pivoting(scene: Scene) -> Iterator[Round]:
    """The active image is dropped: committed, and QEMU goes on below."""
    grown(scene, "kept", "low")
    for number in range(1, 100):
        grown(scene, f"x{number}")
        yield Round(scene, ["base", "kept", "low"], ["base", "kept"])


@dataclass
class Kill:
    """How it went on after a kill before step *at*."""

    at: int
    step: str
    how: str


def kills(rounds: Iterator[Round], numbers: Iterator[int], *words: str) -> Iterator[Kill]:
    """Kill `apply` before each of its steps *numbers*, and recover."""
    for at in numbers:
        one = next(rounds)
        run = one.scene.run_killed(at, "apply", "-y", *words)
        if not run.killed:
            assert run.returncode == 0, run.stdout + run.stderr
            one.check()
            return
        how = one.recover()
        one.check()
        yield Kill(at, run.steps[-1], how)


def _numbers(sample: tuple[int, ...]) -> Iterator[int]:
    return iter(range(1, 100) if EVERY else sample)


@pytest.mark.parametrize(
    ("rounds", "sample"),
    [
        pytest.param(creating, (6, 7), id="create"),
        pytest.param(pulling, (6, 8, 10, 19), id="pull"),
        pytest.param(linking, (3, 7, 8, 10, 13, 19), id="link"),
        pytest.param(pivoting, (5, 11, 13, 15), id="pivot"),
        pytest.param(pivoting, (16, 20, 30), id="pivoted"),
    ],
)
def test_a_killed_apply_is_finished_by_the_next_one(
    scene: Scene, rounds: Rounds, sample: tuple[int, ...]
) -> None:
    for kill in kills(rounds(scene), _numbers(sample)):
        print(kill)
        if rounds in (pulling, linking):
            assert kill.how in ("applied", "twice")


@pytest.mark.parametrize("rounds", [pulling, linking, pivoting])
def test_a_job_that_outlives_a_killed_apply_is_waited_for(scene: Scene, rounds: Rounds) -> None:
    """Killed in the middle of the copying; QEMU goes on with it."""
    one = next(rounds(scene))
    with _slow_apply(scene) as apply:
        apply.kill()
    assert one.recover() == "applied"
    one.check()


ENDING = """
import sys, time
from reconciler.tools.hypervisor import Hypervisor
from reconciler.cli.main import run
real = Hypervisor.domains
def ending(self):
    found = real(self)
    if self.job("web", "vda") is not None:
        self.set_speed("web", "vda", None)
        while self.job("web", "vda") is not None:
            time.sleep(0.001)
        print("ended", file=sys.stderr)
    return found
Hypervisor.domains = ending
sys.exit(run(sys.argv[1:]))
"""
"""virt-chain that sees the domains as they are just before a job ends."""


def test_a_job_that_ends_during_a_look_is_no_chain_that_libvirt_has_lost(scene: Scene) -> None:
    one = next(pulling(scene))
    with _slow_apply(scene) as apply:
        apply.kill()
    argv = [sys.executable, "-c", ENDING, *scene.argv("apply", "-y")[3:]]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended" in done.stderr
    one.check()


@pytest.mark.parametrize("rounds", [linking, pivoting])
def test_qemu_killed_in_the_middle_of_a_job(scene: Scene, rounds: Rounds) -> None:
    one = next(rounds(scene))
    with _slow_apply(scene) as apply:
        scene.world.kill_qemu("web")
        assert apply.wait(30) == 1
    one.finish_off()


DYING = """
import os, signal, sys, time
from reconciler.tools.hypervisor import Hypervisor
from reconciler.cli.main import run
method, when, both, pid = sys.argv[1], sys.argv[2], sys.argv[3] == "both", int(sys.argv[4])
real = getattr(Hypervisor, method)
def kill(host, name):
    os.kill(pid, signal.SIGKILL)
    if both:
        os.kill(os.getpid(), signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}/exe") or host.domain(name).on:
        time.sleep(0.001)
def dying(self, *arguments):
    if when == "before":
        kill(self, arguments[0])
    answer = real(self, *arguments)
    if when == "after":
        kill(self, arguments[0])
    return answer
setattr(Hypervisor, method, dying)
sys.exit(run(sys.argv[5:]))
"""
"""
virt-chain whose QEMU is killed before or after a call; ``both``: it dies with it.
Otherwise the call goes on when libvirt, too, knows that QEMU is gone.
"""


def _dying(scene: Scene, method: str, when: str, both: str) -> subprocess.CompletedProcess[str]:
    pid = str(scene.world.qemu_pid("web"))
    argv = [sys.executable, "-c", DYING, method, when, both, pid, *scene.argv("apply", "-y")[3:]]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("rounds", "moments"),
    [
        pytest.param(
            pulling,
            [("flush", "before", "both"), ("flush", "after", "both"), ("wait", "before", "qemu")],
            id="pull",
        ),
        pytest.param(
            linking,
            [("flush", "before", "both"), ("flush", "after", "both"), ("flush", "before", "qemu")],
            id="link",
        ),
        pytest.param(
            pivoting,
            [("pivot", "before", "both"), ("pivot", "after", "both"), ("flush", "after", "qemu")],
            id="pivot",
        ),
    ],
)
def test_a_killed_qemu_loses_nothing_of_what_a_job_has_merged(
    scene: Scene, rounds: Rounds, moments: list[tuple[str, str, str]]
) -> None:
    """Headers may be durable before the data is, until QEMU has flushed."""
    each = rounds(scene)
    for method, when, both in moments:
        one = next(each)
        died = _dying(scene, method, when, both)
        assert died.returncode == (-signal.SIGKILL if both == "both" else 1), died.stderr
        assert "Traceback" not in died.stderr
        one.finish_off()


@contextmanager
def _slow_apply(scene: Scene) -> Iterator[subprocess.Popen[bytes]]:
    """`apply` with a job that takes seconds, once the job runs; it is over at the end."""
    argv = scene.argv("apply", "-y", *SLOW)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as apply:
        until = time.monotonic() + 30
        while "<blockjobs active='yes'>" not in scene.world.status_xml("web"):
            assert apply.poll() is None, apply.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield apply
