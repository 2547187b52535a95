"""A watch beside a real guest: what waits for its end is done when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guests.scene import Scene, grown
from tests.images.disks import command


def status(scene: Scene) -> dict[str, object]:
    told = command("status", "--json", "--state-dir", scene.world.images / "state")
    data: dict[str, object] = told.data
    return data


def wait_for(scene: Scene, kind: str, chain: str) -> None:
    until = time.monotonic() + 60
    while True:
        disks = status(scene).get("disks", {})
        assert isinstance(disks, dict)
        disk = disks.get("web:vda", {})
        if (disk.get("kind"), disk.get("chain")) == (kind, chain):
            return
        assert time.monotonic() < until, disks
        time.sleep(0.1)


@contextmanager
def watching(scene: Scene, spec: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A watch whose clock never comes, of *spec* or the scene's own; it ends well at the end."""
    log = scene.world.images / "watch.log"
    argv = [*scene.argv("watch", "--interval", "1h")[:-1], os.fspath(spec or scene.spec)]
    with log.open("wb") as out:
        watch = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ})
    try:
        yield watch
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(30) == 0, log.read_text()
    finally:
        watch.kill()
        watch.wait()


def test_a_guest_that_stops_gets_its_deferred_steps(scene: Scene) -> None:
    grown(scene, "mon", "tue", "wed")
    with watching(scene):
        wait_for(scene, "in force", "base <- mon <- tue <- wed*")
        scene.want(vda="base <- tue <- wed")
        wait_for(scene, "deferred", "base <- tue <- wed*")
        assert scene.path("mon").exists()
        scene.guest.say_stop(30)
        wait_for(scene, "in force", "base <- tue <- wed*")

    assert scene.files() == {"base", "tue", "wed"}
    scene.world.boot("web")
    assert scene.guest.read_back()["vda"].ok
