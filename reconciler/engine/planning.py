"""From looks to plans: what is unfinished first, then what the planner says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reconciler.engine import permitted, quarantined
from reconciler.engine.disk_state import Leftover, Unfinished
from reconciler.engine.fitting import require_room_for_names
from reconciler.engine.interrupted import ways_back
from reconciler.engine.tasks import Look
from reconciler.model.errors import ObserveError, ProofFailed, ReconcilerError, Refused
from reconciler.model.image import short_name
from reconciler.model.plan import DiskPlan, Plan, PlannedStep
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    active_after,
    touched,
)
from reconciler.planner.fingerprint import fingerprint
from reconciler.planner.layout import lay_out, restore_points, settled
from reconciler.planner.task import Task, View
from reconciler.tools import files, images, qemuimg, quarantine, storage_daemon

Work = tuple[DiskPlan, Look]
"""A plan with the look that it was made from."""

AT_ONCE = os.cpu_count() or 1
"""Disks with steps that QEMU is asked about at the same time."""


def plan_all(sources: tuple[Path, ...], looks: Sequence[Look]) -> Plan:
    """The plan of every disk; one that cannot be planned carries its error."""
    plans = [settled_plan(found) for found in looks]
    open_ones = [index for index, plan in enumerate(plans) if plan is None]
    if len(open_ones) < 2:
        made = [plan_disk(looks[index]) for index in open_ones]
    else:
        from concurrent.futures import ThreadPoolExecutor  # takes a while, for one disk too long

        with ThreadPoolExecutor(AT_ONCE) as pool:
            made = list(pool.map(plan_disk, [looks[index] for index in open_ones]))
    done = iter(made)
    return Plan(sources, tuple(plan or next(done) for plan in plans))


def _empty(found: Look) -> DiskPlan:
    """A plan without steps for the disk."""
    desired = found.desired
    return DiskPlan(
        domain=desired.domain,
        target=desired.target,
        observed=found.chain,
        desired=found.listed,
        state=found.domain.state if found.domain else "offline",
        connection=desired.connection,
        warnings=_warnings(found),
    )


def _warnings(found: Look) -> tuple[str, ...]:
    """What was changed from outside or is damaged, and what a person does about it."""
    warnings = []
    if found.changes:
        what = "; ".join(found.changes)
        check = f"check that, then run: virt-chain adopt {found.desired.label}"
        warnings.append(
            f"changed by another program: {what}; nothing copies its data until you {check}"
        )
    for image in found.chain:
        if image.corrupt:
            what = f"{image.path.name} is marked corrupt"
            if image == found.chain.active:
                what = (
                    f"{image.path.name}, the active image, is marked corrupt: no guest starts on it"
                )
            warnings.append(
                f"{what}; shut the guest off, copy the image, then repair it with: "
                f"qemu-img check -r all '{image.path}'"
            )
    return tuple(warnings)


def settled_plan(found: Look) -> DiskPlan | None:
    """The plan of a disk that has nothing to do or cannot be planned; None: it has to be made."""
    if found.error is not None or found.task is None:
        return replace(_empty(found), error=found.error)
    state = found.state
    if state.unfinished or state.leftovers or found.job or found.lost:
        return None
    try:
        layout = lay_out(found.task)
    except ReconcilerError as error:
        return replace(_empty(found), error=str(error))
    if not settled(found.task, layout):
        return None
    points = restore_points(found.task, layout)
    return replace(_empty(found), restore_points=points, fingerprint=fingerprint_of(found))


def plan_disk(found: Look) -> DiskPlan:
    """
    The plan of one disk.

    Steps that were interrupted are finished before anything else is planned:
    a commit that began has overwritten views that no spec can ask for again.
    """
    if (plan := settled_plan(found)) is not None:
        return plan
    empty = _empty(found)
    desired = found.desired
    assert found.task is not None
    try:
        left, stay = _removals(found, found.task)
        empty = replace(empty, warnings=(*empty.warnings, *stay))
        resumed = found.resumed
        if found.job is not None and not (resumed and found.task.on):
            raise Refused(
                f"a {found.job.kind} job runs on {desired.label}, started by somebody else",
                "wait until it has ended (virsh blockjob), then plan again",
            )
        if found.lost is not None and resumed is None:
            raise ObserveError(found.lost)
        if resumed is not None:
            if found.at_work is None:
                _still_ours(found, resumed)
                _unchanged(found)
            plan = _finish(empty, found, resumed)
        else:
            plan = _make(empty, found, found.task)
        plan = replace(plan, steps=(*left, *plan.steps), fingerprint=fingerprint_of(found))
        return replace(plan, notes=(*plan.notes, *permitted.notes(plan, found)))
    except ProofFailed as error:
        return replace(
            empty, error=f"{error}: this is a bug, and nothing is done; please report it"
        )
    except ReconcilerError as error:
        return replace(empty, error=str(error))


def _make(empty: DiskPlan, found: Look, task: Task) -> DiskPlan:
    layout = lay_out(task)
    if settled(task, layout):
        return replace(empty, restore_points=restore_points(task, layout))
    for image in (*task.chain, *(one for chain in task.outside.values() for one in chain)):
        if why := image.left_alone:
            raise Refused(
                f"{image.path} is left alone: {why}",
                "make a plain copy of it with qemu-img convert",
            )
    # prices and proof take a while to load, and the daily case has nothing to do
    from reconciler.planner.making import make_plan, needed

    paths = needed(task)
    images.require_confirmed(found.chain)  # QEMU reads it before anything is changed
    plan = make_plan(task, {path: _view_of(path, task) for path in paths})
    require_room_for_names(plan.steps)
    discards = bool(plan.restore_points.discarded)
    if discards or any(_concerns(one, found.changed) for one in plan.steps):
        _unchanged(found)
    notes = plan.notes
    if plan.steps:
        notes = (*notes, *quarantined.notes(plan, task), *_backups(found), *_silent(found, plan))
    again = _used_again(task)
    if len(again) > 1:
        plan = replace(plan, doubts=(*plan.doubts, _names_again(task, again)))
    elif again:
        notes = (*notes, _names_again(task, again))
    return replace(
        plan,
        state=empty.state,
        connection=empty.connection,
        notes=notes,
        warnings=empty.warnings,
    )


def _used_again(task: Task) -> dict[Path, Path]:
    """New images of the spec whose names images in quarantine had, each with the place of that."""
    new = [wanted.path for wanted in task.wanted if wanted.image is None]
    kept = quarantine.kept({path.parent for path in new})
    there = {one.was: one.path for one in sorted(kept, key=lambda one: one.until)}
    return {path: there[path] for path in new if path in there}


def _names_again(task: Task, again: Mapping[Path, Path]) -> str:
    """
    What a spec gets that was taken back to a text from before a rollback.

    One name may be in use again by some scheme of names; several are what a reverted spec has.
    """
    names = " and ".join(path.name for path in again)
    moves = dict(reversed(list(again.items())))
    images_, them = ("an image", "it") if len(again) == 1 else ("images", "them")
    back = f"to have {them} back: {quarantined.move_and_adopt(moves, task.label)}"
    if lost := quarantined.lost_below(moves):
        why, condition = lost
        back = f"{why}; {condition} {back}"
    return (
        f"{names}: the quarantine has {images_} of that name, and what is made now is another; "
        f"{back}"
    )


def _concerns(planned: PlannedStep, changed: frozenset[Path]) -> bool:
    """
    True where a step copies data of a *changed* image, or of one that stands on it, or writes it.

    What moves between images that stand higher up is the same, whatever lies below: whole
    clusters are copied, none is filled up from below, and none is left out for being equal.
    """
    step, chain = planned.step, planned.before
    match step:
        case Create():
            return False  # a snapshot may be what is needed most
        case Pull(into, base):
            bottom, top = base, into
            # qemu-img rebase compares with what is below; as `Offline` chooses
            whole = storage_daemon.available() and not chain.image(into).lazy_refcounts
        case Commit(top, bottom):
            whole = True
        case Rebase():
            return bool(changed)  # its data is compared with all that is below
        case _:
            return not changed.isdisjoint(touched(step))
    below = changed.intersection(chain.paths)
    if not below:
        return bool(changed)
    lowest = 0 if bottom is None else chain.index(bottom)
    moved = chain.images[lowest : chain.index(top) + 1]
    units = {(image.cluster_size, image.virtual_size, image.extended_l2) for image in moved}
    alike = len(units) == 1 and not moved[0].extended_l2
    return not (whole and alike) or any(chain.index(path) >= lowest for path in below)


def _unchanged(found: Look) -> None:
    """Refused where data would be copied of images that another program has changed."""
    if found.changes:
        raise Refused(
            f"the plan copies data of images that another program has changed ("
            f"{'; '.join(found.changes)})",
            f"check them, then run: virt-chain adopt {found.desired.label}",
        )


def _view_of(path: Path, task: Task) -> View:
    """The map of the view of *path*, and whether it begins as an image format would."""
    from reconciler.tools import views  # only a merge needs it

    own = path in task.chain  # QEMU has just read it as its headers have it
    if own:
        chain = task.chain.up_to(path)
    else:
        chain = next(c.up_to(path) for c in task.outside.values() if path in c)
    extents = qemuimg.map_view(chain.images, as_recorded=own)
    raw = any(image.format == "raw" for image in chain)
    forged = raw and views.first_bytes_forged(chain.images)
    return View(extents, forged)


def _backups(found: Look) -> Iterable[str]:
    """What becomes of the next incremental backup."""
    domain = found.domain
    if domain is None or not domain.checkpoints:
        return
    names = ", ".join(domain.checkpoints)
    if domain.on:
        yield f"backup checkpoints ({names}): libvirt carries their bitmaps along"
    else:
        yield f"backup checkpoints ({names}): the next backup has to be a full one"


def _silent(found: Look, plan: DiskPlan) -> Iterable[str]:
    """Which domains nobody could ask about the images that are written to or removed."""
    if all(isinstance(one.step, Create | Attach | Forget) for one in plan.steps):
        return
    for uri, folder in found.silent.items():
        yield (
            f"{uri} does not answer, so whether one of its guests uses these images in {folder} is "
            "unknown"
        )


def _still_ours(found: Look, unfinished: Unfinished) -> None:
    """Refused where interrupted steps would change what is not, or not only, theirs any more."""
    assert found.task is not None
    if found.replaced:
        names = ", ".join(map(str, found.replaced))
        raise Refused(
            f"{names} is not the file that an interrupted merge ({unfinished.begun}) works on",
            "put the original file back and apply again, or keep what is there and give the "
            f"merge up with: virt-chain adopt {found.desired.label}",
        )
    if found.newer:
        names = " and ".join(path.name for path in found.newer)
        if back := ways_back(unfinished):
            raise Refused(
                f"{names} stands on {found.chain.active}, where a merge was interrupted "
                f"({unfinished.begun}), and QEMU may have ended before what it copied was durable",
                f"take {names} away and apply again; or shut the guest off, relink with: "
                f"{'; '.join(back)}; and go on with: virt-chain adopt {found.desired.label} "
                f"{found.newer[-1]}",
            )
        raise Refused(
            f"what is remembered of {found.desired.label} ends with {found.chain.active} and a "
            f"merge that was interrupted ({unfinished.begun}), and {names} stands on it: the "
            "state file is older than the images, or somebody has made an overlay since",
            f"if the guest's data ends in {found.newer[-1].name}, give the merge up and go on "
            f"from there with: virt-chain adopt {found.desired.label} {found.newer[-1]}",
        )
    for path in unfinished.written:
        merging = f"{path} is in the middle of a merge that was interrupted ({unfinished.begun})"
        if users := found.task.users.get(path):
            raise Refused(
                f"{merging}, and {', '.join(users)} stands on it now",
                f"remove or rebase that overlay (qemu-img rebase), or take {path.name} out of the "
                "other disk's spec, then apply again",
            )
        if path in found.task.templates:
            raise Refused(
                f"{merging}, and the spec calls it a template",
                'take "template = true" off it, then apply again',
            )


def _finish(empty: DiskPlan, found: Look, unfinished: Unfinished) -> DiskPlan:
    chain = found.chain
    reason = f"finishes what was interrupted ({unfinished.begun})"
    if found.at_work is not None:
        reason = f"another virt-chain is doing this since {unfinished.begun}"
    steps = [
        PlannedStep(step, chain, chain, reason, group=0)
        for step in unfinished.steps
        if not isinstance(step, Remove)
    ]
    if why := found.lost or _waits(found, unfinished):
        steps = [replace(one, deferred=why) for one in steps]
        return replace(empty, steps=tuple(steps))
    if (end := _end(found, unfinished)) is not None:
        steps.append(PlannedStep(Attach(end), chain, chain, reason, group=0))
    removals = [
        PlannedStep(Remove(one.path), chain, chain, "its data is merged")
        for one in unfinished.remove
        if one.path.exists()
    ]
    gone = ", ".join(sorted(short_name(path) for path in overwritten(found)))
    notes = ["after that, the rest is planned anew"]
    if found.at_work is not None:
        notes.insert(0, f"{found.at_work} is working on this disk now")
    if gone:
        notes.append(f"{gone}: overwritten by the merge that had begun; no restore point any more")
    return replace(empty, steps=(*steps, *removals), notes=tuple(notes))


def _end(found: Look, unfinished: Unfinished) -> Path | None:
    """The image that a domain, which is off, has to have as its disk at last; None: it has."""
    if found.task is None or found.task.on or found.task.attached is None:
        return None
    active: Path | None = found.task.attached
    for step in unfinished.steps:
        active = active_after(active, step)
    attaches = any(isinstance(step, Attach) for step in unfinished.steps)
    return None if attaches or active == found.task.attached else active


def _waits(found: Look, unfinished: Unfinished) -> str | None:
    """Why steps that were interrupted cannot be finished now; None: they can."""
    if found.task is None or not found.task.on:
        return None
    active = found.chain.active
    for step in unfinished.steps:
        match step:
            case Commit(_, _, False) | Rename(_, _, False) | Rebase() | Attach():
                return f"{step} had begun while the guest was off"
            case Pull(into) if active is None or into != active.path:
                return f"{step} had begun while the guest was off"
    return None


def overwritten(found: Look) -> frozenset[Path]:
    """Images whose own views a commit in flight has destroyed."""
    unfinished, chain = found.state.unfinished, found.chain
    paths: set[Path] = set()
    if found.untouched:
        return frozenset()
    for step in unfinished.steps if unfinished else ():
        if isinstance(step, Commit) and step.base in chain and step.top in chain:
            paths |= {step.base, *(image.path for image in chain.between(step.base, step.top))}
    return frozenset(paths)


def _removals(found: Look, task: Task) -> tuple[list[PlannedStep], list[str]]:
    """
    Steps that take away what an earlier apply has merged and not yet removed.

    Returns:
        The steps, and for each image that cannot go, why it stays.
    """
    steps, stay = [], []
    for one in found.state.leftovers:
        if one.path in found.claimed or one.path in found.chain or not still_there(one):
            continue
        if why := permitted.why_it_stays(one, task):
            stay.append(f"{one.path.name} was merged or discarded, and stays on disk: {why}")
            continue
        reason = "its data was merged or discarded before"
        steps.append(PlannedStep(Remove(one.path), found.chain, found.chain, reason))
    return steps, stay


def still_there(one: Leftover) -> bool:
    """
    True where the file of a leftover exists as it was left.

    Raises:
        Refused: Somebody wrote to it since.
    """
    now = files.file_id(one.path)
    if now is None:
        return False
    # without a birth time an inode number may be a new file's, which has another change time
    if now.has_same_content(one.file) and (now.born or now.changed == one.file.changed):
        return True
    what = "was written to since" if now.is_same_file(one.file) else "is another file now"
    raise Refused(
        f"{one.path} was merged or discarded, and {what}",
        "if it is needed, move it away; else remove it by hand",
    )


def fingerprint_of(found: Look) -> str:
    """The planner's digest, and what the state file adds to it; empty for a broken disk."""
    if found.task is None:
        return ""
    unfinished, left = found.state.unfinished, sorted(map(str, found.claimed))
    text = f"{fingerprint(found.task)} {unfinished} {found.state.leftovers} {left} {found.changes}"
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
