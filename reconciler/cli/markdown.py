"""A plan as Markdown, for the comment of a merge request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from reconciler.cli.naming import chain_text, printable
from reconciler.cli.report import cells, closing, disk_naming, points_text
from reconciler.model.plan import DiskPlan, Plan

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def plan_text(plan: Plan) -> str:
    """The whole plan; nothing about disks that are as they should be."""
    lines = ["## virt-chain plan", "", escaped(closing(plan)), ""]
    for disk in plan.disks:
        if disk.steps or disk.error:
            lines += _disk(disk)
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """*text* as it reads, whatever Markdown would make of it."""
    return _MARKS.sub(r"\\\1", printable(text))


def _disk(disk: DiskPlan) -> Iterator[str]:
    name = disk_naming(disk)
    yield f"### {escaped(disk.label)} ({disk.state})"
    yield ""
    if len(disk.observed):
        yield f"now: {escaped(chain_text(disk.observed.paths, name))}"
        yield ""
    if disk.error:
        yield f"> **error:** {escaped(disk.error)}"
        yield ""
        return
    for doubt in disk.doubts:
        yield f"> **{escaped(doubt)}**"
        yield ""
    yield "| | step | | copies | why |"
    yield "| --: | --- | --- | --: | --- |"
    for number, one in enumerate(disk.steps, start=1):
        row = " | ".join(escaped(cell) for cell in (one.step.action, *cells(one, name)))
        yield f"| {number} | {row} |"
    yield ""
    for line in filter(None, (points_text(disk, name), *disk.notes)):
        yield f"- {escaped(line)}"
    yield ""
