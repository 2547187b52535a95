"""
One run of neighbouring images becomes one image: who survives, and at what price.

Data above the survivor is committed down into it first, data below is pulled
up afterwards: so no cluster moves twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from reconciler.model.errors import Refused
from reconciler.model.extents import ranges, rounded, total
from reconciler.model.image import Chain, Format, Image, short_name
from reconciler.model.steps import Commit, Create, Pull, Rebase, Rename, Step
from reconciler.model.units import human_size
from reconciler.planner.layout import Layout, Slot, describe
from reconciler.planner.price import Moves, at_most_differing, moved, moves, room, subtract
from reconciler.planner.task import Task, View


@dataclass(frozen=True, slots=True)
class Priced:
    """
    A step with the bytes that it copies and the reason for it.

    Attributes:
        allocates: Bytes that are written where nothing is allocated yet; None: all.
        deferred: Why it waits for the domain to be off; None: it is done now.
    """

    step: Step
    bytes: int
    reason: str
    deferred: str | None = None
    allocates: int | None = None

    @property
    def room(self) -> int:
        """Bytes for which the filesystem has to find room."""
        return self.bytes if self.allocates is None else self.allocates


@dataclass(frozen=True)
class Run:
    """
    A run of images that ends in one image of the desired chain.

    Attributes:
        chain: The observed chain without what is discarded.
        first, last: Observed indices, both included; first > last: no image.
        slot: The desired image.
        lower: Path of the image that will be below; None: nothing.
        lower_size: Its virtual size in bytes.
        foreign: *lower* is the top of a foreign chain.
    """

    chain: Chain
    first: int
    last: int
    slot: Slot
    lower: Path | None
    lower_size: int
    foreign: Chain

    @cached_property
    def images(self) -> tuple[Image, ...]:
        return self.chain.images[self.first : self.last + 1]

    @cached_property
    def dips(self) -> bool:
        """True where an image is shorter than the one above it."""
        return any(low.virtual_size < up.virtual_size for low, up in pairwise(self.images))

    @cached_property
    def why(self) -> str:
        """Why the run becomes one image."""
        gone = tuple(image for image in self.images if image.path != self.target)
        return f"the spec drops {describe(gone)}" if gone else f"it ends in {self.slot.wanted.name}"

    @property
    def top(self) -> Image:
        return self.chain[self.last]

    @property
    def target(self) -> Path:
        return self.slot.wanted.path

    @property
    def merges(self) -> bool:
        """True where any data, name or backing file has to change."""
        return len(self.images) > 1 or self.top.path != self.target


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to carry out a run; the cheapest is taken."""

    cost: int
    rank: int
    steps: tuple[Priced, ...]

    @property
    def room(self) -> int:
        """Bytes for which the filesystems have to find room."""
        return sum(step.room for step in self.steps)

    def order(self, *, thrifty: bool) -> tuple[int, int, int]:
        """Less is better: what is copied, or with *thrifty* what is newly allocated, first."""
        return self.room if thrifty else 0, self.cost, self.rank

    @property
    def waits(self) -> str | None:
        """Why it waits for the domain to be off; None: it does not."""
        return self.steps[0].deferred if self.steps else None


def choose(
    task: Task, layout: Layout, views: Mapping[Path, View], *, thrifty: bool = False
) -> tuple[Choice, ...]:
    """
    The cheapest choice for every slot of *layout*, lowest slot first.

    Where a kept image's own view is nobody's, the border between two runs is
    free; every border is priced.

    Args:
        thrifty: Room is short: what allocates least is taken, though it may copy more.

    Raises:
        Refused: A run has no way that keeps the promise.
    """
    memo: dict[tuple[int, int], tuple[Choice, ...] | Refused] = {}

    def best(position: int, first: int) -> tuple[Choice, ...]:
        if position == len(layout.slots):
            return ()
        key = position, first
        if key not in memo:
            memo[key] = _cheapest_border(position, first)
        found = memo[key]
        if isinstance(found, Refused):
            raise found
        return found

    def _cheapest_border(position: int, first: int) -> tuple[Choice, ...] | Refused:
        slot = layout.slots[position]
        refused: Refused | None = None
        cheapest: tuple[tuple[int, ...], tuple[Choice, ...]] | None = None
        for last in slot.ends if slot.ends else (first - 1,):
            try:
                run = _run(layout, position, first, last)
                choice = _choose_survivor(task, run, views, thrifty=thrifty)
                others = best(position + 1, last + 1)
            except Refused as error:
                refused = refused or error
                continue
            if choice.waits and last == len(layout.chain) - 1:
                # what is to be active exists, or is active, only after that
                others = tuple(_waiting(other, choice.waits) for other in others)
            found = (choice, *others)
            waiting = sum(one.waits is not None for one in found)
            room = sum(one.room for one in found) if thrifty else 0
            order = waiting, room, sum(one.cost for one in found), choice.rank
            if cheapest is None or order < cheapest[0]:
                cheapest = order, found
        if cheapest is None:
            assert refused is not None
            return refused
        return cheapest[1]

    return best(0, layout.start)


def _run(layout: Layout, position: int, first: int, last: int) -> Run:
    if position:
        lower: Path | None = layout.slots[position - 1].wanted.path
        foreign = Chain()
    else:
        foreign = layout.outside
        lower = foreign.images[-1].path if foreign.images else None
    size = _size_below(layout, position, first)
    return Run(layout.chain, first, last, layout.slots[position], lower, size, foreign)


def _size_below(layout: Layout, position: int, first: int) -> int:
    """Virtual size, in bytes, of what will be below a run; 0: nothing."""
    if position == 0:
        return layout.outside.images[-1].virtual_size if layout.outside.images else 0
    below = layout.slots[position - 1]
    if below.kept is None and below.wanted.size:
        return below.wanted.size
    if below.ends:
        return layout.chain[first - 1].virtual_size
    return _size_below(layout, position - 1, first)


def _choose_survivor(task: Task, run: Run, views: Mapping[Path, View], *, thrifty: bool) -> Choice:
    if run.first > run.last:
        return _create(task, run)
    if not run.merges and not run.foreign.images:
        return Choice(0, 0, ())
    wanted = run.slot.wanted
    inner = run.slot.kept is not None and run.slot.kept < len(run.chain) - 1
    if inner and run.last < len(run.chain) - 1 and wanted.size not in (None, run.top.virtual_size):
        raise Refused(
            f"{wanted.name} would have {human_size(run.top.virtual_size)}, the spec says "
            f"{human_size(wanted.size or 0)}",
            "leave `size` out, or put it on the active image",
        )
    if not task.on:
        return _cheapest(task, run, views, thrifty=thrifty)
    try:
        return _cheapest(task, run, views, thrifty=thrifty, live=True)
    except Refused as error:
        return _waiting(_cheapest(task, run, views, thrifty=thrifty), error.reason)


def _cheapest(
    task: Task, run: Run, views: Mapping[Path, View], *, thrifty: bool, live: bool = False
) -> Choice:
    """
    The cheapest way for *run*.

    Args:
        thrifty: As `choose` has it.
        live: With libvirt's block jobs, while the guest runs.

    Raises:
        Refused: There is none.
    """
    choices: list[Choice] = []
    obstacles: dict[str, list[str]] = {}
    while_on = False
    blocks = tuple(_blocks(task, run))
    prices: dict[int, Moves] = {}
    for index in range(run.first, run.last + 1):
        obstacle = _obstacle(task, run, index, views, blocks)
        if live and obstacle is None and (obstacle := _not_live(task, run, index)):
            while_on = True
        if obstacle:
            obstacles.setdefault(obstacle, []).append(run.chain[index].name)
        else:
            cluster = run.chain[index].cluster_size
            if cluster not in prices:
                extents, size = views[run.top.path].extents, run.top.virtual_size
                prices[cluster] = moves(extents, len(run.images), cluster, size)
            choices.append(_into(run, index, views, prices[cluster], live=live))
    if run.slot.kept is None:
        obstacle = _blocked(blocks, None) or _new_format(task, run)
        if live and obstacle is None and (obstacle := _no_jobs(task, run) or _no_pull(run)):
            while_on = True
        if obstacle:
            obstacles.setdefault(obstacle, []).append(run.slot.wanted.name)
        else:
            choices.append(_into_new(run, views))
    if not choices and while_on:
        raise Refused(_because(obstacles, blocks), "shut the guest off")
    if not choices:
        raise _no_way(run, _because(obstacles, blocks))
    cheapest = min(choices, key=lambda choice: choice.order(thrifty=thrifty))
    return _explained(cheapest, choices)


def _waiting(choice: Choice, why: str) -> Choice:
    """*choice*, put off until the domain is off."""
    steps = tuple(replace(one, deferred=why) for one in choice.steps)
    return Choice(choice.cost, choice.rank, steps)


def _no_jobs(task: Task, run: Run) -> str | None:
    """Why libvirt has no block job for *run*, whoever survives."""
    if task.state == "paused":
        return "a paused guest cannot be made to flush; resume it, or shut it off"
    if run.foreign.images:
        return "a running guest cannot go to a foreign base"
    if run.dips:
        return "an image is shorter than the one above it, which block jobs read wrong"
    return None


def _no_pull(run: Run) -> str | None:
    """Why libvirt cannot pull down to where *run* is to end."""
    below = run.chain[run.first - 1].path if run.first else None
    return None if below == run.lower else "the merge below it has to be finished first"


def _not_live(task: Task, run: Run, index: int) -> str | None:
    """Why the image at *index* cannot take the merged data while the guest runs; None: it can."""
    active = len(task.chain) - 1
    image = run.chain[index]
    if obstacle := _no_jobs(task, run):
        return obstacle
    if index < run.last and (dirty := [i.name for i in task.chain.images[:active] if i.dirty]):
        return f"{dirty[0]} was not closed cleanly, and is repaired when the guest is off"
    if image.path != run.target and run.last == active:
        return "the active image keeps its name while the guest runs"
    if image.path.parent != run.target.parent and not (image.recorded or "/").startswith("/"):
        return "its backing name is relative, and means another file from the other folder"
    if index > run.first:
        # an active commit makes the image active, before the pull
        return _no_pull(run) if run.last == active else "libvirt pulls only into the active image"
    return None


def _no_way(run: Run, why: str) -> Refused:
    away = [image for image in run.images if image.path != run.target]
    what = f"dropping {describe(tuple(away))}" if away else f"moving {run.top.name}"
    return Refused(
        f"{what} would have to change an image that must stay as it is ({why})",
        f"leave {describe(tuple(away)) or run.top.name} in the chain, or remove what stands "
        "in the way",
    )


def _because(obstacles: Mapping[str, list[str]], blocks: Sequence[Block] = ()) -> str:
    """Each obstacle with the images that it concerns; one of *blocks* names its own image."""
    own = {why for spared, why in blocks if spared is None}
    return "; ".join(
        why if why in own else f"{', '.join(names)}: {why}" for why, names in obstacles.items()
    )


def _obstacle(
    task: Task, run: Run, index: int, views: Mapping[Path, View], blocks: Sequence[Block]
) -> str | None:
    """Why the file of the image at *index* cannot hold the merged data; None: it can."""
    image = run.chain[index]
    commits, pulls = index < run.last, index > run.first or bool(run.foreign.images)
    reasons = [
        _blocked(blocks, index),
        _frozen(task, run, index),
        _format(task, run, image),
        _elsewhere(task, run, image),
        _replaces(task, run, image),
    ]
    if commits:
        reasons += [
            _too_large(run, image),
            _forged(run, image, views),
            _unrecorded(task, run),
            _unrepaired(task, run),
            _own_bitmaps(task, image),
            _grown_snapshots(run, image),
            _old_and_short(run, index),
        ]
    if pulls:
        reasons += [_own_snapshots(image), _old_and_bare(run, index)]
    return next((reason for reason in reasons if reason), None)


Block = tuple[int | None, str]
"""Why a run cannot be merged, and the index of the image that may survive nevertheless, if any."""


def _blocks(task: Task, run: Run) -> Iterator[Block]:
    """What forbids the merge of *run*, lowest image first."""
    for index, image in enumerate(run.images, start=run.first):
        if why := _left_alone(image):
            yield None, f"{image.name}: {why}"
        elif not vanishes(task, run.chain, index):
            continue
        elif image.snapshots:
            lost = f"the {image.snapshots} internal snapshot(s) of {image.name} would be lost"
            yield index, f"{lost}; delete them with qemu-img snapshot -d, or keep the image"
        elif image.bitmaps and task.bitmaps == "keep":
            lost = f"the {image.bitmaps} dirty bitmap(s) of {image.name} would be lost"
            yield index, f'{lost}; write bitmaps = "drop" to allow it'


def _left_alone(image: Image) -> str | None:
    """Why *image* takes part in no merge; None: it may."""
    if image.encrypted:
        return "encrypted images are left alone; decrypt with qemu-img convert first"
    if image.data_file:
        return "its data lies in an external data file, which is left alone"
    if image.corrupt:
        return "it is marked corrupt; run qemu-img check -r all first"
    if image.unknown_features:
        return f"unknown incompatible features {image.unknown_features:#x}"
    return None


def _blocked(blocks: Sequence[Block], survivor: int | None) -> str | None:
    """The first of *blocks* that stands in the way of *survivor*; None as survivor: a new file."""
    return next((why for spares, why in blocks if spares is None or spares != survivor), None)


def vanishes(task: Task, chain: Chain, index: int) -> bool:
    """True where the file of a dropped image is removed; False: it stays on the disk."""
    return index >= task.frozen and not _golden(task, chain, index)


def unwritable(task: Task, chain: Chain, index: int) -> bool:
    """True where not even the metadata of the image at *index* may be written."""
    return index < task.frozen or _golden(task, chain, index)


def _unrepaired(task: Task, run: Run) -> str | None:
    """
    What was not closed cleanly below a commit, and may not be repaired.

    Source: QEMU, block/qcow2.c, qcow2_reopen_prepare: reopening the target of the
    commit marks each image below it clean, which fails where that is read-only.
    """
    for index, image in enumerate(run.chain.images[: run.last + 1]):
        if image.dirty and unwritable(task, run.chain, index):
            return (
                f"{image.name}, which has to stay as it is, was not closed cleanly; "
                f"repair it with: qemu-img check -r all '{image.path}'"
            )
    return None


def _golden(task: Task, chain: Chain, index: int) -> bool:
    """True for a base that the spec no longer lists and leaves on disk."""
    if index or task.remove_base:
        return False
    return all(wanted.path != chain[0].path for wanted in task.wanted)


def _frozen(task: Task, run: Run, index: int) -> str | None:
    if _golden(task, run.chain, index):
        return "a dropped base stays as it is unless remove_base = true"
    if index < task.frozen:
        own = task.frozen_because(run.chain[index])
        return own or f"{task.chain[task.frozen - 1].name}, which is shared, stands on it"
    return None


def _format(task: Task, run: Run, image: Image) -> str | None:
    if image.format == "raw" and run.lower is not None:
        return "a raw image has no backing file"
    wanted = run.slot.wanted
    if run.target in run.chain:
        asked: Format = run.chain.image(run.target).format
    else:
        asked = wanted.format or task.default_format
    if image.format != asked:
        return f"it is {image.format}, and {wanted.name} is {asked}"
    return None


def _new_format(task: Task, run: Run) -> str | None:
    if (run.slot.wanted.format or task.default_format) == "raw":
        return "data is never copied into a new raw image; convert it with qemu-img, or write qcow2"
    return None


def _replaces(task: Task, run: Run, image: Image) -> str | None:
    """Why the name of the merged image cannot be taken over."""
    if image.path == run.target or run.target not in run.chain:
        return None
    index = run.chain.index(run.target)
    return f"{run.slot.wanted.name} would be replaced" if index < task.frozen else None


def _elsewhere(task: Task, run: Run, image: Image) -> str | None:
    if image.path == run.target:
        return None
    here, there = image.path.parent, run.target.parent
    if task.filesystems.get(here) != task.filesystems.get(there):
        return f"it lies on another filesystem or mount than {run.slot.wanted.name}"
    return None


def _too_large(run: Run, image: Image) -> str | None:
    if image.virtual_size > run.top.virtual_size:
        return f"it is larger than {run.top.name}, and a commit never shrinks"
    return None


def _own_snapshots(image: Image) -> str | None:
    if image.snapshots:
        return (
            f"its {image.snapshots} internal snapshot(s) would read another backing file; "
            "delete them with qemu-img snapshot -d first"
        )
    return None


def _forged(run: Run, image: Image, views: Mapping[Path, View]) -> str | None:
    if image.format == "raw" and views[run.top.path].forged:
        return "the guest's first sector looks like an image header, and raw would be taken for it"
    return None


def _unrecorded(task: Task, run: Run) -> str | None:
    for image in run.chain.images[1 : task.frozen]:
        if image.recorded_format is None:
            return f"{image.name}, which is shared, records no backing format for qemu-img"
    return None


def _grown_snapshots(run: Run, image: Image) -> str | None:
    if image.snapshots and image.virtual_size < run.top.virtual_size:
        return f"it would grow, and its {image.snapshots} internal snapshot(s) with it"
    return None


def _old_and_short(run: Run, index: int) -> str | None:
    image = run.chain[index]
    below = run.chain[index - 1].virtual_size if index else 0
    if image.version == 2 and image.virtual_size < min(below, run.top.virtual_size):
        return "qcow2 version 2 cannot hide what a longer image below it has; run qemu-img amend"
    return None


def _old_and_bare(run: Run, index: int) -> str | None:
    """Source: measured, QEMU 7.2: a rebase writes no zeroes into such an image."""
    if run.foreign.images and index == 0 and run.chain[index].version == 2:
        return (
            "qcow2 version 2 without a backing file cannot keep zeroes that another base would "
            "show through; run qemu-img amend -o compat=1.1 first"
        )
    return None


def _own_bitmaps(task: Task, image: Image) -> str | None:
    if image.bitmaps and task.bitmaps == "keep":
        return f'its {image.bitmaps} dirty bitmap(s) would be wrong; write bitmaps = "drop"'
    return None


def _create(task: Task, run: Run) -> Choice:
    wanted = run.slot.wanted
    image_format = wanted.format or task.default_format
    size = wanted.size or run.lower_size
    if run.lower is None:
        if not size:
            raise Refused(
                f"{wanted.path} does not exist, and nothing says how large it is to be",
                f'write {{ file = "{wanted.name}", size = "10G" }}, or restore the file',
            )
    elif image_format == "raw":
        raise Refused(
            f"{wanted.name} is to be raw, and a raw image has no backing file",
            'write format = "qcow2"',
        )
    elif size < run.lower_size:
        raise Refused(
            f"{wanted.name} is to have {human_size(size)}, less than the "
            f"{human_size(run.lower_size)} of the image below it",
            "leave `size` out, or write a larger one",
        )
    for image in (*run.foreign.images, *run.chain.images):
        if image.path == run.lower and (image.encrypted or image.data_file):
            raise Refused(
                f"{image.name} is encrypted or has an external data file",
                "create the overlay by hand and list it",
            )
    if run.lower is None:
        reason = f"a new disk of {human_size(size)}"
    elif task.discard & set(task.chain.paths):
        reason = f"goes back to {short_name(run.lower)}"
    elif run.foreign.images or not run.chain.images:
        reason = f"a thin instance of {short_name(run.lower)}"
    else:
        reason = f"the state of {short_name(run.lower)} becomes a restore point"
    step = Create(run.target, run.lower, image_format, size)
    return Choice(0, 0, (Priced(step, 0, reason),))


def _into(
    run: Run, index: int, views: Mapping[Path, View], prices: Moves, *, live: bool = False
) -> Choice:
    """The file of the image at *index*, of whose cluster size *prices* are, survives."""
    image, top = run.chain[index], run.top
    depth = run.last - index
    steps: list[Priced] = []
    if depth:
        relink = live or run.target != top.path
        commit = Commit(top.path, image.path, relink)
        new = _allocated_by_commit(run, index, views)
        steps.append(Priced(commit, prices.down[depth], run.why, allocates=new))
    if run.foreign.images and run.lower is not None:
        up = _foreign_price(run, depth, views)
        onto = f"the spec has {run.chain[index].name} on {run.foreign.images[-1].name}"
        steps.append(Priced(Rebase(image.path, run.lower), up, onto))
    elif index > run.first:
        steps.append(Priced(Pull(image.path, run.lower), prices.up[depth], run.why))
    if image.path != run.target:
        reason = "its file holds the merged data"
        if live:
            reason += f"; QEMU calls it {short_name(image.second or image.path)} while it runs"
        steps.append(Priced(Rename(image.path, run.target, link=live), 0, reason))
    cost = sum(step.bytes for step in steps)
    renames = image.path != run.target
    return Choice(cost, 2 * renames + bool(depth), tuple(steps))


def _allocated_by_commit(run: Run, index: int, views: Mapping[Path, View]) -> int | None:
    """
    Bytes for which a commit into the image at *index* has to find room; None: unknown.

    A plain cluster that the image has is written in place.  One that is compressed or
    that an internal snapshot shares is copied, and a file with holes has no room for it.
    """
    image, size = run.chain[index], run.top.virtual_size
    own = views.get(image.path)
    if own is None or image.snapshots:
        return None
    written = [one for one in own.extents if not one.depth and one.data and one.offset is not None]
    if image.actual_size < sum(one.length for one in written):
        return None
    moves = [
        one for one in views[run.top.path].extents if one.data and one.depth < run.last - index
    ]
    runs = rounded(ranges(moves), max(image.cluster_size, 1), size)
    new = total(subtract(runs, ranges(written)))
    return new if image.virtual_size == size else max(new, 1)  # one that grows needs tables


def _into_new(run: Run, views: Mapping[Path, View]) -> Choice:
    """A new file takes all data of the run, and every file of the run stays as it is."""
    extents, size = views[run.top.path].extents, run.top.virtual_size
    cluster = 65536
    up = moved(extents, range(run.last - run.first + 1), cluster, size)
    create = Create(run.target, run.top.path, "qcow2", size)
    steps = [Priced(create, 0, f"takes the data of {describe(run.images)}")]
    if run.foreign.images and run.lower is not None:
        price = _foreign_price(run, -1, views)
        steps.append(Priced(Rebase(run.target, run.lower), price, run.why))
    else:
        price = up
        steps.append(Priced(Pull(run.target, run.lower), up, run.why))
    return Choice(price, 4, tuple(steps))


def _foreign_price(run: Run, depth: int, views: Mapping[Path, View]) -> int:
    """Bytes that a rebase of the layer at *depth* below the top copies up, at most."""
    assert run.lower is not None
    old, new = run.chain.images[: run.last + 1], run.foreign.images
    common = sum(a.path == b.path for a, b in zip(old, new, strict=False))
    runs = at_most_differing(
        own=range(depth + 1),
        left=range(depth + 1, len(old) - common),
        mine=views[run.top.path].extents,
        new=range(len(new) - common),
        theirs=views[run.lower].extents,
    )
    return total(rounded(runs, 65536, run.top.virtual_size))


def _explained(cheapest: Choice, choices: list[Choice]) -> Choice:
    """*cheapest*, its dearest step saying what the next best way would copy."""
    others = [choice for choice in choices if choice is not cheapest]
    if not others or not cheapest.steps:
        return cheapest
    other = min(others, key=lambda choice: choice.order(thrifty=False))
    way = "committing down" if _mostly(other, Commit) else "pulling up"
    if other.cost > cheapest.cost:
        reason = f"cheapest: {way} would copy {human_size(other.cost)}"
    elif other.room > cheapest.room:
        reason = f"{way} would copy {human_size(other.cost)}, for which there is no room"
    else:
        return cheapest
    named = max(range(len(cheapest.steps)), key=lambda i: cheapest.steps[i].bytes)
    steps = tuple(
        replace(one, reason=reason) if position == named else one
        for position, one in enumerate(cheapest.steps)
    )
    return Choice(cheapest.cost, cheapest.rank, steps)


def _mostly(choice: Choice, kind: type[Step]) -> bool:
    if not choice.steps:
        return False
    return isinstance(max(choice.steps, key=lambda one: one.bytes).step, kind)


def _may_be_short(task: Task, run: Run) -> bool:
    """True where the data of *run*, copied to where it will lie, might not find room there."""
    free = task.free.get(task.device_of(run.target.parent))
    return free is not None and room(sum(image.actual_size for image in run.images)) > free


def views_needed(task: Task, layout: Layout) -> Iterator[Path]:
    """Images whose views have to be mapped before `choose` can price *layout*."""
    first = layout.start
    for position, slot in enumerate(layout.slots):
        for last in slot.ends:
            run = _run(layout, position, first, last)
            if run.first <= run.last and (run.merges or run.foreign.images or len(slot.ends) > 1):
                yield run.top.path
                if _may_be_short(task, run):
                    yield from (image.path for image in run.images)
                if run.foreign.images and run.lower is not None:
                    yield run.lower
        if slot.ends:
            first = slot.ends.start + 1
