"""What libvirt knows: the disks of the spec, and everybody else's, at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.domain import Domain, Job, Saved, Source
from reconciler.model.errors import ObserveError, ReconcilerError, Refused
from reconciler.model.image import Chain, Format, Identity
from reconciler.tools import files, images

if TYPE_CHECKING:
    from reconciler.tools.hypervisor import Hypervisor


@dataclass(frozen=True, slots=True)
class Found:
    """
    One disk as libvirt has it.

    Attributes:
        path: The active image, as the XML spells it.
        snapshots: What libvirt's snapshots have of the disk, by snapshot.
    """

    host: Hypervisor
    domain: Domain
    target: str
    source: Source
    path: Path
    job: Job | None
    snapshots: Mapping[str, Saved]

    @property
    def formats(self) -> dict[Identity, Format]:
        """The format of the active image, as the XML has it."""
        there = images.identity(self.path)
        known: dict[str, Format] = {"qcow2": "qcow2", "raw": "raw"}
        image_format = known.get(self.source.format or "")
        return {there: image_format} if there and image_format else {}

    def outdated(self, chain: Chain) -> tuple[Path, ...]:
        """
        The chain that the definition of a domain spells out, where it is not *chain*.

        After a block job libvirt spells it out; where the chain was changed by other
        means since, the domain does not start.  Empty while it runs.
        """
        told = [images.identity(path) for path in self.source.named]
        there = [image.identity for image in chain]
        agrees = told == there if self.source.whole else told == there[len(there) - len(told) :]
        return () if self.domain.on or agrees or not len(chain) else self.source.named

    def lost(self, chain: Chain, overlays: Iterable[Path], *, ours: bool) -> str | None:
        """
        Why libvirt must not be asked to change this disk: it has lost track of it.

        QEMU's own locks tell which image it writes to.  They differ from
        libvirt's XML after libvirt was killed in the middle of a switch, and
        stay so until the domain is off.  A lock on a lower image says nothing
        where the active one is locked too, XML and headers agree, and no mirror
        is left: QEMU keeps the base of a commit that was given up open for writing.

        Args:
            overlays: Images that stand on the active image of *chain*.
            ours: Steps of ours were interrupted, so that XML which is behind is known
                to be; `apply` corrects it.
        """
        if not self.domain.on or self.job is not None:
            return None
        name, ways = self.domain.name, "shut the guest off, then apply again"
        lower = [image.second or image.path for image in chain.images[:-1]]
        told = [images.identity(path) for path in self.source.named]
        agrees = told == [image.identity for image in chain]
        suspects = [*overlays, *lower]
        if files.written_by_other(self.path):
            # a snapshot that was begun and not taken leaves the overlay open for writing, too
            # and a pivot that libvirt has not heard of leaves both locked, and a mirror in its XML
            given_up = agrees and not ours and self.source.mirror is None
            suspects = [] if given_up else lower
        for path in suspects:
            if files.written_by_other(path):
                return f"{name} writes to {path}, and libvirt says {self.path}; {ways}"
        differs = self.source.whole and not agrees
        if differs and not (ours and images.behind(self.source.named, chain)):
            names = " <- ".join(path.name for path in self.source.named)
            return f"libvirt says that {name} uses {names}, and the headers say {chain}; {ways}"
        later = self.domain.persistent.get(self.target)
        if ours or later is None or later.path is None or _same(later.path, self.path):
            return None
        return (
            f"{name} runs on {self.path}, and its definition has {later.path}; correct it with "
            f"virsh edit, or {ways}"
        )


@dataclass(frozen=True, slots=True)
class Around:
    """
    Every domain of every connection that the spec names.

    Attributes:
        errors: Why a connection does not answer.
    """

    domains: Mapping[str, Mapping[str, Domain]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec) -> Around:
        """Look at every domain; a connection that does not answer carries its error."""
        domains: dict[str, Mapping[str, Domain]] = {}
        errors: dict[str, str] = {}
        for uri in dict.fromkeys(disk.connection for disk in spec.disks):
            if uri is None:
                continue
            try:
                domains[uri] = {one.name: one for one in _connect(uri).domains()}
            except ReconcilerError as error:
                errors[uri] = str(error)
        return cls(domains, errors)

    def renewed(self, disk: DesiredDisk) -> Around:
        """
        The same, with the domain of *disk* as it is now.

        A connection that did not answer stays silent until all its domains are read again:
        of the other ones nothing is known.
        """
        uri = disk.connection
        if uri is None or uri in self.errors:
            return self
        domains = dict(self.domains.get(uri, {}))
        domains.pop(disk.domain, None)
        errors = dict(self.errors)
        try:
            if (domain := _connect(uri).domain(disk.domain)) is not None:
                domains[domain.name] = domain
        except ReconcilerError as error:
            errors[uri] = str(error)
        return Around({**self.domains, uri: domains}, errors)

    def sources(self) -> Iterator[tuple[Path, str]]:
        """Every file that a domain has as a disk, now or at its next start, and whose it is."""
        for source, label in self._disks():
            for path in (source.path, source.mirror):
                if path is not None and path.is_absolute():
                    yield images.real(path), label

    def writers(self) -> Iterator[tuple[Path, str]]:
        """Every file that a domain writes to, now or at its next start, and whose disk it is."""
        for source, label in self._disks():
            if source.path is not None and source.path.is_absolute() and not source.read_only:
                yield images.real(source.path), label

    def raw(self) -> Iterator[Path]:
        """Every file that a domain has as a raw disk: its first bytes are the guest's."""
        for source, _ in self._disks():
            if source.format == "raw" and source.path is not None:
                yield source.path

    def _disks(self) -> Iterator[tuple[Source, str]]:
        """Every disk of every domain, as it is now and as its next start will have it."""
        for domain in (one for some in self.domains.values() for one in some.values()):
            for disks in (domain.live, domain.persistent):
                for target, source in disks.items():
                    yield source, f"{domain.name}:{target}"

    def named(self, disk: DesiredDisk) -> Iterator[Path]:
        """The images that the XML of *disk*'s domain has for it, links resolved."""
        domain = self.domains.get(disk.connection or "", {}).get(disk.domain)
        for disks in (domain.live, domain.persistent) if domain is not None else ():
            source = disks.get(disk.target)
            if source is not None and source.path is not None and source.path.is_absolute():
                yield images.real(source.path)

    def disk(self, disk: DesiredDisk) -> Found:
        """
        *disk* as libvirt has it.

        Raises:
            ReconcilerError: No connection, no such domain or disk, or not a disk in a file.
        """
        uri = disk.connection
        assert uri is not None
        if uri in self.errors:
            raise ObserveError(self.errors[uri])
        domain = self.domains[uri].get(disk.domain)
        if domain is None:
            known = ", ".join(sorted(self.domains[uri])) or "none"
            raise Refused(
                f"{uri} has no domain {disk.domain} (it has: {known})",
                "define it, or leave `connection` out to work on images alone",
            )
        source, path = _in_a_file(domain, disk)
        host = _connect(uri)
        job = host.job(domain.name, disk.target) if domain.on else None
        if domain.on and job is None:
            # one that ran when all domains were read may have ended: XML read now is its outcome
            domain = host.domain(domain.name) or domain
            source, path = _in_a_file(domain, disk)
        snapshots = host.snapshots(domain.name, disk.target)
        return Found(host, domain, disk.target, source, path, job, snapshots)


def _in_a_file(domain: Domain, disk: DesiredDisk) -> tuple[Source, Path]:
    """
    *disk* in the XML, and its image.

    Raises:
        Refused: There is no such disk, or it is none that is handled.
    """
    source = domain.disks.get(disk.target)
    if source is None:
        raise Refused(
            f"the domain {domain.name} has no disk {disk.target} "
            f"(it has: {', '.join(domain.disks) or 'none'})",
            "write one of these targets",
        )
    if source.kind != "file" or source.path is None:
        raise Refused(
            f"{disk.label} is a disk of type {source.kind}, and only disks in files are handled",
            "take it off the spec",
        )
    if source.special is not None:
        raise Refused(
            f"{disk.label} is a {source.special} disk, and its image has to stay the one it is",
            f"take it off the spec, or <{source.special}/> out of the domain",
        )
    return source, source.path


def _same(one: Path, other: Path) -> bool:
    return images.identity(one) == images.identity(other)


def _connect(uri: str) -> Hypervisor:
    from reconciler.tools.hypervisor import connect  # takes a while, for libvirt alone

    return connect(uri)
