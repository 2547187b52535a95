"""How to apply."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from reconciler.backends.offline import Verify
from reconciler.engine.state import waiting
from reconciler.model.errors import Stopped

PATIENCE = 10.0
"""Seconds to wait for another virt-chain on the same disk or folder, where nothing else is said."""


@dataclass(slots=True)
class Options:
    """
    How to apply.

    Attributes:
        verify: What to compare.
        bandwidth: How fast to copy, in bytes a second; None: without a limit.
        patience: Seconds to wait for another virt-chain on the same disk or folder.
        stopping: True when nothing more shall begin.
        together: The disks of a domain are changed together, or none begins.
    """

    verify: Verify = "moved"
    bandwidth: int | None = None
    patience: float = PATIENCE
    stopping: Callable[[], bool] = lambda: False
    together: bool = False

    def go_on(self) -> None:
        """Raises Stopped at a point that is as good as any to stop at."""
        if self.stopping():
            raise Stopped("stopped as asked; nothing is lost: virt-chain apply continues")

    def wait_for(self, path: Path, what: str) -> AbstractContextManager[None]:
        """Hold the lock on the file *path*, once whoever has it releases it."""
        return waiting(self.patience, self.go_on)(path, what)
