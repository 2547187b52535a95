"""After the last step: what was written is checked, and kept views read the same."""

from __future__ import annotations

from pathlib import Path

from reconciler.engine.apply.disk_run import DiskRun
from reconciler.model.errors import ReconcilerError, StaleChain, StepFailed, worded
from reconciler.model.image import Chain, short_name
from reconciler.tools import images, views


def digests(disk: DiskRun) -> dict[Path | None, str]:
    """Digests of all kept views, and of the current state (None), with ``--verify full``."""
    points = disk.plan.restore_points
    if disk.options.verify != "full" or disk.resumed:
        return {}
    chain = disk.found.chain
    found: dict[Path | None, str] = {
        path: views.digest(chain.up_to(path).images) for path in points.kept
    }
    if current := _current_state(disk):
        found[None] = views.digest(current.images)
    return found


def _current_state(disk: DiskRun) -> Chain | None:
    """The chain, before the first step, whose view must be the guest's afterwards."""
    left = [i for i in disk.found.chain if i.path not in disk.plan.restore_points.discarded]
    return Chain(tuple(left)) if left else None


def look_again(disk: DiskRun, before: dict[Path | None, str]) -> None:
    """Check what was written, let QEMU read the chain, and compare the digests."""
    try:
        chain = disk.backend.observe(disk.active)
        for image in chain:
            if image.path in disk.written:
                disk.backend.check(image)
        images.confirm(chain)
        wanted = disk.plan.now[-1].after.paths if disk.plan.now else chain.paths
        if not disk.resumed and chain.paths != wanted:
            raise StaleChain(f"the chain is {chain} after the last step")
        for path, digest in before.items():
            _reads_the_same(disk, path, digest, chain)
    except (ReconcilerError, OSError) as error:
        raise StepFailed("look again", disk.number, worded(error)) from error


def _reads_the_same(disk: DiskRun, path: Path | None, digest: str, chain: Chain) -> None:
    current = _current_state(disk)
    size = current[len(current) - 1].virtual_size if path is None and current else None
    upper = chain if path is None else chain.up_to(path)
    name = "the current state" if path is None else short_name(path)
    if views.digest(upper.images, size) != digest:
        raise StaleChain(f"{name} reads differently; nothing was removed")
    disk.reporter.note(disk.plan, f"{name} reads as before, sha256 {digest[:16]}")
