"""Signals during an apply: it ends after the step that runs, or at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from reconciler.engine.stopping import Stop, handling

LAST = 5.0
"""Seconds after a second signal within which virt-chain ends by itself."""


class Interrupted(Exception):
    """
    A signal ended the command, which has said so.

    Attributes:
        code: The exit code, as shells have it.
    """

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(number)


@contextmanager
def between_steps(stop: Stop, last_words: Callable[[], None]) -> Iterator[None]:
    """
    Meanwhile the first signal asks *stop*, and says so; the second ends everything.

    Args:
        last_words: Called before virt-chain is ended where it waits in a library (for
            libvirtd, say) that hears of no signal.
    """

    def ask(number: int, _: object) -> None:
        first = not stop.asked
        stop.ask(number)
        if first:
            print("virt-chain: stopping after this step; once more: at once", file=sys.stderr)

    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    over = threading.Event()

    def end() -> None:
        numbers = b""
        while len(numbers) < 2:
            if not (heard := os.read(read, 1)):
                return
            numbers += heard
        if not over.wait(LAST):
            with suppress(Exception):
                last_words()
            leave(128 + numbers[0])

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        with handling({signal.SIGINT: ask, signal.SIGTERM: ask}, wakes=write):
            yield
    finally:
        over.set()
        os.close(write)
        thread.join()
        os.close(read)


def leave(code: int) -> None:
    """End at once, whatever other threads wait for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
