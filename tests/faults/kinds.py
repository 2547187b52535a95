"""The kinds of faults, each a row."""

from __future__ import annotations

import errno
import resource
import signal
from dataclasses import dataclass
from typing import Literal

from tests.faults.strike import ANY, NAMES, SYNCS, WRITES, How

Then = Literal[
    "",
    "again",
    "spec changed",
    "state lost",
    "state truncated",
    "state edited",
    "stale files",
]
"""What else happens between the fault and the next apply."""
World = Literal["", "no space", "read-only", "immutable", "a second apply"]
"""What the world does while the run stands still at the number."""


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind of fault.

    Attributes:
        how, error, forever, classes: As `Strike` has them.
        tools: The number counts starts of tools.
        weight: How often it comes, against the others.
        limit: The resource that is limited, and the range of its limits.
    """

    name: str
    how: How = How.KILL_BOTH
    error: int = 0
    forever: bool = False
    classes: int = ANY
    weight: int = 2
    then: Then = ""
    world: World = ""
    limit: tuple[int, int, int] | None = None

    @property
    def tools(self) -> bool:
        return self.how >= How.TOOL_KILL_BEFORE

    @property
    def exhaustive(self) -> bool:
        """True where small cases are struck at every number."""
        return self.how in (How.KILL_SELF, How.KILL_BOTH, How.TEAR_BOTH) and not self.then


MIB = 1024 * 1024
FAIL = How.FAIL
KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill-caller", How.KILL_SELF, weight=4),
        Kind("kill-both", How.KILL_BOTH, weight=4),
        Kind("kill-virt-chain", How.KILL_MAIN, weight=4),
        Kind("tear-caller", How.TEAR_SELF, classes=WRITES),
        Kind("tear-both", How.TEAR_BOTH, classes=WRITES, weight=4),
        Kind("eio", FAIL, errno.EIO, weight=3),
        Kind("eio-forever", FAIL, errno.EIO, forever=True),
        Kind("eio-sync", FAIL, errno.EIO, classes=SYNCS),
        Kind("enospc", FAIL, errno.ENOSPC, classes=WRITES, weight=3),
        Kind("enospc-forever", FAIL, errno.ENOSPC, forever=True, classes=WRITES),
        Kind("edquot", FAIL, errno.EDQUOT, classes=WRITES, weight=1),
        Kind("edquot-forever", FAIL, errno.EDQUOT, forever=True, classes=WRITES, weight=1),
        Kind("eperm-name", FAIL, errno.EPERM, classes=NAMES, weight=1),
        Kind("eintr", FAIL, errno.EINTR, classes=WRITES | SYNCS, weight=1),
        Kind("short-write", How.SHORT, classes=WRITES, weight=2),
        Kind("sigterm", How.SIGNAL, signal.SIGTERM),
        Kind("sigint", How.SIGNAL, signal.SIGINT, weight=1),
        Kind("hang", How.PAUSE, weight=1),
        Kind("clock", How.CLOCK, weight=1),
        Kind("boundary-before", How.TOOL_KILL_BEFORE),
        Kind("boundary-after", How.TOOL_KILL_AFTER),
        Kind("tool-fails", How.TOOL_FAIL, 1),
        Kind("tool-fails-forever", How.TOOL_FAIL, 1, forever=True, weight=1),
        Kind("tool-hangs", How.TOOL_HANG, weight=1),
        Kind("tool-vanishes", How.TOOL_GONE, weight=1),
        Kind("again", then="again", weight=5),
        Kind("spec-changed", then="spec changed", weight=6),
        Kind("state-lost", then="state lost", weight=3),
        Kind("state-truncated", then="state truncated", weight=2),
        Kind("state-edited", then="state edited", weight=2),
        Kind("stale-files", then="stale files", weight=1),
        Kind("no-space", How.PAUSE, world="no space", weight=3),
        Kind("read-only", How.PAUSE, world="read-only", weight=1),
        Kind("immutable", How.PAUSE, world="immutable", weight=1),
        Kind("two-at-once", How.PAUSE, world="a second apply", weight=2),
        Kind("file-size", limit=(resource.RLIMIT_FSIZE, 4096, 3 * MIB), weight=2),
        Kind("open-files", limit=(resource.RLIMIT_NOFILE, 4, 40), weight=2),
        Kind("memory", limit=(resource.RLIMIT_AS, 40 * MIB, 500 * MIB), weight=2),
    )
}
MOUNTED: tuple[World, ...] = ("no space", "read-only", "immutable")
"""What the world does only to a filesystem that was mounted for it."""
