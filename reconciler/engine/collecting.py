"""`gc`: images in quarantine whose time is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reconciler.model.desired import Spec
from reconciler.tools import files, images, quarantine
from reconciler.tools.quarantine import Kept

__all__ = ["Emptied", "Kept", "empty_quarantine"]


@dataclass(frozen=True, slots=True)
class Emptied:
    """Images that went (or would), and those that stay for now."""

    gone: tuple[Kept, ...]
    left: tuple[Kept, ...]


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
    gone: list[Kept] = []
    left: list[Kept] = []
    now = datetime.now(UTC)
    for one in quarantine.kept(_folders(spec)):
        (gone if everything or one.until <= now else left).append(one)
    if not dry_run:
        for one in gone:
            files.remove(one.path)
    return Emptied(tuple(gone), tuple(left))
