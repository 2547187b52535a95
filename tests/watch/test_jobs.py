"""Several domains changed at once, with several jobs."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.images.disks import Disk, tool, view
from tests.watch.watcher import Watcher, until

DOMAINS = ("d0", "d1", "d2", "d3", "d4", "d5")
SLOW = ("--jobs", "4", "--bandwidth", "512K")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Six domains, each with a chain b <- p <- q <- x; a merge moves one MiB."""
    made = Disk(tmp_path)
    for name in DOMAINS:
        texts = {"b": "4M:A", "p": "1M:P 3M:-", "q": "1M:- 1M:Q 2M:-", "x": "2M:- 1M:X 1M:-"}
        made.chain({f"{name}{image}": text for image, text in texts.items()})
    ask(made, "bpqx")
    return made


def ask(disk: Disk, images: str, domains: Iterable[str] = DOMAINS) -> None:
    """A spec that has, for each domain, these *images*."""
    lines = ["version = 1", "[defaults]", f'directory = "{disk.images}"']
    for name in domains:
        chain = ", ".join(f'"{name}{image}.qcow2"' for image in images)
        lines += [f"[domains.{name}.disks.vda]", f"chain = [{chain}]"]
    disk.spec_file.write_text("\n".join(lines) + "\n")


def all_in_force(watcher: Watcher, images: str, but: Iterable[str] = ()) -> None:
    """Every domain, but for some, has these *images*, which read as they always did."""
    disk = watcher.disk
    for name in DOMAINS:
        if name in but:
            continue
        chain = " <- ".join(f"{name}{image}" for image in images) + "*"

        def there(label: str = f"{name}:vda", chain: str = chain) -> bool:
            told = watcher.told()["disks"][label]
            return bool(told["kind"] == "in force" and told["chain"] == chain)

        until(there, lambda chain=chain: f"{chain}; it is {watcher.status()}")  # type: ignore[misc]
        for image in images:
            assert view(disk.path(f"{name}{image}")) == disk.golden[f"{name}{image}"]
        found = {path.stem for path in disk.images.glob(f"{name}*.qcow2")}
        assert found == {f"{name}{image}" for image in images}


def merges_of(pid: int) -> int:
    """How many programs that merge images the process *pid* runs."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            merges = words[0].endswith(b"qemu-storage-daemon") or b"commit" in words[:2]
            found += merges and parent == pid
    return found


def test_domains_that_change_at_once_are_brought_to_their_specs_side_by_side(
    watcher: Watcher,
) -> None:
    process = watcher.start(*SLOW)
    ask(watcher.disk, "bpx")
    until(lambda: merges_of(process.pid) > 1, "two merges at the same moment")

    all_in_force(watcher, "bpx")
    assert [one["done"] for one in watcher.lines() if one["event"] == "pass"] == [len(DOMAINS)]
    assert watcher.command("status", "--check").code == 0


def test_a_disk_that_fails_leaves_the_others_right(watcher: Watcher) -> None:
    disk = watcher.disk
    watcher.start("--jobs", "4")
    broken = disk.path("d3x")
    tool("chattr", "+i", broken)  # not even root writes to it
    try:
        ask(disk, "bpx")
        told = watcher.wait_for("suspended", "d3:vda")
        all_in_force(watcher, "bpx", but=["d3"])
        assert "failed once" in told["why"]
        assert {image: view(disk.path(f"d3{image}")) for image in "bpqx"} == {
            image: disk.golden[f"d3{image}"] for image in "bpqx"
        }
        assert watcher.command("status", "--check").out.startswith("WARNING: d3:vda suspended")
    finally:
        tool("chattr", "-i", broken)
    watcher.command("release", "d3:vda")

    all_in_force(watcher, "bpx")
    assert watcher.command("status", "--check").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_watch_that_ends_in_the_middle_goes_on_at_its_next_start(
    watcher: Watcher, number: signal.Signals
) -> None:
    disk = watcher.disk
    process = watcher.start(*SLOW)
    ask(disk, "bpx")
    until(lambda: merges_of(process.pid) > 1, "two merges at the same moment")
    code = watcher.stop(number)
    assert code == (0 if number == signal.SIGTERM else -number)
    unsettled = [one for one in watcher.lines() if one["level"] == "error"]
    assert unsettled == []
    for name in DOMAINS:
        for image in "bpx":
            assert view(disk.path(f"{name}{image}")) == disk.golden[f"{name}{image}"]
    watcher.start("--jobs", "4")

    all_in_force(watcher, "bpx")
    assert disk.plan().data["summary"]["errors"] == 0
