"""A real libvirtd, an unprivileged one of the test's own, with its sockets in the test's folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.boot import Boot, MissingPackage
from tests.guests.conftest import CACHE
from tests.guests.scene import Scene
from tests.guests.test_several import image
from tests.guests.world import World

USER = "libvirt-qemu"
"""Who the daemon runs as where the tests run as root."""


class Daemon(World):
    """Guests of a libvirtd that is started, killed and started again."""

    def __init__(self, root: Path, boot: Boot, cache: Path) -> None:
        super().__init__(root, boot, cache)
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


def test_a_daemon_that_is_restarted_in_the_middle_of_a_job_loses_nothing(daemon: Daemon) -> None:
    image(daemon, "base")
    guest = daemon.define("web", daemon.images / "base.qcow2")
    guest.log.touch()
    daemon.hand_over()
    daemon.boot("web")
    guest.wait_for(20)
    scene = Scene(daemon, guest)
    scene.want(vda="base <- mon <- tue")
    scene.apply()
    guest.wait_for(30)

    scene.want(vda="base <- tue")
    killed = threading.Event()

    def kill_when_it_copies() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and not daemon.job("web", "vda"):
            time.sleep(0.02)
        daemon.kill_daemon()
        killed.set()

    killer = threading.Thread(target=kill_when_it_copies)
    killer.start()
    interrupted = scene.run("apply", "-y", "--bandwidth", "200K")
    killer.join()

    assert killed.is_set()
    assert interrupted.returncode == 1
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
