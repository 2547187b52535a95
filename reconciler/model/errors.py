"""
Every error that the package raises on purpose, by who acts next.

* ReconcilerError
  - ProofFailed     the authors of virt-chain: the planner has a bug
  - Mistake         the operator types the command again
  - SpecError       the operator edits the spec; carries every problem found
  - Refused         the operator edits the spec or prepares the host, as it says
  - ObserveError    whoever looks after the images: a chain is broken or unreadable
  - StaleChain      nobody: plan again
  - StepFailed      whoever looks after the host, then apply again
  - ToolFailed      what qemu-img said; a StepFailed carries it
  - StateError      whoever looks after the state directory
  - HypervisorError what libvirt said: no connection, a refused or stuck job
  - Busy            wait for the other virt-chain or guest, then apply again
  - Stopped         nobody: it was asked to stop; apply again goes on
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.model.desired import Location


class ReconcilerError(Exception):
    """The root of all errors that the package raises on purpose."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """
    One problem of a spec.

    Attributes:
        location: The key at fault.
        where: ``domain.disk``, or the path of the key.
        what: What is wrong, and what to write instead.
    """

    location: Location
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.location}: {self.where}: {self.what}"


class SpecError(ReconcilerError):
    """
    A spec has problems.

    Attributes:
        problems: All of them, in file order.
        lines: The first of them, for people, and how many there are beyond these.
    """

    SHOWN = 100

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        more = len(self.problems) - self.SHOWN
        self.lines = [str(problem) for problem in self.problems[: self.SHOWN]]
        self.lines += [f"and {more} more problems"] if more > 0 else []
        super().__init__("\n".join(self.lines))


class Refused(ReconcilerError):
    """
    The desired chain cannot be reached with the promise kept.

    Attributes:
        reason: What stands in the way.
        way_out: What to write or do instead.
    """

    def __init__(self, reason: str, way_out: str) -> None:
        self.reason = reason
        self.way_out = way_out
        super().__init__(f"{reason}; {way_out}")


class ObserveError(ReconcilerError):
    """A chain cannot be read: a file is missing, loops, or is no image."""


class StaleChain(ReconcilerError):
    """The chain is no longer as it was when the plan was made."""


class ToolFailed(ReconcilerError):
    """
    A tool ended with an error.

    Attributes:
        argv: The command line.
        code: Its exit code; negative: the signal that ended it.
        output: What it printed on stderr.
    """

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        self.argv = tuple(argv)
        self.code = code
        self.output = output.strip()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        super().__init__(f"{' '.join(self.argv[:2])}: {self.output or ended}")


class HypervisorError(ReconcilerError):
    """libvirt is missing, refuses, or a block job does not go on."""


class StepFailed(ReconcilerError):
    """
    A step of the plan failed.

    Every step keeps what the guest reads, so the disk is usable as it stands
    and a new ``apply`` continues from there.
    """

    def __init__(self, step: str, done: int, reason: str) -> None:
        self.step = step
        self.done = done
        self.reason = reason
        super().__init__(f"step {done + 1} ({step}) failed: {reason}")


class StateError(ReconcilerError):
    """The state file of a domain cannot be read or written."""


class ProofFailed(ReconcilerError):
    """A plan would break the promise; a bug of the planner, and never executed."""


class Mistake(ReconcilerError):
    """The command line asks for what cannot be meant; the operator types again."""


class Stopped(ReconcilerError):
    """A signal asked to stop, and this was a point where nothing is half done."""


class Busy(ReconcilerError):
    """Another process holds the disk: a guest, or a second virt-chain."""


_REMEDIES = {
    errno.EACCES: "give this user the right to, or run virt-chain as its owner or as root",
    errno.EROFS: "mount its filesystem for writing, or list it in ReadWritePaths= of the unit",
    errno.ENOSPC: "free some room (virt-chain gc --all empties the quarantine)",
    errno.EDQUOT: "free some room within the quota, or raise it",
    errno.EXDEV: "it would go to another mount or filesystem, and files are renamed within one",
    errno.ENAMETOOLONG: "give it a shorter name: the filesystem takes no more bytes",
    errno.ELOOP: "a symbolic link is in its place; list the file that it leads to",
    errno.ENOLCK: "the filesystem gives no locks; start rpc.statd, or mount it with locks",
    errno.EIO: "the device or the file server fails; look into the kernel's log",
    errno.ESTALE: "the file server has lost it; mount the filesystem again",
    errno.EMFILE: "raise the limit of open files (LimitNOFILE= of the unit, ulimit -n)",
}
"""What to do about an error of the kernel."""


def worded(error: Exception) -> str:
    """*error* for a reader; one of the kernel names its file and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    given = (error.filename, error.filename2)
    names = [os.fsdecode(name) for name in given if isinstance(name, str | bytes | os.PathLike)]
    what = " to ".join(dict.fromkeys(names))
    said = f"{what}: {error.strerror or error}" if what else error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    if error.errno == errno.EPERM:
        looks = " and ".join(f"'{name}'" for name in dict.fromkeys(names)) or "it"
        remedy = (
            "run virt-chain as its owner or as root; where lsattr shows an i for "
            f"{looks}, it is immutable until chattr -i"
        )
    return f"{said}; {remedy}" if remedy else said
