"""Looking at the disks of a spec: a survey, then what each disk means to the planner."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.engine.forest import Forest
from reconciler.engine.state import StateFolder
from reconciler.engine.survey import Survey
from reconciler.engine.tasks import Look, look_at
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.tools.garbage import without_collecting
from reconciler.tools.lookups import Lookups, Memory
from reconciler.tools.overlays import Overlays

__all__ = ["Look", "Looking", "look"]

SHARE = 10
"""How much longer than it took a survey of all disks counts: it costs a tenth of an apply."""


def look(
    spec: Spec,
    states: StateFolder,
    only: Iterable[DesiredDisk] | None = None,
    memory: Memory | None = None,
    lookups: Lookups | None = None,
) -> list[Look]:
    """
    Every disk of *spec* as it is now; an unreadable one carries its error.

    Args:
        only: Disks to return; the others are looked at for what they share.
        memory: What earlier looks found.
        lookups: The look at the filesystem; a new one that uses *memory*, unless given.
    """
    chosen = spec.disks if only is None else tuple(only)
    with without_collecting():
        survey = Survey(spec, states, lookups or Lookups(memory))
        forest = survey.forest(chosen)
        return [look_at(disk.label, forest) for disk in chosen]


@dataclass(slots=True)
class Looking:
    """
    Looks at one disk after the other while they are changed; threads may share it.

    Each look reads the disk, its domain, and every header in its folders anew.  What lies
    elsewhere is found by a survey of all disks; whoever it says to use an image of the disk is
    asked again.  The survey is made again when another virt-chain has begun or done anything
    since, and once it is older than SHARE times what it cost.
    """

    spec: Spec
    states: StateFolder
    memory: Memory = field(default_factory=Memory)
    _all: tuple[Survey, Forest] | None = None
    _until: float = 0.0
    _others: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def again(self, disk: DesiredDisk) -> Look:
        """*disk* as it is now."""
        return look_at(disk.label, self._renewed(disk))

    def overlays(self, disk: DesiredDisk) -> Overlays:
        """Who stands on the images of *disk* at this moment."""
        return self._renewed(disk).overlays

    def _renewed(self, disk: DesiredDisk) -> Forest:
        with self._lock:
            others = self.states.writes_of_others()
            late = time.monotonic() >= self._until
            if self._all is None or late or others != self._others:
                self._others = others
                began = time.monotonic()
                survey = Survey(self.spec, self.states, Lookups(self.memory))
                self._all = survey, survey.forest(())
                ended = time.monotonic()
                self._until = ended + SHARE * (ended - began)
            survey, forest = self._all
        return survey.renewed(disk, forest)
