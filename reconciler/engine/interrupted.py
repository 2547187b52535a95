"""Headers that QEMU has changed in an interrupted merge, maybe before the data was durable."""

from __future__ import annotations

import shlex
from pathlib import Path

from reconciler.engine.disk_state import Unfinished
from reconciler.model.errors import ObserveError
from reconciler.tools import images


def ways_back(unfinished: Unfinished) -> tuple[str, ...]:
    """
    The commands that give images the backing files they had before *unfinished* began.

    Only what QEMU did while a guest ran needs them: it writes the header of a finished pull
    before what it has copied is durable.  The images that it copied from are still there.
    """
    if not unfinished.live:
        return ()
    return tuple(
        f"qemu-img rebase -u -F {link.format or 'FORMAT'} -b {shlex.quote(link.backing)} "
        f"{shlex.quote(str(link.image))}"
        for link in unfinished.links
        if link.backing is not None and _recorded(link.image) != link.backing
    )


def _recorded(image: Path) -> str | None:
    try:
        return images.read_image(image, "qcow2").recorded
    except ObserveError:
        return None
