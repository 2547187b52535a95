"""
The survey: every folder, header, state file and domain is read once, into a `Forest`.

Nothing is decided here.  What the filesystem says goes through `Lookups`, so that a part of
an earlier survey serves again for as long as its lookups have the same answers.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.engine.around import Around
from reconciler.engine.disk_state import DiskState, Unfinished, paths_in
from reconciler.engine.forest import Folder, Forest, Tree
from reconciler.engine.state import StateFolder
from reconciler.model.desired import DesiredDisk, Entry, Spec
from reconciler.model.errors import ReconcilerError, Refused
from reconciler.model.image import Chain, FileId, Format, Identity, Image
from reconciler.model.steps import Commit, Create, Pull, Rebase, Rename, touched
from reconciler.planner.task import Wanted
from reconciler.tools import files, images, process, statx
from reconciler.tools.lookups import Lookups
from reconciler.tools.overlays import Overlays, scan


class Context:
    """What the spec as a whole says of files; one object for as long as that is the same."""

    def __init__(self, formats: dict[Identity, Format], roots: images.Roots) -> None:
        self.formats = formats
        self.trust = images.Trust(formats, roots=roots)
        self._by_default = {"qcow2": self.trust}

    def trusting(self, default: Format) -> images.Trust:
        """The same trust with another *default* format."""
        if default not in self._by_default:
            self._by_default[default] = replace(self.trust, default=default)
        return self._by_default[default]

    def with_formats(self, formats: Mapping[Identity, Format]) -> Context:
        """The same where it knows *formats* already."""
        if all(self.formats.get(file) == said for file, said in formats.items()):
            return self
        assert self.trust.roots is not None
        return Context({**self.formats, **formats}, self.trust.roots)


@dataclass(slots=True)
class Survey:
    """One survey of the disks of a spec."""

    spec: Spec
    states: StateFolder
    lookups: Lookups
    around: Around = field(init=False)
    context: Context = field(init=False)
    domain_files: dict[str, list[Path]] = field(init=False)
    known_folders: frozenset[str] = field(init=False)
    remembered: dict[str, Path] = field(init=False, default_factory=dict)
    damaged: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        process.limit(self.spec.host.limits)
        self.around = Around.of(self.spec)
        self.domain_files = {}
        for path, label in self.around.sources():
            self.domain_files.setdefault(label, []).append(self.lookups.path(path))
        self.known_folders = self._known_folders()
        self.context = self._context()

    def forest(self, only: Iterable[DesiredDisk] | None = None) -> Forest:
        """
        The forest of the whole spec.

        Args:
            only: Disks that are to be planned; of the others only what they share counts.
        """
        chosen = {disk.label for disk in (self.spec.disks if only is None else only)}
        trees = {disk.label: self._tree(disk) for disk in self.spec.disks}
        chosen.intersection_update(trees)
        for label in chosen:
            trees[label] = self._compared(trees[label])
        overlays = Overlays()
        if not chosen or any(trees[label].error is None for label in chosen):
            overlays = self._overlays(trees.values())
        for label in chosen:
            trees[label] = self._in_use(trees[label], overlays)
        in_flight = self._in_flight()
        return Forest.of(
            trees,
            overlays,
            self.domain_files,
            self._folders(trees[label] for label in chosen),
            in_flight,
            self.spec.host,
            self._second_names(trees.values()),
            self._silent(trees.values()),
            self._at_work(in_flight),
            self._writers(trees),
            {
                label: self.states.path(label.rpartition(":")[0])
                for label in self._only_remembered()
            },
        )

    def renewed(self, disk: DesiredDisk, forest: Forest) -> Forest:
        """
        *forest*, which this survey made, with *disk* as it is now.

        The disk, its domain and all headers in its folders are read anew; so is whoever
        *forest* says to use one of its images.
        """
        now = copy(self)
        now.lookups = Lookups(self.lookups.memory)
        now.around = self.around.renewed(disk)
        now.context = self.context.with_formats(_formats([disk], now.lookups))
        tree = now._compared(now._tree(disk))
        places = tree.folders | now.lookups.folders(map(Path, tree.own))
        overlays = forest.overlays.renewed(places, now.context.trust, now.lookups)
        trees: dict[str, Tree] = {}

        def uses(label: str, path: Path) -> bool:
            if label not in trees and label in forest.trees:
                trees[label] = now._tree(forest.trees[label].desired)
            found = trees.get(label, Tree(disk, ()))
            if found.error is not None:
                return True  # as at the survey: nobody can tell
            names = (*found.listed, *found.chain.paths, *self.domain_files.get(label, ()))
            if label in self.remembered:
                domain, _, target = label.rpartition(":")
                active = self.states.disk(domain, target, now.lookups).active
                names = (*names, *([now.lookups.path(active)] if active else ()))
            return path in names or any(now._same_file(path, one) for one in names)

        in_flight = now._still_in_flight(tree, forest)
        if tree.state.unfinished is not None:
            for path in tree.state.unfinished.written:
                in_flight[path] = (*in_flight.get(path, ()), disk.label)
        return replace(
            forest,
            trees=ChainMap({disk.label: now._in_use(tree, overlays)}, dict(forest.trees)),
            overlays=overlays,
            folders=now._folders([tree]),
            in_flight=in_flight,
            at_work=now._at_work(in_flight),
            uses=uses,
        )

    # What holds for all disks

    def _context(self) -> Context:
        if self.lookups.memory is None or self.around.domains:
            return self._read_context()
        given = self.spec.disks, self.spec.host, self.known_folders
        return self.lookups.memory.of(("context",), self.lookups, self._read_context, given)

    def _read_context(self) -> Context:
        return Context(_formats(self.spec.disks, self.lookups), self._roots())

    def _roots(self) -> images.Roots:
        """Folders below which images may lie: as the host's config says, else those of the spec."""
        if (allowed := images.allowed_roots(self.spec.host)) is not None:
            return allowed
        # where a listed name is itself a link, its own folder counts, not the one it leads to
        folders: set[str] = set()
        for disk in self.spec.disks:
            folders.update(os.path.dirname(entry.path) for entry in disk.chain)
            folders.update(os.path.dirname(path) for path in (disk.active, *disk.discard) if path)
        # a disk of another spec may stand on these images; its folders were allowed there
        found = {self.lookups.real(folder) for folder in folders} | self.known_folders
        for disk in self.spec.disks:
            found.update(str(path.parent) for path in self.around.named(disk))
        return images.Roots(found)

    def _known_folders(self) -> frozenset[str]:
        """Folders of images of every disk that was applied with this state directory."""
        try:
            known = self.states.known_images(self.lookups)
            active = self.states.active_images(self.lookups)
        except ReconcilerError as error:
            self.damaged = str(error)
            return frozenset()
        labels = {disk.label for disk in self.spec.disks}
        self.remembered = {
            label: self.lookups.path(path) for label, path in active.items() if label not in labels
        }
        folders = self.lookups.folders(path for paths in known.values() for path in paths)
        return frozenset(self.lookups.real(str(folder)) for folder in folders)

    def _second_names(self, trees: Iterable[Tree]) -> list[frozenset[Path]]:
        """Names of one file each, where several are known: one folder may have two mounts."""
        known: dict[tuple[int, int], set[Path]] = {}
        paths = {path for tree in trees for path in (*tree.listed, *tree.chain.paths)}
        paths |= {path for some in self.domain_files.values() for path in some}
        for path in paths:
            found = self.lookups.lstat(os.fspath(path))
            if found is not None:
                known.setdefault((found.st_dev, found.st_ino), set()).add(path)
        return [frozenset(names) for names in known.values() if len(names) > 1]

    def _silent(self, trees: Iterable[Tree]) -> dict[Path, tuple[str, ...]]:
        """Connections that do not answer, by folder that disks of them have images in."""
        found: dict[Path, dict[str, None]] = {}
        for tree in trees if self.around.errors else ():
            uri = tree.desired.connection
            if uri is not None and uri in self.around.errors:
                for path in (*tree.listed, *paths_in(tree.state)):
                    found.setdefault(path.parent, {})[uri] = None
        return {folder: tuple(uris) for folder, uris in found.items()}

    def _writers(self, trees: Mapping[str, Tree]) -> dict[str, set[Path]]:
        """Files that disks of no spec given write to, by the labels of the disks."""
        found = {label: {path} for label, path in self.remembered.items()}
        for path, label in self.around.writers():
            if label not in trees:
                found.setdefault(label, set()).add(self.lookups.path(path))
        return found

    def _only_remembered(self) -> set[str]:
        """Disks that neither the spec nor a domain has, and a state file does."""
        return self.remembered.keys() - self.domain_files.keys()

    def _in_flight(self) -> Mapping[Path, Sequence[str]] | str:
        if self.damaged is not None:
            return self.damaged
        try:
            return self.states.in_flight(self.lookups)
        except ReconcilerError as error:
            return str(error)

    def _still_in_flight(self, tree: Tree, forest: Forest) -> dict[Path, Sequence[str]]:
        """Those of the images of *tree* that steps of another disk in *forest* still write."""
        found: dict[Path, Sequence[str]] = {}
        for path in (*tree.chain.paths, *(wanted.path for wanted in tree.wanted)):
            for label in forest.in_flight.get(path, ()):
                domain, _, target = label.rpartition(":")
                unfinished = self.states.disk(domain, target, self.lookups).unfinished
                written = unfinished.written if unfinished else ()
                if any(self._same_file(path, one) for one in written):
                    found[path] = (*found.get(path, ()), label)
        return found

    def _same_file(self, one: Path, other: Path) -> bool:
        """True for two names of one file, as through two mounts."""
        there = self.lookups.identity(str(one))
        return one == other or (there is not None and there == self.lookups.identity(str(other)))

    def _at_work(self, in_flight: Mapping[Path, Sequence[str]] | str) -> dict[str, str]:
        """Disks whose steps in flight another virt-chain is doing now, and which one."""
        flying = {} if isinstance(in_flight, str) else in_flight
        labels = {label for some in flying.values() for label in some}
        split = {label: label.rpartition(":") for label in labels}
        found = {label: self.states.at_work(one[0], one[2]) for label, one in split.items()}
        return {label: who for label, who in found.items() if who is not None}

    # One disk

    def _tree(self, disk: DesiredDisk) -> Tree:
        """*disk* with its state and its observed chain, as looked at now or remembered."""
        if self.lookups.memory is None or disk.connection is not None:
            return self._walked(disk)
        given = disk, self.context
        return self.lookups.memory.of(
            ("tree", disk.label), self.lookups, lambda: self._walked(disk), given
        )

    def _walked(self, disk: DesiredDisk) -> Tree:
        """*disk* with its state and its observed chain."""
        lookups, state, error = self.lookups, DiskState(), None
        try:
            state = self.states.disk(disk.domain, disk.target, lookups)
        except ReconcilerError as damaged:
            error = str(damaged)
        tree = Tree(
            disk,
            tuple(lookups.path(entry.path) for entry in disk.chain),
            state,
            discard=tuple(lookups.path(path) for path in disk.discard),
            trust=self.context.trusting(disk.format),
        )
        tree = self._with_chain(tree)
        return replace(tree, error=error) if error else tree  # the chain is shown, and no more

    def _with_chain(self, tree: Tree) -> Tree:
        lookups, state = self.lookups, tree.state
        try:
            for path in paths_in(state):
                tree.trust.require_allowed(str(lookups.path(path)))
            if tree.desired.connection is not None:
                tree = self._as_libvirt_has_it(tree)
            active = self._active(tree)
            if active is None:
                return tree
            chain = images.walk(active, tree.trust, lookups)
            if state.unfinished is None and (found := self._named_as_listed(tree, chain)):
                state = replace(state, names={**found, **state.names})
            chain = images.with_names(chain, state.names, lookups)
            return replace(tree, state=state, chain=chain)
        except images.BackingMissing as error:
            return replace(tree, error=error.told(self.moved(error.missing, tree.listed)))
        except ReconcilerError as error:
            return replace(tree, error=str(error))

    def moved(self, missing: Path, listed: Iterable[Path]) -> Path | None:
        """The listed file that has the name of the one that is *missing*; None: there is none."""
        same_name = (path for path in listed if path.name == missing.name)
        return next((path for path in same_name if self._exists(path)), None)

    def _as_libvirt_has_it(self, tree: Tree) -> Tree:
        found = self.around.disk(tree.desired)
        spec = self.context.formats
        own = {one: spec.get(one, known) for one, known in found.formats.items()}
        formats = ChainMap(own, spec)  # the spec's formats are many, and shared
        attached = self.lookups.path(found.path)
        trust = replace(tree.trust, formats=formats)
        return replace(tree, found=found, attached=attached, trust=trust)

    def _active(self, tree: Tree) -> Path | None:
        """
        The observed active image; None: the disk is new.

        It is the disk source of the domain; without libvirt the image that the state file
        has, else `active`, else the highest listed image that exists and is no template.

        Raises:
            Refused: The image that libvirt or the state file names is not there.
        """
        state, disk = tree.state, tree.desired
        if tree.found is not None:
            return self._there(tree.found.path, tree, "its domain")
        if (reached := self._reached(state)) is not None:
            return reached
        if state.active is not None:
            return self._there(state.active, tree, "the state file")
        if disk.active is not None and self._exists(disk.active):
            return self.lookups.path(disk.active)
        left = {one.path for one in state.leftovers}
        for entry, path in zip(reversed(disk.chain), reversed(tree.listed), strict=True):
            if not entry.template and path not in left and self._exists(path):
                return path
        return None

    def _there(self, path: Path, tree: Tree, who: str) -> Path | None:
        """
        *path*, links resolved, which *who* names as the active image; None: it was given up.

        Raises:
            Refused: It is not there: what it held may be all of the guest's data.
        """
        if self._exists(path):
            return self.lookups.path(path)
        if tree.state.given_up == path:
            return None
        label = tree.desired.label
        if (place := self.moved(path, tree.listed)) is not None:
            raise Refused(
                f"{path} is missing, and {who} names it as the active image of {label}",
                f"is its folder mounted? If the images were moved, go on from {place} with: "
                f"virt-chain adopt {label} {place}",
            )
        below = next((e.name for e in reversed(tree.desired.chain) if self._exists(e.path)), None)
        rest = (
            f"go on from {below} with: virt-chain adopt {label} {below}"
            if below
            else (f"let a new disk be created with: virt-chain adopt {label} --new")
        )
        raise Refused(
            f"{path} is missing, and {who} names it as the active image of {label}",
            f"is its folder mounted? If the image is gone for good, {rest}",
        )

    def _reached(self, state: DiskState) -> Path | None:
        """
        The active image that interrupted steps have already made: created, or renamed.

        The state file learns of it only when the whole group is finished.
        """
        active, reached = state.active, None
        steps = state.unfinished.steps if state.unfinished else ()
        for step in steps:
            match step:
                case Create(image, backing):
                    below = {backing, *(s.base for s in steps if isinstance(s, Pull))}
                    below |= {s.backing for s in steps if isinstance(s, Rebase)}
                    if self._exists(image) and images.backing_of(image, self.lookups) in below:
                        active = reached = image
                case Commit(top, base, True) if top == active:
                    active = base
                case Rename(source, target) if source == active:
                    active = target
                    if self._exists(target) and not self._exists(source):
                        reached = target
        return reached

    def _named_as_listed(self, tree: Tree, chain: Chain) -> dict[Path, Path]:
        """
        Files of the chain that the spec lists under another of their names.

        A rename first gives the file its new name too (a hard link); a crash in
        between and the loss of the state file leave it with both.
        """
        twice = [image for image in chain if image.links == 2 and image.path not in tree.listed]
        if not twice:
            return {}
        found: dict[Path, Path] = {}
        for entry, path in zip(tree.desired.chain, tree.listed, strict=True):
            if entry.template or path in chain:
                continue
            there = images.identity_at(path, self.lookups)
            for image in twice:
                if there == image.identity and image.path.parent == path.parent:
                    found[image.path] = path
        return found

    # Disks that are to be planned

    def _compared(self, tree: Tree) -> Tree:
        """*tree*, with what there is of each image that its desired chain lists."""
        if tree.error is not None:
            return tree
        try:
            by_identity = {image.identity: image for image in tree.chain}
            wanted = tuple(
                self._wanted(entry, path, by_identity, tree)
                for entry, path in zip(tree.desired.chain, tree.listed, strict=True)
            )
            outside = tuple(
                (each.path, images.walk(each.path, tree.trust, self.lookups))
                for each in wanted
                if each.image is not None and each.path not in tree.chain
            )
        except ReconcilerError as error:
            return replace(tree, error=str(error))
        places = {
            one.path: there
            for one in tree.state.leftovers
            if (there := images.identity_at(one.path, self.lookups)) is not None
        }
        changes = self._changes(tree)
        return replace(
            tree,
            wanted=wanted,
            outside=outside,
            folders=self.lookups.folders((*tree.chain.paths, *(one.path for one in wanted))),
            places=places,
            untouched=tree.state.unfinished is not None and _untouched(tree.state.unfinished),
            replaced=_replaced(tree.state.unfinished) if tree.state.unfinished else (),
            changes=tuple(changes.values()),
            changed=frozenset(changes),
        )

    def _wanted(
        self, entry: Entry, path: Path, chain: Mapping[Identity | None, Image], tree: Tree
    ) -> Wanted:
        # nothing is made or renamed to where nothing may be opened, either
        tree.trust.require_allowed(str(path))
        there = images.identity_at(path, self.lookups)
        image = chain.get(there) if there is not None else None
        if image is None and self.lookups.lstat(str(path)) is not None:
            left = any(
                one.path == path and there is not None and one.file.inode == there.inode
                for one in tree.state.leftovers
            )
            if not left:
                image = tree.trust.image(path, None, self.lookups)
        return Wanted(
            path=image.path if image else path,
            name=entry.name,
            image=image,
            format=entry.format,
            size=entry.size,
            template=entry.template,
            restore_point=entry.restore_point,
        )

    def _changes(self, tree: Tree) -> dict[Path, str]:
        """
        What somebody else has done to each image that is remembered, in a sentence.

        The active image is the guest's to write to, and another file in its place is told.

        An image that only went off the chain is as it was: whoever merged its data upward by
        hand has changed no restore point.
        """
        unfinished = tree.state.unfinished
        if not (tree.state.images or tree.state.actives):
            return {}
        concerned = {*tree.chain.paths, *tree.listed}
        active = tree.chain.active.path if tree.chain.active else None
        found = {}
        for path, known in tree.state.images.items():
            if unfinished is not None and unfinished.rewrites(path):
                continue  # ours; `replaced` tells of another file in its place
            if path in concerned and (what := self._change(path, known)):
                place = ", and is the active image now" if path == active else ""
                found[path] = f"{path.name} {what}{place}"
        if active is None or (unfinished is not None and unfinished.rewrites(active)):
            return found
        known_as = tree.state.actives.get(active)
        if known_as is not None and self._is_another(active, known_as):
            found[active] = f"{active.name}, the active image, is another file now"
        return found

    def _is_another(self, path: Path, known: FileId) -> bool:
        """True where *path* is another file than it was *known* as."""
        now = files.file_id(path)
        return now is not None and not now.is_same_file(known)

    def _change(self, path: Path, known: FileId) -> str | None:
        """
        What happened to the image at *path* since it was *known*; None: nothing.

        Owner, mode and links may change: libvirt changes them at each start of a guest.
        """
        there = self.lookups.lstat(str(path))
        if there is not None:
            same = (known.inode, known.size, known.modified)
            if (there.st_ino, there.st_size, there.st_mtime_ns) == same:
                return None
        now = files.file_id(path)
        if now is None:
            return None  # a chain without it is refused, or has no need of it
        return "was written to" if now.is_same_file(known) else "is another file now"

    def _overlays(self, trees: Collection[Tree]) -> Overlays:
        paths = [path for some in self.domain_files.values() for path in some]
        for tree in trees:
            paths += (*tree.listed, *tree.chain.paths)
            paths += (image.path for _, some in tree.outside for image in some)
        folders = self.lookups.folders(paths) | {Path(one) for one in self.known_folders}
        there = tuple(sorted(folders))
        raw = self.raw()
        if self.lookups.memory is None:
            return scan(there, self.context.trust, self.lookups, raw)
        return self.lookups.memory.of(
            ("overlays",),
            self.lookups,
            lambda: scan(there, self.context.trust, self.lookups, raw),
            (there, self.context, raw),
        )

    def raw(self) -> frozenset[Identity]:
        """Disks that the spec or a domain has as raw."""
        listed = {one for one, known in self.context.formats.items() if known == "raw"}
        attached = {images.identity_at(path, self.lookups) for path in self.around.raw()}
        return frozenset(listed | {one for one in attached if one is not None})

    def _in_use(self, tree: Tree, overlays: Overlays) -> Tree:
        """*tree*, with whether other programs have its images open."""
        active = tree.chain.active
        if tree.error is not None or active is None:
            return tree
        if tree.found is None:
            return replace(tree, busy=True) if files.written_by_other(active.path) else tree
        if not tree.found.domain.on:
            # libvirt may have lost a domain that runs, on whatever image of the chain
            busy = any(files.written_by_other(image.second or image.path) for image in tree.chain)
            return replace(tree, busy=True) if busy else tree
        above = overlays.of(active.identity)
        ours = _is_live(tree.state.unfinished)
        return replace(tree, lost=tree.found.lost(tree.chain, above, ours=ours))

    def _folders(self, trees: Iterable[Tree]) -> dict[Path, Folder]:
        """Folders of all images that the disks to be planned have or shall have."""
        folders = set().union(*(tree.folders for tree in trees))
        free: dict[int, int] = {}
        found = {}
        for folder in folders:
            if self._is_folder(folder):
                who = statx.identity_of(folder)
                if who.device not in free:
                    free[who.device] = files.free_bytes(folder)
                found[folder] = Folder(who.mount_id, who.device, free[who.device])
        return found

    def _exists(self, path: Path) -> bool:
        return self.lookups.stat(os.fspath(path)) is not None

    def _is_folder(self, path: Path) -> bool:
        return self.lookups.is_folder(os.fspath(path))


def _formats(disks: Iterable[DesiredDisk], lookups: Lookups) -> dict[Identity, Format]:
    """The formats that *disks* name; a name through any link counts."""
    formats: dict[Identity, Format] = {}
    for entry in (one for disk in disks for one in disk.chain if one.format):
        there = images.identity_at(entry.path, lookups)
        if entry.format and there:
            formats[there] = entry.format
    return formats


def _untouched(unfinished: Unfinished) -> bool:
    """True where nothing was written yet: each image is as it was before the first step."""
    before = {link.image: link.file for link in unfinished.links}
    return all(
        (before[path] is not None and files.is_as_it_was(path, before[path]))
        if path in before
        else not os.path.lexists(path)
        for step in unfinished.steps
        for path in touched(step)
    )


def _replaced(unfinished: Unfinished) -> tuple[Path, ...]:
    """Images that somebody has put in the place of those that the steps began with."""
    known = [link.file for link in unfinished.links if link.file is not None]
    return tuple(
        link.image
        for link in unfinished.links
        if link.file is not None
        and (now := files.file_id(link.image)) is not None
        and not any(now.is_same_file(one) for one in known)  # a step may have renamed one
    )


def _is_live(unfinished: Unfinished | None) -> bool:
    return unfinished is not None and unfinished.live
