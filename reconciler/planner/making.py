"""From one disk's task to its plan."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from reconciler.model.errors import ProofFailed, Refused
from reconciler.model.image import Chain, Identity, Image, short_name
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
    Step,
    advance,
    touched,
)
from reconciler.model.units import human_size, human_time
from reconciler.planner import books
from reconciler.planner.fingerprint import fingerprint
from reconciler.planner.layout import Layout, Slot, lay_out, restore_points
from reconciler.planner.merge import Choice, Priced, choose, unwritable, vanishes, views_needed
from reconciler.planner.mistyped import doubts
from reconciler.planner.price import room
from reconciler.planner.proof import World, prove
from reconciler.planner.task import Task, View, Wanted

STOPPED = "THE GUEST WILL BE STOPPED for this, and started again"


def needed(task: Task) -> tuple[Path, ...]:
    """
    Images whose views `make_plan` needs, in order; empty where nothing is merged.

    Raises:
        Refused: As `make_plan` does.
    """
    return tuple(dict.fromkeys(views_needed(task, lay_out(task))))


def make_plan(task: Task, views: Mapping[Path, View]) -> DiskPlan:
    """
    The cheapest steps from the observed chain to the desired one, proven.

    Args:
        task: The disk.
        views: What `needed` asked for.

    Raises:
        Refused: No way keeps the promise, or the host is not ready for it.
        ProofFailed: The steps break the promise: a bug.
    """
    layout = lay_out(task)
    restart = _restarts(task, layout)
    if restart:
        task = replace(task, state="shut-off")
    planned = _chained(task, layout, _ordered(task, layout, choose(task, layout, views)))
    lacking = _lacking(task, planned)
    if lacking:
        choices = choose(task, layout, views, thrifty=True)
        planned = _chained(task, layout, _ordered(task, layout, choices))
        lacking = _lacking(task, planned)
    points = restore_points(task, layout)
    planned = books.with_forgets(task, points.kept, planned)
    desired = tuple(wanted.path for wanted in task.wanted)
    plan = DiskPlan(
        domain=task.domain,
        target=task.target,
        observed=task.chain,
        desired=desired,
        steps=planned,
        restore_points=points,
        notes=(
            *([STOPPED] if restart else []),
            *_notes(task, layout, planned),
            *books.notes(task, planned),
            *_beside(task, layout, planned),
        ),
        doubts=doubts(task, layout),
        restart=restart,
    )
    _prove(task, layout, plan)
    _ready(task, planned)
    _not_too_deep(task, planned)
    if lacking:
        raise lacking
    return replace(plan, fingerprint=fingerprint(task))


def _ordered(
    task: Task, layout: Layout, choices: tuple[Choice, ...]
) -> list[tuple[Priced, int | None]]:
    """All steps but the removals, each with the number of its merge."""
    steps: list[tuple[Priced, int | None]] = []
    second = task.second_names
    attached = task.attached
    if not task.on:
        for image, name in second:
            if attached == name:
                attached = image.path
                why = f"the domain has it as {name.name}"
                steps.append((Priced(Attach(image.path), 0, why), None))
            steps.append((_one_name(task, image, name), None))
    merges = [(choice.steps, number) for number, choice in enumerate(choices) if choice.steps]
    first = merges[0][0][0].step if merges else None
    top = layout.chain.active
    if layout.discarded and top and not (isinstance(first, Create) and first.backing == top.path):
        steps.append((Priced(Attach(top.path), 0, "the spec discards what stands on it"), None))
    for wanted in task.wanted[: len(layout.outside)]:
        if wanted.image and wanted.size not in (None, wanted.image.virtual_size):
            raise _fixed_size(wanted, wanted.image.virtual_size)
    for number, (slot, choice) in enumerate(zip(layout.slots, choices, strict=True)):
        steps += [(priced, number) for priced in choice.steps]
        if grown := _growth(task, layout, slot, choice):
            steps.append((replace(grown, deferred=choice.waits), None))
    if task.on:
        renamed = {path for one, _ in steps for path in _named(one.step)}
        stay = {wanted.path for wanted in task.wanted} - renamed
        steps += [(_one_name(task, *one), None) for one in second if one[0].path in stay]
    elif attached is not None:
        steps = _attached(task, attached, steps)
    first_of_all = [*_repairs(task, layout, steps), *_records(task, layout, steps)]
    return [(one, None) for one in first_of_all] + steps


def _one_name(task: Task, image: Image, second: Path) -> Priced:
    """The step that takes away the name by which QEMU knew *image*."""
    known = f"QEMU knew {image.name} as {second.name}"
    why = f"QEMU knows {image.name} as {second.name} until the guest is off" if task.on else None
    return Priced(Rename(second, image.path), 0, known, why)


def _named(step: Step) -> tuple[Path, ...]:
    """Names that another file has after *step*, or none."""
    return (step.source, step.target) if isinstance(step, Rename) else ()


def _attached(
    task: Task, attached: Path, steps: list[tuple[Priced, int | None]]
) -> list[tuple[Priced, int | None]]:
    """*steps*, and the one that gives the domain its new active image, in one group with it."""
    active = task.wanted[-1]
    if active.path == attached:
        if task.outdated and not steps:
            names = " <- ".join(short_name(path) for path in task.outdated)
            why = f"the definition spells the chain out as {names}"
            return [(Priced(Attach(active.path), 0, why), None)]
        return steps
    if task.pinned:
        raise Refused(
            f"{active.name} would become the active image: {task.pinned}",
            "start the guest and let it shut down, or drop the saved state with "
            "virsh managedsave-remove",
        )
    if any(one.step == Attach(active.path) for one, _ in steps):
        return steps
    before = short_name(attached)
    attach = Priced(Attach(active.path), 0, f"the domain has {before} as its disk")
    group = steps[-1][1] if steps else None
    if group is None and steps:
        group = max((number for _, number in steps if number is not None), default=-1) + 1
        steps = [*steps[:-1], (steps[-1][0], group)]
    return [*steps, (attach, group)]


def _restarts(task: Task, layout: Layout) -> bool:
    """
    True where the guest is to be stopped for a rollback, as the spec allows.

    Raises:
        Refused: It does not, and the guest would lose its disk under its feet.
    """
    if not (task.on and layout.discarded):
        return False
    if task.on_running == "refuse":
        raise Refused(
            f"{', '.join(image.name for image in layout.discarded)} is discarded, and the guest "
            f"is {task.state}",
            'shut it off, or write on_running = "restart"',
        )
    if task.transient:
        raise Refused(
            f"{', '.join(image.name for image in layout.discarded)} is discarded, and "
            f"{task.domain} is transient: once stopped, it is gone, and nothing could start it",
            f"give it a definition (virsh dumpxml {task.domain} --inactive > {task.domain}.xml; "
            f"virsh define {task.domain}.xml)",
        )
    return True


def _growth(task: Task, layout: Layout, slot: Slot, choice: Choice) -> Priced | None:
    """The step that gives an image the size that the spec asks for."""
    wanted = slot.wanted
    made = len(choice.steps) == 1 and isinstance(choice.steps[0].step, Create)
    if wanted.size is None or made:
        return None
    if slot.kept is not None and slot is not layout.slots[-1]:
        size = layout.chain[slot.kept].virtual_size
        if wanted.size == size:
            return None
        raise _fixed_size(wanted, size)
    top = layout.chain[len(layout.chain) - 1]
    if wanted.size < top.virtual_size:
        raise Refused(
            f"{wanted.name} has {human_size(top.virtual_size)}, the spec says "
            f"{human_size(wanted.size)}; a disk never shrinks",
            f"write size = {top.virtual_size}, or leave `size` out",
        )
    if wanted.size == top.virtual_size:
        return None
    stays = wanted.path == top.path and not choice.steps
    if stays and (why := _untouchable(task, top)):
        raise Refused(f"{wanted.name} cannot grow: {why}", "leave `size` out")
    return Priced(Resize(wanted.path, wanted.size), 0, f"the spec says {human_size(wanted.size)}")


def _fixed_size(wanted: Wanted, size: int) -> Refused:
    return Refused(
        f"{wanted.name} has {human_size(size)}, the spec says {human_size(wanted.size or 0)}; "
        "the size of a restore point is fixed",
        "leave `size` out, or put it on the active image",
    )


def _untouchable(task: Task, image: Image) -> str | None:
    """Why the header of *image* cannot be changed; None: it can."""
    if image.left_alone or image.corrupt:
        return "it is encrypted, marked corrupt, or has features that are left alone"
    if image.snapshots:
        return (
            f"it has {image.snapshots} internal snapshot(s); delete them with qemu-img snapshot -d"
        )
    return task.frozen_because(image)


def _repairs(
    task: Task, layout: Layout, steps: Iterable[tuple[Priced, int | None]]
) -> list[Priced]:
    """
    Steps that repair what was not closed cleanly, before anything is opened for writing.

    QEMU would do so by itself, which looks like a write by somebody else, and it
    fails at a dirty image that it has open for reading below a commit.
    """
    writing = Commit | Pull | Rebase | Rename | Resize
    if task.on or not any(isinstance(one.step, writing) for one, _ in steps):
        return []
    return [
        Priced(Repair(image.path), 0, "it was not closed cleanly")
        for index, image in enumerate(layout.chain)
        if image.dirty and not unwritable(task, layout.chain, index)
    ]


def _records(
    task: Task, layout: Layout, steps: Iterable[tuple[Priced, int | None]]
) -> list[Priced]:
    """Steps that write down formats which qemu-img would have to guess."""
    if task.on or not any(_reads_headers(one.step, layout.chain) for one, _ in steps):
        return []
    records = []
    for index, image in enumerate(layout.chain):
        if index and image.recorded_format is None:
            below = layout.chain[index - 1]
            if index < task.frozen:
                raise Refused(
                    f"{image.name} is shared and does not record the format of {below.name}, "
                    "so qemu-img would have to guess it",
                    f"record it: qemu-img rebase -u -F {below.format} -b "
                    f"'{image.recorded}' '{image.path}'",
                )
            reason = f"records that {below.name} is {below.format}: nobody has to guess"
            records.append(Priced(Rebase(image.path, below.path), 0, reason))
    return records


def _reads_headers(step: Step, chain: Chain) -> bool:
    """
    True where *step* is done by a qemu-img that opens the chain by its headers.

    A pull is, where a stream would read wrong: see `Offline.run`.
    """
    if isinstance(step, Commit | Rebase):
        return True
    if not isinstance(step, Pull):
        return False
    dips = any(a.virtual_size < b.virtual_size for a, b in pairwise(chain.images))
    unfit = step.into in chain and chain.image(step.into)
    return dips or bool(unfit and (unfit.lazy_refcounts or unfit.extended_l2))


def _chained(
    task: Task, layout: Layout, steps: list[tuple[Priced, int | None]]
) -> tuple[PlannedStep, ...]:
    """*steps* with the chain before and after each, then the removals."""
    chain, planned = task.chain, []
    for priced, group in sorted(steps, key=lambda one: one[0].deferred is not None):
        before, chain = chain, advance(chain, priced.step, layout.outside)
        planned.append(
            PlannedStep(
                priced.step,
                before,
                chain,
                priced.reason,
                priced.bytes,
                priced.allocates,
                deferred=priced.deferred,
                group=group,
            )
        )
    now = next((one.before for one in planned if one.deferred), chain)
    stay = {wanted.path for wanted in task.wanted}
    stay |= {one.step.source for one in planned if isinstance(one.step, Rename)}
    held = identities(now)
    for index, image in reversed(list(enumerate(task.chain))):
        if image.path in chain or image.path in stay or not _removable(task, layout, index):
            continue
        discarded = index >= len(layout.chain)
        merged = "its data is thrown away" if discarded else "its data is merged"
        kept = task.keep_discarded if discarded else task.keep_merged
        removal = Remove(image.path)
        planned.append(_removed(removal, merged + _kept(kept), image, chain, now, held, kept))
    last = identities(chain)
    planned += [
        _removed(Remove(image.second), "its other name", image, chain, now, held, task.keep_merged)
        for image in reversed(task.chain.images[task.frozen :])
        if image.second is not None and task.on and image.identity not in last
    ]
    return tuple(planned)


def identities(chain: Chain) -> set[Identity | None]:
    """The files of *chain*, whatever their names."""
    return {image.identity for image in chain}


def _kept(seconds: int) -> str:
    """What becomes of the room of a removed image that quarantine keeps, in words."""
    if not seconds:
        return ""
    return (
        f"; quarantine keeps it for {human_time(seconds)}, virt-chain gc --all frees its room now"
    )


def _removed(
    step: Remove,
    reason: str,
    image: Image,
    chain: Chain,
    now: Chain,
    held: Container[Identity | None],
    kept: int,
) -> PlannedStep:
    """
    A removal: after the steps that are done *now*, or after the last one of all.

    Args:
        held: The files of *now*.
        kept: Seconds that quarantine keeps the file, which frees nothing until then.
    """
    if image.identity in held:
        return PlannedStep(step, chain, chain, reason, deferred="after the steps that wait")
    frees = image.actual_size if step.image == image.path and not kept else 0
    return PlannedStep(step, now, now, reason, frees=frees)


def _beside(task: Task, layout: Layout, planned: tuple[PlannedStep, ...]) -> Iterable[str]:
    """What a rollback, or the first restore point of a disk, leaves out of the guest's state."""
    first = len(task.chain) - task.frozen <= 1 and any(isinstance(o.step, Create) for o in planned)
    if not task.beside or not planned or not (layout.discarded or first):
        return
    what = " and ".join(task.beside)
    if layout.discarded:
        yield f"not rolled back: {what}; put an older copy there if the guest needs it"
    else:
        yield f"not part of a restore point: {what}; copy it yourself, with the guest off"


def _removable(task: Task, layout: Layout, index: int) -> bool:
    if index >= len(layout.chain):  # what is discarded lies on top
        return index >= task.frozen
    return vanishes(task, task.chain, index)


def _notes(task: Task, layout: Layout, planned: tuple[PlannedStep, ...]) -> Iterable[str]:
    if not planned:
        return
    told = {path for one in planned for path in touched(one.step)}
    told |= {wanted.path for wanted in task.wanted}
    for index, image in enumerate(task.chain):
        if image.path in planned[-1].after or image.path in told:
            continue
        why = task.frozen_because(image)
        if why is None and index < task.frozen:
            why = "a shared image stands on it"
        if why is None:
            why = "a dropped base is kept unless remove_base = true"
        yield f"{image.name} stays on disk: {why}"
    active = layout.slots[-1] if layout.slots else None
    if active and active.kept is not None and len(task.chain):
        path = task.chain[active.kept].path
        if active.kept < len(task.chain) - 1 and active.wanted.restore_point:
            yield f"{short_name(path)} becomes active: its restore point is given up"


def _prove(task: Task, layout: Layout, plan: DiskPlan) -> None:
    active = task.chain.active
    world = World.of([task.chain, layout.outside], active.path if active else None)
    current = layout.chain.active
    untouched = [*layout.outside.paths, *task.chain.paths[: task.frozen]]
    gone = {one.step.image for one in plan.steps if isinstance(one.step, Remove)}
    golden = len(layout.chain) and not task.remove_base
    if golden and layout.chain[0].path not in plan.desired:
        untouched.append(layout.chain[0].path)
    world = prove(
        world,
        [one.step for one in plan.steps],
        kept=plan.restore_points.kept,
        untouched=untouched,
        current=current.path if current else None,
    )
    moves = [one for one in plan.steps if not isinstance(one.step, Remove | Forget)]
    end = moves[-1].after if moves else task.chain
    if end.paths != plan.desired:
        raise ProofFailed(f"the steps end at {end}, and the spec asks for another chain")
    if gone & set(plan.desired):
        raise ProofFailed("a step removes an image that the spec lists")
    path: Path | None = plan.desired[-1]
    for expected in reversed(plan.desired):
        if path != expected:
            raise ProofFailed(f"{expected} is not where the spec has it")
        path = world.images[expected].backing
    if path is not None:
        raise ProofFailed(f"{path} is still below {plan.desired[0]}")


def _ready(task: Task, planned: tuple[PlannedStep, ...]) -> None:
    """Refuse what the host cannot carry out now: a disk in use, or one with unknown users."""
    if planned and task.busy:
        assert task.chain.active
        raise Refused(
            f"{task.chain.active.path} is open for writing by another program",
            "shut the guest off, then plan again",
        )
    for one in planned:
        if one.deferred is None:
            _no_hidden_user(task, one.step)


def _no_hidden_user(task: Task, step: Step) -> None:
    """
    Refuse a *step* that an overlay which cannot be read might need the image of.

    A new overlay changes nobody's view, nor does data that is pulled into the active image.
    """
    if isinstance(step, Create):
        return
    active = task.chain.active
    for path in touched(step):
        file = task.hidden.get(path)
        own = active is not None and path == active.path
        if file is None or (own and not isinstance(step, Remove | Rename)):
            continue
        what = f"the folder {file}" if file == path.parent else str(file)
        raise Refused(
            f"{step}: {what} cannot be read, so an overlay that stands on {short_name(path)} may "
            "be there",
            "make it readable for this user, run virt-chain as root, or "
            + ("move the images elsewhere" if file == path.parent else "move it to another folder"),
        )


def _not_too_deep(task: Task, planned: tuple[PlannedStep, ...]) -> None:
    """Refuse a chain that would end the guest, unless it is as deep as that already."""
    longest = max((len(one.after) for one in planned), default=0)
    if task.deepest is None or longest <= max(task.deepest, len(task.chain)):
        return
    raise Refused(
        f"the chain would grow to {longest} images, and with more than {task.deepest} this host's "
        "libvirt may not start the guest, or may end it when libvirt itself is restarted",
        "drop restore points and apply that first, then add new ones; or upgrade to libvirt 12.0",
    )


def _lacking(task: Task, planned: tuple[PlannedStep, ...]) -> Refused | None:
    """Which step has too little room, in words; None: there is enough for all of them."""
    need: dict[int, int] = {}
    for one in planned:
        if not one.room:
            continue
        folder = touched(one.step)[0].parent
        device = task.device_of(folder)
        need[device] = need.get(device, 0) + room(one.room)
        free = task.free.get(device)
        if free is not None and need[device] > free:
            return Refused(
                f"{one.step} needs {human_size(need[device])} in {folder}, "
                f"where {human_size(free)} are free (images are removed last)",
                "free some room (virt-chain gc --all empties the quarantine), or merge less",
            )
    return None
