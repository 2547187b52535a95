"""From the forest to one task for the planner a disk; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.engine.disk_state import DiskState, Unfinished
from reconciler.engine.forest import Forest, Tree
from reconciler.model.desired import DesiredDisk
from reconciler.model.domain import Domain, Job
from reconciler.model.image import Chain
from reconciler.planner.task import Task
from reconciler.tools.images import Trust

if TYPE_CHECKING:
    from reconciler.tools.hypervisor import Hypervisor


@dataclass(frozen=True, slots=True)
class Look:
    """
    One disk as it was found.

    Attributes:
        chain: The observed chain; empty: the disk is new, or *error* says why.
        task: What the planner gets; None where *error* is set.
        trust: Which files may be opened for it, and in which format.
        claimed: Leftovers of this disk that somebody else stands on or lists.
        untouched: Steps in flight have written nothing yet.
        replaced: Images that steps in flight work on, and that are other files by now.
        changes: What was changed from outside below the active image, in sentences.
        changed: Those images.
        listed: The desired chain, links resolved.
        error: Why the disk cannot be planned.
        host, domain: libvirt's part of it; None where the disk has no connection.
        job: A block job that runs on the disk.
        lost: Why libvirt must not be asked to change the disk while the guest runs.
        silent: Connections that do not answer and have disks beside its images, and where.
        at_work: Which other virt-chain is doing the steps in flight, in words.
        newer: With steps in flight: the overlays on top of what is remembered as the active
            image, that nothing stands on; empty: that one is the highest.
    """

    desired: DesiredDisk
    state: DiskState
    chain: Chain
    task: Task | None
    trust: Trust = field(default_factory=Trust)
    error: str | None = None
    claimed: dict[Path, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    changed: frozenset[Path] = frozenset()
    untouched: bool = False
    replaced: tuple[Path, ...] = ()
    listed: tuple[Path, ...] = ()
    host: Hypervisor | None = None
    domain: Domain | None = None
    job: Job | None = None
    lost: str | None = None
    silent: Mapping[str, Path] = field(default_factory=dict)
    at_work: str | None = None
    newer: tuple[Path, ...] = ()

    @property
    def resumed(self) -> Unfinished | None:
        """Steps in flight that have to be finished; None where they have written nothing yet."""
        unfinished = self.state.unfinished
        if unfinished is None or (self.job is None and self.untouched):
            return None
        return unfinished


def look_at(label: str, forest: Forest) -> Look:
    """The disk *label* as the planner and the reader need it."""
    tree = forest.trees[label]
    error = tree.error or forest.interrupted_by(tree) or _no_folder(tree, forest)
    error = error or forest.data_file_in(tree)
    found = tree.found
    return Look(
        tree.desired,
        tree.state,
        tree.chain,
        _task(tree, forest) if error is None else None,
        tree.trust,
        error,
        claimed=forest.claimed(tree) if error is None else {},
        changes=tree.changes,
        changed=tree.changed,
        untouched=tree.untouched,
        replaced=tree.replaced,
        listed=tree.listed,
        host=found.host if found else None,
        domain=found.domain if found else None,
        job=found.job if found else None,
        lost=tree.lost if error is None else None,
        silent=forest.silent_beside(tree),
        at_work=forest.at_work.get(label),
        newer=forest.newer(tree),
    )


def _no_folder(tree: Tree, forest: Forest) -> str | None:
    missing = sorted(str(one) for one in tree.folders if one not in forest.folders)
    if not missing:
        return None
    return f"the folder {', '.join(missing)} does not exist; create it first"


def _task(tree: Tree, forest: Forest) -> Task:
    disk, found = tree.desired, tree.found
    folders = {folder: forest.folders[folder] for folder in tree.folders}
    saved = found is not None and found.domain.managed_save
    return Task(
        domain=disk.domain,
        target=disk.target,
        chain=tree.chain,
        wanted=tree.wanted,
        discard=frozenset(tree.discard),
        remove_base=disk.remove_base,
        bitmaps=disk.bitmaps,
        default_format=disk.format,
        outside=dict(tree.outside),
        users=forest.users(tree),
        templates=forest.templates,
        writers=forest.writers_of(tree),
        state_files=forest.state_files,
        taken=forest.taken(tree),
        strangers=forest.strangers(tree),
        hidden=forest.hidden(tree),
        filesystems={folder: one.mount for folder, one in folders.items()},
        devices={folder: one.device for folder, one in folders.items()},
        free={one.device: one.free for one in folders.values()},
        keep_merged=forest.host.keep(discarded=False),
        keep_discarded=forest.host.keep(discarded=True),
        busy=tree.busy,
        state=found.domain.state if found else "offline",
        attached=tree.attached,
        on_running=disk.on_running,
        pinned="it has a managed save image, which needs it" if saved else None,
        snapshots=found.snapshots if found else {},
        transient=found is not None and found.domain.transient,
        outdated=found.outdated(tree.chain) if found else (),
        beside=found.domain.beside if found else (),
        deepest=found.domain.deepest if found else None,
    )
