"""What is written down of a disk once nothing is in flight."""

from __future__ import annotations

from dataclasses import replace

from reconciler.engine.disk_state import DiskState
from reconciler.model.image import Chain
from reconciler.tools import files


def settled_state(state: DiskState, chain: Chain) -> DiskState:
    """
    *state*, where the disk has *chain* and nothing is in flight.

    Who an image was is learned once, and again only of images that the steps in flight write
    to: a change from outside that came since the last look stays a difference.
    """
    ours = state.unfinished.rewrites if state.unfinished else lambda _: False
    known = {path: who for path, who in state.images.items() if not ours(path)}
    images_ = {}
    for image in chain.images[:-1]:
        who = known.get(image.path) or files.file_id(image.path)
        if who is not None:
            images_[image.path] = who
    active = chain.active.path if chain.active else None
    return replace(state, active=active, unfinished=None, images=images_, given_up=None)
