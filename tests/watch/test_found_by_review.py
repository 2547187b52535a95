"""What a review of watch found."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from reconciler.tools import files
from reconciler.watch.status import lock_file
from tests.images.disks import Disk, tool, view
from tests.images.faults import Crash, Faults
from tests.watch.watcher import Watcher, until


def interrupted(disk: Disk, chain: str) -> None:
    """An apply of *chain* that was killed after its first effect."""
    disk.spec(chain)
    with pytest.MonkeyPatch.context() as patch:
        Faults("killed after", 2).install(patch)
        with pytest.raises(Crash):
            disk.apply()


def test_what_comes_after_an_interrupted_merge_needs_to_be_allowed_too(watcher: Watcher) -> None:
    disk = watcher.disk
    interrupted(disk, "b <- p <- x")
    disk.spec("b <- p <- y", discard=["q", "x"])
    watcher.start()

    assert "needs discard" in watcher.wait_for("waiting")["why"]
    assert watcher.status()["disks"]["vm:vda"]["chain"] == "b <- p <- x*"
    assert view(disk.path("x")) == disk.golden["x"]
    assert watcher.said("failed") == []


def test_what_comes_after_an_interrupted_merge_is_done_where_it_may_be(watcher: Watcher) -> None:
    disk = watcher.disk
    interrupted(disk, "b <- p <- x")
    disk.spec("b <- p <- x <- y")
    watcher.start()

    watcher.wait_chain("b", "p", "x", "y")
    assert view(disk.path("y")) == disk.golden["x"]


def test_looking_at_the_status_is_no_watch(watcher: Watcher) -> None:
    watcher.start()
    watcher.stop()
    with files.locked(lock_file(watcher.disk.state), "watch", shared=True):
        said = watcher.command("status", "--check").out

    assert said.startswith("CRITICAL: no watch is running")


def test_a_metrics_file_that_cannot_be_written_stops_nothing(
    watcher: Watcher, tmp_path: Path
) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    process = watcher.start("--metrics-textfile", folder / "m.prom")
    folder.rename(tmp_path / "elsewhere")  # in one act: a file may just be written in it
    watcher.disk.spec("b <- p <- x")
    watcher.wait_chain("b", "p", "x")
    process.send_signal(signal.SIGHUP)
    folder.mkdir()
    process.send_signal(signal.SIGHUP)

    until((folder / "m.prom").exists, "the file is written again")
    assert process.poll() is None


def test_a_full_state_directory_stops_nothing(watcher: Watcher) -> None:
    disk = watcher.disk
    process = watcher.start(interval="1s")
    tool("chattr", "+i", disk.state)
    try:
        disk.spec("b <- p <- x")
        until(lambda: any("cannot" in one for one in watcher.said()), "it says so")
    finally:
        tool("chattr", "-i", disk.state)

    watcher.wait_chain("b", "p", "x")
    assert process.poll() is None
