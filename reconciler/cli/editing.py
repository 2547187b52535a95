"""`snapshot`, `drop` and `rollback`: edits of the spec that are shown, then written and applied."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import typer

from reconciler.cli import report
from reconciler.cli.applying import Session
from reconciler.cli.naming import apply_command, printable
from reconciler.cli.progress import Silent
from reconciler.engine import specfile
from reconciler.engine.apply.applier import Applier
from reconciler.engine.apply.options import PATIENCE, Options
from reconciler.engine.looking import Look, look
from reconciler.engine.planning import overwritten, plan_all
from reconciler.engine.state import StateFolder, waiting
from reconciler.engine.stopping import Stop
from reconciler.model.desired import DesiredDisk, Entry, Spec
from reconciler.model.errors import Mistake
from reconciler.model.image import Format, short_name
from reconciler.model.plan import Plan
from reconciler.spec import edit, load
from reconciler.spec.document import read_text
from reconciler.spec.host import read_host
from reconciler.spec.overlay_names import overlay_name, too_long
from reconciler.spec.places import placed

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


@dataclass(frozen=True, slots=True)
class Act:
    """
    What every act is told.

    Attributes:
        spec: The file or folder that is edited.
        where: ``DOMAIN`` or ``DOMAIN:DISK``.
        apply: False: only the spec is edited.
    """

    spec: Path
    where: str
    connect: str | None
    states: StateFolder
    yes: bool
    apply: bool


@dataclass(slots=True)
class Texts:
    """
    Spec files as they are, and as they will be.

    Attributes:
        files: Each file by its path with links resolved, as the user wrote it.
        labels: The disks that they are edited for, all of one domain.
        alone: What holds those that are *locked*, until they are written.
        disks: What holds the locks of the disks, so that no half-done work of another
            virt-chain is looked at.
        asks: The user is asked before they are written, with no lock held meanwhile.
        keeping: Takes the locks of the disks for all that follows.
        again: The command that applies them as they are.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    before: dict[Path, str] = field(default_factory=dict)
    after: dict[Path, str] = field(default_factory=dict)
    alone: ExitStack = field(default_factory=ExitStack)
    locked: set[Path] = field(default_factory=set)
    labels: list[str] = field(default_factory=list)
    disks: ExitStack = field(default_factory=ExitStack)
    asks: bool = False
    keeping: Callable[[], AbstractContextManager[None]] = nullcontext
    again: str = "virt-chain apply"

    def edit(self, disk: DesiredDisk, how: Callable[..., str], *what: Any, **more: Any) -> None:
        """Edit the text that defines *disk* as *how* does, a function of `reconciler.spec.edit`."""

        text = how(self.of(disk), disk.domain, disk.target, *what, **more)
        self.after[Path(os.path.realpath(disk.where.file))] = text
        self.labels.append(disk.label)

    def of(self, disk: DesiredDisk) -> str:
        """The text that defines *disk*, with the edits so far."""
        file = Path(os.path.realpath(disk.where.file))
        if file not in self.after:
            self.files[file] = disk.where.file
            self.before[file] = self.after[file] = read_text(file)
        return self.after[file]

    def check(self, plan: Plan, refused: str | None = None) -> None:
        """Raise an error where a disk of *plan* has one, or is *refused*: all of it or none."""
        why = "this cannot be planned" if plan.errors else refused
        if why is not None:
            raise Mistake(f"nothing was done: {why}; {self._names} is as it was")
        if self.asks:
            self.disks.close()

    def write(self) -> None:
        """Write every file that changes, each in one act; all of them or none."""
        if self.asks:
            self.disks.enter_context(self.keeping())
        written: list[Path] = []
        for file, text in self.after.items():
            if text == self.before[file]:
                continue
            try:
                specfile.replace_text(file, self.before[file], text, held=file in self.locked)
            except Mistake as error:
                self._take_back(written, error)
                raise
            written.append(file)
        self.alone.close()

    def take_back(self) -> None:
        """
        Let the files say what they did before, as nothing was done to any disk.

        A file that was edited since is left as it is.
        """
        disks = ", ".join(self.labels)
        for file, text in self.before.items():
            if text == self.after[file]:
                continue
            name = printable(str(self.files[file]))
            try:
                specfile.replace_text(file, self.after[file], text)
                said = f"nothing of this was done to {disks}; {name} is as it was"
            except Mistake as error:
                said = (
                    f"nothing of this was done to {disks}, and the edit of {name} stays: "
                    f"{error}; look at it before the next apply"
                )
            print(f"virt-chain: {said}", file=sys.stderr)

    def keep(self, changed: Collection[str], left: Collection[str]) -> None:
        """
        Say that the edit stays, as something of it was done to the disks *changed*.

        It stays for all disks: those *left* as they were belong to the same moment.
        """
        done = f"{', '.join(sorted(changed))} {'is' if len(changed) == 1 else 'are'} changed"
        if left:
            done += f", {', '.join(sorted(left))} {'is' if len(left) == 1 else 'are'} not"
        print(
            f"virt-chain: this was done in part ({done}); {self._names} keeps the edit: finish it "
            f"with: {self.again}",
            file=sys.stderr,
        )

    @property
    def _names(self) -> str:
        return " and ".join(printable(str(name)) for name in self.files.values())

    def _take_back(self, written: Sequence[Path], error: Mistake) -> None:
        """Let the files *written* say again what they did, as another one cannot be written."""
        for file in written:
            try:
                specfile.replace_text(file, self.after[file], self.before[file])
            except Mistake as other:
                raise Mistake(f"{error}; but {file} was edited before, and {other}") from other

    def show(self) -> None:
        """The lines that change, file by file."""
        for file, text in self.after.items():
            typer.echo(printable(str(self.files[file])))
            lines = difflib.unified_diff(
                self.before[file].splitlines(), text.splitlines(), lineterm="", n=0
            )
            for line in list(lines)[2:]:
                if not line.startswith("@@"):
                    typer.echo(f"  {line[0]} {printable(line[1:])}")
        typer.echo()


Editing = Callable[[Spec, Sequence[DesiredDisk], Texts], Sequence[DesiredDisk]]
"""Edits the texts of some disks, and returns those that it has edited."""


def snapshot(act: Act, name: str | None) -> bool:
    """Add one overlay on top of each disk; True where the disks are as the new spec says."""

    def edited(spec: Spec, disks: Sequence[DesiredDisk], texts: Texts) -> Sequence[DesiredDisk]:
        for disk, new in zip(disks, _new_names(spec, disks, name), strict=True):
            texts.edit(disk, edit.add_overlay, new, image_format=_format(disk))
        return disks

    return _edited(act, edited)


def drop(act: Act, images: Sequence[str]) -> bool:
    """Take *images* out of the chains of the disks; True where that is done."""

    def edited(spec: Spec, disks: Sequence[DesiredDisk], texts: Texts) -> Sequence[DesiredDisk]:
        gone: dict[str, set[str]] = {disk.label: set() for disk in disks}
        for image in images:
            found = [(disk, entry) for disk in disks if (entry := _entry(disk, image)) is not None]
            if not found:
                raise _unknown(disks, image)
            for disk, entry in found:
                _droppable(spec, disk, entry)
                gone[disk.label].add(entry.name)
        chosen = [disk for disk in disks if gone[disk.label]]
        tops = [disk for disk in chosen if disk.chain[-1].name in gone[disk.label]]
        if tops:
            _remember(spec, act.states, look(spec, act.states, tops))
        for disk in chosen:
            texts.edit(disk, edit.drop_images, gone[disk.label])
        return chosen

    return _edited(act, edited)


def roll_back(act: Act, image: str) -> bool:
    """Let each disk go on from *image* in a new overlay; True where that is done."""

    def edited(spec: Spec, disks: Sequence[DesiredDisk], texts: Texts) -> Sequence[DesiredDisk]:
        points = [_restore_point(disk, image, disks) for disk in disks]
        looks = look(spec, act.states, disks)
        _remember(spec, act.states, looks)
        for found, to, new in zip(looks, points, _new_names(spec, disks, None), strict=True):
            disk = found.desired
            _require_observed(found, to)
            texts.edit(
                disk,
                edit.roll_back,
                to=to.name,
                name=new,
                discard=_above(found, to),
                image_format=_format(disk),
            )
        return disks

    return _edited(act, edited)


def _edited(act: Act, edited: Editing) -> bool:
    """
    Let *edited* edit the spec for the disks that it returns; then do as *act* says.

    Unless the user is asked, the files are locked from before they are read until they are
    written: of two acts at the same time the second edits what the first wrote.  The disks are
    locked until the act has ended, so that it neither plans from half-done work nor finds
    anything else than it planned, and no other act edits on top of what it may take back.
    No lock is held while the user is asked; the disks are locked again before the files are
    written.
    Disks are locked before files: an edit may be taken back while the disks are held.
    """
    disks = disks_named(spec := _load(act, {}), act.where)
    with ExitStack() as held, ExitStack() as alone:
        names = [(disk.domain, disk.target) for disk in disks]
        keeping = partial(act.states.keeping, names, waiting(PATIENCE))
        held.enter_context(keeping(only_looking=not (act.apply and act.yes)))
        asks = act.apply and not act.yes
        specs = None if act.spec == Path(".") else [act.spec]
        again = apply_command(specs, act.connect)
        texts = Texts(alone=alone, disks=held, asks=asks, keeping=keeping, again=again)
        if act.yes or not act.apply:
            texts.locked.update(Path(os.path.realpath(disk.where.file)) for disk in disks)
            alone.enter_context(specfile.alone(texts.locked))
        disks = disks_named(spec := _load(act, {}), act.where)
        return _done(act, edited(spec, disks, texts), texts)


def _require_observed(found: Look, to: Entry) -> None:
    """
    Only a state that is on the disk can be gone back to.

    Raises:
        Mistake: The spec lists *to*, and the disk does not have it, or not any more.
    """
    label, name = found.desired.label, _short(to)
    if found.error is not None:
        raise Mistake(f"nothing was done: {label}: {found.error}")
    if found.at_work is not None:
        raise Mistake(f"nothing was done: {found.at_work} is working on {label}; wait for it")
    path = Path(os.path.realpath(to.path))
    if path not in found.chain:
        raise Mistake(f"{label} has no {name}: its chain is {found.chain}; nothing was done")
    if path in overwritten(found):
        raise Mistake(
            f"{name} is overwritten by a merge that was interrupted, and no restore point any "
            "more; nothing was done: virt-chain apply finishes the merge"
        )


def _restore_point(disk: DesiredDisk, image: str, disks: Sequence[DesiredDisk]) -> Entry:
    """
    The entry of *disk* that *image* names, with another above it.

    Raises:
        Mistake: There is none; it tells which of *disks* have one.
    """
    to = _entry(disk, image)
    if to is None:
        others = [one.label for one in disks if _entry(one, image) is not None]
        hint = f"; name the disk: {', '.join(others)}" if others else ""
        raise Mistake(f"{_unknown([disk], image)}{hint}")
    if to == disk.chain[-1]:
        raise Mistake(
            f"{disk.label} is on {_short(to)} already, and has nothing above it to go back "
            f"from (its chain is {_chain(disk)})"
        )
    return to


def _above(found: Look, to: Entry) -> list[str]:
    """Images above *to*, as the spec names them: those listed, and what else the disk has there."""
    disk = found.desired
    listed = {Path(os.path.realpath(entry.path)): entry for entry in disk.chain}
    names = [e.name for e in disk.chain[disk.chain.index(to) + 1 :] if e.path.exists()]
    below = Path(os.path.realpath(to.path))
    if below in found.chain:
        for image in found.chain.images[found.chain.index(below) + 1 :]:
            if image.path not in listed:
                relative = os.path.relpath(image.path, os.path.realpath(disk.directory))
                names.append(min(relative, str(image.path), key=len))
    return names


def _remember(spec: Spec, states: StateFolder, looks: Iterable[Look]) -> None:
    """
    Write down which image is active, for disks that were never applied.

    Without libvirt the spec alone says so, and the one that is coming lists another.
    """
    for found in looks:
        state, offline = found.state, found.desired.connection is None
        if offline and found.task and state.active is None and state.unfinished is None:
            Applier(spec, states, Options(), Silent()).record(found)


def _done(act: Act, disks: Sequence[DesiredDisk], texts: Texts) -> bool:
    """Show the edit and its plan; then write it and apply it, as *act* says."""
    texts.show()
    labels = {disk.label for disk in disks}

    def looking(spec: Spec, states: StateFolder, _: Sequence[str] | None) -> list[Look]:
        return look(spec, states, [disk for disk in spec.disks if disk.label in labels])

    if not act.apply:
        plan = plan_all((act.spec.absolute(),), looking(_load(act, texts.after), act.states, None))
        report.print_plan(plan, report.console(), texts.again)
        texts.check(plan)
        texts.write()
        return True
    stop = Stop()
    session = Session(
        loading=lambda _, __: _load(act, texts.after),
        max_drops=None,
        states=act.states,
        stop=stop,
        options=Options(stopping=lambda: stop.asked, together=True),
        target=None,
        connection=act.connect,
        as_json=False,
        yes=act.yes,
        edit=texts,
    )
    return session.apply_specs([act.spec], looking)


def _load(act: Act, texts: Mapping[Path, str]) -> Spec:
    return load([act.spec], texts).through(act.connect).on(read_host())


def disks_named(spec: Spec, where: str) -> list[DesiredDisk]:
    """The disks that *where* names."""
    found = [disk for disk in spec.disks if where in (disk.domain, disk.label)]
    if not found:
        known = ", ".join(disk.label for disk in spec.disks[:8])
        raise Mistake(f"the spec has no {where}; it has {known}")
    return found


def _format(disk: DesiredDisk) -> Format | None:
    """An overlay is always qcow2; None where that is the default."""
    return None if disk.format == "qcow2" else "qcow2"


def _new_names(spec: Spec, disks: Sequence[DesiredDisk], name: str | None) -> list[str]:
    """
    The file name of a new overlay for each of *disks*, beside the active image.

    Raises:
        Mistake: *name* is taken.
    """
    if name is not None and (not name.isprintable() or os.path.basename(name) in ("", ".", "..")):
        raise Mistake(f"{name!r} is the name of no file; write one such as before-upgrade")
    taken = {os.path.realpath(entry.path) for disk in spec.disks for entry in disk.chain}
    taken |= {os.path.realpath(path) for disk in spec.disks for path in disk.discard}
    names = []
    now = datetime.now(UTC)
    for disk in disks:
        if name is None:
            choices: Iterable[str] = _numbered(_by_pattern(disk, now))
        else:
            choices = [_called(name, disk.target if len(disks) > 1 else None)]
        for choice in choices:
            if what := too_long(choice):
                raise Mistake(f"{disk.label}: {what}; choose a shorter name")
            written = _beside(choice, disk)
            path = os.path.realpath(placed(disk.directory, written))
            if path not in taken and not os.path.lexists(path):
                break
        else:
            entry = next((e for e in disk.chain if os.path.realpath(e.path) == path), None)
            if entry is not None and not os.path.lexists(path):
                raise Mistake(
                    f"{choice} is pending: {disk.label} lists it, and it is not created yet; "
                    "create it with: virt-chain apply"
                )
            raise Mistake(
                f"{choice} is taken: it exists, or the spec lists or discards it; "
                "choose another name"
            )
        taken.add(path)
        names.append(written)
    return names


def _by_pattern(disk: DesiredDisk, now: datetime) -> str:
    try:
        return overlay_name(disk.overlay_name, disk.domain, disk.target, now)
    except ValueError as error:
        raise Mistake(f"{disk.label}: overlay_name: {error}") from error


def _called(name: str, target: str | None) -> str:
    """*name* as a file name; with *target* before its extension where there are several disks."""
    extension = _EXTENSION.search(name)
    stem, suffix = (name[: extension.start()], extension[0]) if extension else (name, ".qcow2")
    return f"{stem}-{target}{suffix}" if target else f"{stem}{suffix}"


def _numbered(name: str) -> Iterable[str]:
    """*name*, then ``name-2``, ``name-3`` and so on."""
    yield name
    extension = _EXTENSION.search(name)
    stem, suffix = (name[: extension.start()], extension[0]) if extension else (name, "")
    for number in range(2, 1000):
        yield f"{stem}-{number}{suffix}"


def _beside(name: str, disk: DesiredDisk) -> str:
    """*name* in the folder of the active image; a name with a folder stays as it is."""
    folder = os.path.dirname(disk.chain[-1].name)
    return name if "/" in name or not folder else os.path.join(folder, name)


def _entry(disk: DesiredDisk, image: str) -> Entry | None:
    """
    The entry of *disk* that *image* names: by file name, with or without suffix, or by path.

    Raises:
        Mistake: It names several.
    """
    paths = {os.path.realpath(image), os.path.realpath(placed(disk.directory, image or "."))}
    ways = (
        lambda entry: entry.name == image,
        lambda entry: os.path.realpath(entry.path) in paths,
        lambda entry: entry.path.name == image,
        lambda entry: short_name(entry.path) == image,
        lambda entry: entry.path.name == _called(image, disk.target),
    )
    for way in ways:
        found = [entry for entry in disk.chain if way(entry)]
        if len(found) > 1:
            names = ", ".join(entry.name for entry in found)
            raise Mistake(f"{image} may be each of {names} in {disk.label}; write the whole name")
        if found:
            return found[0]
    return None


def _droppable(spec: Spec, disk: DesiredDisk, entry: Entry) -> None:
    """
    See that *entry* is this disk's own.

    Raises:
        Mistake: It is a template, or another disk's too.
    """
    ways = "edit the spec by hand to take this disk off it (its data is copied up)"
    if entry.template:
        raise Mistake(f"{_short(entry)} is a template of {disk.label}, and stays; {ways}")
    path = os.path.realpath(entry.path)
    others = [
        other.label
        for other in spec.disks
        if other != disk and any(os.path.realpath(e.path) == path for e in other.chain)
    ]
    if others:
        names = ", ".join(others)
        raise Mistake(f"{_short(entry)} is shared with {names}, and stays; {ways}")


def _unknown(disks: Sequence[DesiredDisk], image: str) -> Mistake:
    has = "; ".join(f"the chain of {disk.label} is {_chain(disk)}" for disk in disks)
    return Mistake(f"no image {image} here; {has}")


def _chain(disk: DesiredDisk) -> str:
    return " <- ".join(map(_short, disk.chain)) + "*"


def _short(entry: Entry) -> str:
    return short_name(entry.path)
