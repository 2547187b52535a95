"""`import`: the spec that describes what is there; a plan of it has no steps."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli
import typer

from reconciler.cli.naming import printable
from reconciler.engine import importing, specfile
from reconciler.engine.importing import FoundDisk
from reconciler.engine.looking import look
from reconciler.engine.planning import plan_disk
from reconciler.engine.state import StateFolder
from reconciler.model.errors import Mistake, SpecError
from reconciler.model.host import Host
from reconciler.model.units import human_size
from reconciler.spec import edit, load
from reconciler.spec.document import read_text
from reconciler.spec.read import spec_files


def find(things: Sequence[str], connect: str | None, host: Host) -> list[FoundDisk]:
    """
    The disks that *things* name: domains through *connect*, else images, or one folder.

    Raises:
        Mistake: They name nothing, or domains and files at once.
    """
    uri = connect or os.environ.get("LIBVIRT_DEFAULT_URI")
    there = [thing for thing in things if os.path.lexists(thing) or "/" in thing]
    if connect or (uri and not there):
        assert uri is not None
        return importing.of_domains(uri, things, host)
    missing = [thing for thing in things if not os.path.exists(thing)]
    if missing or not things:
        what = f"{missing[0]} does not exist" if missing else "nothing is named"
        raise Mistake(f"{what}; name images, a folder, or domains with --connect URI")
    folders = [thing for thing in things if os.path.isdir(thing)]
    if folders and len(things) > 1:
        raise Mistake("name images, or one folder")
    if folders:
        return importing.of_folder(Path(folders[0]), host)
    return importing.of_images([Path(thing) for thing in things], host)


@dataclass(slots=True)
class Draft:
    """
    The spec files that are being written.

    Attributes:
        spec: What is loaded to check them: a file, or a folder.
        places: The file that each domain goes to.
        old: Texts of the files that are there already; what they set holds for new disks, too.
    """

    spec: Path
    places: Mapping[str, Path]
    states: StateFolder
    host: Host
    title: str
    old: dict[Path, str] = field(default_factory=dict)

    def texts(self, disks: Sequence[FoundDisk]) -> dict[Path, str]:
        """
        Every file with its new text; disks that cannot be described are told in comments.

        A file without any disk is none.
        """
        defaults = {} if self.old else _defaults(disks)
        texts: dict[Path, str] = {}
        described = {self.places[disk.domain] for disk in disks if disk.why is None}
        for disk in disks:
            file = self.places[disk.domain]
            if file not in described:
                continue
            if file not in texts:
                texts[file] = self.old.get(file) or _head(self.title, defaults)
            if disk.why is None:
                settings = self._settings(disk.domain, defaults)
                texts[file] = edit.add_disk(texts[file], _as_written(disk, settings, file.parent))
            else:
                note = printable(f"{disk.label} is left out: {disk.why}")
                lines = textwrap.wrap(note, 96, break_long_words=False, break_on_hyphens=False)
                texts[file] = edit.add_note(texts[file], lines)
        return texts

    def _settings(self, domain: str, defaults: Mapping[str, str]) -> dict[str, str]:
        """What holds for a disk of *domain* that sets nothing itself."""
        found = dict(defaults)
        for level in ("defaults", "domain"):
            for file, text in self.old.items():
                data: dict[str, Any] = tomli.loads(text)
                if level == "domain":
                    table = data.get("domains", {}).get(domain, {})
                else:
                    table = data.get("defaults", {})
                for name in ("connection", "directory", "format"):
                    if name in table:
                        value = table[name]
                        found[name] = str(file.parent / value) if name == "directory" else value
        return found

    def checked(self, disks: Sequence[FoundDisk]) -> list[FoundDisk]:
        """
        *disks*, where each one that is described has a plan without steps.

        Raises:
            SpecError: The spec that is there has problems of its own.
        """
        found = [self._alone(disk) for disk in disks]
        while True:
            bad = self._unplanned(found)
            if not bad:
                return found
            found = [_without(one, bad.get(one.label)) for one in found]

    def _alone(self, disk: FoundDisk) -> FoundDisk:
        """*disk*, or why a spec cannot say it."""
        if disk.why is not None:
            return disk
        settings = self._settings(disk.domain, {})
        if disk.connection is None and settings.get("connection"):
            why = f"disks of the spec are on {settings['connection']}, and this one is on none"
            return _without(disk, why)
        texts = self.texts([disk])
        try:
            load(list(texts), {Path(os.path.realpath(file)): texts[file] for file in texts})
        except SpecError as error:
            return _without(disk, error.problems[0].what)
        return disk

    def _unplanned(self, disks: Sequence[FoundDisk]) -> dict[str, str]:
        """Why a plan of a disk is not empty, by its label."""
        described = {disk.label for disk in disks if disk.why is None}
        if not described:
            return {}
        texts = {Path(os.path.realpath(f)): text for f, text in self.texts(disks).items()}
        one = self.spec.is_dir() or self.spec in self.places.values()
        paths = [self.spec] if one else list(texts)
        spec = load(paths, texts).on(self.host)
        ours = [disk for disk in spec.disks if disk.label in described]
        bad = {}
        for plan in (plan_disk(found) for found in look(spec, self.states, ours)):
            if plan.error:
                bad[plan.label] = plan.error
            elif plan.steps:
                bad[plan.label] = f"a plan of it has a step: {plan.steps[0].step}"
        return bad


def to_stdout(disks: Sequence[FoundDisk], title: str, states: StateFolder, host: Host) -> bool:
    """Print one spec of *disks*; True where it has any."""
    file = Path("import.toml").absolute()
    draft = Draft(file, {disk.domain: file for disk in disks}, states, host, title)
    found = draft.checked(disks)
    if _any(found):
        typer.echo(draft.texts(found)[file], nl=False)
    _tell(found)
    return _good(found)


def to_folder(
    disks: Sequence[FoundDisk], folder: Path, title: str, states: StateFolder, host: Host
) -> bool:
    """
    Write one spec file for each domain into *folder*; True where there are any.

    Raises:
        Mistake: A file exists already; nothing was written.
    """
    old = {}
    if folder.is_dir() and any(folder.glob("*.toml")):
        old = {file.absolute(): read_text(file) for file in spec_files(folder)}
        disks = _not_yet(disks, folder, old)
    places = {disk.domain: folder.absolute() / _file_name(disk.domain) for disk in disks}
    draft = Draft(folder.absolute(), places, states, host, title, old)
    found = draft.checked(disks)
    texts = draft.texts(found)
    taken = [file for file in texts if os.path.lexists(file)]
    if taken:
        names = ", ".join(str(file) for file in taken)
        raise Mistake(
            f"{names} exists already, and nothing was written; move it away, or use --into"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"{folder} cannot be made: {error.strerror}") from error
    for file, text in texts.items():
        specfile.create(file, text)
        typer.echo(printable(str(folder / file.name)))
    _tell(found)
    return _good(found)


def into(disks: Sequence[FoundDisk], file: Path, states: StateFolder, host: Host) -> bool:
    """Add *disks* to the end of the spec *file*; True where there are any."""
    if file.is_dir():
        raise Mistake(f"{file} is a folder; name one of its files, or use -d")
    before = read_text(file)
    path = file.absolute()
    disks = _not_yet(disks, file, {path: before})
    places = {disk.domain: path for disk in disks}
    draft = Draft(path, places, states, host, "", {path: before})
    found = draft.checked(disks)
    if _any(found):
        specfile.replace_text(file, before, draft.texts(found)[path])
        count = sum(disk.why is None for disk in found)
        typer.echo(f"{printable(str(file))}: {count} {'disk' if count == 1 else 'disks'} added")
    _tell(found)
    return _good(found)


def _any(found: Sequence[FoundDisk]) -> bool:
    return any(disk.why is None for disk in found)


def _good(found: Sequence[FoundDisk]) -> bool:
    """True where something was written, or nothing was left to be."""
    return _any(found) or not found


def _tell(found: Sequence[FoundDisk]) -> None:
    """What was left out, on stderr."""
    for disk in found:
        if disk.why is not None:
            note = f"{disk.label} is left out: {disk.why}"
            print(f"virt-chain: {printable(note)}", file=sys.stderr)


def _without(disk: FoundDisk, why: str | None) -> FoundDisk:
    return disk if why is None else replace(disk, why=why)


def _not_yet(disks: Sequence[FoundDisk], spec: Path, old: Mapping[Path, str]) -> list[FoundDisk]:
    """The *disks* that *spec* does not have; the others are told on stderr."""
    if not any(tomli.loads(text).get("domains") for text in old.values()):
        return list(disks)
    known = load([spec]).disks
    labels = {disk.label: disk.label for disk in known}
    images = {os.path.realpath(disk.chain[-1].path): disk.label for disk in known}
    new = []
    for disk in disks:
        there = labels.get(disk.label) or images.get(os.path.realpath(disk.source or ""))
        if there is None:
            new.append(disk)
        else:
            name = "" if there == disk.label else f", as {there}"
            print(
                f"virt-chain: {printable(disk.label)} is in the spec already{printable(name)}",
                file=sys.stderr,
            )
    return new


def _file_name(domain: str) -> str:
    """A name for the file of *domain* that a folder's spec takes up."""
    name = domain.replace("/", "-")
    return f"_{name}.toml" if name.startswith(".") else f"{name}.toml"


def _head(title: str, defaults: Mapping[str, str]) -> str:
    lines = [f"# {printable(title)}", "", "version = 1"]
    if defaults:
        lines += ["", "[defaults]"]
        lines += [f"{name} = {edit.string(value)}" for name, value in defaults.items()]
    return "\n".join(lines) + "\n"


def _defaults(disks: Sequence[FoundDisk]) -> dict[str, str]:
    """The folder of most active images, and the connection."""
    found = [disk for disk in disks if disk.why is None and disk.chain.active]
    folders = Counter(str(disk.chain.images[-1].path.parent) for disk in found)
    uris = {disk.connection for disk in found}
    defaults = {}
    if len(uris) == 1 and (uri := uris.pop()):
        defaults["connection"] = uri
    if folders:
        defaults["directory"] = folders.most_common(1)[0][0]
    return defaults


def _as_written(disk: FoundDisk, settings: Mapping[str, str], folder: Path) -> edit.NewDisk:
    """*disk* as a table, where *settings* hold for it already."""
    active = disk.chain.images[-1]
    own: dict[str, str] = {}
    directory = settings.get("directory", str(folder))
    if os.path.relpath(active.path, os.path.realpath(directory)).startswith("../"):
        own["directory"] = directory = str(active.path.parent)
    if disk.connection and disk.connection != settings.get("connection"):
        own["connection"] = disk.connection
    templates = dict(disk.templates)
    chain = []
    for image in disk.chain:
        relative = os.path.relpath(image.path, os.path.realpath(directory))
        written = importing.format_to_write(disk.chain, image)
        if image is active and settings.get("format", "qcow2") != image.format:
            written = image.format
        if image.path in templates:
            role = f"template of {templates[image.path]} disks"
        else:
            role = "active" if image is active else "restore point"
        chain.append(
            edit.NewEntry(
                min(relative, str(image.path), key=len),
                written,
                image.path in templates,
                f"{human_size(image.actual_size)}, {role}",
            )
        )
    return edit.NewDisk(
        disk.domain, disk.target, tuple(chain), own, human_size(active.virtual_size)
    )
