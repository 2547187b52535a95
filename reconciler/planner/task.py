"""Everything the planner knows about one disk: plain values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reconciler.model.domain import Saved
from reconciler.model.extents import Extents
from reconciler.model.image import Chain, Format, Image
from reconciler.model.plan import State


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    One image of the desired chain.

    Attributes:
        path: Absolute path with symbolic links resolved.
        image: What is there under this path; None: nothing yet.
    """

    path: Path
    name: str
    image: Image | None = None
    format: Format | None = None
    size: int | None = None
    template: bool = False
    restore_point: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """
    What the planner has to know of the view of an image.

    Attributes:
        extents: Who provides which bytes; depth 0 is the image itself.
        forged: The first sector holds the magic of an image format, so that a
            raw file with this content could be taken for that format.
    """

    extents: Extents
    forged: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """
    One disk to be planned.

    Attributes:
        chain: The observed chain; empty: the disk is new.
        wanted: The desired chain.
        discard: Images whose data may be thrown away.
        outside: Chains of the wanted images that exist and are not in *chain*.
        users: Who else stands on an image of the chain, in words; of many, the first few.
        templates: Images that some disk of the spec calls a template.
        writers: Which other disk writes to a listed image that this one is not on yet.
        state_files: Those of other disks, by label, that nothing else knows of any more.
        taken: Second names of images of the chain that others know them by.
        strangers: Unlisted overlays that stand on the observed active image.
        hidden: Images of the chain beside which lies a file (or whose folder is one) that
            cannot be read, and may be an overlay that stands on the image.
        filesystems: Mount of each folder concerned: files are renamed within one alone.
        devices: Device number of each folder; where it is missing, *filesystems* has it.
        free: Bytes free, by device number.
        keep_merged, keep_discarded: Seconds that quarantine keeps a removed image whose
            data was merged, or thrown away; 0: it is unlinked at once.
        busy: The active image is open for writing by another program.
        state: Of the domain; ``offline`` without libvirt.
        attached: The image that the domain's definition has; None without libvirt.
        on_running: What a rollback may do to a guest that runs.
        pinned: Why the guest must go on in the active image that it has; None: it need not.
        snapshots: What libvirt's external snapshots have of the disk, by the snapshot's name.
        transient: The domain has no definition, and is gone once it is off.
        outdated: What the domain's definition spells out as the chain, where that is
            another one; empty: it leaves the chain to the headers, or is right.
        beside: What belongs to the guest's state and is in no disk, in words.
        deepest: Images in a chain that the domain's libvirt can live with; None: any number.
        frozen: How many images, from the base, may only be read.  An image
            below a shared one is a part of the shared one's view.
    """

    domain: str
    target: str
    chain: Chain
    wanted: tuple[Wanted, ...]
    discard: frozenset[Path] = frozenset()
    remove_base: bool = False
    bitmaps: Literal["keep", "drop"] = "keep"
    default_format: Format = "qcow2"
    outside: Mapping[Path, Chain] = field(default_factory=dict)
    users: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    templates: frozenset[Path] = frozenset()
    writers: Mapping[Path, str] = field(default_factory=dict)
    state_files: Mapping[str, Path] = field(default_factory=dict)
    taken: frozenset[Path] = frozenset()
    strangers: tuple[Path, ...] = ()
    hidden: Mapping[Path, Path] = field(default_factory=dict)
    filesystems: Mapping[Path, int] = field(default_factory=dict)
    devices: Mapping[Path, int] = field(default_factory=dict)
    free: Mapping[int, int] = field(default_factory=dict)
    keep_merged: int = 0
    keep_discarded: int = 0
    busy: bool = False
    state: State = "offline"
    attached: Path | None = None
    on_running: Literal["refuse", "restart"] = "refuse"
    pinned: str | None = None
    snapshots: Mapping[str, Saved] = field(default_factory=dict)
    transient: bool = False
    outdated: tuple[Path, ...] = ()
    beside: tuple[str, ...] = ()
    deepest: int | None = None
    frozen: int = field(init=False, default=0)

    @property
    def label(self) -> str:
        return f"{self.domain}:{self.target}"

    @property
    def on(self) -> bool:
        """True while a QEMU process has the images open: libvirt's block jobs do the work."""
        return self.state in ("running", "paused")

    def device_of(self, folder: Path) -> int:
        """The device whose free room *folder* shares, on whatever mount it is."""
        return self.devices.get(folder, self.filesystems.get(folder, 0))

    @property
    def second_names(self) -> tuple[tuple[Image, Path], ...]:
        """
        Images that shall have one name, and the other one, which goes.

        A shared image keeps its data, and whoever stands on it its name; only the
        header of the image above it in this chain is written.
        """
        return tuple(
            (image, image.second)
            for index, image in enumerate(self.chain)
            if image.second is not None
            and (index >= self.frozen or self._shared_by_its_other_name(index, image))
        )

    def _shared_by_its_other_name(self, index: int, image: Image) -> bool:
        above_is_ours = not self.on and index == self.frozen - 1
        foreign = image.second in self.taken or image.path in self.templates
        return above_is_ours and image.links == 2 and not foreign

    def frozen_because(self, image: Image) -> str | None:
        """Why *image* may only be read; None: it belongs to this chain alone."""
        if image.path in self.templates:
            return "it is a template"
        if users := self.users.get(image.path):
            return f"{_some(users)} stand{'s' if len(users) == 1 else ''} on it"
        if image.links > (2 if image.second else 1):
            return "it has a second name (hard link)"
        return None

    def __post_init__(self) -> None:
        shared = (index + 1 for index, image in enumerate(self.chain) if self.frozen_because(image))
        object.__setattr__(self, "frozen", max(shared, default=0))


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:2])} and others" if len(names) > 2 else ", ".join(names)
