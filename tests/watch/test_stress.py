"""Many edits, mistakes, drifts and kills, with a fixed seed; and what a long life costs."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.images.disks import Disk, tool, view
from tests.watch.watcher import Watcher, until

EDITS = int(os.environ.get("VIRT_CHAIN_WATCH_EDITS", "100"))
PASSES = int(os.environ.get("VIRT_CHAIN_WATCH_PASSES", "120"))
SEED = int(os.environ.get("VIRT_CHAIN_WATCH_SEED", "7"))


class Story:
    """A disk whose spec is edited at random, by a person who also works by hand."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.disk = watcher, watcher.disk
        self.random = random.Random(SEED)
        self.chain = ["b", "p", "q", "x"]
        self.golden = {name: self.disk.golden[name] for name in self.chain}
        self.made = 0

    def edit(self) -> None:
        """A snapshot, or a restore point less; in a chain of two to eight images."""
        if len(self.chain) < 3 or (len(self.chain) < 8 and self.random.random() < 0.6):
            self.made += 1
            self.chain.append(f"n{self.made}")
            self.golden[self.chain[-1]] = self.golden[self.chain[-2]]
        else:
            gone = self.chain.pop(self.random.randrange(1, len(self.chain) - 1))
            del self.golden[gone]
        self.write()

    def write(self) -> None:
        """Save the spec, in place or by rename."""
        text = self.disk.spec(" <- ".join(self.chain)).read_text()
        if self.random.random() < 0.5:
            new = self.disk.spec_file.with_suffix(".new")
            new.write_text(text)
            os.rename(new, self.disk.spec_file)

    def mistake(self) -> None:
        """A bad spec, and soon a good one."""
        good = self.disk.spec_file.read_text()
        half = good[: len(good) // 2]
        bad = [f"{good}\nnonsense =", good.replace("chain", "chian"), half, ""]
        self.disk.spec_file.write_text(self.random.choice(bad))
        time.sleep(self.random.random() * 0.3)
        self.disk.spec_file.write_text(good)

    def drift(self) -> None:
        """
        Once the chain is as asked for, the active image is taken off the one below by hand.

        It is put back before the next edit: an image that is off the chain and
        off the spec is somebody else's.
        """
        self.settled()
        if len(self.chain) > 3:
            top, below = self.disk.path(self.chain[-1]), self.disk.path(self.chain[-3])
            tool("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", below, top)
            chain = " <- ".join(self.chain)
            until(lambda: self.disk.stack(self.chain[-1]) == chain, f"{chain} again")

    def kill(self) -> None:
        """The watch dies at any moment, and is started again."""
        self.watcher.stop(signal.SIGKILL)
        self.watcher.start(interval="1s")

    def settled(self) -> None:
        """Until the chain is as the spec says."""
        self.watcher.wait_chain(*self.chain)


def test_after_many_edits_every_chain_is_as_the_last_good_spec_says(
    watcher: Watcher,
) -> None:
    story = Story(watcher)
    watcher.start(interval="1s")
    acts = [story.edit, story.mistake, story.drift, story.kill]
    for _ in range(EDITS):
        story.random.choices(acts, [70, 15, 5, 5])[0]()
        time.sleep(story.random.random() * 0.15)
    story.settled()
    assert watcher.stop() == 0

    assert story.disk.stack(story.chain[-1]) == " <- ".join(story.chain)
    views = {name: view(story.disk.path(name)) for name in story.chain}
    assert views == story.golden
    left = {path.stem for path in story.disk.images.glob("*.qcow2")}
    assert left == set(story.chain)
    assert story.disk.plan().data["summary"]["errors"] == 0


def resident(pid: int) -> int:
    """Bytes of memory that the process *pid* holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_memory_and_descriptors_stay_flat(watcher: Watcher) -> None:
    disk: Disk = watcher.disk
    process = watcher.start("--metrics-textfile", disk.root / "m.prom")
    warm = PASSES // 3

    def ends() -> dict[str, int]:
        """How many passes have come to which end."""
        lines = (disk.root / "m.prom").read_text().splitlines()
        return {
            line.split()[0]: int(float(line.split()[1]))
            for line in lines
            if line.startswith("virt_chain_passes_total{")
        }

    def done() -> int:
        return sum(ends().values())

    def make_passes(count: int) -> None:
        for number in range(count):
            before = done()
            if number % 10 == 0:  # images are looked at again, all of them
                os.utime(disk.path("b"))
            process.send_signal(signal.SIGHUP)
            until(lambda before=before: done() > before, "one more pass")  # type: ignore[misc]

    until((disk.root / "m.prom").exists, "the first pass")
    make_passes(warm)
    memory, open_files = resident(process.pid), descriptors(process.pid)
    make_passes(PASSES - warm)

    assert ends()['virt_chain_passes_total{end="failed"}'] == 0
    assert descriptors(process.pid) <= open_files + 1
    assert resident(process.pid) < memory + 4 * 1024 * 1024
