"""Images in quarantine: how they come back, and which a plan leaves without what is below."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from reconciler.model.errors import ObserveError
from reconciler.model.image import Identity
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import Commit, Remove, Rename
from reconciler.planner.task import Task
from reconciler.tools import files, images, quarantine
from reconciler.tools.lookups import Lookups
from reconciler.tools.quarantine import Kept


def notes(plan: DiskPlan, task: Task) -> Iterator[str]:
    """
    Which images that could be put back from quarantine cannot be used any more after *plan*.

    The quarantine is looked at only for plans with steps that change or take away a view.
    """
    lookups = Lookups()
    lost = {who: path for path in _lost(plan, task) if (who := images.identity(path)) is not None}
    if not lost:
        return
    kept = list(quarantine.kept({path.parent for path in plan.observed.paths}))
    places = {str(one.was): one for one in kept}
    for one in kept:
        below = _stands_on(one, lost, places, lookups)
        if below is not None and one.until > datetime.now(UTC):
            yield (
                f"{one.was.name}, in quarantine until {one.until:%Y-%m-%d}, stands on "
                f"{below.name} and cannot be used any more after this"
            )


def ways_out(image: Path) -> dict[Path, Path]:
    """
    Where to move *image*, and all below it that lies in quarantine; empty: it is not there.

    Returns:
        The place in quarantine by the new place, the new place of *image* first.
    """
    lookups = Lookups()
    file = lookups.real(str(image))
    folder = Path(file).parent
    folder = folder if folder.name == quarantine.FOLDER else folder.parent
    if folder.name != quarantine.FOLDER:
        return {}
    places = {str(one.path): one.was for one in quarantine.kept([folder.parent])}
    at = {str(was): path for path, was in places.items()}
    was = places.get(file, folder.parent / Path(file).name)
    found = {_free(was): Path(file)}
    name = str(was)
    while (below := _named_by(name, file, lookups)) is not None and below in at:
        name, file = below, at.pop(below)
        if lookups.lstat(name) is not None:
            break  # what is there now is what would be read
        found[Path(name)] = Path(file)
    return found


def _named_by(name: str, file: str, lookups: Lookups) -> str | None:
    """The image below *file*, were it at *name*, links resolved."""
    try:
        below = images.named_by(name, images.look_at(file, lookups))
    except ObserveError:
        return None
    return None if below is None else lookups.real(below)


def _free(path: Path) -> Path:
    """*path*, or a name beside it that nothing has."""
    number, free = 0, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def lost_below(moves: Mapping[Path, Path]) -> tuple[str, str] | None:
    """
    Why the first of *moves* may not read as it did when it went into quarantine.

    Args:
        moves: As `ways_out` has them.

    Returns:
        The reason, and on what condition it is moved out all the same, for the commands.
    """
    lookups = Lookups()
    places = {str(to): str(at) for to, at in moves.items()}
    top = next(iter(places))
    name, file = top, places[top]
    went = files.file_id(Path(file))
    seen = {name}
    while (below := _named_by(name, file, lookups)) is not None and below not in seen:
        seen.add(below)
        name, file = below, places.get(below, below)
        who = files.file_id(Path(file))
        if who is None:
            return f"{name}, which it stands on, is not there any more", "put that back, then"
        if went is not None and who.modified > went.changed:
            since = f"{name}, which it stands on, was written to since ({at_time(who.modified)})"
            return f"{since}: {mixture(Path(top), Path(name))}", "if it was,"
    return None


def mixture(image: Path, below: Path) -> str:
    """What became of *image* where *below*, which it stands on, was written to after it."""
    return (
        f"unless that was only a merge of images below {below.name}, {image.name} reads a mixture "
        "of two states"
    )


def at_time(nanoseconds: int) -> str:
    """A moment since 1970, for people."""
    return f"{datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def move_and_adopt(moves: Mapping[Path, Path], label: str) -> str:
    """The commands for *moves*, as `ways_out` has them, and the one that adopts the first."""
    top = next(iter(moves))
    commands = [f"mv -n {_quoted(at)} {_quoted(to)}" for to, at in moves.items()]
    return "; ".join([*commands, f"virt-chain adopt {label} {_quoted(top)}"])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _lost(plan: DiskPlan, task: Task) -> set[Path]:
    """Images that read differently under their names after *plan*, or are not there any more."""
    steps = [one.step for one in plan.steps]
    found: set[Path] = set()
    for step in steps:
        match step:
            case Commit(_, base):
                found.add(base)
            case Rename(source):
                found.add(source)
            case Remove(image):
                discarded = image in plan.restore_points.discarded
                if not (task.keep_discarded if discarded else task.keep_merged):
                    found.add(image)
    # what takes the name of an image by a merge has the view of that image
    return found - {step.target for step in steps if isinstance(step, Rename)}


def _stands_on(
    one: Kept, lost: Mapping[Identity, Path], places: Mapping[str, Kept], lookups: Lookups
) -> Path | None:
    """
    The highest of the *lost* images below *one*, were it put back; None: there is none.

    Args:
        places: What else could be put back, by its old name.
    """
    file, name = str(one.path), str(one.was)
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        below = _named_by(name, file, lookups)
        if below is None:
            return None
        name = below
        there = images.identity_at(Path(name), lookups)
        if there is not None and there in lost:
            return lost[there]
        if there is None and name not in places:
            return None
        file = name if there is not None else str(places[name].path)
    return None
