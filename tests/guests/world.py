"""A libvirt root of its own with the guests that a test defines in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import forked
from tests.guests import warm
from tests.guests.boot import Boot
from tests.guests.domain_xml import DiskSource, Witness, domain_xml
from tests.guests.guest import Guest
from tests.guests.killing import Run, run_killed

DRIVER = Path(__file__).with_name("driver.py")


class CallFailed(Exception):
    """
    Libvirt refused a call.

    Attributes:
        code: Libvirt's VIR_ERR number; -1 for a timeout of the harness.
    """

    def __init__(self, call: str, text: str, code: int) -> None:
        super().__init__(f"{call}: {text}")
        self.code = code


class World:
    """
    An embedded libvirt driver under one folder.

    Every method that reaches libvirt runs one short-lived process, so between
    two of them nobody holds the root and a command under test can open it.

    Attributes:
        root: The driver's folder; short, for sockets live under it.
        uri: What the command under test connects to.
        images: An empty folder for disk images.
    """

    def __init__(self, root: Path, boot: Boot, cache: Path) -> None:
        """
        Args:
            cache: Folder that keeps what libvirt learned about QEMU: asking QEMU
                takes 8 s, and every root would ask again.
        """
        self.root = root
        self.uri = f"qemu:///embed?root={root}"
        self.images = root / "images"
        self._boot = boot
        self._cache = cache
        self._guests: dict[str, Guest] = {}
        for folder in (root / "etc", root / "cache" / "qemu", self.images):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "etc" / "qemu.conf").write_text(_qemu_conf())
        capabilities = cache / "capabilities"
        capabilities.mkdir(parents=True, exist_ok=True)
        link = root / "cache" / "qemu" / "capabilities"
        if not link.exists():
            link.symlink_to(capabilities)

    def define(
        self,
        name: str,
        *disks: DiskSource | Path,
        witness: Witness | None = None,
        memory: int = 96,
        extra: str = "",
    ) -> Guest:
        """
        Define a guest with *disks* as vda, vdb, ...; a path is a qcow2 image.

        Args:
            memory: In MiB.
            extra: XML inside ``<domain>``.
        """
        sources = [DiskSource(disk) if isinstance(disk, Path) else disk for disk in disks]
        serial, log = self.root / f"{name}.sock", self.root / f"{name}.log"
        xml = domain_xml(
            name,
            self._boot,
            sources,
            serial=serial,
            log=log,
            witness=witness or Witness(),
            memory=memory,
            extra=extra,
        )
        self.define_xml(xml)
        targets = tuple(f"vd{letter}" for letter, _ in zip("abcdefgh", sources, strict=False))
        self._guests[name] = Guest(name, log, serial, targets)
        return self._guests[name]

    def define_xml(self, xml: str) -> None:
        """Define a domain, or change a domain's persistent XML."""
        self._call("define", xml=xml)

    def boot(self, name: str, seconds: float = 60) -> Guest:
        """
        Start a defined guest and wait until it has looked at its disks.

        Its kernel has booted before, see `tests.guests.warm`; :meth:`start` boots it.
        """
        guest = self._guests[name]
        xml = self.xml(name, inactive=True)
        if self._boot.saved is None or not warm.has_only_images(xml):
            self.start(name)
            guest.wait_booted(seconds)
            return guest
        shaped = warm.shape(xml)
        template = warm.saved(
            self._boot.saved, shaped, lambda path: self._make_template(xml, shaped[1], path)
        )
        mine = self.root / f"{name}.save"
        warm.write_as(template, xml, mine)
        guest.note_start()
        self._call("restore", path=str(mine))
        mine.unlink()
        guest.open_disks(seconds)
        return guest

    def _make_template(self, xml: str, sizes: Sequence[int], path: Path) -> None:
        """Boot a guest like *xml* on blank images in a root of its own, and save it."""
        root = Path(tempfile.mkdtemp(prefix="vc"))
        world = World(root, self._boot, self._cache)
        try:
            made, guest = warm.on_blank_images(xml, sizes, root)
            world.define_xml(made)
            world.start(guest.name)
            guest.wait_ready()
            world._call("save", name=guest.name, path=str(path))
        finally:
            world.close()
            shutil.rmtree(root, ignore_errors=True)

    def start(self, name: str, flags: int = 0) -> None:
        """Start a domain; :meth:`boot` waits for its program too."""
        if guest := self._guests.get(name):
            guest.note_start()
        self._call("start", name=name, flags=flags)

    def destroy(self, name: str) -> None:
        """Pull the guest's plug."""
        self._call("destroy", name=name)

    def suspend(self, name: str) -> None:
        self._call("suspend", name=name)

    def resume(self, name: str) -> None:
        self._call("resume", name=name)

    def shutdown(self, name: str, seconds: float = 20) -> None:
        """Press the power button and wait until the domain is off."""
        self._call("shutdown", name=name, seconds=seconds)

    def stop(self, name: str, seconds: float = 20) -> None:
        """Tell the guest's program to power off and wait until the domain is off."""
        self._guests[name].say_stop(seconds)
        self._call("wait_off", name=name, seconds=seconds)

    def undefine(self, name: str) -> None:
        """Forget a domain with its snapshots' metadata and its saved state."""
        self._call("undefine", name=name)

    def managed_save(self, name: str) -> None:
        self._call("managed_save", name=name)

    def has_managed_save(self, name: str) -> bool:
        return bool(self._call("has_managed_save", name=name))

    def xml(self, name: str, *, inactive: bool = False) -> str:
        """The live XML of a running domain, or with *inactive* the persistent one."""
        return str(self._call("xml", name=name, inactive=inactive))

    def state(self, name: str) -> str:
        """``running``, ``paused``, ``shutoff``, ...: libvirt's names without prefix."""
        return str(self._call("state", name=name))

    def domains(self) -> list[str]:
        return list(self._call("domains"))

    def create_snapshot(self, name: str, xml: str, flags: int) -> str:
        """``virDomainSnapshotCreateXML``; returns the snapshot's name."""
        return str(self._call("create_snapshot", name=name, xml=xml, flags=flags))

    def snapshots(self, name: str) -> list[str]:
        """The names of the snapshots that libvirt keeps metadata of."""
        return list(self._call("snapshots", name=name))

    def snapshot_xml(self, name: str, snapshot: str) -> str:
        """The metadata that libvirt keeps of a snapshot."""
        return str(self._call("snapshot_xml", name=name, snapshot=snapshot))

    def delete_snapshot(self, name: str, snapshot: str, flags: int = 0) -> None:
        self._call("delete_snapshot", name=name, snapshot=snapshot, flags=flags)

    def job(self, name: str, disk: str) -> dict[str, int]:
        """``virDomainGetBlockJobInfo``; empty without a job."""
        return dict(self._call("job", name=name, disk=disk))

    def start_pull(
        self, name: str, disk: str, base: str | None = None, *, bandwidth: int = 0, flags: int = 0
    ) -> None:
        """Start ``virDomainBlockRebase`` at *bandwidth* bytes a second; 0 is unlimited."""
        self._call("start_pull", name=name, disk=disk, base=base, bandwidth=bandwidth, flags=flags)

    def start_commit(
        self,
        name: str,
        disk: str,
        base: str | None = None,
        top: str | None = None,
        *,
        bandwidth: int = 0,
        flags: int = 0,
    ) -> None:
        """Start ``virDomainBlockCommit`` at *bandwidth* bytes a second; 0 is unlimited."""
        self._call(
            "start_commit",
            name=name,
            disk=disk,
            base=base,
            top=top,
            bandwidth=bandwidth,
            flags=flags,
        )

    def set_speed(self, name: str, disk: str, bandwidth: int) -> None:
        """Change a running job's limit, in bytes a second."""
        self._call("set_speed", name=name, disk=disk, bandwidth=bandwidth)

    def abort_job(self, name: str, disk: str, flags: int = 0) -> None:
        """``virDomainBlockJobAbort``; with the PIVOT flag it finishes an active commit."""
        self._call("abort_job", name=name, disk=disk, flags=flags)

    def wait_no_job(self, name: str, disk: str, seconds: float = 30) -> None:
        """Wait until libvirt knows of no job on *disk*."""
        end = time.monotonic() + seconds
        while self.job(name, disk):
            if time.monotonic() > end:
                raise TimeoutError(f"{name}/{disk} has a job after {seconds} s")

    def attach_disk(self, name: str, xml: str, flags: int) -> None:
        self._call("attach_disk", name=name, xml=xml, flags=flags)

    def detach_disk(self, name: str, xml: str, flags: int) -> None:
        self._call("detach_disk", name=name, xml=xml, flags=flags)

    def run_killed(self, argv: Sequence[str | Path], at: int) -> Run:
        """
        Run a program and kill it before its step *at*; with 0 it ends by itself.

        Steps are commands to QEMU, renames and hard links; see kill_at.c.
        """
        return run_killed(argv, at, self._cache)

    def status_xml(self, name: str) -> str:
        """What libvirt keeps on disk of a running guest, as the next process will read it."""
        return (self.root / "run" / "qemu" / f"{name}.xml").read_text()

    def active_in_qemu(self, name: str) -> dict[str, str]:
        """By disk: the path of the image that QEMU itself writes, whatever the XMLs say."""
        return dict(self._call("active_in_qemu", name=name))

    def qemu_pid(self, name: str) -> int:
        """
        The process of a running guest.

        Raises:
            ProcessLookupError: The guest has none.
        """
        for pid, argv in self._processes():
            if f"guest={name},debug-threads=on" in argv:
                return pid
        raise ProcessLookupError(f"{name} has no QEMU process")

    def kill_qemu(self, name: str) -> None:
        """SIGKILL for a guest's QEMU; returns when it is gone."""
        _kill(self.qemu_pid(name))

    def close(self) -> None:
        """End every QEMU of this root."""
        for pid, _ in list(self._processes()):
            _kill(pid)

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        """Every QEMU that works under this root, with its arguments."""
        mine = f"{self.root}/"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "qemu-system" in argv[0] and any(mine in argument for argument in argv):
                yield int(entry.name), argv

    def _call(self, call: str, **arguments: Any) -> Any:
        ran = forked.script(DRIVER, [self.uri, json.dumps([call, arguments])])
        if not ran.stdout:
            raise CallFailed(call, ran.stderr.strip() or f"died with {ran.returncode}", -1)
        answer = json.loads(ran.stdout.splitlines()[-1])
        if "error" in answer:
            raise CallFailed(call, answer["error"], answer["code"])
        return answer["value"]


def _qemu_conf() -> str:
    # no virtlogd, files as they are, and a folder made by debootstrap will do
    lines = ['stdio_handler = "file"', "dynamic_ownership = 0", "namespaces = []"]
    if os.geteuid() == 0:
        lines += ['user = "root"', 'group = "root"']  # as the images are
    return "\n".join(lines) + "\n"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    end = time.monotonic() + 10
    while time.monotonic() < end and _alive(pid):
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits for its parent does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
