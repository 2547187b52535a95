"""One observed and one desired chain: what most end-to-end tests start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.images.disks import Disk


@dataclass(frozen=True)
class Case:
    """
    One observed and one desired chain.

    Attributes:
        images: Name and text of each image, base first; the last is active.
        chain: The desired chain, as `Disk.spec` takes it.
        steps: The plan, in the words of `step_words`.
        current: The image whose view is the current state; empty: the last of *images*.
        beside: Images outside the chain: what each stands on, and its text.
        build, spec: More options for `Disk.chain` and `Disk.spec`.
        untouched: Images whose files stay as they are to the bit.
        size: Of the disk afterwards, where it grows.
    """

    name: str
    images: Mapping[str, str]
    chain: str
    steps: Sequence[str]
    gone: Sequence[str] = ()
    current: str = ""
    beside: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    untouched: Sequence[str] = ()
    size: str | None = None

    @property
    def top(self) -> str:
        """The observed active image."""
        return list(self.images)[-1]

    def prepare(self, disk: Disk) -> None:
        """Create all images in *disk*, keep their views, and write the spec."""
        disk.chain(self.images, **self.build)
        for name, (on, text) in self.beside.items():
            disk.add(name, text, on=on)
        if self.beside:
            disk.keep()
        self.write_spec(disk, self.chain)

    def write_spec(self, disk: Disk, chain: str, **keys: Any) -> None:
        """Write the spec with *chain* as the desired one."""
        if self.top not in chain.replace("~", "").split(" <- "):
            # as long as there is no state file, only the spec can name an unlisted active image
            keys = {"active": disk.listed(self.top), **keys}
        disk.spec(chain, **{**self.spec, **keys})


B = "512k:A"
P = "64k:- 64k:P 384k:-"
BIG_P = "64k:- 320k:P 128k:-"
Q = "128k:- 64k:Q 320k:-"
BIG_Q = "128k:- 320k:Q 64k:-"
R = "192k:- 64k:R 256k:-"
BIG_R = "64k:- 448k:R"
X = "64k:X 448k:-"
BIG_X = "384k:X 128k:-"
EMPTY = "512k:-"
