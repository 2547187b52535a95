"""`gc`: images in quarantine whose time is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reconciler.engine.around import Around
from reconciler.engine.state import StateFolder, Waiting
from reconciler.engine.survey import Survey
from reconciler.model.desired import Spec
from reconciler.model.image import Identity
from reconciler.tools import files, images, quarantine
from reconciler.tools.lookups import Lookups
from reconciler.tools.overlays import Overlays, scan
from reconciler.tools.quarantine import Kept

__all__ = ["Emptied", "Kept", "empty_quarantine"]


@dataclass(frozen=True, slots=True)
class Emptied:
    """Images that went (or would), those that stay for now, and those in use, with why."""

    gone: tuple[Kept, ...]
    left: tuple[Kept, ...]
    used: tuple[tuple[Kept, str], ...] = ()


def empty_quarantine(
    spec: Spec, states: StateFolder, wait: Waiting, *, dry_run: bool, everything: bool
) -> Emptied:
    """
    Remove what lies in quarantine beside the images of *spec* and whose time is over.

    Their folders are locked meanwhile.

    Args:
        dry_run: Only tell.
        everything: Also what is still to be kept.

    Raises:
        Busy: Another virt-chain works in one of the folders.
        StateError: A state file is damaged, so that where its images are is unknown.
    """
    known = states.known_images(Lookups())
    folders = _folders(spec, known)
    with ExitStack() as held:
        if not dry_run:
            there = {one.was.parent for one in quarantine.kept(folders)}
            held.enter_context(states.folders_locked(there, wait))
        found = tuple(quarantine.kept(folders))
        survey = Survey(spec, states, Lookups())
        chains = _chains(spec, states.known_images(Lookups()))
        emptied = _sorted_out(spec, survey, folders, found, chains, everything=everything)
        if not dry_run:
            for one in emptied.gone:
                quarantine.remove(one)
    return emptied


def _folders(spec: Spec, known: Mapping[str, Iterable[Path]]) -> set[Path]:
    """Folders of every image that the spec's disks have or had, as far as the host allows them."""
    paths = [entry.path for disk in spec.disks for entry in disk.chain]
    paths += [path for disk in spec.disks for path in (*disk.discard, disk.active) if path]
    paths += [path for disk in spec.disks for path in known.get(disk.label, ())]
    return _allowed(spec, {images.real(path).parent for path in paths})


def _allowed(spec: Spec, folders: Iterable[Path]) -> set[Path]:
    roots = images.allowed_roots(spec.host)
    return {folder for folder in folders if roots is None or roots.hold(f"{folder}/x")}


def _chains(spec: Spec, known: Mapping[str, Iterable[Path]]) -> dict[Identity | None, str]:
    """In whose chain each image is, by the state files and the spec, in words."""
    found: dict[Identity | None, str] = {}
    for disk in spec.disks:
        for path in (*(entry.path for entry in disk.chain), disk.active):
            if path is not None:
                found[images.identity(path)] = f"the spec of {disk.label} lists it"
    for label, paths in known.items():
        found |= dict.fromkeys(map(images.identity, paths), f"it is in the chain of {label}")
    found.pop(None, None)  # all that do not exist
    return found


def _sorted_out(
    spec: Spec,
    survey: Survey,
    folders: set[Path],
    found: tuple[Kept, ...],
    chains: Mapping[Identity | None, str],
    *,
    everything: bool,
) -> Emptied:
    """
    What of *found* may go, what stays for now, and what somebody uses.

    Args:
        chains: Images of all known disks, with whose they are.
    """
    used: list[tuple[Kept, str]] = []
    now = datetime.now(UTC)
    trust = images.Trust(roots=images.allowed_roots(spec.host))
    around = {one.path.parent for one in found} | {one.was.parent for one in found}
    around |= {path.parent for some in survey.domain_files.values() for path in some}
    around |= set(map(Path, survey.known_folders)) | folders
    overlays = scan(sorted(around), trust, Lookups(), survey.raw())
    attached = {
        images.identity(path): label for label, some in survey.domain_files.items() for path in some
    }
    over = [one for one in found if everything or one.until <= now]
    going = {one.path for one in over}
    known = {images.identity(one.path): one for one in over}
    below: dict[Path, list[Kept]] = {}
    for there, one in known.items():
        for name, _ in overlays.directly_on(there):
            below.setdefault(Path(name), []).append(one)
    left = deque(over)
    while left:  # who stands on an image may go with it, or stay
        one = left.popleft()
        if one.path not in going:
            continue
        if why := (
            _of_a_domain(one, survey.around, attached)
            or _in_use(one, overlays, going)
            or chains.get(images.identity(one.path))
        ):
            used.append((one, why))
            going.discard(one.path)
            left.extend(below.get(one.path, ()))
    kept = {one.path for one, _ in used}
    later = tuple(one for one in found if one.path not in going | kept)
    return Emptied(tuple(one for one in found if one.path in going), later, tuple(used))


def _of_a_domain(one: Kept, around: Around, attached: Mapping[Identity | None, str]) -> str | None:
    """Which domain has the image, or why nobody can tell; None: none has it."""
    for error in around.errors.values():
        return f"a domain may use it: {error}"
    label = attached.get(images.identity(one.path))
    return None if label is None else f"{label} has it as its disk"


def _in_use(one: Kept, overlays: Overlays, going: set[Path]) -> str | None:
    """Why the image must not go, though its time is over; None: it may."""
    direct = (Path(name) for name, _ in overlays.directly_on(images.identity(one.path)))
    if users := sorted({path for path in direct if path not in going}):
        return f"{', '.join(map(str, users))} stands on it"
    if hidden := [path for path in overlays.unreadable(one.path.parent) if path not in going]:
        return f"{hidden[0]} cannot be read and may stand on it"
    return "a QEMU has it open" if files.opened_by_other(one.path) else None
