"""
Adopting: a person says that what is on the disk is right.

An image below the active one was changed by another program, the active image is gone for
good, or an overlay was made by hand: none of that can be told from the images alone, so
nothing is done about it until a person has decided.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.engine import quarantined
from reconciler.engine.disk_state import DiskState, Unfinished, now
from reconciler.engine.forest import Forest, Tree
from reconciler.engine.interrupted import ways_back
from reconciler.engine.recorded import settled_state
from reconciler.engine.state import StateFolder, Waiting
from reconciler.engine.survey import Survey
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.errors import Busy, Mistake, ObserveError, Refused, StaleChain
from reconciler.model.image import Chain
from reconciler.tools import files, images
from reconciler.tools.lookups import Lookups


@dataclass(frozen=True, slots=True)
class Adoption:
    """
    What a person is asked to say yes to.

    Attributes:
        chain: The chain that the disk has from then on; empty: it has no image yet.
        facts: What changes with it, in sentences.
        state: What is remembered then, with the images as they were shown.
        before: What is remembered now.
    """

    disk: DesiredDisk
    chain: Chain
    facts: tuple[str, ...]
    state: DiskState
    before: DiskState

    @property
    def edit(self) -> str | None:
        """What to write in the spec before it can be planned; None: it can be as it is."""
        active, disk = self.chain.active, self.disk
        if active is None or not disk.chain:
            return None
        listed = [images.real(entry.path) for entry in disk.chain]
        thrown = set(map(images.real, disk.discard))
        discarded = [self._named(path) for path in self.chain.paths if path in thrown]
        off = f"take {_all_of(discarded)} off `discard`"
        if active.path in listed:
            edits = [off] if discarded else []
            if active.path != listed[-1] and listed[-1].exists():
                edits.insert(0, f"take what is above {self._named(active.path)} off the chain")
            return " and ".join(edits) or None
        if not (listed[-1].exists() or discarded):
            return None
        where = f"in place of {disk.chain[-1].name}"
        if listed[-1] in self.chain:
            where = "on top of the chain"
        new = {*discarded, self._named(active.path)}
        names = [name for path in self.chain.paths if (name := self._named(path)) in new]
        if not discarded:
            return f"list {_all_of(names)} {where}"
        them = ("it" if len(names) == 1 else "them") if names == discarded else _all_of(discarded)
        return f"list {_all_of(names)} {where} and take {them} off `discard`"

    def _named(self, path: Path) -> str:
        """How the spec would name the image *path*."""
        relative = os.path.relpath(path, os.path.realpath(self.disk.directory))
        return min(relative, str(path), key=len)


def _all_of(names: Sequence[str]) -> str:
    return " and ".join(names)


def consider(
    spec: Spec, states: StateFolder, disk: DesiredDisk, image: Path | None, *, new: bool
) -> Adoption:
    """
    What adopting would mean; nothing is changed.

    Args:
        image: The active image from then on; None: the one that the disk has.
        new: The disk has no image any more; the next apply creates them.

    Raises:
        ReconcilerError: There is nothing to adopt, or it cannot be done; says why.
    """
    states.disk(disk.domain, disk.target)  # a damaged file is in the way of any adopting
    survey = Survey(spec, states, Lookups())
    forest = survey.forest([disk])
    if who := forest.at_work.get(disk.label):
        raise Busy(f"{who} is working on {disk.label}; wait for it")
    tree = forest.trees[disk.label]
    known = tree.state.active or tree.attached
    if new:
        return _given_up(tree, known)
    if image is None:
        if tree.error is not None:
            raise Refused(tree.error, f"name its image: virt-chain adopt {disk.label} IMAGE")
        chain = tree.chain
    else:
        _out_of_quarantine(image, disk)
        try:
            chain = images.walk(image, tree.trust)
        except images.BackingMissing as error:
            place = survey.moved(error.missing, tree.listed)
            raise ObserveError(error.told(place)) from error
    active = chain.active
    if active is None:
        raise Mistake(f"{disk.label} has no image yet; virt-chain apply creates it")
    _out_of_quarantine(active.path, disk)
    _of_nobody_else(forest, tree, chain)
    unfinished = tree.state.unfinished
    newer = forest.newer(tree)
    if unfinished is not None and active.path in newer:
        if back := ways_back(unfinished):
            raise Refused(
                f"{disk.label} has steps that were interrupted while its guest ran, and QEMU may "
                "have ended before what it copied was durable",
                f"shut the guest off and relink first: {'; '.join(back)}",
            )
        unfinished = None  # all that the guest had is below it, merged or not
    elif unfinished is not None and tree.error is None and not tree.replaced:
        if newer:
            raise Refused(
                f"{disk.label} has interrupted steps, and {newer[-1].name} stands on it",
                f"go on from there with: virt-chain adopt {disk.label} {newer[-1]}",
            )
        if not tree.changes or active.path != known:
            raise Refused(
                f"{disk.label} has interrupted steps, and all their images are there",
                "virt-chain apply finishes them",
            )
    else:
        unfinished = None
    if tree.found is not None and active.path != tree.attached and tree.found.domain.on:
        raise Refused(f"{disk.domain} is {tree.found.domain.state}", "shut it off first")
    facts = tuple(_facts(tree.state, unfinished, tree.changes, known, active.path))
    facts = (*_written_below(tree, chain), *facts)
    if known is None and image is not None:
        facts = (f"{active.path} is the active image; none was remembered", *facts)
    fresh = settled_state(replace(tree.state, images={}, actives={}, leftovers=()), chain)
    state = replace(fresh, unfinished=unfinished)
    if unfinished is not None:
        state = replace(state, leftovers=tree.state.leftovers)
    return Adoption(disk, chain, facts, state, tree.state)


def _out_of_quarantine(image: Path, disk: DesiredDisk) -> None:
    """Raises Refused where *image* lies in quarantine, with the commands that move it out."""
    if moves := quarantined.ways_out(image):
        there = f"{image} is in quarantine, where virt-chain gc removes images"
        out = f"move it out first: {quarantined.move_and_adopt(moves, disk.label)}"
        if lost := quarantined.lost_below(moves):
            why, condition = lost
            raise Refused(f"{there}, and {why}", f"{condition} {out}")
        raise Refused(there, out)


def _written_below(tree: Tree, chain: Chain) -> Iterator[str]:
    """
    Images of the disk that were written to after the first of *chain* that now stands on them.

    They were overwritten by a merge, or by the guest, since that one was discarded or made.
    """
    own = {*tree.chain.paths, *tree.state.images, *tree.state.actives}
    new = next((index for index, one in enumerate(chain) if one.path not in own), 0)
    above = files.file_id(chain[new].path)
    for image in chain.images[:new]:
        who = files.file_id(image.path)
        if who is not None and above is not None and who.modified > above.modified:
            yield (
                f"{image.path} was written to ({quarantined.at_time(who.modified)}) after "
                f"{chain[new].path.name} was ({quarantined.at_time(above.modified)}): "
                f"{quarantined.mixture(chain[new].path, image.path)}"
            )


def _of_nobody_else(forest: Forest, tree: Tree, chain: Chain) -> None:
    """Raises Mistake where *chain* ends in another disk's image, or steps of one write to it."""
    if why := forest.interrupted_by(replace(tree, chain=chain, wanted=())):
        raise Mistake(f"nothing was done: {why}")
    own = tree.found is not None or tree.state.active is not None
    if chain.active is None or (own and chain.active.path in tree.chain):
        return
    active = chain.active.path
    for label in forest.labels.get(active, ()):
        if label != tree.desired.label and not forest.is_past(label, active, tree.desired.label):
            file = forest.state_files.get(label)
            past = f" (where {label} was renamed or is gone: mv {file} {file}.old)" if file else ""
            raise Mistake(
                f"nothing was done: {label} has {active} as its image, or lists it; name an image "
                f"that only {tree.desired.label} has, or take it out of {label} first{past}"
            )


def _given_up(tree: Tree, known: Path | None) -> Adoption:
    """A disk that begins anew."""
    label = tree.desired.label
    if known is None or known.exists():
        where = f"{known} exists" if known else "no image of it is known"
        raise Mistake(f"{label}: --new is for a disk whose image is gone, and {where}")
    entries = reversed(tree.desired.chain)
    lower = next((one for one in entries if not one.template and one.path.exists()), None)
    if lower is not None:
        raise Mistake(
            f"{label}: --new is for a disk that has lost all its images, and {lower.path} is "
            f"there; go on from it with: virt-chain adopt {label} {lower.name}"
        )
    state = DiskState(given_up=known, restart=tree.state.restart)
    facts = (f"{known} is given up: the next apply creates a new disk",)
    return Adoption(tree.desired, Chain(), facts, state, tree.state)


def _facts(
    state: DiskState,
    unfinished: Unfinished | None,
    changes: tuple[str, ...],
    known: Path | None,
    active: Path,
) -> list[str]:
    facts = list(changes)
    if known is not None and known != active:
        there = "is left as it is" if known.exists() else "is missing"
        facts.append(f"{active} is the active image, no longer {known}, which {there}")
    if unfinished is not None:
        facts.append("the interrupted steps are finished by the next apply")
        return facts
    if state.unfinished is not None:
        facts.append(
            f"the merge that was interrupted ({state.unfinished.begun}) is given up; check the "
            "guest's data before you start it"
        )
        written = [path for path in state.unfinished.written if path != active and path.exists()]
        if written:
            names = ", ".join(path.name for path in written)
            facts.append(f"it may have overwritten {names}: no restore point any more")
    facts += [f"{one.path} stays on disk" for one in state.every_leftover if one.path.exists()]
    return facts


def carry_out(adoption: Adoption, spec: Spec, states: StateFolder, wait: Waiting) -> None:
    """
    Remember what was adopted; a domain that is off gets its new active image.

    Raises:
        StaleChain: The disk has changed since it was shown.
    """
    disk = adoption.disk
    folders = {image.path.parent for image in adoption.chain}
    with (
        states.locked(disk.domain, disk.target, wait) as session,
        states.folders_locked(folders, wait),
    ):
        forest = Survey(spec, states, Lookups()).forest([disk])
        tree = forest.trees[disk.label]
        _of_nobody_else(forest, tree, adoption.chain)
        same = replace(session.state, names=adoption.before.names) == adoption.before
        if not same or not _as_shown(adoption):
            raise StaleChain(f"{disk.label} has changed meanwhile; run the command again")
        active = adoption.chain.active
        if active is not None and tree.found is not None and active.path != tree.attached:
            if tree.found.domain.on:
                raise StaleChain(f"{disk.domain} was started meanwhile; shut it off first")
            tree.found.host.attach(disk.domain, {disk.target: (active.path, active.format)})
        applied = adoption.state.applied or (now() if active is not None else None)
        session.write(replace(adoption.state, applied=applied))


def _as_shown(adoption: Adoption) -> bool:
    """True where each image is the file that was shown, and nobody wrote to it since."""
    there = all(images.identity(one.path) == one.identity for one in adoption.chain)
    return there and all(
        (who := files.file_id(path)) is not None and who.has_same_content(known)
        for path, known in adoption.state.images.items()
    )
