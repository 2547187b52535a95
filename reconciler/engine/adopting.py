"""
Adopting: a person says that what is on the disk is right.

An image below the active one was changed by another program, the active image is gone for
good, or an overlay was made by hand: none of that can be told from the images alone, so
nothing is done about it until a person has decided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.engine.disk_state import DiskState, now
from reconciler.engine.state import Session, StateFolder, Waiting
from reconciler.engine.survey import Survey
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.errors import Mistake, Refused, StaleChain
from reconciler.model.image import Chain
from reconciler.tools import images
from reconciler.tools.lookups import Lookups


@dataclass(frozen=True, slots=True)
class Adoption:
    """
    What a person is asked to say yes to.

    Attributes:
        chain: The chain that the disk has from then on; empty: it has no image yet.
        facts: What changes with it, in sentences.
        state: What is remembered then.
        before: What is remembered now.
    """

    disk: DesiredDisk
    chain: Chain
    facts: tuple[str, ...]
    state: DiskState
    before: DiskState


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
    survey = Survey(spec, states, Lookups())
    tree = survey.forest([disk]).trees[disk.label]
    known = tree.state.active or (tree.attached if tree.found is not None else None)
    facts: tuple[str, ...]
    if new:
        if known is None or known.exists():
            where = f"{known} exists" if known else "no image of it is known"
            raise Mistake(f"{disk.label}: --new is for a disk whose image is gone, and {where}")
        facts = (f"{known} is given up: the next apply creates a new disk",)
        state = DiskState(given_up=known)
        return Adoption(disk, Chain(), facts, state, tree.state)
    if image is None:
        if tree.error is not None:
            raise Refused(tree.error, f"name its image: virt-chain adopt {disk.label} IMAGE")
        chain = tree.chain
    else:
        chain = images.walk(image, tree.trust)
    active = chain.active
    if active is None:
        raise Mistake(f"{disk.label} has no image yet; virt-chain apply creates it")
    facts = tuple(_facts(tree.state, tree.changes, known, active.path))
    if tree.state.unfinished is not None and image is None and not tree.replaced:
        raise Refused(
            f"{disk.label} has interrupted steps, and all their images are there",
            "virt-chain apply finishes them",
        )
    if tree.found is not None and active.path != tree.attached and tree.found.domain.on:
        raise Refused(f"{disk.domain} is {tree.found.domain.state}", "shut it off first")
    state = DiskState(active=active.path, applied=tree.state.applied, names=tree.state.names)
    return Adoption(disk, chain, facts, state, tree.state)


def _facts(
    state: DiskState, changes: tuple[str, ...], known: Path | None, active: Path
) -> list[str]:
    facts = list(changes)
    if known is not None and known != active:
        there = "is left as it is" if known.exists() else "is missing"
        facts.append(f"{active} is the active image, no longer {known}, which {there}")
    if state.unfinished is not None:
        facts.append(
            f"the merge that was interrupted ({state.unfinished.begun}) is given up; check the "
            "guest's data before you start it"
        )
    facts += [f"{one.path} stays on disk" for one in state.every_leftover]
    return facts


def carry_out(adoption: Adoption, spec: Spec, states: StateFolder, wait: Waiting) -> None:
    """
    Remember what was adopted; a domain that is off gets its new active image.

    Raises:
        StaleChain: The disk has changed since.
    """
    from reconciler.engine.applying import settled_state

    disk = adoption.disk
    with states.locked(disk.domain, disk.target, wait) as session:
        survey = Survey(spec, states, Lookups())
        tree = survey.forest([disk]).trees[disk.label]
        same = replace(session.state, names=adoption.before.names) == adoption.before
        if not same or not _still_there(adoption.chain):
            raise StaleChain(f"{disk.label} has changed meanwhile; run the command again")
        active = adoption.chain.active
        if active is None:
            session.write(adoption.state)
            return
        if tree.found is not None and active.path != tree.attached:
            tree.found.host.attach(disk.domain, {disk.target: (active.path, active.format)})
        _remember(session, settled_state(adoption.state, adoption.chain))


def _still_there(chain: Chain) -> bool:
    return all(images.identity(image.path) == image.identity for image in chain)


def _remember(session: Session, state: DiskState) -> None:
    session.write(replace(state, applied=state.applied or now()))
