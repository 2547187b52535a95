"""A pulse: whoever watches over virt-chain hears that it works, whatever it works at."""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE = 0.1
"""Seconds between two beats that are heard; more often it may beat at no cost."""

_hear: Callable[[], None] | None = None
_last = 0.0


def heard_by(hear: Callable[[], None] | None) -> None:
    """From now on *hear* is called at the beats, from whichever thread works; None: nobody is."""
    global _hear
    _hear = hear


def beat() -> None:
    """Work goes on; called again and again by all that may take long."""
    global _last
    if _hear is not None and (now := time.monotonic()) - _last >= PAUSE:
        _last = now
        _hear()
