"""Where the images of a spec are: file names, from the folder that they start at."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.tools.homes import at_home


def placed(folder: Path, name: str) -> Path:
    """
    The path of the file *name* of a disk whose relative names start at *folder*.

    ``~/web.qcow2`` starts at the home folder of the user who runs virt-chain, and
    ``~max/web.qcow2`` at that of max; ``~web.qcow2`` is just a name.
    """
    return folder / (at_home(name) if name[0] == "~" and "/" in name else name)


def folder_at(folder: str, name: str) -> Path:
    """The folder *name*, where relative ones start at *folder*; it may begin with ``~`` too."""
    return Path(os.path.join(folder, at_home(name)))


def is_homeless(name: str) -> bool:
    """True where *name* starts at the home folder of a user who has none here."""
    return name[:1] == "~" and at_home(name) == name
