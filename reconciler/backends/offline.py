"""
Disks whose guest is off: every step is done with qemu-img.

Every step is one of the sequences that lost nothing in FIELD_NOTES §1: data is
copied while all headers stay as they are, made durable, checked and compared;
then one header is rewritten.  A kill at any point leaves a disk that reads right.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, assert_never

from reconciler.model.errors import ReconcilerError
from reconciler.model.extents import Extents, Range, ranges
from reconciler.model.image import Chain, Format, Image
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
    touched,
)
from reconciler.tools import files, images, qcow2, qemuimg, storage_daemon, views

if TYPE_CHECKING:
    from reconciler.backends.together import Together

log = logging.getLogger(__name__)

Verify = Literal["none", "moved", "full"]


class WrongContent(ReconcilerError):
    """What was moved does not read the same; nothing was relinked."""


def _silent(_: float) -> None:
    pass


@dataclass(slots=True)
class Offline:
    """
    One disk, worked on with qemu-img.

    Attributes:
        trust: Which files may be opened, and in which format.
        names: Files with two names; see `images.with_names`.
        verify: What is compared: nothing, what was moved, or (by the caller
            too) every kept view.
        bandwidth: Limit in bytes a second, where the tool has one.
        progress: Called with the part of the current step that is done.
        live: QEMU does the work, and goes on with the names that it knows.
    """

    trust: images.Trust = field(default_factory=images.Trust)
    names: Mapping[Path, Path] = field(default_factory=dict)
    verify: Verify = "moved"
    bandwidth: int | None = None
    progress: Callable[[float], None] = _silent
    live: ClassVar[bool] = False

    def observe(self, active: Path | None) -> Chain:
        """The chain whose active image is *active*; empty where that does not exist."""
        if active is None or not active.exists():
            return Chain()
        return images.with_names(images.walk(active, self.trust), self.names)

    def run(self, step: Step, chain: Chain) -> Together | None:
        """
        Carry out *step* on *chain*, as it is on the disk now.

        Returns:
            What is left to be done together with the other disks of the domain.

        Raises:
            ToolFailed: What qemu-img said.
            WrongContent: What was moved differs from its source.
        """
        match step:
            case Create():
                with files.guarded(chain.images[-1].path) if len(chain) else nullcontext():
                    self._create(step, chain)
            case Commit():
                self._commit(step, chain)
            case Pull(into, base):
                below = None if base is None else chain.up_to(base)
                with _guard(chain, chain.image(into)):
                    self._pull(into, below, chain)
            case Rebase(image, backing):
                with _guard(chain, chain.image(image)):
                    self._rebase(image, backing, chain)
            case Rename(source, target):
                self._rename(source, target, chain)
            case Resize(image, size):
                qemuimg.run(qemuimg.resize(image, chain.image(image).format, size), writes=[image])
                files.sync(image)
            case Repair(image):
                with _guard(chain, chain.image(image)):
                    qemuimg.repair(image)
                    files.sync(image)
            case Remove(image):
                with files.guarded(image):
                    files.remove(image)
            case Attach(image):
                # without libvirt the state file alone says which image is active
                self._like_active(image, chain)
            case Forget():
                pass
            case _:
                assert_never(step)
        return None

    def done(self, step: Step, chain: Chain) -> bool:
        """
        True where the interrupted *step* has left its mark on the disk.

        A commit that keeps its top leaves none until the rename after it:
        it is done again, which is always right.
        """
        match step:
            case Create():
                return self._created(step, chain)
            case Commit(top, base, relink):
                return (base not in chain) if not relink else (top not in chain)
            case Pull(into, base):
                if into not in chain:
                    return True
                below = chain.backing_of(into)
                return (below.path if below else None) == base
            case Rebase(image, backing):
                return image not in chain or _stands_on(chain, image, backing)
            case Rename(source, target):
                return source not in chain and not files.same_file(source, target)
            case Resize(image, size):
                return image in chain and chain.image(image).virtual_size >= size
            case Repair(image):
                return image not in chain or not chain.image(image).dirty
            case Attach(image):
                return bool(chain.active and chain.active.path == image)
            case Remove(image):
                return not os.path.lexists(image)
            case Forget():
                return False
            case _:
                assert_never(step)

    def read_sources(self, step: Step, chain: Chain) -> tuple[Path, ...]:
        """Images that *step* reads and that nobody may write to meanwhile."""
        if not isinstance(step, Commit):
            return ()
        read = [*chain.between(step.base, step.top), chain.image(step.top)]
        return tuple(image.path for image in read)

    def settle(self) -> None:
        """Make durable what an interrupted step has left in memory; here all of it is."""

    def mend(self, step: Step, chain: Chain) -> None:
        """
        Mend what an interrupted *step* has left in the metadata of the image that it wrote.

        A write that was torn, or never came, leaves reference counts that are
        wrong and clusters that nobody uses; no view reads differently.
        """
        for path in touched(step):
            if path in chain and chain.image(path).format == "qcow2":
                qemuimg.repair(path)

    def taken_back(self, step: Step, chain: Chain) -> bool:
        """True where nothing is left of *step*, which libvirt refused; *chain* is as before it."""
        made = isinstance(step, Create) and step.image not in chain
        return made and not os.path.lexists(touched(step)[0])

    def go_back(self, image: Path, recorded: str, recorded_format: str | None) -> None:
        """Let *image* name the backing file again that it had before an interruption."""
        argv = qemuimg.relink(image, recorded, "raw" if recorded_format == "raw" else "qcow2")
        qemuimg.run(argv, writes=[image])
        files.sync(image)

    def check(self, image: Image) -> None:
        """
        Raises ToolFailed where the metadata of *image*, which is ours to write, is wrong.

        Clusters that nobody uses are given back: a tool that could not write its
        last tables leaves some, and says nothing.
        """
        if image.format == "qcow2" and qemuimg.check(image.path):
            qemuimg.repair(image.path, "leaks")

    def _created(self, step: Create, chain: Chain) -> bool:
        return bool(chain.active and chain.active.path == step.image)

    def _create(self, step: Create, chain: Chain) -> None:
        temporary = files.unmade(step.image)
        temporary.unlink(missing_ok=True)
        like: Image | None = chain.active
        if step.backing is None:
            argv = qemuimg.create(temporary, step.format, step.size)
        else:
            backing = self._outside(step.backing, chain)
            relative = any(is_relative(image) for image in chain)
            name = link_name(step.image, backing.path, relative=relative)
            argv = qemuimg.create_on(temporary, name, backing.format, step.size)
            like = like or backing
        qemuimg.run(argv, writes=[step.image.parent])
        if like is not None and like.owner:
            files.own(temporary, like.owner, 0o600 | like.mode & 0o060)
        files.sync(temporary)
        files.rename_new(temporary, step.image)
        if (there := images.identity(step.image)) is not None:
            made: Format = step.format if step.backing is None else "qcow2"
            self.trust = replace(self.trust, formats={**self.trust.formats, there: made})

    def _outside(self, path: Path, chain: Chain) -> Image:
        """The image at *path*, in the chain or not."""
        if path in chain:
            return chain.image(path)
        found = self.observe(path).active
        if found is None:
            raise WrongContent(f"{path} does not exist any more")
        return found

    def _commit(self, step: Commit, chain: Chain) -> None:
        base, top = chain.image(step.base), chain.image(step.top)
        below, upper = chain.up_to(step.base).images, chain.up_to(step.top).images
        depth = len(upper) - len(below)
        with _guard(chain, top, base):
            self.check(base)
            extents = self._map(upper)
            moved = ranges(one for one in extents if one.present and one.depth < depth)
            written = os.open(base.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                overlay = upper[len(below)]
                name = qemuimg.commit_name(base, overlay)
                argv = qemuimg.commit(top.path, name, self.bandwidth)
                reads = (image.path for image in upper)
                qemuimg.run(argv, self.progress, reads=reads, writes=[top.path, base.path])
                os.fsync(written)
            finally:
                os.close(written)
            self.check(base)
            grown = images.read_image(base.path, base.format)
            if grown.virtual_size != top.virtual_size:
                raise WrongContent(
                    f"{base} has {grown.virtual_size} bytes after the commit, "
                    f"{top} {top.virtual_size}"
                )
            self._compare(upper, (*below[:-1], grown), moved, f"{top} and {base}", extents)
        if top == chain.active and step.relink:
            self._like_active(base.path, chain)
        if step.relink and (above := chain.overlay_of(top.path)):
            self._relink(above, base)

    @staticmethod
    def _like_active(image: Path, chain: Chain) -> None:
        """Give *image* owner, mode and labels of the active image, whose place it takes."""
        active = chain.active
        if active is not None and active.path != image:
            files.take_manners(image, active.path)
            files.sync(image)

    def _pull(self, into: Path, base: Chain | None, chain: Chain) -> None:
        upper = chain.up_to(into).images
        count = len(base) if base else 0
        below = base.images if base else ()
        # with lazy refcounts a stream's tables may be durable before its data; with extended L2
        # entries QEMU 7.2 ends in an assertion (bdrv_co_do_copy_on_readv, skip_bytes < pnum)
        unfit = upper[-1].lazy_refcounts or upper[-1].extended_l2
        if unfit or not storage_daemon.available() or _dips(upper[count:]):
            self._rebase_safely(upper, below)
            return
        moved = ranges(
            one
            for one in qemuimg.map_view(upper)
            if one.present and 0 < one.depth < len(upper) - count
        )
        if not moved:
            self._relink(upper[-1], below[-1] if below else None)
            return
        written = os.open(into, os.O_RDONLY | os.O_CLOEXEC)
        try:
            storage_daemon.copy_up(
                upper,
                count - 1 if count else None,
                bandwidth=self.bandwidth,
                progress=self.progress,
            )
            os.fsync(written)
        finally:
            os.close(written)
        self.check(upper[-1])
        self._compare(upper[:-1], (*below, upper[-1]), moved, f"{upper[-2]} and {upper[-1]}")
        self._relink(upper[-1], below[-1] if below else None)

    def _rebase(self, image: Path, backing: Path, chain: Chain) -> None:
        upper = chain.up_to(image).images
        below = chain.backing_of(image)
        if below is not None and below.path == backing:
            self._relink(upper[-1], below)
            return
        if backing in chain:
            # the same view under another name: only the header changes
            self._relink(upper[-1], chain.image(backing))
            return
        self._rebase_safely(upper, self.observe(backing).images)

    def _rebase_safely(self, upper: Sequence[Image], below: Sequence[Image]) -> None:
        """
        Let qemu-img copy and relink, write by write; compare, and go back if it differs.

        Used where a stream would read wrong (an image shorter than the one
        above it), for foreign backing files, and without qemu-storage-daemon.
        The old backing files are all there still, so going back is one header.
        """
        image = upper[-1]
        for one in (*upper, *below):
            if one.recorded is not None and one.recorded_format is None:
                raise WrongContent(
                    f"{one.path} does not record the format of its backing file, and qemu-img "
                    f"would guess it; record it with qemu-img rebase -u -F FORMAT -b "
                    f"'{one.recorded}' '{one.path}'"
                )
        name = link_name(image.path, below[-1].path, relative=is_relative(image)) if below else ""
        argv = qemuimg.rebase(image.path, name, below[-1].format if below else None)
        reads = (one.path for one in (*upper, *below))
        qemuimg.run(argv, self.progress, reads=reads, writes=[image.path])
        files.sync(image.path)
        self.check(image)
        try:
            self.compare_relinked(upper, below)
        except WrongContent:
            log.error("%s reads differently on its new backing file; going back", image)
            self._relink(image, upper[-2] if len(upper) > 1 else None)
            raise

    def compare_relinked(self, before: Sequence[Image], below: Sequence[Image]) -> None:
        """
        Compare the last of *before* on its old backing files with itself on *below*.

        Raises:
            WrongContent: It reads differently, so that its header has to go back.
        """
        if self.verify == "none":
            return
        after = (*below, before[-1])
        old, new = qemuimg.map_view(before), qemuimg.map_view(after)
        copied = ranges(one for one in [*old, *new] if one.depth > 0)
        self._compare(before, after, copied, f"{before[-1]} before and after")

    def observe_below(
        self, image: Path, recorded: str, recorded_format: str | None
    ) -> Chain | None:
        """The chain that the backing name *recorded* in *image* means; None: it is gone."""
        below = qcow2.backing_path(recorded, image)
        there = images.identity(below)
        if there is None:
            return None
        known: Format = "raw" if recorded_format == "raw" else "qcow2"
        formats = {there: known, **self.trust.formats}
        return images.walk(below, replace(self.trust, formats=formats))

    def confirm_relinked(self, chain: Chain, image: Path, old: Chain) -> bool:
        """
        True where *image* reads on its new backing file as it does on *old*.

        Where it does not, its header goes back to *old*, which is untouched.
        """
        upper = chain.up_to(image).images
        try:
            self.compare_relinked((*old.images, upper[-1]), upper[:-1])
        except WrongContent:
            self._relink(upper[-1], old.active)
            return False
        return True

    def _rename(self, source: Path, target: Path, chain: Chain) -> None:
        if target in chain and chain.image(target).second == source:
            if above := chain.overlay_of(target):
                self._relink(above, chain.image(target))
            files.remove(source)
            return
        if source not in chain:
            # an interrupted rename got as far as both names: one goes
            files.remove(source)
            return
        above, below = chain.overlay_of(source), chain.backing_of(source)
        moves = below is not None and source.parent != target.parent
        relative = is_relative(chain.image(source))
        if moves and relative:
            # a relative name would mean another file from the new folder
            self._record(source, below, relative=False)
        if os.path.lexists(target) and not files.same_file(source, target):
            with files.guarded(target):
                files.take_manners(source, target)
                files.sync(source)
                self._put(source, target, above, chain)
        else:
            self._put(source, target, above, chain)
        if moves and relative:
            self._record(target, below, relative=True)

    def _put(self, source: Path, target: Path, above: Image | None, chain: Chain) -> None:
        if above is None or target in chain:
            # nobody names the source, or whoever does goes with the old target
            if files.same_file(source, target):
                files.remove(source)  # renaming one of two names of a file does nothing
            elif os.path.lexists(target):
                files.rename_over(source, target)
            else:
                files.rename_new(source, target)
            return
        # the overlay names the source until its header is rewritten: both names, then one
        if not files.same_file(source, target):
            second = files.unmade(target)
            second.unlink(missing_ok=True)
            os.link(source, second)
            files.rename_over(second, target)
        moved = chain.image(source)
        self._relink(above, images.read_image(target, moved.format))
        files.remove(source)

    def _relink(self, image: Image, backing: Image | None) -> None:
        """Let *image* name *backing*, relative or absolute as it did before."""
        self._record(image.path, backing, relative=is_relative(image))

    @staticmethod
    def _record(image: Path, backing: Image | None, *, relative: bool) -> None:
        """Rewrite the backing name of *image*: one small write, made durable."""
        name = link_name(image, backing.path, relative=relative) if backing else ""
        argv = qemuimg.relink(image, name, backing.format if backing else None)
        qemuimg.run(argv, writes=[image])
        files.sync(image)

    def _map(self, upper: Sequence[Image]) -> Extents:
        """Who provides which bytes; nothing where nothing is compared."""
        return () if self.verify == "none" else qemuimg.map_view(upper)

    def _compare(
        self,
        one: Sequence[Image],
        other: Sequence[Image],
        runs: Sequence[Range],
        what: str,
        known: Extents | None = None,
    ) -> None:
        """
        Compare two views within *runs*.

        Args:
            known: The map of *one*, where it is known already.
        """
        if self.verify == "none":
            return
        at = views.first_difference(one, other, runs, known)
        if at is not None:
            raise WrongContent(
                f"{what} differ near byte {at} after the copy; nothing was relinked or removed"
            )


def _guard(chain: Chain, *opened: Image) -> AbstractContextManager[None]:
    """
    No guest opens the active image meanwhile.

    Where a tool has it open for writing (it is among *opened*), QEMU's own lock does the same.
    """
    active = chain.active
    if active is None or active in opened:
        return nullcontext()
    return files.guarded(active.path)


def _stands_on(chain: Chain, image: Path, backing: Path) -> bool:
    below = chain.backing_of(image)
    return below is not None and below.path == backing


def _dips(group: Sequence[Image]) -> bool:
    """True where an image is shorter than the one above it, which a stream overlooks."""
    return any(lower.virtual_size < upper.virtual_size for lower, upper in pairwise(group))


def is_relative(image: Image) -> bool:
    name = image.recorded
    return name is not None and not name.startswith(("/", "file:", "json:"))


def link_name(image: Path, backing: Path, *, relative: bool) -> str:
    """The backing name that *image* records for *backing*."""
    if not relative:
        return os.fspath(backing)
    name = os.path.relpath(backing, image.parent)
    # a colon before the first slash would be read as a protocol
    return f"./{name}" if ":" in name.split("/", 1)[0] else name
