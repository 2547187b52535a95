"""Which observed images end in which image of the desired chain."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.model.errors import Refused
from reconciler.model.image import Chain, Image, short_name
from reconciler.model.plan import RestorePoints
from reconciler.planner.task import Task, Wanted


@dataclass(frozen=True, slots=True)
class Slot:
    """
    One image of the desired chain above the outside part.

    Attributes:
        wanted: What the spec says of it.
        kept: Its index in the observed chain; None: a new image.
        ends: Observed indices at which the run of images that end in this one
            may stop.  More than one where the view of a kept image may change.
            Empty: a new image that takes no data.
    """

    wanted: Wanted
    kept: int | None
    ends: range


@dataclass(frozen=True, slots=True)
class Layout:
    """
    How the observed chain becomes the desired one.

    Attributes:
        chain: The observed chain without what is discarded.
        discarded: Discarded images, base first.
        outside: The desired chain's lower part where it is foreign; may be empty.
        start: Observed index of the lowest image that ends in a slot.
        slots: The rest of the desired chain, lowest first.
    """

    chain: Chain
    discarded: tuple[Image, ...]
    outside: Chain
    start: int
    slots: tuple[Slot, ...]


def lay_out(task: Task) -> Layout:
    """
    Match the desired chain with the observed one.

    Raises:
        Refused: The chain cannot be reached by creating, merging and dropping.
    """
    _no_strangers(task)
    _no_writers(task)
    chain, discarded = _without_discarded(task)
    outside = _outside(task, chain)
    _own_active(task, chain, discarded)
    above = task.wanted[len(outside) :]
    start = max((chain.index(i.path) + 1 for i in outside if i.path in chain), default=0)
    kept = _kept_indices(above, chain)
    highest = max((p for p, index in enumerate(kept) if index is not None), default=-1)
    slots = []
    for position, wanted in enumerate(above):
        ends = _ends(task, above, kept, position, chain, highest)
        slots.append(Slot(wanted, kept[position], ends))
    return Layout(chain, discarded, outside, start, tuple(slots))


def settled(task: Task, layout: Layout) -> bool:
    """True where the observed chain is the desired one, so that no step is needed."""
    active = layout.chain.active
    size = task.wanted[-1].size
    return (
        active is not None
        and task.chain.paths == tuple(wanted.path for wanted in task.wanted)
        and not layout.discarded
        and not task.second_names
        and task.attached in (None, active.path, active.second)
        and not task.outdated
        and not any(wanted.size for wanted in task.wanted[:-1])
        and size in (None, active.virtual_size)
    )


def restore_points(task: Task, layout: Layout) -> RestorePoints:
    stay = {slot.wanted.path for slot in layout.slots[:-1] if slot.kept is not None}
    no_views = {wanted.path for wanted in task.wanted if not wanted.restore_point}
    outside = set(layout.outside.paths)
    stay = (stay | outside) - no_views
    kept = tuple(path for path in layout.chain.paths if path in stay)
    discarded = tuple(image.path for image in layout.discarded)
    others = {*kept, *discarded} | no_views | outside
    dropped = tuple(path for path in task.chain.paths[:-1] if path not in others)
    return RestorePoints(kept, dropped, discarded)


def _no_strangers(task: Task) -> None:
    """No unlisted overlay may hold the current state; a listed one is the likelier to."""
    active = task.chain.active
    if not task.strangers or active is None:
        return
    on_it = [w for w in reversed(task.wanted) if active.path in task.outside.get(w.path, ())]
    top, stranger, adopt = on_it[:1], task.strangers[0], f"virt-chain adopt {task.label}"
    names = [str(one.path) for one in top] + [str(path) for path in task.strangers[:2]]
    names += [f"{more} more"] if (more := len(task.strangers[2:])) else []
    way = f"list {'it' if len(names) == 1 else 'that'} on top and run: {adopt} {stranger}"
    if top:
        name = top[0].name
        way = f"if the guest uses {name}, run: {adopt} {name}; if it uses {stranger}, {way}"
    else:
        way = f"if the guest uses {'it' if len(names) == 1 else stranger}, {way}"
    stand = "stands" if len(names) == 1 else "stand"
    raise Refused(
        f"{_listed(names)} {stand} on {active}, the active image, and may hold the current state",
        way,
    )


def _no_writers(task: Task) -> None:
    """No image is put on another disk's active image: it changes below it."""
    for wanted in task.wanted:
        if writer := task.writers.get(wanted.path):
            file = task.state_files.get(writer)
            past = f"; where {writer} was renamed or is gone: mv {file} {file}.old" if file else ""
            raise Refused(
                f"{writer} writes to {wanted.name}, its active image",
                f"take {wanted.name} off the chain of {task.label}; to share it, list a new image "
                f"on top of it for {writer} and apply that first" + past,
            )


def _own_active(task: Task, chain: Chain, discarded: tuple[Image, ...]) -> None:
    """The image that the guest will write from now on must be its own."""
    active = task.wanted[-1]
    if active.path not in chain or (active.path == chain.images[-1].path and not discarded):
        return
    if chain.index(active.path) < task.frozen:
        image = chain.image(active.path)
        why = task.frozen_because(image) or "a shared image stands on it"
        raise Refused(
            f"{active.name} would become the active image and be written to: {why}",
            f"list a new image on top of {active.name}",
        )


def _without_discarded(task: Task) -> tuple[Chain, tuple[Image, ...]]:
    discarded = tuple(image for image in task.chain if image.path in task.discard)
    count = len(discarded)
    if count and discarded != task.chain.images[-count:]:
        higher = task.chain.images[task.chain.index(discarded[0].path) :]
        stay = tuple(image for image in higher if image not in discarded)
        above = describe(stay)
        way_out = f"take {describe(discarded)} off `discard` to merge {_it_or_them(discarded)}"
        listed = {wanted.path for wanted in task.wanted}
        if not any(image.path in listed for image in stay):
            way_out += (
                f"; or, to throw the current state away and go back to what is below "
                f"{discarded[0].name}, list {above} there, too"
            )
        raise Refused(
            f"`discard` takes images from the top of {task.chain}, and {above} "
            f"stand{'s' if len(stay) == 1 else ''} above {discarded[0].name}",
            way_out,
        )
    return Chain(task.chain.images[: len(task.chain) - count]), discarded


def _outside(task: Task, chain: Chain) -> Chain:
    """The foreign lower part of the desired chain, as it is on the disk."""
    foreign = [
        index
        for index, wanted in enumerate(task.wanted)
        if wanted.image is not None and wanted.path not in chain
    ]
    if not foreign:
        return Chain()
    _no_copy(task, chain, [task.wanted[index] for index in foreign])
    last = foreign[-1]
    top = task.wanted[last]
    there = task.outside[top.path]
    beside = len(chain) > 0 and chain.images[-1].path in there
    if last == len(task.wanted) - 1 or beside:
        why = "the current state cannot end in a foreign image"
        if last != len(task.wanted) - 1:
            why = f"it stands on {chain.images[-1]} and does not hold the current state"
        raise Refused(
            f"{top.name} exists and is not in the observed chain {task.chain}: {why}",
            f"{_instead_of(top, task)}; if the guest uses {top.name}, run: "
            f"virt-chain adopt {task.label} {top.name}",
        )
    listed = tuple(wanted.path for wanted in task.wanted[: last + 1])
    if there.paths != listed:
        raise Refused(
            f"{top.name} exists outside the chain, and its own chain is {str(there).rstrip('*')}",
            f"list just these images below and including {top.name}, or give a new image "
            "another name",
        )
    return there


def _no_copy(task: Task, chain: Chain, foreign: list[Wanted]) -> None:
    """
    The listed images must not be copies of the chain's, one of which the guest may use by now.

    A spec that lists the active image says itself where the guest's data is, and a template
    of the same name in another folder may be a newer one.
    """
    active = chain.active
    if active is None or any(wanted.path == active.path for wanted in task.wanted):
        return
    observed = {image.path.name: image.path for image in chain}
    own = (wanted for wanted in reversed(foreign) if wanted.path not in task.templates)
    copy = next((wanted.path for wanted in own if wanted.path.name in observed), None)
    if copy is None:
        return
    if copy.name == active.path.name:
        raise Refused(
            f"{copy} exists, and the active image of {task.label} is another file of that name, "
            f"{active.path}",
            "if the images were moved or copied, and the guest uses the listed one now, run: "
            f"virt-chain adopt {task.label} {copy}",
        )
    raise Refused(
        f"{copy} exists, and the chain of {task.label} has another file of that name, "
        f"{observed[copy.name]}",
        f"list the active image, {active.path}, on top; or, if the images were moved or copied, "
        f"name the one that the guest uses now with: virt-chain adopt {task.label} IMAGE",
    )


def _instead_of(top: Wanted, task: Task) -> str:
    """What to list where the spec has *top*, a foreign image, above the data of the disk."""
    active = task.chain.active
    if active is None:
        return f"list a new name in place of {top.name}"
    discarded = tuple(image for image in task.chain if image.path in task.discard)
    if active in discarded:
        others = f"{describe(discarded)}" if len(discarded) > 1 else "it"
        return (
            f"to go on from {active}, the active image, list {others} in place of {top.name} and "
            f"take {_it_or_them(discarded)} off `discard`"
        )
    if any(active.path == wanted.path for wanted in task.wanted):
        return f"list a new name in place of {top.name}, or take it off the chain"
    return f"list {active}, the active image, or a new name in place of {top.name}"


def _kept_indices(above: tuple[Wanted, ...], chain: Chain) -> tuple[int | None, ...]:
    kept = tuple(chain.index(w.path) if w.path in chain else None for w in above)
    order = [index for index in kept if index is not None]
    if order != sorted(order):
        names = " <- ".join(w.name for w in above if w.path in chain)
        raise Refused(
            f"the observed chain is {chain}: a chain is a history, and its order is fixed",
            f"list the images in that order, not as {names}",
        )
    highest = max((p for p, index in enumerate(kept) if index is not None), default=-1)
    for wanted, index in zip(above[: max(highest, 0)], kept[: max(highest, 0)], strict=True):
        if index is None:
            raise Refused(
                f"{wanted.path} does not exist, and the chain lists it below {above[highest].name}",
                f"restore the file, or take {wanted.name} off the chain; a new image "
                "can only be added on top",
            )
    return kept


def _ends(
    task: Task,
    above: tuple[Wanted, ...],
    kept: tuple[int | None, ...],
    position: int,
    chain: Chain,
    highest: int,
) -> range:
    top = len(chain) - 1
    index = kept[position]
    if index is None:
        # the first new image takes what was dropped above the highest kept one
        return range(top, top + 1) if position == highest + 1 and len(chain) else range(0)
    if position == len(above) - 1:
        return range(top, top + 1)
    following = kept[position + 1]
    below_next = top if following is None else following - 1
    fixed = above[position].restore_point or index < task.frozen
    return range(index, index + 1) if fixed else range(index, below_next + 1)


def describe(images: tuple[Image, ...]) -> str:
    """The names of *images* for a sentence: ``q``, ``q and r``, ``q, r and s``."""
    return _listed([short_name(image.path) for image in images])


def _it_or_them(images: tuple[Image, ...]) -> str:
    return "it" if len(images) == 1 else "them"


def _listed(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
