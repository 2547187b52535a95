"""Stopping: the first signal asks, the second ends everything at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Stop:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Ask; raises KeyboardInterrupt the second time."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def handling(
    handlers: Mapping[signal.Signals, Callable[..., None]], wakes: int = -1
) -> Iterator[None]:
    """
    Signals go to *handlers* meanwhile; only the main thread may say so, and others go on.

    Args:
        wakes: A descriptor that each signal writes to at once.  Python calls a
            handler between two of its own instructions, so a signal just before
            a system call that waits would otherwise be heard only after it
            (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken_before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    before = {number: signal.signal(number, one) for number, one in handlers.items()}
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
