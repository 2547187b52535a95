"""`gc`: images in quarantine whose time is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reconciler.model.desired import Spec
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


def _folders(spec: Spec) -> set[Path]:
    """Folders of every image that the spec names, as far as the host allows them."""
    paths = [entry.path for disk in spec.disks for entry in disk.chain]
    paths += [path for disk in spec.disks for path in (*disk.discard, disk.active) if path]
    trust = images.Trust(roots=images.allowed_roots(spec.host))
    folders = {images.real(path).parent for path in paths}
    return {folder for folder in folders if trust.roots is None or trust.roots.hold(f"{folder}/x")}


def empty_quarantine(spec: Spec, *, dry_run: bool, everything: bool) -> Emptied:
    """
    Remove what lies in quarantine beside the images of *spec* and whose time is over.

    Args:
        dry_run: Only tell.
        everything: Also what is still to be kept.
    """
    used: list[tuple[Kept, str]] = []
    now = datetime.now(UTC)
    folders = _folders(spec)
    found = tuple(quarantine.kept(folders))
    trust = images.Trust(roots=images.allowed_roots(spec.host))
    around = {*folders, *(one.path.parent for one in found)}
    overlays = scan([folder for folder in around if folder.is_dir()], trust, Lookups())
    going = {one.path for one in found if everything or one.until <= now}
    again = True
    while again:  # who stands on an image may go with it, or stay
        again = False
        for one in [one for one in found if one.path in going]:
            if why := _in_use(one, overlays, going):
                used.append((one, why))
                going.discard(one.path)
                again = True
    kept = {one.path for one, _ in used}
    left = [one for one in found if one.path not in going | kept]
    gone = [one for one in found if one.path in going]
    if not dry_run:
        for one in gone:
            quarantine.remove(one)
    return Emptied(tuple(gone), tuple(left), tuple(used))


def _in_use(one: Kept, overlays: Overlays, going: set[Path]) -> str | None:
    """Why the image must not go, though its time is over; None: it may."""
    users = [path for path in overlays.ordered(images.identity(one.path)) if path not in going]
    if users:
        return f"{', '.join(map(str, users))} stands on it"
    if hidden := [path for path in overlays.unreadable(one.path.parent) if path not in going]:
        return f"{hidden[0]} cannot be read and may stand on it"
    return "a QEMU has it open" if files.opened_by_other(one.path) else None
