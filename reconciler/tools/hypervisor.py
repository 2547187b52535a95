"""
libvirt: domains, snapshots and block jobs.  The one place that imports its binding.

Sources: libvirt-domain.h and libvirt-domain-snapshot.h of libvirt, as documented
at https://libvirt.org/html/libvirt-libvirt-domain.html; FIELD_NOTES §4 and §5.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reconciler.model.domain import Domain, DomainState, Job, Saved
from reconciler.model.errors import HypervisorError
from reconciler.tools import domain_xml, files, pulse

if TYPE_CHECKING:
    import libvirt

log = logging.getLogger(__name__)

Progress = Callable[[float], None]
"""Called with the part that is done, from 0 to 1."""

TICK = 0.25
"""Seconds between two looks at a job where no event comes."""
FREEZE = 10
"""Seconds that the guest agent has for an answer; Windows holds a freeze no longer."""
HELD = 10.0
"""Seconds to wait for another process that has the same embedded driver open."""
BUSY = 3
"""A commit whose work has grown so many times since it began, or since it was told, is told of."""
ANSWER = 120.0
"""
Seconds in which a daemon that is well has answered a new connection.

One that its socket starts looks at its guests and at QEMU first, and polkit may ask for a password.
"""
SLOW = 30.0
"""Seconds after which somebody who waits for that is told."""
KEEPALIVE = (5, 6)
"""Seconds between two questions whether libvirtd is there, and how many it may leave unanswered."""
PATIENCE = 600.0
"""Seconds without any progress after which a job is given up on (it goes on by itself)."""


def _binding() -> Any:
    """
    The libvirt binding, its event loop running.

    Raises:
        HypervisorError: It is not installed.
    """
    # an embedded driver logs on stderr by default; what matters comes as an error
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
    try:
        import libvirt
    except ImportError as error:
        raise HypervisorError(
            "a `connection` needs libvirt's Python binding: apt install python3-libvirt, or "
            "pip install 'virt-chain[libvirt]'"
        ) from error
    with _starting:
        if not _started.is_set():
            libvirt.virEventRegisterDefaultImpl()
            libvirt.registerErrorHandler(lambda *_: None, None)
            threading.Thread(target=_events, args=(libvirt,), daemon=True).start()
            _started.set()
    return libvirt


_starting = threading.Lock()
_started = threading.Event()


def _events(binding: Any) -> None:
    while True:
        binding.virEventRunDefaultImpl()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of libvirt become errors that say what was being done."""
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        raise HypervisorError(f"{what}: {error}") from error


def _see_that_it_is_local(uri: str) -> None:
    """
    Raises HypervisorError where *uri* is no libvirt of this host's QEMU.

    Images are looked for on this host, and other transports start programs
    that the URI names.  Source: https://libvirt.org/uri.html.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    asked = {word.partition("=")[0] for word in parts.query.split("&")} - {"", "root", "socket"}
    if parts.scheme not in ("qemu", "qemu+unix") or parts.netloc or asked:
        raise HypervisorError(
            f"{uri} is no connection to the QEMU of this host; write qemu:///system, "
            "qemu:///session or qemu:///embed?root=FOLDER (for another host, run virt-chain there)"
        )


def _opened(binding: Any, uri: str) -> Any:
    """
    A connection; an embedded driver that another process holds is waited for.

    Source: libvirt, src/util/virpidfile.c: one process at a time holds a root.
    """
    until = time.monotonic() + HELD
    while True:
        try:
            return _answered(partial(binding.open, uri), uri)
        except binding.libvirtError as error:
            if "acquire pid file" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(TICK)


def _answered(call: Callable[[], Any], uri: str) -> Any:
    """
    What *call*, which waits for the other end, returns.

    A daemon that hangs accepts connections and says nothing, and libvirt waits for it for
    ever: keepalive begins once a connection is open.  So another thread waits, and a signal
    ends this one.
    """
    answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        try:
            found, error = answers.get(timeout=SLOW)
        except Empty:
            log.warning(
                "%s has not answered for %.0f s; waiting for it up to %.0f s", uri, SLOW, ANSWER
            )
            found, error = answers.get(timeout=ANSWER - SLOW)
    except Empty:
        raise HypervisorError(
            f"{uri} has not answered for {ANSWER:.0f} s; is its daemon (libvirtd, virtqemud) stuck?"
        ) from None
    if error is not None:
        raise error
    return found


@dataclass(slots=True)
class Hypervisor:
    """One connection to libvirt."""

    uri: str
    _connection: libvirt.virConnect
    _binding: Any
    _woken: threading.Event = field(default_factory=threading.Event)
    _events: list[int] = field(default_factory=list)
    _closed: Callable[[], None] = lambda: None
    _deepest: int | None = None

    @classmethod
    def open(cls, uri: str) -> Hypervisor:
        """
        Connect.

        Raises:
            HypervisorError: There is no binding, or libvirt refuses.
        """
        _see_that_it_is_local(uri)
        binding = _binding()
        with _told(f"{uri} cannot be opened"):
            connection = _opened(binding, uri)
        with suppress(binding.libvirtError):  # an embedded driver has no other end
            connection.setKeepAlive(*KEEPALIVE)
        made = cls(uri, connection, binding)
        made._able()
        made._wait_reconnected()
        with suppress(binding.libvirtError):
            made._deepest = deepest_chain(connection.getLibVersion())
        with suppress(binding.libvirtError):
            made._on(binding.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, made._job_event)
        return made

    def _on(self, kind: int, event: Callable[..., None]) -> None:
        self._events.append(self._connection.domainEventRegisterAny(None, kind, event, None))

    def let_go(self) -> None:
        """
        Hear no more events from a libvirtd that has ended, and tell who wanted them.

        Each one keeps the connection, and with it a socket, open for ever.  Whoever
        is still at work with the connection keeps it until then.
        """
        binding = self._binding
        while self._events:
            with suppress(binding.libvirtError):  # done on this side, and there is no other
                self._connection.domainEventDeregisterAny(self._events.pop())
        with suppress(binding.libvirtError):
            self._connection.unregisterCloseCallback()
        self._closed()

    def _able(self) -> None:
        """
        See that this connection can do what plans are made of.

        Capabilities are asked for, not versions; block jobs and relative names
        come with every QEMU that has disk snapshots of a running guest.

        Raises:
            HypervisorError: It cannot take disk snapshots.
        """
        with _told(f"what {self.uri} can do"):
            able = self._connection.getCapabilities()
        if not domain_xml.has_disk_snapshots(able):
            raise HypervisorError(
                f"the QEMU of {self.uri} takes no disk snapshots of a running guest; "
                "install a newer one, or leave `connection` out to work on images alone"
            )

    def _wait_reconnected(self) -> None:
        """
        Let the driver meet the guests that run: what races that fails.

        Source: FIELD_NOTES §5; a query waits for its turn.
        """
        binding = self._binding
        with suppress(binding.libvirtError):
            for handle in self._connection.listAllDomains(binding.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                with suppress(binding.libvirtError):
                    for target in list(domain_xml.disks(handle.XMLDesc()))[:1]:
                        handle.blockInfo(target)

    def alive(self) -> bool:
        """True where the connection answers; libvirtd may have been started anew since."""
        try:
            return bool(self._connection.isAlive())
        except self._binding.libvirtError:
            return False

    def on_lifecycle(self, told: Callable[[str], None], closed: Callable[[], None]) -> None:
        """
        Call *told* with the name of each domain that starts, stops, or is defined anew.

        Args:
            closed: Called, once or twice, when libvirtd has ended and no more events come.
        """

        def event(_connection: Any, domain: libvirt.virDomain, *_: object) -> None:
            told(domain.name())

        def close(*_: object) -> None:
            closed()

        self._closed = closed
        with suppress(self._binding.libvirtError):  # an embedded driver ends with this process
            self._connection.registerCloseCallback(close, None)
        # the last call: it fails where libvirtd has ended before
        with _told(f"events of {self.uri}"):
            self._on(self._binding.VIR_DOMAIN_EVENT_ID_LIFECYCLE, event)

    def _job_event(self, *_: object) -> None:
        self._woken.set()

    # Looking

    def domains(self) -> list[Domain]:
        """Every domain of the connection."""
        with _told(f"the domains of {self.uri}"):
            found = self._connection.listAllDomains()
        return [one for one in map(self._domain, found) if one is not None]

    def domain(self, name: str) -> Domain | None:
        """The domain *name* as it is now; None where there is none."""
        found = self._find(name)
        return None if found is None else self._domain(found)

    def _find(self, name: str) -> libvirt.virDomain | None:
        try:
            return self._connection.lookupByName(name)
        except self._binding.libvirtError as error:
            if error.get_error_code() == self._binding.VIR_ERR_NO_DOMAIN:
                return None
            raise HypervisorError(f"{name}: {error}") from error

    def _handle(self, name: str) -> libvirt.virDomain:
        found = self._find(name)
        if found is None:
            raise HypervisorError(f"{self.uri} has no domain {name} any more")
        return found

    def _domain(self, handle: libvirt.virDomain) -> Domain | None:
        binding = self._binding
        try:
            name = handle.name()
            state = _state(binding, handle)
            live = handle.XMLDesc() if state != "shut-off" else None
            persistent = (
                handle.XMLDesc(binding.VIR_DOMAIN_XML_INACTIVE) if handle.isPersistent() else None
            )
            checkpoints: list[str] = []
            with suppress(binding.libvirtError):
                checkpoints = [one.getName() for one in handle.listAllCheckpoints()]
            return Domain(
                name=name,
                state=state,
                live=domain_xml.disks(live) if live else {},
                persistent=domain_xml.disks(persistent) if persistent else {},
                managed_save=bool(handle.hasManagedSaveImage()),
                checkpoints=tuple(checkpoints),
                transient=persistent is None,
                beside=domain_xml.beside(live or persistent or "<domain/>"),
                deepest=self._deepest,
            )
        except binding.libvirtError as error:
            if error.get_error_code() == binding.VIR_ERR_NO_DOMAIN:
                return None  # it went away in between
            raise HypervisorError(f"a domain of {self.uri} cannot be read: {error}") from error

    def job(self, name: str, target: str) -> Job | None:
        """
        The block job that runs on a disk; None: there is none.

        An answer without a job means that it ended, not that it succeeded.
        """
        binding = self._binding
        handle = self._handle(name)
        with _told(f"the block job on {name}:{target}"):
            told = handle.blockJobInfo(target)
            if not told:
                return None
            disk = domain_xml.disks(handle.XMLDesc()).get(target)
        words = {
            binding.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
            binding.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
            binding.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
            binding.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active-commit",
        }
        kind = words.get(told["type"], "block job")
        ready = disk is not None and disk.ready
        if kind == "active-commit" and disk is not None and disk.mirror is None:
            # libvirt was killed before it had saved the mirror; its abort would crash libvirt 9.0
            ready = told["cur"] == told["end"] > 0
        return Job(kind, ready, told["cur"], told["end"])

    # Block jobs

    def snapshot(self, name: str, overlays: Mapping[str, Path], quiesce: str) -> None:
        """
        Let QEMU go on in *overlays* (made before, by target), all at the same moment.

        Args:
            quiesce: ``never``, ``try`` or ``require``: whether the guest agent
                freezes the filesystems meanwhile.

        Raises:
            HypervisorError: libvirt or the guest agent refuses; every disk is as it was.
        """
        if quiesce == "never":
            self._snapshot(name, overlays)
            return
        with self._frozen(name, required=quiesce == "require"):
            self._snapshot(name, overlays)

    @contextmanager
    def _frozen(self, name: str, *, required: bool) -> Iterator[None]:
        """
        The guest's filesystems stand still; they are thawed whatever happens.

        libvirt waits for the agent without end unless told otherwise, and a
        freeze that was given up on may still come.  Source: FIELD_NOTES §4 and §7.
        """
        handle = self._handle(name)
        try:
            with _told(f"the guest agent of {name}"):
                handle.agentSetResponseTimeout(FREEZE)
                handle.fsFreeze()
        except HypervisorError as error:
            self._thaw(handle)
            if required:
                raise HypervisorError(
                    f'{error}; write quiesce = "try" to go on without a freeze'
                ) from error
            log.warning("%s is not frozen for its snapshot: %s", name, error)
            yield
            return
        try:
            yield
        finally:
            self._thaw(handle)

    def thaw(self, name: str) -> None:
        """Thaw a guest whose freeze was interrupted; one that is not frozen goes on as it is."""
        handle = self._handle(name)
        with suppress(self._binding.libvirtError):
            handle.agentSetResponseTimeout(FREEZE)
        self._thaw(handle)

    def _thaw(self, handle: libvirt.virDomain) -> None:
        """Thaw, and leave the agent's time-out as libvirt has it, for others who ask the agent."""
        binding = self._binding
        with suppress(binding.libvirtError):
            handle.fsThaw()
        with suppress(binding.libvirtError):
            handle.agentSetResponseTimeout(binding.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)

    def _snapshot(self, name: str, overlays: Mapping[str, Path]) -> None:
        binding, handle = self._binding, self._handle(name)
        flags = (
            binding.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | binding.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | binding.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | binding.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        )
        with _told(f"the snapshot of {name}"):
            every = domain_xml.targets(handle.XMLDesc())
            others = [target for target in every if target not in overlays]
            text = domain_xml.snapshot(overlays, others)
            try:
                handle.snapshotCreateXML(text, flags)
            except binding.libvirtError as error:
                if "Duplicate nodes" not in str(error):
                    raise
                # a snapshot that was killed left its nodes in QEMU; libvirt has removed them now
                handle.snapshotCreateXML(text, flags)

    def pull(
        self, name: str, target: str, base: str | None, *, relative: bool, bandwidth: int | None
    ) -> None:
        """
        Begin to pull everything above *base* (None: everything) up into the active image.

        Args:
            base: A name as the live XML spells it.
            bandwidth: Limit in bytes a second.
        """
        binding, handle = self._binding, self._handle(name)
        with _told(f"the pull into {name}:{target}"):
            if base is None:
                flags = binding.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES
                handle.blockPull(target, bandwidth or 0, flags)
                return
            flags = binding.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
            flags |= binding.VIR_DOMAIN_BLOCK_REBASE_RELATIVE if relative else 0
            handle.blockRebase(target, base, bandwidth or 0, flags)

    def commit(
        self,
        name: str,
        target: str,
        base: str,
        top: str | None,
        *,
        relative: bool,
        bandwidth: int | None,
    ) -> None:
        """Begin to commit *top* (None: the active image) down into *base*, as `pull` has it."""
        binding, handle = self._binding, self._handle(name)
        flags = binding.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        flags |= binding.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE if relative else 0
        flags |= binding.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if top is None else 0
        with _told(f"the commit on {name}:{target}"):
            handle.blockCommit(target, base, top, bandwidth or 0, flags)

    def set_speed(self, name: str, target: str, bandwidth: int | None) -> None:
        """Limit the job on a disk to *bandwidth* bytes a second; None: to nothing."""
        flag = self._binding.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        with _told(f"the block job on {name}:{target}"):
            self._handle(name).blockJobSetSpeed(target, bandwidth or 0, flag)

    def wait(self, name: str, target: str, progress: Progress) -> bool:
        """
        Wait until the job on a disk has ended (False), or waits for its pivot (True).

        Whether it succeeded only the live XML and the headers tell.

        Raises:
            HypervisorError: It made no progress for too long, or the domain is gone.
        """
        last, since, first, limited = -1, time.monotonic(), 0, True
        while (job := self.job(name, target)) is not None and not job.ready:
            pulse.beat()
            if job.size:
                progress(min(job.done / job.size, 1.0))
            if job.done != last:
                last, since = job.done, time.monotonic()
            first = first or job.size
            if limited and job.kind == "active-commit" and first and job.done >= first:
                # what was there is copied; a guest that writes faster than the limit would
                # keep the rest from ever getting ready
                self.set_speed(name, target, None)
                limited = False
            if job.size > BUSY * first and first:
                log.warning(
                    "the guest writes to %s:%s about as fast as the %s copies; let it write "
                    "less, or copy faster (--bandwidth)",
                    name,
                    target,
                    job.kind,
                )
                first = job.size
            if time.monotonic() - since > PATIENCE:
                raise HypervisorError(
                    f"the {job.kind} on {name}:{target} made no progress for {PATIENCE:.0f} s; "
                    "it goes on by itself, and the next apply takes it up"
                )
            self._woken.wait(TICK)
            self._woken.clear()
        return job is not None

    def pivot(self, name: str, target: str, before: Callable[[], None]) -> None:
        """
        Let QEMU go on in the image that an active commit has filled.

        The guest stands still meanwhile, so that both images hold the same
        until QEMU, libvirt and its definition agree on which one is active.

        Args:
            before: Called when both hold the same.
        """
        handle, flag = self._handle(name), self._binding.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        with _told(f"the pivot of {name}:{target}"):
            running = _state(self._binding, handle) == "running"
            if running:
                handle.suspend()
            try:
                # the guest waits for what is left to copy
                self.set_speed(name, target, None)
                until = time.monotonic() + PATIENCE
                while (job := self.job(name, target)) and job.done < job.size:
                    if time.monotonic() > until:
                        raise HypervisorError(f"the commit on {name}:{target} does not get ready")
                    time.sleep(0.01)
                before()
                handle.blockJobAbort(target, flag)
            finally:
                if running:
                    handle.resume()

    def resume(self, name: str) -> None:
        """Let a paused guest run on."""
        with _told(f"the resume of {name}"):
            self._handle(name).resume()

    def flush(self, name: str) -> None:
        """
        Make all that QEMU has written durable, by a pause of some milliseconds.

        QEMU flushes every disk whenever it stops the guest's processors.
        Source: QEMU, softmmu/cpus.c, do_vm_stop; FIELD_NOTES §1.1.

        Raises:
            HypervisorError: The guest is paused, which leaves no way to flush.
        """
        handle = self._handle(name)
        with _told(f"the flush of {name}"):
            if _state(self._binding, handle) != "running":
                raise HypervisorError(f"{name} was paused meanwhile; resume it, then apply again")
            try:
                handle.suspend()
            finally:
                handle.resume()

    def resize(self, name: str, target: str, size: int) -> None:
        """Grow a disk of a running domain to *size* bytes."""
        flag = self._binding.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        with _told(f"the resize of {name}:{target}"):
            self._handle(name).blockResize(target, size, flag)

    # The definition

    def attach(self, name: str, sources: Mapping[str, tuple[Path, str]]) -> None:
        """Let the next start of *name* use other images: path and format by target, at once."""
        self._define(name, lambda text: domain_xml.with_sources(text, sources))

    def follow_headers(self, name: str, target: str) -> None:
        """
        Take the backing files of a disk out of the definition: the headers tell them.

        The same in the XML of a managed save image, which resumes on the same disks.
        """

        def edit(text: str) -> str:
            return domain_xml.without_backing(text, [target])

        self._define(name, edit)
        handle = self._handle(name)
        with _told(f"the managed save image of {name}"):
            if handle.hasManagedSaveImage():
                before = handle.managedSaveGetXMLDesc()
                if (after := edit(before)) != before:
                    handle.managedSaveDefineXML(after)

    def _define(self, name: str, edit: Callable[[str], str]) -> None:
        binding, handle = self._binding, self._handle(name)
        with _told(f"the definition of {name}"):
            flags = binding.VIR_DOMAIN_XML_INACTIVE | binding.VIR_DOMAIN_XML_SECURE
            before = handle.XMLDesc(flags)
            after = edit(before)
            if after != before:
                self._connection.defineXML(after)

    # Starting and stopping

    def stop(self, name: str, patience: float) -> None:
        """Shut *name* off: asked first, forced after *patience* seconds."""
        handle = self._handle(name)
        with _told(f"the shutdown of {name}"):
            with suppress(self._binding.libvirtError):
                handle.shutdown()
            until = time.monotonic() + patience
            while handle.isActive() and time.monotonic() < until:
                pulse.beat()
                time.sleep(TICK)
            if handle.isActive():
                handle.destroy()

    def start(self, name: str) -> None:
        """Start *name*."""
        with _told(f"the start of {name}"):
            self._handle(name).create()

    # Snapshot metadata

    def snapshots(self, name: str, target: str) -> dict[str, Saved]:
        """What libvirt's external snapshots of *name* have of the disk *target*, by snapshot."""
        found = {}
        with _told(f"the snapshots of {name}"):
            for one in self._handle(name).listAllSnapshots():
                text = one.getXMLDesc()
                if path := domain_xml.snapshot_states(text).get(target):
                    memory = domain_xml.snapshot_memory(text)
                    size = None if memory is None else files.size_of(memory)
                    found[one.getName()] = Saved(path, memory, size)
        return found

    def forget(self, name: str, snapshot: str) -> bool:
        """
        Drop the metadata of *snapshot*, as ``virsh snapshot-delete --metadata`` does.

        Its children get its parent first: libvirt 9.0 takes the overlay of what is
        deleted for merged, and would let them name the image below as their state.

        Returns:
            False where it was gone already.
        """
        binding = self._binding
        flag = binding.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
        with _told(f"the snapshot {snapshot} of {name}"):
            try:
                handle = self._handle(name)
                going = handle.snapshotLookupByName(snapshot)
                for child in going.listAllChildren():
                    self._give_parent_of(going, child, handle)
                going.delete(flag)
            except binding.libvirtError as error:
                if error.get_error_code() != binding.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                    raise
                return False
        return True

    def _give_parent_of(
        self,
        going: libvirt.virDomainSnapshot,
        child: libvirt.virDomainSnapshot,
        handle: libvirt.virDomain,
    ) -> None:
        binding = self._binding
        text = child.getXMLDesc(binding.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        parent = domain_xml.snapshot_parent(going.getXMLDesc())
        flags = binding.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        if child.isCurrent():
            flags |= binding.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        if domain_xml.is_disk_only(text):
            flags |= binding.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        handle.snapshotCreateXML(domain_xml.with_parent(text, parent), flags)


def deepest_chain(version: int) -> int | None:
    """
    How many images a chain may have with libvirt *version*; None: any number.

    From 10.8 to 11.10 libvirt reads QEMU's answers with json-c, which stops at 32 levels
    ("nesting too deep"), and each image is nested in its overlay.  A guest with more
    images does not start, and libvirt ends a running one when it is started anew.

    Args:
        version: As `virConnectGetLibVersion` tells it: major * 1,000,000 + minor * 1,000.

    Source: measured with the embedded driver of libvirt 11.3, QEMU 10.0: 25 images start
        and 26 do not; with bitmaps, which a backup may add at any time, 22 and 23.
    """
    return 22 if 10_008_000 <= version < 12_000_000 else None


def _state(binding: Any, handle: libvirt.virDomain) -> DomainState:
    number = handle.state()[0]
    if number in (
        binding.VIR_DOMAIN_SHUTOFF,
        binding.VIR_DOMAIN_CRASHED,
        binding.VIR_DOMAIN_NOSTATE,
    ):
        return "shut-off" if not handle.isActive() else "paused"
    return "paused" if number == binding.VIR_DOMAIN_PAUSED else "running"


_connections: dict[str, Hypervisor] = {}
_connecting = threading.Lock()


def connect(uri: str) -> Hypervisor:
    """
    The connection to *uri*, which is kept for as long as it answers.

    Raises:
        HypervisorError: There is no binding, or libvirt refuses.
    """
    with _connecting:
        known = _connections.get(uri)
        if known is not None and not known.alive():
            _connections.pop(uri).let_go()
            known = None
        if known is None:
            _connections[uri] = known = Hypervisor.open(uri)
        return known
