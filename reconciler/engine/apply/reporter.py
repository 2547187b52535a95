"""Who is told what happens during an apply."""

from __future__ import annotations

from typing import Protocol

from reconciler.model.plan import DiskPlan, PlannedStep


class Reporter(Protocol):
    """Who is told what happens; the command line has one, tests have another."""

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        """Step *number*, counted from 1, begins."""

    def progress(self, done: float) -> None:
        """The part of the current step that is done, from 0 to 1."""

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        """Step *number* is done."""

    def note(self, plan: DiskPlan, text: str) -> None:
        """Something that the reader should know."""
