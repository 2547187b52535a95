"""What the logging module and Python's own warnings say: in the one form of its stream."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable

from reconciler.cli.naming import printable

MOST = 1000
"""Warnings that are kept in mind, so that none of them is told again."""


def to_stderr(level: int) -> None:
    """Lines such as all others on stderr: ``virt-chain: warning: ...``."""

    def tell(record: logging.LogRecord, text: str) -> None:
        sys.stderr.write(f"virt-chain: {record.levelname.lower()}: {printable(text)}\n")

    _to(_Handler(tell), level, force=False)


def to_voice(tell: Callable[[logging.LogRecord, str], None]) -> None:
    """
    Everything goes to *tell* from now on.

    A warning that a watch would give at every pass is told once, until it says something else.
    """
    _to(_Once(tell), logging.getLogger().level, force=True)


def _to(handler: logging.Handler, level: int, *, force: bool) -> None:
    logging.basicConfig(level=level, handlers=[handler], force=force)
    logging.captureWarnings(capture=True)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[logging.LogRecord, str], None]) -> None:
        super().__init__()
        self._tell = tell
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """One line; a log that cannot be written ends nothing."""
        try:
            self._tell(record, self.format(record))
        except Exception:
            self.handleError(record)


class _Once(_Handler):
    """Of warnings only those that are new, or say something else than the last time."""

    def __init__(self, tell: Callable[[logging.LogRecord, str], None]) -> None:
        super().__init__(tell)
        self._said: OrderedDict[tuple[str, ...], str] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """A line, unless its warning was told already."""
        if record.levelno >= logging.WARNING:
            about = record.args[0] if isinstance(record.args, tuple) and record.args else ""
            key, text = (record.name, str(record.msg), str(about)), record.getMessage()
            known = self._said.pop(key, None)
            self._said[key] = text
            if len(self._said) > MOST:
                self._said.popitem(last=False)
            if known == text:
                return
        super().emit(record)
