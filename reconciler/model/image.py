"""An image, and a chain of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

Format = Literal["raw", "qcow2"]


class Identity(NamedTuple):
    """What makes a file the same file under any name."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class FileId:
    """
    Who a file is, under any name and after any reboot, and when it was last changed.

    Times are in nanoseconds since 1970.  Two of these are compared for equality and nothing
    else: a clock may jump back, and a backup may be restored with its old time.

    Attributes:
        inode: Its number on its filesystem, which may be used again for another file.
        born: When it was created; 0 where the filesystem does not keep that.
        size: Bytes.
        modified: When its content last changed; anybody may set it.
        changed: When anything about it last changed; only the kernel sets it.
    """

    inode: int
    born: int
    size: int
    modified: int
    changed: int

    def is_same_file(self, other: FileId) -> bool:
        """True where both are one file, which may have been written to in between."""
        return (self.inode, self.born) == (other.inode, other.born)

    def has_same_content(self, other: FileId) -> bool:
        """True where both are one file that was not written to in between."""
        return self.is_same_file(other) and (self.size, self.modified) == (
            other.size,
            other.modified,
        )


@dataclass(frozen=True, slots=True)
class Image:
    """
    One image file, as observed or as it will be.

    Attributes:
        path: Absolute path with symbolic links resolved.
        format: From the spec, else as its overlay records it, else the
            default of the spec where the file's own magic agrees.
        virtual_size: Size the guest sees, in bytes.
        cluster_size: Unit of allocation, in bytes; 1 for raw.
        actual_size: Bytes allocated on the filesystem.
        identity: Device and inode; None for an image that does not exist yet.
        links: Number of names the file has on its filesystem.
        second: Another name of the same file, by which a running QEMU knows it
            and headers name it until the domain is off; None: there is none.
        owner: User and group that the file belongs to.
        mode: Permission bits.
        recorded: Backing name exactly as the header has it; None: no backing.
        recorded_format: Format of the backing file as the header has it.
        snapshots: Number of internal snapshots.
        bitmaps: Number of persistent dirty bitmaps.
        encrypted, data_file, corrupt, lazy_refcounts, extended_l2: As the header says.
        dirty: It was not closed cleanly (lazy refcounts), and QEMU repairs it when it
            is opened for writing; while a guest runs, its active image is so always.
        version: Of the qcow2 format; 2 has no clusters that read as zeroes.
        unknown_features: Incompatible feature bits that this program cannot name.
    """

    path: Path
    format: Format
    virtual_size: int
    cluster_size: int = 65536
    actual_size: int = 0
    identity: Identity | None = None
    links: int = 1
    second: Path | None = None
    owner: tuple[int, int] | None = None
    mode: int = 0o600
    recorded: str | None = None
    recorded_format: str | None = None
    snapshots: int = 0
    bitmaps: int = 0
    encrypted: bool = False
    data_file: bool = False
    corrupt: bool = False
    lazy_refcounts: bool = False
    extended_l2: bool = False
    dirty: bool = False
    version: int = 3
    unknown_features: int = 0

    @property
    def name(self) -> str:
        """The file name without its directory and its usual suffix."""
        return short_name(self.path)

    @property
    def left_alone(self) -> str | None:
        """Why no tool may open it: QEMU would open another file, or want a secret; None: it may."""
        if self.encrypted:
            return "it is encrypted"
        if self.data_file:
            return "its data lies in an external data file"
        if self.unknown_features:
            return f"it has unknown incompatible features {self.unknown_features:#x}"
        return None

    def __str__(self) -> str:
        return self.name


def short_name(path: Path) -> str:
    """File name without directory and without ``.qcow2``, ``.img`` or ``.raw``."""
    return path.stem if path.suffix in {".qcow2", ".img", ".raw"} and path.stem else path.name


@dataclass(frozen=True, slots=True)
class Chain:
    """Images from base to active, each the backing file of the next."""

    images: tuple[Image, ...] = ()
    _positions: dict[Path, int] | None = field(init=False, repr=False, compare=False, default=None)
    """Where each image is, counted from the base; None until somebody asks."""

    def __str__(self) -> str:
        """Write the chain in the notation of the field: ``base <- mon <- tue*``."""
        if not self.images:
            return "(none)"
        return " <- ".join(str(image) for image in self.images) + "*"

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def __getitem__(self, index: int) -> Image:
        return self.images[index]

    def __contains__(self, path: object) -> bool:
        return path in self._by_path()

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(image.path for image in self.images)

    @property
    def active(self) -> Image | None:
        return self.images[-1] if self.images else None

    def index(self, path: Path) -> int:
        """
        Position of the image at *path*, counted from the base.

        Raises:
            KeyError: No image of the chain has this path.
        """
        try:
            return self._by_path()[path]
        except KeyError:
            raise KeyError(f"{path} is not in {self}") from None

    def _by_path(self) -> dict[Path, int]:
        positions = self._positions
        if positions is None:
            # of two images with one path the lower counts
            upper_first = reversed(range(len(self.images)))
            positions = {self.images[at].path: at for at in upper_first}
            object.__setattr__(self, "_positions", positions)
        return positions

    def image(self, path: Path) -> Image:
        """The image at *path*; KeyError where the chain has none."""
        return self.images[self.index(path)]

    def overlay_of(self, path: Path) -> Image | None:
        """The image directly above *path*; None where *path* is active."""
        position = self.index(path) + 1
        return self.images[position] if position < len(self.images) else None

    def backing_of(self, path: Path) -> Image | None:
        """The image directly below *path*; None where *path* is the base."""
        position = self.index(path)
        return self.images[position - 1] if position else None

    def between(self, base: Path | None, top: Path) -> tuple[Image, ...]:
        """Images above *base* and below *top*, both ends excluded."""
        start = 0 if base is None else self.index(base) + 1
        return self.images[start : self.index(top)]

    def up_to(self, path: Path) -> Chain:
        """The chain whose active image is *path*."""
        return Chain(self.images[: self.index(path) + 1])

    def without(self, gone: Iterable[Image]) -> Chain:
        """The chain that is left when the images of *gone* are no longer in it."""
        paths = {image.path for image in gone}
        return Chain(tuple(image for image in self.images if image.path not in paths))
