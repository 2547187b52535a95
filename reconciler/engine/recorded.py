"""What is written down of a disk once nothing is in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reconciler.engine.disk_state import DiskState
from reconciler.model.image import Chain, FileId
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
    was_active = {path: who for path, who in state.actives.items() if not ours(path)}
    for image in chain.images[:-1]:
        who = known.get(image.path) or _no_longer_active(image.path, was_active)
        if who is not None:
            images_[image.path] = who
    actives = {}
    active = chain.active.path if chain.active else None
    if active is not None:
        who = was_active.get(active) or known.get(active) or files.file_id(active)
        if who is not None:
            actives[active] = replace(who, size=0, modified=0, changed=0)
    return replace(
        state, active=active, unfinished=None, images=images_, actives=actives, given_up=None
    )


def _no_longer_active(path: Path, was_active: Mapping[Path, FileId]) -> FileId | None:
    """Who the image *path* is that now lies below the active one; another file stays told."""
    who, was = files.file_id(path), was_active.get(path)
    return was if was is not None and who is not None and not who.is_same_file(was) else who
