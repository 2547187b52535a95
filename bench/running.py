"""A guest that runs and writes, and what it and its host see while a command merges its images."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import quantiles

import libvirt

from bench.measure import run
from bench.merges import VIRT_CHAIN
from tests.guests.boot import MissingPackage, build_boot
from tests.guests.conftest import CACHE
from tests.guests.domain_xml import Witness
from tests.guests.guest import Guest
from tests.guests.test_libvirtd import Daemon

TARGET = "vda"
POLL = 0.002
"""Seconds between two looks at the guest's log, and at its block job until it has begun."""
SLOW_POLL = 0.02
"""Seconds between two looks at a block job that runs."""
WITNESS = Witness(region=4 * 1024 * 1024, pause_ms=10)
"""Records lie in the first 4 MiB of the disk; what a layer holds lies above them."""


class WrongGuest(Exception):
    """The guest has lost something, or a merge was no merge."""


@dataclass(frozen=True, slots=True)
class Latency:
    """
    How long the guest's writes took, in milliseconds.

    Attributes:
        p50, p99, longest: As the guest's clock has it, which stands still while
            the guest is suspended.
        silence: The longest time between two records, by the host's clock.
    """

    p50: float
    p99: float
    longest: float
    silence: float


@dataclass(frozen=True, slots=True)
class Watched:
    """
    One command on a running guest.

    Attributes:
        seconds: Wall time.
        started: Seconds from the command to its block job.
        job: Seconds that libvirt told of the job.
        idle: The guest's writes just before the command.
        during: The guest's writes from the command's begin to its end.
        copying: The guest's writes while libvirt told of the job.
    """

    seconds: float
    started: float
    job: float
    idle: Latency
    during: Latency
    copying: Latency


class Log(threading.Thread):
    """When each record of a guest was told on its serial console."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._file = path.open("rb")
        self._ended = threading.Event()
        self._records: list[tuple[float, int]] = []

    def run(self) -> None:
        rest = b""
        while not self._ended.wait(POLL):
            if not (new := self._file.read()):
                continue
            now = time.monotonic()
            *lines, rest = (rest + new).split(b"\n")
            found = (re.match(rb"W vda \d+ (\d+)us", line) for line in lines)
            self._records += [(now, int(hit[1])) for hit in found if hit]

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()
        self._file.close()

    def between(self, begin: float, end: float) -> Latency:
        """What was told from *begin* to *end* on the monotonic clock."""
        times = [at for at, _ in self._records if begin <= at <= end]
        took = [micro / 1000 for at, micro in self._records if begin <= at <= end]
        if len(took) < 20:
            raise WrongGuest(f"the guest wrote {len(took)} records in {end - begin:.1f} s")
        gaps = [after - before for before, after in pairwise(times)]
        percent = quantiles(took, n=100, method="inclusive")
        return Latency(percent[49], percent[98], max(took), max(gaps) * 1000)


class JobClock(threading.Thread):
    """When the block job of a guest began and ended, seen through a connection of its own."""

    def __init__(self, uri: str, name: str) -> None:
        super().__init__(daemon=True)
        self._connection = libvirt.open(uri)
        self._domain = self._connection.lookupByName(name)
        self._ended = threading.Event()
        self.first = self.last = 0.0

    def run(self) -> None:
        while not self._ended.wait(SLOW_POLL if self.first else POLL):
            asked = time.monotonic()
            if self._domain.blockJobInfo(TARGET):
                self.first, self.last = self.first or asked, asked

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()
        self._connection.close()


@dataclass(slots=True)
class Running:
    """
    One guest that runs and writes.

    Attributes:
        folder: Where its images are, and the spec.
    """

    world: Daemon
    guest: Guest
    folder: Path

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.guest.name

    def apply(self, chain: Sequence[str], *options: str) -> list[str]:
        """Write the spec for *chain*; the command line of ``virt-chain apply``."""
        listed = ", ".join(f'"{name}.qcow2"' for name in chain)
        (self.folder / "vm.toml").write_text(
            f'version = 1\n[defaults]\ndirectory = "."\nconnection = "{self.world.uri}"\n'
            f"[domains.{self.name}.disks.{TARGET}]\nchain = [{listed}]\n"
        )
        return [VIRT_CHAIN, "apply", "-y", *options, "--state-dir", "state", "vm.toml"]

    def virsh(self, script: str) -> list[str]:
        """
        *script* with ``{virsh}`` for the command and its connection.

        ``{web}`` is the domain and ``{images}`` the folder, as libvirt wants
        absolute names.
        """
        virsh = f"virsh -q -c '{self.world.uri}'"
        return ["sh", "-ec", script.format(virsh=virsh, web=self.name, images=self.folder)]

    def watched(self, argv: Sequence[str], rest: float) -> Watched:
        """Let the guest write for *rest* seconds, then run *argv* and see what it does to it."""
        log, clock = Log(self.guest.log), JobClock(self.world.uri, self.name)
        log.start()
        before = time.monotonic()
        time.sleep(rest)
        clock.start()
        begin = time.monotonic()
        cost = run(argv, self.folder)
        end = begin + cost.seconds
        clock.end()
        time.sleep(10 * POLL)
        log.end()
        if not clock.first:
            raise WrongGuest(f"no block job was seen of {' '.join(argv)}")
        return Watched(
            cost.seconds,
            clock.first - begin,
            clock.last - clock.first,
            log.between(before + 0.2, begin),
            log.between(begin, end),
            log.between(clock.first, clock.last),
        )

    def confirm(self) -> None:
        """
        Raises:
            WrongGuest: A write has failed, or a record is not there.
        """
        verdict = self.guest.read_back()[TARGET]
        if self.guest.errors() or not verdict.ok:
            raise WrongGuest(f"{self.name}: {verdict} {self.guest.errors()}")


@contextmanager
def daemon() -> Iterator[Daemon]:
    """
    A libvirtd of our own, without guests.

    Raises:
        MissingPackage: The machine lacks something; says the package.
    """
    if shutil.which("virsh") is None:
        raise MissingPackage("virsh", "apt-get install --no-install-recommends libvirt-clients")
    root = Path(tempfile.mkdtemp(prefix="vc"))  # a short name: sockets have 107 characters
    world = Daemon(root, build_boot(CACHE), CACHE)
    try:
        world.start_daemon()
        yield world
    finally:
        world.close()
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def booted(world: Daemon, name: str, master: Path, active: str) -> Iterator[Running]:
    """A guest *name* that runs and writes on a copy of the images in *master*."""
    folder = world.images / name
    subprocess.run(["cp", "-r", "--sparse=never", str(master), str(folder)], check=True)
    guest = world.define(name, folder / f"{active}.qcow2", witness=WITNESS)
    guest.log.touch()
    world.hand_over()
    subprocess.run(["sync", "-f", str(folder)], check=True)
    world.boot(name)
    guest.wait_for(20)
    try:
        yield Running(world, guest, folder)
    finally:
        world.destroy(name)
        world.undefine(name)
        shutil.rmtree(folder)
