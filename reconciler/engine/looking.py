"""Looking at the disks of a spec: a survey, then what each disk means to the planner."""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.engine.state import StateFolder
from reconciler.engine.survey import Survey
from reconciler.engine.tasks import Look, look_at
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.tools.garbage import without_collecting
from reconciler.tools.lookups import Lookups, Memory

__all__ = ["Look", "look"]


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
