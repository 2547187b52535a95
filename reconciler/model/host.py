"""What a host allows, whatever a spec says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Act = Literal["create", "merge", "discard", "restart"]
"""What a plan may need: overlays made, data moved, data thrown away, a guest stopped."""
ACTS: tuple[Act, ...] = ("create", "merge", "discard", "restart")

KEEP_DISCARDED = 7 * 86400
"""Seconds that discarded images are kept in quarantine where the config says nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What a program may use.

    Attributes:
        memory: Bytes of address space; each layer of a large disk takes 32 MiB for tables.
        seconds: How long it may stand still (no reading, writing or computing) before
            it is ended, and how long one that only reads may compute.
        output: Bytes that it may print.
    """

    memory: int = 4 * 1024**3
    seconds: int = 300
    output: int = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Host:
    """
    What this host allows.

    Attributes:
        allowed_roots: Folders below which images may lie; None: those of the
            images that the spec lists.
        max_drops: Most restore points that an apply takes away without a person.
        quarantine: Seconds that images which were taken away are kept; None:
            discarded ones `KEEP_DISCARDED`, merged ones not at all.
        limits: For the tools.
        allow: What `watch` does without a person.
        specs: Spec files, or folders of them, that a plan file may be made from.
    """

    allowed_roots: tuple[Path, ...] | None = None
    max_drops: int = 10
    quarantine: int | None = None
    limits: Limits = field(default_factory=Limits)
    allow: frozenset[Act] = frozenset(("create", "merge"))
    specs: tuple[Path, ...] = ()

    def keep(self, *, discarded: bool) -> int:
        """Seconds that an image is kept after it was taken away."""
        if self.quarantine is not None:
            return self.quarantine
        return KEEP_DISCARDED if discarded else 0
