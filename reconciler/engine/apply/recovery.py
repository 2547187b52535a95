"""Taking up what an interrupted apply has begun: what of it is done, and reads right."""

from __future__ import annotations

from pathlib import Path

from reconciler.engine.apply.disk_run import DiskRun
from reconciler.engine.disk_state import Unfinished
from reconciler.model.errors import StaleChain
from reconciler.model.image import Chain
from reconciler.model.steps import Commit, Pull, Rebase, Step, touched
from reconciler.tools import files, images


def was_done(disk: DiskRun, step: Step, chain: Chain) -> bool:
    """True where the interrupted *step* is done, and reads right."""
    if not disk.backend.live and (pivoted := _pivoted(disk, step)) is not None:
        return pivoted
    if not disk.backend.done(step, chain):
        return False
    if disk.backend.live:
        return True
    unfinished = disk.state.unfinished
    if unfinished and unfinished.live and _went_back(disk, step, chain, unfinished):
        return False
    image = step.into if isinstance(step, Pull) else None
    image = step.image if isinstance(step, Rebase) else image
    if image is None or unfinished is None or image not in chain:
        return True
    return _reads_as_before(disk, image, chain, unfinished)


def _reads_as_before(disk: DiskRun, image: Path, chain: Chain, unfinished: Unfinished) -> bool:
    """
    Compare a relinked image with itself on its old backing file.

    A relink by qemu-img is durable only after the data; should it not be,
    the header goes back to the old backing file, and the step is done again.
    """
    old = next((link for link in unfinished.links if link.image == image), None)
    if old is None or old.backing is None:
        return True
    below = disk.backend.observe_below(image, old.backing, old.format)
    if below is None:
        return True  # removed: it was compared before that
    return disk.backend.confirm_relinked(chain, image, below)


def _went_back(disk: DiskRun, step: Step, chain: Chain, unfinished: Unfinished) -> bool:
    """
    Undo a relink by a QEMU that has ended since; True where there was one.

    The header may have been durable before the data was.  What was merged
    away is untouched until QEMU has flushed, so one header leads back.
    """
    if not isinstance(step, Pull | Commit):
        return False
    for link in unfinished.links:
        if link.image not in chain or link.backing is None:
            continue
        below = disk.backend.observe_below(link.image, link.backing, link.format)
        if below is None or below.active is None:
            continue
        if isinstance(step, Commit):
            meant = images.identity(step.top) == below.active.identity
        else:
            meant = link.image == step.into
        now = chain.backing_of(link.image)
        if meant and (now is None or now.identity != below.active.identity):
            disk.backend.go_back(link.image, link.backing, link.format)
            return True
    return False


def _pivoted(disk: DiskRun, step: Step) -> bool | None:
    """
    True where QEMU, which has ended, left *step* in its base; False: in its top.

    Raises:
        StaleChain: Both were written to since, and nobody can tell.
    """
    pivots = disk.resumed.pivots if disk.resumed else {}
    if not isinstance(step, Commit) or step.top not in pivots:
        return None
    top, base = (not files.is_as_it_was(path, pivots.get(path)) for path in (step.top, step.base))
    if top and base:
        raise StaleChain(
            f"{step} was interrupted while QEMU changed from one image to the other, and "
            "both were written to since; find out which has the current state"
        )
    return not top


def correct_definition(disk: DiskRun) -> None:
    """Let the definition name the image that QEMU writes to, if libvirt was killed before."""
    domain, host, target = disk.found.domain, disk.found.host, disk.plan.target
    if not (disk.resumed and disk.resumed.live and domain and host and domain.on):
        return
    now, later = domain.live[target], domain.persistent.get(target)
    if later and later.path and now.path and later.path != now.path:
        host.attach(domain.name, {target: (now.path, now.format or "qcow2")})


def tidy(unfinished: Unfinished | None) -> None:
    """Remove what steps that were interrupted have begun to make."""
    for step in unfinished.steps if unfinished else ():
        for path in touched(step):
            files.unmade(path).unlink(missing_ok=True)
