"""Progress on stderr: live on a terminal, one line a step otherwise."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from reconciler.cli.naming import printable
from reconciler.cli.report import STYLES, console, disk_naming, words
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.units import human_size


class Terminal:
    """
    Tells of each step: with bytes, rate and time left on a terminal.

    Source: `rich.progress`.

    Args:
        bars: Draw bars; several domains at once have lines only.
    """

    def __init__(self, out: Console | None = None, *, bars: bool = True) -> None:
        self._out = out or console(stderr=True)
        self._bars = bars and self._out.is_terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        """A step begins: on a terminal a bar appears where data is copied."""
        self._total = planned.bytes
        if self._bars and planned.bytes:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._out,
                transient=True,
            )
            short = f"{plan.label}  {number}/{len(plan.steps)}  {planned.step.action}"
            name = printable(short).replace("[", r"\[")
            self._task = self._bar.add_task(name, total=planned.bytes)
            self._bar.start()

    def progress(self, done: float) -> None:
        """Part *done*, 0 to 1, of the current step is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=int(done * self._total))

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        """A step is done: its line stays."""
        self.close()
        copied = f"{human_size(planned.bytes)} in " if planned.bytes else ""
        line = Text(self._line(plan, number, planned))
        line.highlight_words([planned.step.action], STYLES[planned.step.action])
        self._out.print(Text.assemble(line, f"  {copied}{seconds:.1f} s"))

    def note(self, plan: DiskPlan, text: str) -> None:
        """A line that the reader should know."""
        self._out.print(Text(f"{printable(plan.label)}: {printable(text)}"))

    def close(self) -> None:
        """Take the bar away, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    @staticmethod
    def _line(plan: DiskPlan, number: int, planned: PlannedStep) -> str:
        what = words(planned.step, disk_naming(plan))
        steps = len(plan.steps)
        return f"{printable(plan.label)}  {number}/{steps}  {planned.step.action}  {what}"


class Silent:
    """Tells nothing: for ``--json``, whose result says it all."""

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        """Nothing is told."""

    def progress(self, done: float) -> None:
        """Nothing is told."""

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        """Nothing is told."""

    def note(self, plan: DiskPlan, text: str) -> None:
        """Nothing is told."""

    def close(self) -> None:
        """Nothing to take away."""
