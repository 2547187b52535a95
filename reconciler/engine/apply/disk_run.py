"""One disk whose plan is carried out: what its phases share."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.backends.offline import Offline
from reconciler.engine.apply.options import Options
from reconciler.engine.apply.reporter import Reporter
from reconciler.engine.disk_state import DiskState, Unfinished
from reconciler.engine.looking import Looking
from reconciler.engine.recorded import settled_state
from reconciler.engine.state import Session
from reconciler.engine.tasks import Look
from reconciler.model.errors import ReconcilerError, StepFailed, worded
from reconciler.model.host import Host
from reconciler.model.image import Chain, FileId, Identity
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.steps import Rename, Step, active_after
from reconciler.tools import files

if TYPE_CHECKING:
    from reconciler.backends.together import Together

Going = Generator["Together", None, None]
"""A disk's plan being carried out, until it waits for the other disks of its domain."""


@dataclass(slots=True)
class DiskRun:
    """
    One disk whose plan is carried out.

    Attributes:
        found: The look that the plan was made from, or one that agrees with it.
        looking: Looks again, for whoever may stand on a file that goes.
        config: The host's config.
        state: As it is remembered now.
        active: The active image now.
        names: Files with two names now; see `images.with_names`.
        number: Steps that were begun.
        written: Images whose metadata is checked after the last step.
        merged_at: Who each image was when its data was read for the last time.
        identities: Who each image was at the last look.
        staying: Leftovers that are not removed, as somebody uses them.
    """

    plan: DiskPlan
    found: Look
    session: Session
    options: Options
    reporter: Reporter
    looking: Looking
    config: Host
    backend: Offline = field(init=False)
    state: DiskState = field(init=False)
    active: Path | None = field(init=False)
    names: dict[Path, Path] = field(init=False)
    number: int = 0
    written: dict[Path, None] = field(default_factory=dict)
    merged_at: dict[Path, FileId | None] = field(default_factory=dict)
    identities: dict[Path, Identity | None] = field(init=False)
    staying: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.identities = identities_of(self.found.chain)
        self.state = self.found.state
        self.names = dict(self.state.names)
        self.backend = _backend(self.found, self.names, self)
        active = self.found.chain.active
        self.active = active.path if active else None

    @property
    def resumed(self) -> Unfinished | None:
        """Steps that an interrupted apply has begun, and that this one ends."""
        return self.found.resumed

    def now(self, *, settled: bool = False) -> DiskState:
        """The state as it is after the steps done so far; *settled*: none of them is half done."""
        state = replace(self.state, active=self.active, names=dict(self.names))
        return settled_state(state, self.backend.observe(self.active)) if settled else state

    def remember(self, state: DiskState) -> None:
        """Write *state* down, durably."""
        self.state = state
        self.session.write(state)

    def pivoting(self, images: Sequence[Path]) -> None:
        """Remember that from now on either of two images, which hold the same, may be active."""
        assert self.state.unfinished is not None
        pivots = {path: who for path in images if (who := files.durable_id(path)) is not None}
        unfinished = replace(self.state.unfinished, pivots=pivots)
        self.remember(replace(self.state, unfinished=unfinished))

    def follow(self, step: Step) -> None:
        """Keep in mind which image is active after *step*, and under which names."""
        match step:
            case Rename(source, target, True) if self.backend.live:
                known = next((qemu for qemu, spec in self.names.items() if spec == source), source)
                self.names[known] = target
                return
            case Rename(source):
                self.names.pop(source, None)
        self.active = active_after(self.active, step)

    @contextmanager
    def reported(self, planned: PlannedStep) -> Iterator[None]:
        """
        A step from its begin to its end.

        Raises:
            Stopped: Nothing more shall begin.
            StepFailed: It went wrong.
        """
        self.options.go_on()
        self.number += 1
        began = time.monotonic()
        self.reporter.step(self.plan, self.number, planned)
        try:
            yield
        except (ReconcilerError, OSError) as error:
            raise StepFailed(str(planned.step), self.number - 1, worded(error)) from error
        seconds = time.monotonic() - began
        self.reporter.finished(self.plan, self.number, planned, seconds)


def identities_of(chain: Chain) -> dict[Path, Identity | None]:
    """Who each image of *chain* is, by its name."""
    return {image.path: image.identity for image in chain}


def _backend(found: Look, names: Mapping[Path, Path], run: DiskRun) -> Offline:
    """Who does the steps of *found*: qemu-img, or libvirt while the guest runs."""
    common: dict[str, Any] = {
        "trust": found.trust,
        "names": names,
        "verify": run.options.verify,
        "bandwidth": run.options.bandwidth,
        "progress": run.reporter.progress,
    }
    if found.host is None or found.domain is None:
        return Offline(**common)
    where: dict[str, Any] = {
        "host": found.host,
        "domain": found.domain.name,
        "target": found.desired.target,
    }
    if found.domain.on:
        from reconciler.backends.live import Live

        return Live(**common, **where, quiesce=found.desired.quiesce, pivoting=run.pivoting)
    from reconciler.backends.shut_off import ShutOff

    return ShutOff(**common, **where)
