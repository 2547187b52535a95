"""Reading the view of an image as a stream: comparisons and digests."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from reconciler.model.extents import Extents, Range, ranges, rounded
from reconciler.model.image import Image
from reconciler.tools import pulse, qemuimg

CHUNK = 256 * 1024
"""Bytes read at once; more would be mapped and faulted in anew for every piece."""
WINDOW = 16 * 1024 * 1024
"""Bytes that QEMU unpacks at once where it alone can read them."""
BLOCK = 64 * 1024
"""Bytes of the blocks of a digest; blocks of zeroes are left out of it."""

MAGICS = (b"QFI\xfb", b"KDMV", b"COWD", b"conectix", b"vhdxfile", b"QED\0", b"LUKS\xba\xbe")
"""First bytes by which a probing program takes a raw file for an image."""


class Reader(AbstractContextManager["Reader"]):
    """
    Reads the view of the last of *images* (base first).

    QEMU's own map tells which file has which bytes; plain clusters are read
    from there, compressed ones through qemu-img, a window at a time.
    """

    def __init__(self, images: Sequence[Image], extents: Extents | None = None) -> None:
        self._images = tuple(images)
        self.extents = qemuimg.map_view(images) if extents is None else extents
        self._starts = [extent.start for extent in self.extents]
        self._files: dict[Path, int] = {}
        self._window: tuple[int, bytes] = (0, b"")

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self._images[-1].virtual_size

    def read(self, start: int, length: int) -> bytes:
        """*length* bytes from *start*; beyond the end of the disk there are zeroes."""
        pulse.beat()
        pieces = []
        at, end = start, start + length
        index = max(bisect_right(self._starts, at) - 1, 0)
        while at < end and index < len(self.extents):
            extent = self.extents[index]
            until = min(end, extent.end)
            if until > at:
                if not extent.data:
                    pieces.append(bytes(until - at))
                elif extent.offset is None:
                    pieces.append(self._unpacked(at, until - at))
                else:
                    image = self._images[len(self._images) - 1 - extent.depth]
                    where = extent.offset + at - extent.start
                    pieces.append(self._plain(image.path, where, until - at))
                at = until
            index += 1
        if at < end:
            pieces.append(bytes(end - at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _plain(self, path: Path, where: int, length: int) -> bytes:
        if path not in self._files:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            self._files[path] = os.open(path, flags)
        piece = os.pread(self._files[path], length, where)
        while len(piece) < length:
            more = os.pread(self._files[path], length - len(piece), where + len(piece))
            if not more:  # the file ends inside its last cluster: zeroes
                return piece + bytes(length - len(piece))
            piece += more
        return piece

    def _unpacked(self, start: int, length: int) -> bytes:
        origin, window = self._window
        if not origin <= start or start + length > origin + len(window):
            origin = start // WINDOW * WINDOW
            until = max(start + length, min(origin + WINDOW, self.size))
            until = -(-until // 512) * 512
            target = os.memfd_create("virt-chain-window")
            try:
                os.ftruncate(target, until - origin)
                qemuimg.convert_window(self._images, origin, until - origin, target)
                window = os.pread(target, until - origin, 0)
            finally:
                os.close(target)
            self._window = (origin, window)
        return window[start - origin : start - origin + length]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def first_difference(
    one: Sequence[Image],
    other: Sequence[Image],
    runs: Iterable[Range],
    known: Extents | None = None,
) -> int | None:
    """
    The offset, to the chunk, where two views differ within *runs*; None: equal.

    Views of different length are compared as if zeroes followed the shorter.

    Args:
        known: The map of *one*; None: it is asked for.
    """
    with Reader(one, known) as left, Reader(other) as right:
        for start, end in runs:
            for at in range(start, end, CHUNK):
                length = min(CHUNK, end - at)
                if left.read(at, length) != right.read(at, length):
                    return at
    return None


def digest(images: Sequence[Image], size: int | None = None) -> str:
    """
    A SHA-256 over all that the view reads as, zeroes skipped.

    Two views have the same digest when they have the same size and content,
    however their clusters are laid out.

    Args:
        images: The chain, base first.
        size: Bytes from the beginning that count; None: all.
    """
    total = hashlib.sha256()
    with Reader(images) as reader:
        size = reader.size if size is None else size
        total.update(f"{size}\n".encode())
        for start, end in _data_blocks(reader.extents, size):
            for at in range(start, end, CHUNK):
                chunk = reader.read(at, min(CHUNK, end - at))
                for offset in range(0, len(chunk), BLOCK):
                    block = chunk[offset : offset + BLOCK]
                    if block.count(0) != len(block):
                        total.update(f"{at + offset}:".encode())
                        total.update(block)
    return total.hexdigest()


def _data_blocks(extents: Extents, size: int) -> Iterable[Range]:
    """Runs of whole blocks that hold any data."""

    return rounded(ranges(extent for extent in extents if extent.data), BLOCK, size)


def first_bytes_forged(images: Sequence[Image]) -> bool:
    """True where the view begins as an image format would, so that raw could be mistaken."""
    with Reader(images) as reader:
        start = reader.read(0, 512)
    return start.startswith(MAGICS) or start[64:68] == b"\x7f\x10\xda\xbe"
