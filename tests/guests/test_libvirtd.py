"""A real libvirtd, an unprivileged one of the test's own, with its sockets in the test's folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from reconciler.tools import images
from tests import forked
from tests.guests.boot import Boot, MissingPackage
from tests.guests.conftest import CACHE
from tests.guests.scene import Scene, grown
from tests.guests.test_several import image
from tests.guests.test_states import ATOMIC, DISK_ONLY
from tests.guests.test_watch import wait_for, watching
from tests.guests.world import World
from tests.images.disks import tool

USER = "libvirt-qemu"
"""Who the daemon runs as where the tests run as root."""


@dataclass
class Monitor:
    """A conversation with QEMU."""

    lines: TextIO

    def ask(self, command: str, **arguments: object) -> Any:
        """What QEMU answers."""
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            said = json.loads(self.lines.readline())
            assert "error" not in said, said
            if "return" in said:
                return said["return"]


class Daemon(World):
    """Guests of a libvirtd that is started, killed and started again."""

    def __init__(self, root: Path, boot: Boot, cache: Path) -> None:
        # another user could not read the saved guests
        super().__init__(root, replace(boot, saved=None), cache)
        self.uri = f"qemu+unix:///session?socket={root}/run/libvirt/libvirt-sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        configuration = root / "config" / "libvirt"
        for folder in (configuration, root / "run", root / "home"):
            folder.mkdir(parents=True)
        (configuration / "qemu.conf").write_text('stdio_handler = "file"\n')
        root.chmod(0o755)
        self.hand_over()

    def hand_over(self) -> None:
        """Let the daemon's user own what the test has made."""
        if os.geteuid() == 0:
            for path in (self.root, *self.root.rglob("*")):
                if not path.is_symlink():
                    shutil.chown(path, USER, USER)

    def start_daemon(self) -> None:
        program = shutil.which("libvirtd", path="/usr/sbin:/sbin:" + os.environ["PATH"])
        if program is None:
            raise MissingPackage("libvirtd", "apt-get install libvirt-daemon")
        who = ["--reuid", USER, "--regid", USER, "--clear-groups"] if os.geteuid() == 0 else []
        folders = {
            "HOME": self.root / "home",
            "XDG_RUNTIME_DIR": self.root / "run",
            "XDG_CONFIG_HOME": self.root / "config",
            "XDG_CACHE_HOME": self.root / "xdg-cache",
        }
        self._daemon = subprocess.Popen(
            ["setpriv", *who, program, "-t", "0"],
            env={**os.environ, **{name: str(path) for name, path in folders.items()}},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while not (self.root / "run" / "libvirt" / "libvirt-sock").is_socket():
            assert time.monotonic() < until, "libvirtd has not made its socket"
            time.sleep(0.05)

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """QEMU's monitor, which is free while no daemon runs."""
        (path,) = self.root.rglob("monitor.sock")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            with connection.makefile("rw") as lines:
                monitor = Monitor(lines)
                monitor.ask("qmp_capabilities")
                yield monitor

    def kill_daemon(self) -> None:
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        (self.root / "run" / "libvirt" / "libvirt-sock").unlink()

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
        super().close()


@pytest.fixture
def daemon(guest_boot: Boot) -> Iterator[Daemon]:
    root = Path(tempfile.mkdtemp(prefix="vc"))
    world = Daemon(root, guest_boot, CACHE)
    try:
        world.start_daemon()
        yield world
    finally:
        world.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def scene(daemon: Daemon) -> Scene:
    """A guest `web` of the daemon that runs on one image, `base`."""
    image(daemon, "base")
    guest = daemon.define("web", daemon.images / "base.qcow2")
    guest.log.touch()
    daemon.hand_over()
    daemon.boot("web")
    guest.wait_for(20)
    return Scene(daemon, guest)


def killed_while_it_copies(daemon: Daemon, scene: Scene) -> None:
    """Kill the daemon in the middle of a slow pull."""
    argv = scene.argv("apply", "-y", "--bandwidth", "4K")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as apply:
        until = time.monotonic() + 30
        while not daemon.job("web", "vda"):
            assert apply.poll() is None, apply.communicate()
            assert time.monotonic() < until
        daemon.kill_daemon()
        assert apply.wait(30) == 1


@pytest.mark.parametrize(
    "ended",
    [
        pytest.param(False, id="the job goes on"),
        pytest.param(True, id="the job ends while no daemon runs"),
    ],
)
def test_a_daemon_that_is_killed_in_the_middle_of_a_job_loses_nothing(
    daemon: Daemon, scene: Scene, *, ended: bool
) -> None:
    guest = scene.guest
    grown(scene, "mon", "tue")
    scene.want(vda="base <- tue")
    killed_while_it_copies(daemon, scene)

    with daemon.monitor() as qemu:
        (job,) = qemu.ask("query-jobs")
        assert job["status"] == "running"
        assert images.backing_of(scene.path("tue")) == scene.path("mon")
        if ended:
            qemu.ask("block-job-set-speed", device=job["id"], speed=0)
            until = time.monotonic() + 30
            while qemu.ask("query-jobs")[0]["status"] != "concluded":
                assert time.monotonic() < until
            assert images.backing_of(scene.path("tue")) == scene.path("base")
    daemon.start_daemon()
    scene.apply()

    guest.wait_for(5)
    assert scene.chain() == ["base", "tue"]
    assert scene.files() == {"base", "tue"}
    assert guest.read_back()["vda"].ok
    assert guest.errors() == []
    scene.want(vda="base")
    scene.apply()
    assert scene.chain() == ["base"]
    daemon.kill_qemu("web")
    assert scene.records("base", durable=guest.records()) >= guest.records()


def test_a_watch_hears_the_next_daemon_too(daemon: Daemon, scene: Scene) -> None:
    """Started anew twice, and no connection to an earlier daemon is left."""
    grown(scene, "mon", "tue", "wed")
    with watching(scene) as watch:
        wait_for(scene, "in force", "base <- mon <- tue <- wed*")
        scene.want(vda="base <- tue <- wed")
        wait_for(scene, "deferred", "base <- tue <- wed*")
        connected = sockets(watch.pid)
        for _ in range(2):
            daemon.kill_daemon()
            wait_for(scene, "failing", "(none)")
            daemon.start_daemon()
            wait_for(scene, "deferred", "base <- tue <- wed*")
        assert sockets(watch.pid) == connected
        scene.guest.say_stop(30)
        wait_for(scene, "in force", "base <- tue <- wed*")

    assert scene.files() == {"base", "tue", "wed"}


def test_from_a_chain_made_by_hand_to_a_repository_that_is_watched(
    daemon: Daemon, scene: Scene, tmp_path: Path
) -> None:
    """The walk of the README: adopt, commit, watch, edit; and a change that comes by git."""
    snapshot = "<domainsnapshot><name>monday</name></domainsnapshot>"
    daemon.create_snapshot("web", snapshot, DISK_ONLY | ATOMIC)  # as an administrator would
    scene.guest.wait_for(10)
    state = ["--state-dir", scene.world.images / "state"]
    origin, here, elsewhere = tmp_path / "chains.git", tmp_path / "chains", tmp_path / "elsewhere"
    tool("git", "init", "-q", "--bare", origin)
    tool("git", "clone", "-q", origin, here)
    specs = here / "hosts" / "kvm1"
    for words in (["import", "-c", daemon.uri, "-d", specs], ["fmt", "--check", specs]):
        done = forked.run(words)
        assert done.returncode == 0, done.stderr
    assert forked.run(["plan", *state, specs]).stdout.startswith("Nothing to do")
    commit(here, "adopt what is there")
    tool("git", "-C", here, "push", "-q", "origin", "HEAD")

    with watching(scene, specs):
        wait_for(scene, "in force", "base <- base.monday*")
        spec = specs / "web.toml"
        spec.write_text(more(spec.read_text(), "base.monday", "tuesday"))
        wait_for(scene, "in force", "base <- base.monday <- tuesday*")
        scene.guest.wait_for(10)
        commit(here, "a snapshot")
        tool("git", "-C", here, "push", "-q", "origin", "HEAD")

        tool("git", "clone", "-q", origin, elsewhere)
        spec = elsewhere / "hosts" / "kvm1" / "web.toml"
        lines = spec.read_text().splitlines(keepends=True)
        spec.write_text("".join(line for line in lines if "base.monday" not in line))
        commit(elsewhere, "monday goes")
        tool("git", "-C", elsewhere, "push", "-q", "origin", "HEAD")
        tool("git", "-C", here, "pull", "-q", "--ff-only")
        wait_for(scene, "in force", "base <- tuesday*")

    scene.guest.wait_for(5)
    assert scene.guest.read_back()["vda"].ok
    assert scene.guest.errors() == []


def commit(folder: Path, why: str) -> None:
    who = ["-c", "user.name=A. Dmin", "-c", "user.email=admin@example.org"]
    tool("git", "-C", folder, "add", ".")
    tool("git", "-C", folder, *who, "commit", "-qm", why)


def more(text: str, active: str, above: str) -> str:
    """A spec with one more line on top of its chain."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if active in line)
    return "\n".join([*lines[: at + 1], f'  "{above}.qcow2",', *lines[at + 1 :]]) + "\n"


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links)
