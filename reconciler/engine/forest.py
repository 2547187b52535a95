"""Everything that a survey found, as plain values; questions are answered by look-up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from reconciler.engine.around import Found
from reconciler.engine.disk_state import DiskState
from reconciler.model.desired import DesiredDisk
from reconciler.model.host import Host
from reconciler.model.image import Chain, Identity
from reconciler.planner.task import Wanted
from reconciler.tools.images import Trust
from reconciler.tools.overlays import Overlays

MANY = 3
"""Users of a shared image that are told; thousands may stand on one."""


@dataclass(frozen=True, slots=True)
class Tree:
    """
    One disk as it was found, before anybody else's interest in it counts.

    Attributes:
        listed: Absolute paths of the desired chain with symbolic links resolved.
        discard: The same of the images whose data may be thrown away.
        chain: The observed chain; empty: the disk is new, or *error* says why.
        wanted: What there is of each listed image; empty where nobody asked.
        outside: Chains of listed images that exist and are not in *chain*.
        folders: Where all images lie that the disk has or shall have.
        found: What libvirt has of it; None where the disk has no connection.
        attached: The image that the domain has for it, links resolved; None without libvirt.
        places: Which file lies under the name of each leftover now.
        untouched: Steps in flight have written nothing yet.
        replaced: Images that steps in flight work on, and that are other files by now.
        changes: What was changed from outside below the active image, in sentences.
        changed: Those images.
        busy: Another program has an image open for writing that it must not have.
        lost: Why libvirt must not be asked to change the disk while the guest runs.
    """

    desired: DesiredDisk
    listed: tuple[Path, ...]
    state: DiskState = field(default_factory=DiskState)
    chain: Chain = field(default_factory=Chain)
    trust: Trust = field(default_factory=Trust)
    found: Found | None = None
    attached: Path | None = None
    wanted: tuple[Wanted, ...] = ()
    discard: tuple[Path, ...] = ()
    outside: tuple[tuple[Path, Chain], ...] = ()
    folders: frozenset[Path] = frozenset()
    places: Mapping[Path, Identity] = field(default_factory=dict)
    untouched: bool = False
    replaced: tuple[Path, ...] = ()
    changes: tuple[str, ...] = ()
    changed: frozenset[Path] = frozenset()
    busy: bool = False
    lost: str | None = None
    error: str | None = None

    @property
    def written(self) -> frozenset[Path]:
        """Images that the guest writes to, as far as that is known, now or once it is applied."""
        active = self.attached or self.state.active
        return frozenset(path for path in (active, *self.listed[-1:]) if path is not None)

    @property
    def every_folder(self) -> frozenset[Path]:
        """Where all of its images lie, those in flight and left over included."""
        return self.folders | {Path(name).parent for name in self.own}

    @property
    def own(self) -> frozenset[str]:
        """Every name of this chain's images, and of what is left of it."""
        second = [image.second for image in self.chain if image.second]
        unfinished = self.state.unfinished
        linked = [link.image for link in unfinished.links] if unfinished else []
        left = [left.path for left in self.state.every_leftover]
        return frozenset(map(str, (*self.chain.paths, *second, *linked, *left)))


@dataclass(frozen=True, slots=True)
class Folder:
    """
    A folder of images.

    Attributes:
        mount: Between two mounts nothing can be renamed or linked.
        device: Free space is that of a device.
        free: Bytes that an unprivileged writer may still use.
    """

    mount: int
    device: int
    free: int


@dataclass(frozen=True, slots=True)
class Forest:
    """
    All disks of a spec, and what they share.

    Attributes:
        trees: By label, in the order of the spec.
        overlays: Who stands on whom, in all folders concerned.
        labels: Disks whose desired or observed chain has a file, and disks of domains.
        listed: Every file that a desired chain lists.
        templates: Files that some disk of the spec calls a template.
        writers: Active images of the disks, as they are or as the spec has them, and whose;
            also those of domains and state files that are in no spec given.
        state_files: Those of disks that nothing else knows of any more, by label.
        folders: Those of the disks to be planned that exist.
        in_flight: Images that interrupted steps write, with the labels of the disks concerned.
        unreadable: Why nobody can tell what is in flight: a state file is damaged.
        host: What this host allows.
        silent: Connections that do not answer, by folder that disks of them have images in.
        uses: False where a disk, by its label, no longer lists or has the file that *labels*
            says it has; None: all of this is of one moment.
        at_work: Disks with steps in flight that another virt-chain is doing now, and which
            one; those of the others were interrupted.
    """

    trees: Mapping[str, Tree]
    overlays: Overlays
    labels: Mapping[Path, Sequence[str]]
    listed: frozenset[Path]
    templates: frozenset[Path]
    folders: Mapping[Path, Folder]
    in_flight: Mapping[Path, Sequence[str]]
    unreadable: str | None
    host: Host
    silent: Mapping[Path, Sequence[str]]
    uses: Callable[[str, Path], bool] | None = None
    at_work: Mapping[str, str] = field(default_factory=dict)
    writers: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    state_files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trees: Mapping[str, Tree],
        overlays: Overlays,
        domain_files: Mapping[str, Iterable[Path]],
        folders: Mapping[Path, Folder],
        in_flight: Mapping[Path, Sequence[str]] | str,
        host: Host,
        second_names: Iterable[frozenset[Path]] = (),
        silent: Mapping[Path, Sequence[str]] | None = None,
        at_work: Mapping[str, str] | None = None,
        others: Mapping[str, Iterable[Path]] | None = None,
        state_files: Mapping[str, Path] | None = None,
    ) -> Forest:
        """
        The forest of these trees.

        Args:
            domain_files: Every file that a domain has as a disk, by the label of that disk.
            in_flight: As the attribute, or why it cannot be told.
            others: Files that disks outside of *trees* write to, by the labels of the disks.
            second_names: Names that lead to one file each, as through two mounts: what is
                said of one holds for all.
        """
        labels: dict[Path, dict[str, None]] = {}
        listed: set[Path] = set()
        templates: set[Path] = set()
        writers: dict[Path, tuple[str, ...]] = {}
        for label, tree in trees.items():
            for path in tree.written:
                writers[path] = (*writers.get(path, ()), label)
            listed.update(tree.listed)
            for path, entry in zip(tree.listed, tree.desired.chain, strict=True):
                if entry.template:
                    templates.add(path)
            for path in (*tree.listed, *tree.chain.paths):
                labels.setdefault(path, {})[label] = None
        for label, path in ((label, path) for label, some in domain_files.items() for path in some):
            labels.setdefault(path, {})[label] = None
        for label, path in (
            (label, path) for label, some in (others or {}).items() for path in some
        ):
            writers[path] = (*writers.get(path, ()), label)
            labels.setdefault(path, {})[label] = None
        flight = {} if isinstance(in_flight, str) else dict(in_flight)
        for names in second_names:
            together = {one: None for name in names for one in labels.get(name, ())}
            steps = tuple({one: None for name in names for one in flight.get(name, ())})
            labels |= dict.fromkeys(names, together)
            writing = tuple({one: None for name in names for one in writers.get(name, ())})
            writers |= dict.fromkeys(names, writing)
            flight |= dict.fromkeys(names, steps)
            listed |= names if names & listed else frozenset()
            templates |= names if names & templates else frozenset()
        return cls(
            trees,
            overlays,
            {path: tuple(some) for path, some in labels.items()},
            frozenset(listed),
            frozenset(templates),
            folders,
            flight,
            in_flight if isinstance(in_flight, str) else None,
            host,
            silent or {},
            at_work=at_work or {},
            writers=writers,
            state_files=state_files or {},
        )

    def users(self, tree: Tree) -> dict[Path, tuple[str, ...]]:
        """
        Who else stands on each image of *tree*, or lists it, in words; none where nobody.

        Whoever stands on an image stands on those below it, too.
        """
        own, label = tree.own, tree.desired.label
        found: dict[Path, tuple[str, ...]] = {}
        overlays: tuple[str, ...] = ()
        for image in reversed(tree.chain.images):
            if foreign := tuple(self._foreign(image.identity, own)):
                overlays = tuple(sorted({*overlays, *foreign}))[:MANY]
            if image.path in self.templates:
                continue  # no user more or less changes what may be done with it
            names = (image.path,) if image.second is None else (image.path, image.second)
            labels = islice(self._listing(names, label), MANY)
            if users := dict.fromkeys((*map(os.path.basename, overlays), *labels)):
                found[image.path] = tuple(users)[:MANY]
        return found

    def writers_of(self, tree: Tree) -> dict[Path, str]:
        """Images that *tree* lists and is not on yet, and the other disk that writes to them."""
        found: dict[Path, str] = {}
        active = tree.chain.active.path if tree.chain.active else None
        goes_on = active is not None and tree.listed[-1:] == (active,)  # in the same image
        lower = {image.path for image in tree.chain.images[:-1]}
        for path in tree.listed:
            if path in lower or path in self.templates:
                continue
            others = (one for one in self.writers.get(path, ()) if one != tree.desired.label)
            others = (one for one in others if not self.is_past(one, path, tree.desired.label))
            if goes_on and path == active:
                others = (one for one in others if one not in self.state_files)
            if (writer := next(others, None)) is not None:
                found[path] = writer
        return found

    def is_past(self, other: str, path: Path, label: str) -> bool:
        """
        True where only a state file says that *other* has *path*, and *label* has it since.

        A disk whose domain got another name in the spec leaves its old state file behind.
        """
        if other not in self.state_files or label not in self.trees:
            return False
        state = self.trees[label].state
        return path == state.active or path in state.images or path in state.actives

    def strangers(self, tree: Tree) -> tuple[Path, ...]:
        """Unlisted overlays that stand on the active image of *tree*."""
        active = tree.chain.active
        if active is None or active.path in self.templates:
            return ()
        overlays, own = self.overlays.ordered(active.identity), tree.own
        return tuple(one for one in overlays if str(one) not in own and one not in self.listed)

    def newer(self, tree: Tree) -> tuple[Path, ...]:
        """
        With steps in flight: the highest overlays on the active image of *tree*; none else.

        Those that the steps make, and those of other disks, are none.
        """
        active, unfinished = tree.chain.active, tree.state.unfinished
        if active is None or unfinished is None or active.path in self.templates:
            return ()
        ours = tree.own | set(map(str, unfinished.written))
        seen, left = {active.identity}, [active.identity]
        highest: list[Path] = []
        while left:
            for name, who in self.overlays.directly_on(left.pop()):
                path = Path(name)
                others = any(self._listing([path], tree.desired.label))
                if name in ours or others or who in seen:
                    continue
                seen.add(who)
                left.append(who)
                if not self.overlays.of(who):
                    highest.append(path)
        return tuple(sorted(highest))

    def taken(self, tree: Tree) -> frozenset[Path]:
        """Second names of the chain's images that somebody else's header, spec or domain has."""
        second = [image.second for image in tree.chain if image.second]
        if not second:
            return frozenset()
        own, label = tree.own, tree.desired.label
        return frozenset(
            path
            for path in second
            if any(str(one) not in own for one in self.overlays.naming(path))
            or any(self._listing([path], label))
        )

    def data_file_in(self, tree: Tree) -> str | None:
        """Why *tree* is no disk: an image of it holds the data of another one; None: none does."""
        outside = (image for _, chain in tree.outside for image in chain)
        wanted = (each.image for each in tree.wanted if each.image)
        for image in (*tree.chain, *wanted, *outside):
            if whose := self.overlays.data_file_of(image.identity):
                return (
                    f"{image.path} is the external data file of {whose}, and no disk image of its "
                    "own; take it off the spec"
                )
        return None

    def silent_beside(self, tree: Tree) -> dict[str, Path]:
        """Connections that do not answer and have disks beside images of *tree*, and where."""
        folders = dict.fromkeys(image.path.parent for image in tree.chain) if self.silent else ()
        return {uri: folder for folder in folders for uri in self.silent.get(folder, ())}

    def hidden(self, tree: Tree) -> dict[Path, Path]:
        """
        Images of *tree*, each with a file beside it that cannot be read.

        Such a file may be an overlay that stands on the image.
        """
        own = tree.own
        names = (name for image in tree.chain for name in (image.path, image.second) if name)
        return {name: file for name in names if (file := self._hidden_beside(name, own))}

    def _hidden_beside(self, name: Path, own: frozenset[str]) -> Path | None:
        beside = self.overlays.unreadable(name.parent)
        return next((file for file in beside if str(file) not in own), None)

    def claimed(self, tree: Tree) -> dict[Path, str]:
        """
        Leftovers of *tree* that somebody else stands on or lists, and who does.

        A leftover that stays needs those below it, too.
        """
        claimed: dict[Path, str] = {}
        while tree.state.leftovers and (found := self._claims(tree, claimed)):
            claimed |= found
        return claimed

    def _claims(self, tree: Tree, stay: Mapping[Path, str]) -> dict[Path, str]:
        """The leftovers that are claimed where those in *stay* are nobody's any more."""
        own, label = tree.own - {str(path) for path in stay}, tree.desired.label
        claimed: dict[Path, str] = {}
        for left in tree.state.leftovers:
            if left.path in stay:
                continue
            overlays = map(os.path.basename, self._foreign(tree.places.get(left.path), own))
            labels = islice(self._listing([left.path], label), MANY)
            if users := tuple(dict.fromkeys((*overlays, *labels)))[:MANY]:
                claimed[left.path] = f"{', '.join(users)} stands on it or lists it"
            elif hidden := self._hidden_beside(left.path, own):
                claimed[left.path] = f"{hidden} cannot be read and may stand on it"
            elif left.path in self.templates:
                claimed[left.path] = "the spec calls it a template"
        return claimed

    def interrupted_by(self, tree: Tree) -> str | None:
        """Why *tree* waits for the steps in flight of another disk; None: it need not."""
        if self.unreadable is not None:
            return self.unreadable
        for path in (*tree.chain.paths, *(wanted.path for wanted in tree.wanted)):
            for label in self.in_flight.get(path, ()):
                if label == tree.desired.label:
                    continue
                if who := self.at_work.get(label):
                    return f"{path} is being merged by {label}: {who} is at work; wait for it"
                return (
                    f"{path} is being merged by {label}, which was interrupted; "
                    f"apply {label} under that name first"
                )
        return None

    def _foreign(self, file: Identity | None, own: frozenset[str]) -> Iterator[str]:
        """
        The first overlays that stand on *file* itself and are not *own*, and those on them.

        A base may have ten thousand of them, and each of its disks asks: a few are enough.
        """
        direct = ((path, who) for path, who in self.overlays.directly_on(file) if path not in own)
        for path, who in islice(direct, MANY):
            yield path
            higher = map(str, self.overlays.ordered(who))
            yield from islice((one for one in higher if one not in own), MANY)

    def _listing(self, names: Iterable[Path], label: str) -> Iterator[str]:
        """Disks other than *label* that list or have a file under one of *names*."""
        for name in names:
            for one in self.labels.get(name, ()):
                if one == label or self.is_past(one, name, label):
                    continue
                if self.uses is None or self.uses(one, name):
                    yield one
