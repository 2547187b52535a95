"""What the disks of one domain do at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.tools.hypervisor import Hypervisor

Quiesce = Literal["never", "try", "require"]
_STRICTNESS: tuple[Quiesce, ...] = ("never", "try", "require")


@dataclass(frozen=True, slots=True)
class Together:
    """
    One disk's part of what happens to all disks of its domain at once.

    Attributes:
        kind: ``snapshot``: QEMU goes on in *image*; ``attach``: the definition
            has *image*; ``start``: the disk is ready for the start of the domain.
        quiesce: Whether the guest's filesystems stand still for a snapshot.
    """

    kind: Literal["snapshot", "attach", "start"]
    host: Hypervisor
    domain: str
    target: str
    image: Path
    format: str = "qcow2"
    quiesce: Quiesce = "never"


def carry_out(asked: Sequence[Together]) -> None:
    """
    Do what all of *asked*, parts of one kind and of one domain, are about.

    Raises:
        HypervisorError: libvirt refuses; every disk is as it was.
    """
    first = asked[0]
    match first.kind:
        case "snapshot":
            overlays = {one.target: one.image for one in asked}
            strictest = max((one.quiesce for one in asked), key=_STRICTNESS.index)
            first.host.snapshot(first.domain, overlays, strictest)
        case "attach":
            first.host.attach(first.domain, {one.target: (one.image, one.format) for one in asked})
        case "start":
            first.host.start(first.domain)
