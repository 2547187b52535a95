"""
Disks whose guest runs: QEMU moves the data, as libvirt's block jobs.

A job rewrites headers before its data is durable (FIELD_NOTES §1.1), so after
each one QEMU is made to flush, and what was merged away stays untouched until
then.  Names are those that the live XML spells.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_never

from reconciler.backends.offline import Offline, WrongContent, is_relative
from reconciler.backends.together import Quiesce, Together
from reconciler.model.domain import Source
from reconciler.model.errors import HypervisorError, StaleChain
from reconciler.model.extents import ranges
from reconciler.model.image import Chain, Image
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
    Step,
)
from reconciler.tools import files, images, qemuimg
from reconciler.tools.hypervisor import Hypervisor

SETTLING = 5.0
"""Seconds that libvirt may take, after a job has ended, until its XML says so."""

OFF = "shut the guest off, then apply again"
"""What is left to the operator where libvirt has lost track of a guest."""


def _nothing(_: Sequence[Path]) -> None:
    pass


@dataclass(slots=True)
class Live(Offline):
    """
    One disk of a domain that runs.

    Attributes:
        host, domain, target: Where the disk is in use.
        quiesce: Whether the guest's filesystems stand still for a snapshot.
        pivoting: Called with two images that hold the same, when QEMU is about to
            go on in the other one.
    """

    host: Hypervisor | None = None
    domain: str = ""
    target: str = ""
    quiesce: Quiesce = "never"
    pivoting: Callable[[Sequence[Path]], None] = _nothing
    live: ClassVar[bool] = True

    def run(self, step: Step, chain: Chain) -> Together | None:
        """Carry out *step*, as `Offline.run` does, while the guest runs."""
        match step:
            case Create():
                return self._snapshot(step, chain)
            case Commit():
                self._commit_down(step, chain)
            case Pull(into, base):
                self._pull_up(into, base, chain)
            case Rename(source, target, True):
                self._second_name(source, target, chain)
            case Resize(_, size):
                self._host.resize(self.domain, self.target, size)
            case Remove():
                Offline.run(self, step, chain)
            case Rebase() | Rename() | Repair() | Attach():
                raise StaleChain(f"{step} waits until {self.domain} is off")
            case Forget(snapshot):
                self._host.forget(self.domain, snapshot)
            case _:
                assert_never(step)
        return None

    def done(self, step: Step, chain: Chain) -> bool:
        """True where the interrupted *step* has left its mark."""
        match step:
            case Rename(source, target, True):
                return files.same_file(source, target) or source not in chain
            case Commit(top):
                return top not in chain
            case _:
                return Offline.done(self, step, chain)

    def taken_back(self, step: Step, chain: Chain) -> bool:
        """
        True where the overlay of a snapshot that libvirt refused is gone again.

        It stays where QEMU may have it: after an error in libvirt's books, or
        without an answer, only QEMU's locks tell which image it writes to.
        """
        active = chain.active
        if not isinstance(step, Create) or active is None:
            return False
        if files.written_by_other(step.image):
            return False
        if not files.written_by_other(active.second or active.path):
            return False
        if images.backing_of(step.image) == (active.second or active.path):
            files.remove(step.image)
        return not step.image.exists()

    def read_sources(self, step: Step, chain: Chain) -> tuple[Path, ...]:
        """The guest writes to the active image until QEMU leaves it."""
        active = chain.active
        return tuple(
            path
            for path in Offline.read_sources(self, step, chain)
            if active is None or path != active.path
        )

    def check(self, image: Image) -> None:
        """
        Raises ToolFailed where the metadata of *image* is wrong.

        The active image is QEMU's own: half of its tables are in memory.
        """
        if image.format == "qcow2" and not self._is_active(image):
            qemuimg.check(image.path, shared=True)

    def settle(self) -> None:
        """Make durable what an interrupted job has left in QEMU's memory, and known to libvirt."""
        domain = self._host.domain(self.domain)
        if domain is not None and domain.state == "running":
            self._catch_up()
            self._host.flush(self.domain)

    def mend(self, step: Step, chain: Chain) -> None:
        """The metadata is QEMU's, which has not ended."""

    @property
    def _host(self) -> Hypervisor:
        assert self.host is not None
        return self.host

    def _source(self) -> Source:
        """The disk in the live XML."""
        domain = self._host.domain(self.domain)
        if domain is None or not domain.on:
            raise StaleChain(f"{self.domain} is not running any more; plan again")
        return domain.live[self.target]

    def _is_active(self, image: Image) -> bool:
        path = self._source().path
        return path is not None and images.identity(path) == image.identity

    def _spelled(self, image: Image) -> str:
        """The name of *image* in the live XML."""
        source = self._source()
        for path in (source.path, *source.backing):
            if path is not None and images.identity(path) == image.identity:
                return os.fspath(path)
        raise StaleChain(f"{image.path} is not among the images that {self.domain} has open")

    def _catch_up(self) -> None:
        """
        Let libvirt see the end of a merge that it was killed in the middle of noticing.

        It dismisses a job in QEMU before it saves what the job has led to; killed in
        between, it goes on with the old chain.  A pull down to the image that is
        directly below by now moves nothing and writes the same header again, and
        libvirt takes out of its books what is not below any more.

        Raises:
            StaleChain: That did not help.

        Source: libvirt 9.0, src/qemu/qemu_blockjob.c, qemuBlockJobEventProcessConcluded
        and qemuBlockJobRefreshJobs; QEMU 7.2, block/stream.c, stream_run.
        """
        if self._host.job(self.domain, self.target) is not None:
            return
        chain = self._missed()
        if chain is None:
            return
        active, below = chain.images[-1], chain.images[:-1]
        try:
            self._host.pull(
                self.domain,
                self.target,
                self._spelled(below[-1]) if below else None,
                relative=is_relative(active),
                bandwidth=None,
            )
            self._wait()
        except HypervisorError as error:
            raise StaleChain(
                f"libvirt does not see that the chain is {chain}: {error}; {OFF}"
            ) from error
        until = time.monotonic() + SETTLING
        while self._missed() is not None:
            if time.monotonic() > until:
                raise StaleChain(f"libvirt does not see that the chain is {chain}; {OFF}")
            time.sleep(0.02)

    def _missed(self) -> Chain | None:
        """The chain, where libvirt still has images in it that were merged; else None."""
        source = self._source()
        chain = self.observe(source.path)
        return chain if source.whole and images.behind(source.named, chain) else None

    # Steps

    def _snapshot(self, step: Create, chain: Chain) -> Together:
        """Make the overlay; QEMU goes on in it together with those of the other disks."""
        active = chain.images[-1]
        if images.backing_of(step.image) == (active.second or active.path):
            if not files.written_by_other(active.second or active.path):
                raise StaleChain(f"{step.image} may be in use; {OFF}")
            step.image.unlink()  # made before an interruption, and never in use
        self._create(step, chain)
        return Together(
            "snapshot",
            self._host,
            self.domain,
            self.target,
            step.image,
            step.format,
            self.quiesce,
        )

    def _commit_down(self, step: Commit, chain: Chain) -> None:
        base, top = chain.image(step.base), chain.image(step.top)
        above = chain.overlay_of(step.top)
        if not self._taken_up():
            self._host.commit(
                self.domain,
                self.target,
                self._spelled(base),
                None if above is None else self._spelled(top),
                relative=above is not None and is_relative(above),
                bandwidth=self.bandwidth,
            )
        if self._wait() and above is None:
            # before the pivot: libvirt may take the owner of what QEMU has left back to itself
            self._like_active(base.path, chain)
            self._host.pivot(self.domain, self.target, lambda: self.pivoting((step.top, step.base)))
            self._wait()
        self._host.flush(self.domain)
        self._left(top)
        if above is None:
            return
        self.check(base)
        below, upper = chain.up_to(step.base).images, chain.up_to(step.top).images
        depth = len(upper) - len(below)
        extents = self._map(upper)
        moved = ranges(one for one in extents if one.present and one.depth < depth)
        grown = images.read_image(base.path, base.format)
        self._compare(upper, (*below[:-1], grown), moved, f"{top} and {base}", extents)

    def _pull_up(self, into: Path, base: Path | None, chain: Chain) -> None:
        if not self._taken_up():
            self._host.pull(
                self.domain,
                self.target,
                None if base is None else self._spelled(chain.image(base)),
                relative=is_relative(chain.image(into)),
                bandwidth=self.bandwidth,
            )
        self._wait()
        self._host.flush(self.domain)
        for image in chain.between(base, into):
            self._left(image)

    def _taken_up(self) -> bool:
        """True where the job of an interrupted apply runs; it gets the speed asked for now."""
        if self._host.job(self.domain, self.target) is None:
            return False
        self._host.set_speed(self.domain, self.target, self.bandwidth)
        return True

    def _wait(self) -> bool:
        return self._host.wait(self.domain, self.target, self.progress)

    def _left(self, image: Image) -> None:
        """
        See that QEMU has left *image*.

        Raises:
            WrongContent: The job has ended, and QEMU still uses it.
        """
        until = time.monotonic() + SETTLING
        while self._uses(image):
            if time.monotonic() > until:
                raise WrongContent(f"the block job has failed: {self.domain} still uses {image}")
            time.sleep(0.02)

    def _uses(self, image: Image) -> bool:
        source = self._source()
        named = [path for path in (source.path, *source.backing) if path is not None]
        return any(images.identity(path) == image.identity for path in named)

    def _second_name(self, source: Path, target: Path, chain: Chain) -> None:
        """Give the file *source* the name *target* too; QEMU keeps the name that it knows."""
        image = chain.image(source)
        temporary = files.unmade(target)
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        files.rename_over(temporary, target)
        if image.second is not None:
            files.remove(source)  # neither QEMU's name nor the spec's any more
