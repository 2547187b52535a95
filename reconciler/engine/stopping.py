"""Stopping: the first signal asks, the second ends everything at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Stop:
    """
    Whether somebody has asked to stop.

    Attributes:
        signal: The one that asked first; None: nobody has asked.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def ask(self, number: int = signal.SIGTERM) -> None:
        """
        Ask; the second time all tools are killed, and KeyboardInterrupt is raised.

        A killed tool leaves what a power cut leaves: the next apply goes on from there.
        """
        if self.asked:
            from reconciler.tools import process

            process.kill_all()
            raise KeyboardInterrupt
        self.signal = number


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
