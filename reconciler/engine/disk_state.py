"""What is remembered of a disk: what its images cannot tell.  Plain values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.model.image import FileId
from reconciler.model.steps import Commit, Step, touched


@dataclass(frozen=True, slots=True)
class Leftover:
    """
    A file whose data was merged elsewhere or discarded, to be removed.

    Attributes:
        file: Who it was when it went off the chain.  Any difference means that
            somebody still uses it, or has put another file there.
        discarded: Its data was thrown away, and is nowhere else.
    """

    path: Path
    file: FileId
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class OldLink:
    """
    What an image was before the first step.

    Attributes:
        backing, format: What its header named, before it was relinked.
        file: Who it was; None where nobody could tell.
    """

    image: Path
    backing: str | None = None
    format: str | None = None
    file: FileId | None = None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """
    Steps that belong together and have begun.

    From the first write of a commit on, the views of its base and of all
    images up to its top are gone: only finishing leads anywhere.

    Attributes:
        links: The images of the chain before the first step, base first.
        live: QEMU did it while the guest ran, and may have died with data in its memory.
        pivots: Images that QEMU was about to change for one another, as they were
            when both held the same.
    """

    steps: tuple[Step, ...]
    remove: tuple[Leftover, ...] = ()
    links: tuple[OldLink, ...] = ()
    begun: str = ""
    live: bool = False
    pivots: Mapping[Path, FileId] = field(default_factory=dict)

    @property
    def written(self) -> tuple[Path, ...]:
        """Images whose bytes or views the steps change."""
        order = [link.image for link in self.links]
        paths: dict[Path, None] = {}
        for step in self.steps:
            paths.update(dict.fromkeys(touched(step)))
            if isinstance(step, Commit) and step.base in order and step.top in order:
                paths.update(dict.fromkeys(order[order.index(step.base) : order.index(step.top)]))
        return tuple(paths)

    def rewrites(self, path: Path) -> bool:
        """
        True where the steps write to the image *path*, or to its header.

        A merge writes to the image that survives, and each overlay above may be relinked.
        """
        order = [link.image for link in self.links]
        lowest = min((order.index(one) for one in self.written if one in order), default=None)
        if path in order:
            return lowest is not None and order.index(path) >= lowest
        return path in self.written


@dataclass(frozen=True, slots=True)
class DiskState:
    """
    What is remembered of one disk.

    Attributes:
        active: The image that the guest writes; None: never applied.
        applied: When the disk was last found or made as the spec says, ISO 8601.
        names: Files with two names while the guest runs: by the name that
            QEMU and the headers have, the name that the spec has.
        images: Who each image below the active one was when the disk was last
            applied, or when a person last accepted what is there.
        actives: Who the active image was then.  The guest writes to it: its size and times
            count for nothing.
        given_up: An image that a person has said is gone for good.
        restart: The guest was running, and has to be started again: it was stopped for a
            rollback of this disk, or of another one of the domain.
    """

    active: Path | None = None
    applied: str | None = None
    unfinished: Unfinished | None = None
    leftovers: tuple[Leftover, ...] = ()
    names: Mapping[Path, Path] = field(default_factory=dict)
    images: Mapping[Path, FileId] = field(default_factory=dict)
    actives: Mapping[Path, FileId] = field(default_factory=dict)
    given_up: Path | None = None
    restart: bool = False

    @property
    def every_leftover(self) -> tuple[Leftover, ...]:
        """Files to be removed, also those of steps in flight."""
        return (*self.leftovers, *(self.unfinished.remove if self.unfinished else ()))


def now() -> str:
    """The time as the state file has it: UTC, seconds, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _folder_of(path: Path) -> str:
    return str(path).rpartition("/")[0] or "/"


def paths_in(state: DiskState) -> tuple[Path, ...]:
    """Every image that *state* would have changed, moved or removed."""
    unfinished = state.unfinished
    if unfinished is None:
        return tuple(one.path for one in state.leftovers)
    left = [one.path for one in state.every_leftover]
    links = [link.image for link in unfinished.links]
    values = [getattr(step, key) for step in unfinished.steps for key in step.__slots__]
    return (*left, *links, *(value for value in values if isinstance(value, Path)))


def resolved(state: DiskState, real: Callable[[str], str]) -> DiskState:
    """
    *state* where each image is known by the folder that it lies in now.

    A folder that was moved, with a link left in its place, has the same images.

    Args:
        real: A folder's path with links resolved.
    """
    steps = state.unfinished.steps if state.unfinished else ()
    ends = (*state.names.values(), *filter(None, (state.active, state.given_up)))
    paths = (*paths_in(state), *state.images, *state.actives, *state.names, *ends)
    folders = {folder: real(folder) for folder in {_folder_of(path) for path in paths}}
    if all(folder == there for folder, there in folders.items()):
        return state

    def moved(path: Path) -> Path:
        folder, name = os.path.split(path)
        return Path(folders[folder], name) if folder in folders else path

    def step_moved(step: Step) -> Step:
        values = {key: getattr(step, key) for key in step.__slots__}
        changed: Any = {k: moved(v) for k, v in values.items() if isinstance(v, Path)}
        return replace(step, **changed)

    def left(some: Iterable[Leftover]) -> tuple[Leftover, ...]:
        return tuple(replace(one, path=moved(one.path)) for one in some)

    unfinished = state.unfinished and replace(
        state.unfinished,
        steps=tuple(map(step_moved, steps)),
        remove=left(state.unfinished.remove),
        links=tuple(replace(one, image=moved(one.image)) for one in state.unfinished.links),
        pivots={moved(path): who for path, who in state.unfinished.pivots.items()},
    )
    return replace(
        state,
        active=state.active and moved(state.active),
        unfinished=unfinished,
        leftovers=left(state.leftovers),
        names={moved(one): moved(other) for one, other in state.names.items()},
        images={moved(path): who for path, who in state.images.items()},
        actives={moved(path): who for path, who in state.actives.items()},
        given_up=state.given_up and moved(state.given_up),
    )


def begun(state: DiskState, unfinished: Unfinished) -> DiskState:
    """*state* with *unfinished* in flight."""
    return replace(state, unfinished=replace(unfinished, begun=now()))
