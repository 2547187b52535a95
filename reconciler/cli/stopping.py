"""Signals during an apply: it ends after the step that runs."""

from __future__ import annotations

import signal
import sys
from contextlib import AbstractContextManager

from reconciler.engine.stopping import Stop, handling


def between_steps(stop: Stop) -> AbstractContextManager[None]:
    """Meanwhile the first signal asks *stop*, and says so."""

    def ask(*_: object) -> None:
        stop.ask()
        print("virt-chain: stopping after this step; once more: at once", file=sys.stderr)

    return handling({signal.SIGINT: ask, signal.SIGTERM: ask})
