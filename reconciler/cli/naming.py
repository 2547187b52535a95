"""Names for the reader: as the user wrote them, and safe on a terminal."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from reconciler.model.image import short_name

Naming = Callable[[Path], str]


def printable(text: str) -> str:
    """*text* without anything that a terminal would act on: escapes are spelled out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text.encode("utf-8", "backslashreplace").decode()
    )


def apply_command(
    what: Iterable[Path] | None, connect: str | None = None, targets: Iterable[str] | None = None
) -> str:
    """The command that applies *what*: specs (None: those of the current folder), or a plan."""
    words = ["virt-chain", "apply", *map(str, what or ())]
    words += ["-c", connect] if connect else []
    for one in targets or ():
        words += ["--target", one]
    return shlex.join(words)


def naming(paths: Iterable[Path]) -> Naming:
    """
    Short names for *paths*; where two would be the same, file names or whole paths.
    """
    all_paths = set(paths)
    short = Counter(short_name(path) for path in all_paths)
    full = Counter(path.name for path in all_paths)

    def name(path: Path) -> str:
        if short[short_name(path)] <= 1:
            return printable(short_name(path))
        return printable(path.name if full[path.name] <= 1 else os.fspath(path))

    return name


def chain_text(paths: Iterable[Path], name: Naming, *, most: int = 12) -> str:
    """``base <- mon <- tue*``; the middle of a chain of more than *most* images is counted."""
    names = [name(path) for path in paths]
    if not names:
        return "(none)"
    if len(names) > most:
        hidden = len(names) - 6
        names = [*names[:3], f"({hidden} more)", *names[-3:]]
    return " <- ".join(names) + "*"


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """``a, b, c``; beyond *most* names the rest is counted."""
    every = list(names)
    if len(every) > most:
        return f"{', '.join(every[:most])} and {len(every) - most} more"
    return ", ".join(every)
