"""What a spec may not ask for, though each of its keys is right."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from reconciler.model.desired import DesiredDisk, Entry
from reconciler.model.errors import Problem
from reconciler.spec.document import Document, quote, where_of
from reconciler.spec.overlay_names import LONGEST, too_long
from reconciler.spec.places import is_homeless
from reconciler.spec.positions import KeyPath


class RealPaths:
    """Resolves links; a file that a thousand disks list, and its folder, are asked about once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._files: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """*path* with every link resolved; it need not exist."""
        real = self._files.get(path)
        if real is None:
            real = self._files[path] = self._resolved(path)
        return real

    def _resolved(self, path: str) -> str:
        folder, slash, name = path.rpartition("/")
        if not slash or name in ("", ".", "..") or _is_link(path):
            return os.path.realpath(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = self._resolved(folder).rstrip("/") if folder else ""
        return f"{real}/{name}"


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, eq=False)
class WrittenDisk:
    """
    A desired disk, and the place of each of its keys.

    Attributes:
        path: The key of the disk in its document.
        real: Resolves links.
        discard, active_name: The file names as the user wrote them.
    """

    disk: DesiredDisk
    document: Document
    path: KeyPath
    real: RealPaths
    discard: tuple[str, ...] = ()
    active_name: str = ""

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The files of the chain with every link resolved, to tell one under two names."""
        return tuple(self.real(str(entry.path)) for entry in self.disk.chain)

    @property
    def active(self) -> Entry:
        return self.disk.chain[-1]

    @property
    def active_key(self) -> KeyPath:
        """Where the name of the active image is written, in this disk."""
        return ("chain", len(self.disk.chain) - 1, "file")

    def names(self) -> Iterator[tuple[KeyPath, str]]:
        """Every file name as the user wrote it, and its key."""
        for index, entry in enumerate(self.disk.chain):
            yield ("chain", index, "file"), entry.name
        for index, name in enumerate(self.discard):
            yield ("discard", index), name
        if self.active_name:
            yield ("active",), self.active_name

    def problem(self, key: KeyPath, what: str) -> Problem:
        """A problem of *key*, a path inside this disk."""
        return self.document.problem((*self.path, *key), what)

    def told(self) -> str:
        """This disk and its place, for a message about another one."""
        return f"{where_of(self.path)} ({self.disk.where})"


def problems_of(written: WrittenDisk) -> Iterator[Problem]:
    """What is wrong within one disk."""
    for rule in DISK_RULES:
        yield from rule(written)


def problems_between(disks: Sequence[WrittenDisk]) -> Iterator[Problem]:
    """What is wrong between the disks of all specs."""
    once: dict[tuple[str, str], WrittenDisk] = {}
    for written in disks:
        first = once.setdefault((written.disk.domain, written.disk.target), written)
        if first is not written:
            what = f"this disk is also written at {first.disk.where}; keep one of the two"
            yield written.problem((), what)
    for rule in RULES_BETWEEN:
        yield from rule(tuple(once.values()))


def names_are_of_files(written: WrittenDisk) -> Iterator[Problem]:
    """A file name ends in the name of a file, not of a folder."""
    for key, name in written.names():
        if name.rpartition("/")[2] in {"", ".", ".."}:
            what = f"{quote(name)} is the name of a folder; write the name of an image file"
            yield written.problem(key, what)
        elif len(name) > LONGEST // 4 and (what := too_long(name) or ""):
            yield written.problem(key, f"{what}; write a shorter one")


def homes_are_known(written: WrittenDisk) -> Iterator[Problem]:
    """A name that starts with ``~max/`` starts at the home folder of a user there is."""
    for key, name in written.names():
        if name[0] == "~" and "/" in name and is_homeless(name):
            yield written.problem(key, homeless(name))


def homeless(name: str) -> str:
    """What is wrong with *name*, which starts at the home folder of nobody."""
    user = name[1:].partition("/")[0]
    who = f"the user {quote(user)} has" if user else "the user who runs virt-chain has"
    return f"{quote(name)}: {who} no home folder here; write the folder in full"


def every_image_once(written: WrittenDisk) -> Iterator[Problem]:
    """A chain lists each file once, under one name."""
    first: dict[str, int] = {}
    for index, file in enumerate(written.files):
        earlier = first.setdefault(file, index)
        if earlier != index:
            name, other = written.disk.chain[index].name, written.disk.chain[earlier].name
            alias = "" if other == name else f", as {quote(other)}"
            what = f"{quote(name)} is entry {earlier + 1} of this chain already{alias}"
            yield written.problem(("chain", index, "file"), f"{what}; list every image once")


def active_is_no_template(written: WrittenDisk) -> Iterator[Problem]:
    """The guest writes the active image, and nobody writes a template."""
    if written.active.template:
        what = f"{quote(written.active.name)} is active, and a template is never written"
        advice = "list an overlay above it, or leave template out"
        key = ("chain", len(written.disk.chain) - 1, "template")
        yield written.problem(key, f"{what}; {advice}")


def only_the_base_is_raw(written: WrittenDisk) -> Iterator[Problem]:
    """A raw image has no place for the name of a backing file."""
    for index, entry in enumerate(written.disk.chain):
        if index and entry.format == "raw":
            what = (
                f"{quote(entry.name)} stands on another image, and a raw image has no backing file"
            )
            advice = 'write format = "qcow2", or list it as the base'
            yield written.problem(("chain", index, "format"), f"{what}; {advice}")


def templates_are_restore_points(written: WrittenDisk) -> Iterator[Problem]:
    """A template is never changed, so its view is never given up."""
    for index, entry in enumerate(written.disk.chain):
        if entry.template and not entry.restore_point:
            what = f"{quote(entry.name)} is a template, and its view is always kept"
            advice = "leave out restore_point or template"
            yield written.problem(("chain", index, "restore_point"), f"{what}; {advice}")


def discarded_images_are_unlisted(written: WrittenDisk) -> Iterator[Problem]:
    """An image is kept or thrown away."""
    for index, path in enumerate(written.disk.discard):
        if written.real(str(path)) in written.files:
            what = f"{quote(written.discard[index])} is in the chain too"
            advice = "take it out of discard to keep it, or out of chain to throw it away"
            yield written.problem(("discard", index), f"{what}; {advice}")


DISK_RULES: tuple[Callable[[WrittenDisk], Iterator[Problem]], ...] = (
    names_are_of_files,
    homes_are_known,
    every_image_once,
    active_is_no_template,
    only_the_base_is_raw,
    templates_are_restore_points,
    discarded_images_are_unlisted,
)


def one_disk_per_active_image(disks: Sequence[WrittenDisk]) -> Iterator[Problem]:
    """One guest writes an image."""
    first: dict[str, WrittenDisk] = {}
    for written in disks:
        other = first.setdefault(written.files[-1], written)
        if other is not written:
            what = f"{quote(written.active.name)} is also the active image of {other.told()}"
            advice = "list an overlay of its own for each disk"
            yield written.problem(written.active_key, f"{what}; {advice}")


def templates_are_not_active_elsewhere(disks: Sequence[WrittenDisk]) -> Iterator[Problem]:
    """The template of one disk is not what the guest of another disk writes."""
    templates: dict[str, WrittenDisk] = {}
    for written in disks:
        for file, entry in zip(written.files, written.disk.chain, strict=True):
            if entry.template:
                templates.setdefault(file, written)
    for written in disks:
        other = templates.get(written.files[-1], written)
        if other is not written:
            what = f"{quote(written.active.name)} is active here and a template of {other.told()}"
            advice = "list an overlay above it"
            yield written.problem(written.active_key, f"{what}; {advice}")


RULES_BETWEEN: tuple[Callable[[Sequence[WrittenDisk]], Iterator[Problem]], ...] = (
    one_disk_per_active_image,
    templates_are_not_active_elsewhere,
)
