"""Looking: from a spec and the disk to one task for the planner per disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.engine.around import Around, Found
from reconciler.engine.memory import Memory, Walked
from reconciler.engine.state import DiskState, Leftover, StateFolder, Unfinished, paths_in
from reconciler.model.desired import DesiredDisk, Entry, Spec
from reconciler.model.domain import Domain, Job
from reconciler.model.errors import ReconcilerError
from reconciler.model.image import Chain, Format, Identity, Image
from reconciler.model.steps import Commit, Create, Pull, Rebase, Rename
from reconciler.planner.task import Task, View, Wanted
from reconciler.tools import files, images, process, qemuimg
from reconciler.tools.moment import Moment

if TYPE_CHECKING:
    from reconciler.tools.hypervisor import Hypervisor

MANY = 4
"""Disks from which on QEMU is asked about several at once."""


@dataclass(frozen=True, slots=True)
class Look:
    """
    One disk as it was found.

    Attributes:
        chain: The observed chain; empty: the disk is new, or *error* says why.
        task: What the planner gets; None where *error* is set.
        trust: Which files may be opened for it, and in which format.
        claimed: Leftovers of this disk that somebody else stands on or lists.
        error: Why the disk cannot be planned.
        host, domain: libvirt's part of it; None where the disk has no connection.
        job: A block job that runs on the disk.
        lost: Why libvirt must not be asked to change the disk while the guest runs.
    """

    desired: DesiredDisk
    state: DiskState
    chain: Chain
    task: Task | None
    trust: images.Trust = field(default_factory=images.Trust)
    error: str | None = None
    claimed: dict[Path, str] = field(default_factory=dict)
    host: Hypervisor | None = None
    domain: Domain | None = None
    job: Job | None = None
    lost: str | None = None

    @property
    def resumed(self) -> Unfinished | None:
        """Steps in flight that have to be finished; None where they have written nothing yet."""
        unfinished = self.state.unfinished
        if unfinished is None or (self.job is None and unfinished.untouched()):
            return None
        return unfinished


@dataclass(frozen=True, slots=True)
class _Here:
    """What one look has for all disks."""

    states: StateFolder
    trust: images.Trust
    around: Around
    moment: Moment
    memory: Memory


def look(
    spec: Spec,
    states: StateFolder,
    only: Iterable[DesiredDisk] | None = None,
    confirmed: Chain | None = None,
    memory: Memory | None = None,
    moment: Moment | None = None,
) -> list[Look]:
    """
    Every disk of *spec* as it is now; an unreadable one carries its error.

    Args:
        only: Disks to return; the others are looked at for what they share.
        confirmed: A chain that QEMU has read already, and need not read again.
        memory: What earlier looks found; it serves for the others alone.
        moment: When this is; now, unless told.
    """
    process.limit(spec.host.limits)
    labels = {disk.label for disk in (spec.disks if only is None else only)}
    around = Around.of(spec)
    trust = images.Trust(_formats(spec), roots=_roots(spec, around))
    memory = Memory() if memory is None else memory
    here = _Here(states, trust, around, moment or Moment(), memory)
    here.memory.believe(trust, (disk.label for disk in spec.disks))
    walked = [_walk(disk, here, labels) for disk in spec.disks]
    chosen = [_compared(one) for one in walked if one.desired.label in labels]
    every = [one for one in walked if one.desired.label not in labels] + chosen
    wanted = any(one.error is None for one in chosen)
    known = _known(every, here, wanted)
    chosen = _confirmed(_trusted(chosen, here), confirmed)
    for one in chosen:
        if one.error is None:
            here.memory.keep(replace(one, wanted=(), outside=(), told=True), here.moment)
    return [_with_task(one, known) for one in chosen]


def _trusted(chosen: Sequence[Walked], here: _Here) -> list[Walked]:
    """*chosen*, with an error where another disk's interrupted steps write an image of one."""
    try:
        in_flight = here.states.in_flight(here.moment)
    except ReconcilerError as error:
        return [replace(one, error=one.error or str(error)) for one in chosen]
    return [replace(one, error=one.error or _untrusted(one, in_flight)) for one in chosen]


def _untrusted(one: Walked, in_flight: Mapping[Path, Sequence[str]]) -> str | None:
    for path in (*one.chain.paths, *(wanted.path for wanted in one.wanted)):
        for label in in_flight.get(path, ()):
            if label != one.desired.label:
                return (
                    f"{path} is being merged by {label}, which was interrupted; "
                    f"apply {label} under that name first"
                )
    return None


def _confirmed(chosen: Sequence[Walked], known: Chain | None) -> list[Walked]:
    """*chosen*, with an error where QEMU reads another chain than the headers tell."""
    asked = [None if one.error or one.told or one.chain == known else one.chain for one in chosen]
    if len(chosen) < MANY:
        told = [_unconfirmed(chain) for chain in asked]
    else:
        from concurrent.futures import ThreadPoolExecutor  # takes a while, for one disk too long

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            told = list(pool.map(_unconfirmed, asked))
    return [replace(one, error=one.error or said) for one, said in zip(chosen, told, strict=True)]


def _formats(spec: Spec) -> dict[Identity, Format]:
    """Formats that the spec names, by file; a name through any link counts."""
    found: dict[Identity, Format] = {}
    for disk in spec.disks:
        for entry in disk.chain:
            if entry.format and (there := images.identity(entry.path)):
                found[there] = entry.format
    return found


def _roots(spec: Spec, around: Around) -> tuple[Path, ...]:
    """Folders below which images may lie: as the host's config says, else those of the spec."""
    if (allowed := images.allowed_roots(spec.host)) is not None:
        return allowed
    listed = [entry.path for disk in spec.disks for entry in disk.chain]
    listed += [path for disk in spec.disks for path in (disk.active, *disk.discard) if path]
    # where a listed name is itself a link, its own folder counts, not the one it leads to
    found = {images.real(Path(folder)) for folder in {os.path.dirname(path) for path in listed}}
    found |= {path.parent for disk in spec.disks for path in around.named(disk)}
    return tuple(sorted(found))


def _walk(disk: DesiredDisk, here: _Here, chosen: Collection[str]) -> Walked:
    known = here.memory.recall(disk, here.states, here.moment)
    if known is not None and disk.label not in chosen:
        return known
    state = DiskState()
    chain = Chain()
    trust = replace(here.trust, default=disk.format)
    listed = tuple(images.real(entry.path) for entry in disk.chain)
    found: Found | None = None
    try:
        state = here.states.disk(disk.domain, disk.target, here.moment)
        for path in paths_in(state):
            trust.see_to(path)
        if disk.connection is None:
            active = _active(disk, listed, state)
        else:
            found = here.around.disk(disk)
            made = found.path.exists() or state.applied is not None
            active = found.path if made else None
            trust = replace(trust, formats={**found.formats, **trust.formats})
        if active:
            chain = images.walk(active, trust)
            if state.unfinished is None:
                names = {**_named_as_listed(disk, listed, chain), **state.names}
                state = replace(state, names=names)
            chain = images.with_names(chain, state.names)
    except ReconcilerError as error:
        return Walked(disk, listed, state, chain, error=str(error), found=found, trust=trust)
    told = known is not None and known.told and known.chain == chain
    walked = Walked(disk, listed, state, chain, found=found, trust=trust, told=told)
    here.memory.keep(walked, here.moment)
    return walked


def _named_as_listed(disk: DesiredDisk, listed: Sequence[Path], chain: Chain) -> dict[Path, Path]:
    """
    Files of the chain that the spec lists under another of their names.

    A rename first gives the file its new name too (a hard link); a crash in
    between and the loss of the state file leave it with both.
    """
    return {
        image.path: path
        for entry, path in zip(disk.chain, listed, strict=True)
        if not entry.template and path not in chain and (there := images.identity(path))
        for image in chain
        if image.identity == there
        and image.links == 2
        and image.path.parent == path.parent
        and image.path not in listed
    }


def _compared(one: Walked) -> Walked:
    """*one*, with what there is of each image that its desired chain lists."""
    disk, chain = one.desired, one.chain
    if one.error is not None:
        return one
    try:
        wanted = tuple(
            _wanted(entry, path, chain, one.state, one.trust)
            for entry, path in zip(disk.chain, one.listed, strict=True)
        )
        outside = tuple(
            (each.path, images.walk(each.path, one.trust))
            for each in wanted
            if each.image is not None and each.path not in chain
        )
    except ReconcilerError as error:
        return replace(one, error=str(error))
    return replace(one, wanted=wanted, outside=outside)


def _active(disk: DesiredDisk, listed: Sequence[Path], state: DiskState) -> Path | None:
    """
    The observed active image: from the state file, else from `active`, else the
    highest listed image that exists and is no template.  None: the disk is new.
    """
    left = {one.path for one in state.leftovers}
    for said in (_reached(state), state.active, disk.active):
        if said is not None and said.exists():
            return images.real(said)
    for entry, path in zip(reversed(disk.chain), reversed(listed), strict=True):
        if not entry.template and entry.path.exists() and path not in left:
            return path
    return None


def _reached(state: DiskState) -> Path | None:
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
                if images.backing_of(image) in below and image.exists():
                    active = reached = image
            case Commit(top, base, True) if top == active:
                active = base
            case Rename(source, target) if source == active:
                active = target
                if target.exists() and not source.exists():
                    reached = target
    return reached


def _wanted(
    entry: Entry,
    path: Path,
    chain: Chain,
    state: DiskState,
    trust: images.Trust,
) -> Wanted:
    trust.see_to(path)  # nothing is made or renamed to where nothing may be opened, either
    there = images.identity(path)
    image: Image | None = next((one for one in chain if there and one.identity == there), None)
    left = any(one.path == path and one.identity == there for one in state.leftovers)
    if image is None and os.path.lexists(path) and not left:
        image = trust.image(path)
    return Wanted(
        path=image.path if image else path,
        name=entry.name,
        image=image,
        format=entry.format,
        size=entry.size,
        template=entry.template,
        restore_point=entry.restore_point,
    )


def _folders(walked: Iterable[Walked], around: Around) -> set[Path]:
    """Folders of every image that any chain of the spec has or shall have."""
    found: set[Path] = set()
    for one in walked:
        found |= one.folders
        found |= {image.path.parent for _, chain in one.outside for image in chain}
    found |= {path.parent for path, _ in around.sources()}
    return {folder for folder in found if folder.is_dir()}


@dataclass(frozen=True, slots=True)
class _Known:
    """
    What all disks of the spec, and all folders concerned, say of each file.

    Attributes:
        overlays: Images that stand on a file.
        disks: Labels of the disks whose desired or observed chain has a file.
        listed: Every file that a desired chain has.
        templates: Files that some disk calls a template.
    """

    overlays: images.Overlays
    disks: dict[Path, tuple[str, ...]]
    listed: frozenset[Path]
    templates: frozenset[Path]


def _known(walked: Sequence[Walked], here: _Here, wanted: bool) -> _Known:
    disks: dict[Path, dict[str, None]] = {}
    listed: set[Path] = set()
    templates: set[Path] = set()
    for one in walked:
        listed.update(one.listed)
        templates.update(
            path
            for path, entry in zip(one.listed, one.desired.chain, strict=True)
            if entry.template
        )
        for path in (*one.listed, *one.chain.paths):
            disks.setdefault(path, {})[one.desired.label] = None
    for path, label in here.around.sources():
        disks.setdefault(path, {})[label] = None
    overlays = images.Overlays()
    if wanted:
        folders = _folders(walked, here.around)
        overlays = images.scan(folders, here.trust, here.memory.names, here.moment)
    return _Known(
        overlays,
        {path: tuple(labels) for path, labels in disks.items()},
        frozenset(listed),
        frozenset(templates),
    )


def _with_task(one: Walked, known: _Known) -> Look:
    disk, chain = one.desired, one.chain
    found = one.found
    if one.error is not None:
        return _broken(one, one.error)
    users, strangers = _users(one, known)
    folders = {image.path.parent for image in chain} | {w.path.parent for w in one.wanted}
    filesystems = {folder: os.stat(folder).st_dev for folder in folders if folder.is_dir()}
    missing = sorted(str(folder) for folder in folders - set(filesystems))
    if missing:
        missed = f"the folder {', '.join(missing)} does not exist; create it first"
        return _broken(one, missed)
    discard = {images.real(path) for path in disk.discard}
    task = Task(
        domain=disk.domain,
        target=disk.target,
        chain=chain,
        wanted=one.wanted,
        discard=frozenset(discard),
        remove_base=disk.remove_base,
        bitmaps=disk.bitmaps,
        default_format=disk.format,
        outside=dict(one.outside),
        users=users,
        templates=known.templates,
        taken=_taken(one, known),
        strangers=strangers,
        filesystems=filesystems,
        free={device: files.free_bytes(folder) for folder, device in filesystems.items()},
        busy=_busy(one),
        state=found.domain.state if found else "offline",
        attached=images.real(found.path) if found else None,
        on_running=disk.on_running,
        pinned="it has a managed save image, which needs it" if _saved(one) else None,
        snapshots=found.snapshots if found else {},
    )
    return Look(
        disk,
        one.state,
        chain,
        task,
        one.trust,
        claimed=_claimed(one, known),
        host=found.host if found else None,
        domain=found.domain if found else None,
        job=found.job if found else None,
        lost=_lost(one, known),
    )


def _lost(one: Walked, known: _Known) -> str | None:
    active = one.chain.active
    if one.found is None or active is None or active.identity is None:
        return None
    unfinished = one.state.unfinished
    ours = unfinished is not None and unfinished.live
    return one.found.lost(one.chain, known.overlays.of(active.identity), ours=ours)


def _broken(one: Walked, error: str) -> Look:
    found = one.found
    return Look(
        one.desired,
        one.state,
        one.chain,
        None,
        one.trust,
        error,
        host=found.host if found else None,
        domain=found.domain if found else None,
        job=found.job if found else None,
    )


def _busy(one: Walked) -> bool:
    """True where somebody has the active image open who must not."""
    if one.found is None:
        active = one.chain.active
        return active is not None and files.written_by_other(active.path)
    # libvirt may have lost a domain that runs, on whatever image of the chain
    return not one.found.domain.on and any(
        files.written_by_other(image.second or image.path) for image in one.chain
    )


def _saved(one: Walked) -> bool:
    return one.found is not None and one.found.domain.managed_save


def _claimed(one: Walked, known: _Known) -> dict[Path, str]:
    ours = _own(one)
    claimed: dict[Path, str] = {}
    for left in one.state.leftovers:
        users = [p.name for p in known.overlays.of(left.identity) if p not in ours]
        labels = [label for label in known.disks.get(left.path, ()) if label != one.desired.label]
        if users or labels:
            claimed[left.path] = f"{', '.join([*users, *labels])} stands on it or lists it"
        elif left.path in known.templates:
            claimed[left.path] = "the spec calls it a template"
    return claimed


def _unconfirmed(chain: Chain | None) -> str | None:
    """What QEMU has to say against *chain*; None: it reads the same chain."""
    if chain is None:
        return None
    if any(image.left_alone or image.corrupt for image in chain):
        return None  # the planner refuses these, and QEMU need not open them
    try:
        images.confirm(chain)
    except ReconcilerError as error:
        return str(error)
    return None


def _users(one: Walked, known: _Known) -> tuple[dict[Path, tuple[str, ...]], tuple[Path, ...]]:
    """Who else stands on each image, and unlisted overlays on the active one."""
    ours = _own(one)
    users: dict[Path, tuple[str, ...]] = {}
    strangers: list[Path] = []
    for image in one.chain:
        if image.path in known.templates:
            continue  # no user more or less changes what may be done with it
        overlays = known.overlays.of(image.identity)
        others = [overlay for overlay in overlays if overlay not in ours]
        if image == one.chain.active:
            strangers += [overlay for overlay in others if overlay not in known.listed]
        names = [overlay.name for overlay in others]
        labels = (*known.disks[image.path], *known.disks.get(image.second or image.path, ()))
        names += [label for label in labels if label != one.desired.label]
        if names:
            users[image.path] = tuple(dict.fromkeys(names))
    return users, tuple(strangers)


def _taken(one: Walked, known: _Known) -> frozenset[Path]:
    """Second names of the chain's images that somebody else's header, spec or domain has."""
    second = [image.second for image in one.chain if image.second]
    if not second:
        return frozenset()
    ours, label = _own(one), one.desired.label
    return frozenset(
        path
        for path in second
        if known.overlays.naming(path) - ours or {*known.disks.get(path, ())} - {label}
    )


def _own(one: Walked) -> set[Path]:
    """Every name of this chain's images, and of what is left of it."""
    second = {image.second for image in one.chain if image.second}
    unfinished = one.state.unfinished
    linked = {link.image for link in unfinished.links} if unfinished else set()
    left = {left.path for left in _leftovers(one.state)}
    return {*one.chain.paths, *second, *linked, *left}


def _leftovers(state: DiskState) -> tuple[Leftover, ...]:
    return (*state.leftovers, *(state.unfinished.remove if state.unfinished else ()))


def views_for(task: Task, paths: Iterable[Path]) -> dict[Path, View]:
    """The views of *paths*, which the planner asks for to price *task*."""
    return {path: _view_of(path, task) for path in paths}


def _view_of(path: Path, task: Task) -> View:
    """The map of the view of *path*, and whether it begins as an image format would."""
    from reconciler.tools import views  # only a merge needs it

    if path in task.chain:
        chain = task.chain.up_to(path)
    else:
        chain = next(c.up_to(path) for c in task.outside.values() if path in c)
    extents = qemuimg.map_view(chain.images)
    raw = any(image.format == "raw" for image in chain)
    forged = raw and views.first_bytes_forged(chain.images)
    return View(extents, forged)


def again(
    found: Look,
    spec: Spec,
    states: StateFolder,
    memory: Memory,
    confirmed: Chain | None = None,
) -> Look:
    """The same disk, looked at once more, from the state file up; the rest as `look` has it."""
    return next(iter(look(spec, states, [found.desired], confirmed or found.chain, memory)))
