"""
The gate: what has to be allowed before any steps begin.

There is one gate for a run, and each of its rounds passes it: the first, and
those that follow when an interrupted merge is finished, a snapshot made a merge
cheaper, or a deferred step became possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.engine.planning import Work
from reconciler.model.host import ACTS
from reconciler.model.plan import DiskPlan, Plan
from reconciler.model.steps import Need

EVERYTHING: frozenset[Need] = frozenset((*ACTS, "person"))
"""What a person who typed the command allows."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """
    A round that passed a gate.  Only `Gate.enter` makes one, and nothing is applied without one.

    Attributes:
        work: Disks whose plans may be carried out, among them those with nothing to do.
        refused: Disks whose plans may not, and why.
    """

    work: tuple[Work, ...]
    refused: tuple[tuple[DiskPlan, str], ...] = ()


@dataclass(slots=True)
class Gate:
    """
    What may happen in one run.

    Attributes:
        allow: What steps may need.
        max_drops: Most restore points that go in all rounds together; None: no limit.
        too_many: Says so, told how many would go and *max_drops*.
        doubts: What may be a mistake of the spec passes; False: it waits for a person.
        confirm: Asks a person about a round that has steps; None: nobody is asked.
    """

    allow: frozenset[Need]
    max_drops: int | None
    too_many: Callable[[int, int], str]
    confirm: Callable[[Plan], bool] | None = None
    doubts: bool = True
    _gone: set[tuple[str, Path]] = field(default_factory=set)

    def enter(self, round_: Sequence[Work]) -> Admitted:
        """What of a round may begin now; what *confirm* raises ends the run."""
        refused = dict(self._refused([one for one in round_ if one[0].now]))
        left = [disk for disk, _ in round_ if disk.now and disk.label not in refused]
        if left and self.confirm is not None and not self.confirm(Plan((), tuple(left))):
            refused |= {disk.label: _unconfirmed(disk) for disk in left}
            left = []
        self._gone |= _lost(left)
        return Admitted(
            tuple(one for one in round_ if one[0].label not in refused),
            tuple((disk, refused[disk.label]) for disk, _ in round_ if disk.label in refused),
        )

    def _refused(self, round_: Sequence[Work]) -> Mapping[str, str]:
        refused = {}
        for disk, found in round_:
            if lacking := needs(disk, finishing=found.resumed is not None) - self.allow:
                refused[disk.label] = lacks(lacking)
            elif disk.doubts and not self.doubts:
                refused[disk.label] = _doubtful(disk)
        left = [disk for disk, _ in round_ if disk.label not in refused]
        total = len(self._gone | _lost(left))
        if self.max_drops is not None and total > self.max_drops:
            why = self.too_many(total, self.max_drops)
            refused |= {disk.label: why for disk in left if _lost([disk]) - self._gone}
        return refused


def needs(plan: DiskPlan, *, finishing: bool) -> frozenset[Need]:
    """
    What *plan* needs to be allowed.

    Args:
        finishing: It finishes what was interrupted: somebody has allowed that.
    """
    return frozenset() if finishing else plan.needs


def lacks(lacking: frozenset[Need]) -> str:
    """Why a plan that needs *lacking* waits."""
    if "person" in lacking:
        return "has a kind of step that never happens without a person"
    acts = " and ".join(act for act in ACTS if act in lacking)
    return f"needs {acts}, which the host's config does not allow without a person"


def _doubtful(disk: DiskPlan) -> str:
    """What may be a mistake, and how a person says that it is none."""
    return (
        f"{'; '.join(disk.doubts)}; without a person that is not applied: correct the spec, or "
        f"run virt-chain apply --max-drops {disk.restore_points.lost} if it is meant so"
    )


def _lost(disks: Sequence[DiskPlan]) -> set[tuple[str, Path]]:
    """Restore points that go; one that an earlier round has begun to drop counts once."""
    points = ((disk.label, disk.restore_points) for disk in disks)
    return {(label, path) for label, one in points for path in (*one.dropped, *one.discarded)}


def _unconfirmed(disk: DiskPlan) -> str:
    count = len(disk.now)
    steps = "1 more step was" if count == 1 else f"{count} more steps were"
    return f"{steps} not confirmed; virt-chain apply asks again"
