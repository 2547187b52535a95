"""The guest's records as the host reads them: the witness for "no byte lost"."""

from __future__ import annotations

import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

SLOT = 4096
"""Bytes of a record."""

REGION = 16 * 1024 * 1024
"""Bytes of a disk that hold records, unless the test says otherwise."""

_HEADER = struct.Struct("<8sQQQ8s")
_EMPTY = bytes(SLOT)


class RecordLost(AssertionError):
    """
    An image does not hold what the guest wrote.

    Attributes:
        slot: The first wrong slot; its offset is 4096 times that.
        want: The record that belongs there; 0 for none.
        got: What is there: a record's number, 0 for nothing, -1 for damage.
    """

    def __init__(self, image: Path, slot: int, want: int, got: int, count: int) -> None:
        super().__init__(
            f"{image}: slot {slot} holds record {got}, not {want}; {count} slots are wrong"
        )
        self.slot = slot
        self.want = want
        self.got = got


class RecordsMissing(AssertionError):
    """The highest record of an image is below one that the guest knew as durable."""


def records_in(
    image: Path,
    *,
    durable: int = 0,
    disk: str = "vda",
    format: str = "qcow2",  # noqa: A002
    region: int = REGION,
) -> int:
    """
    The highest record that a reader of *image* and its backing files sees.

    Every record from the first to that one is there: an image from any moment
    of the guest's life has this property, and an image that lost or mixed
    anything has not.  The guest of a running one may write meanwhile only when
    the image is below its active one.

    Args:
        durable: What the guest said of the moment that *image* holds; the
            highest number has to be at least this.
        disk: The guest's name of the disk; records of another are damage.
        region: The guest's ``witness.region``, in bytes.

    Raises:
        RecordLost: A slot holds something else.
        RecordsMissing: The end is missing.
    """
    found = numbers_in(image, disk=disk, format=format, region=region)
    slots, highest = len(found), max([0, *found])
    want = [0] * slots
    for number in range(max(1, highest - slots + 1), highest + 1):
        want[slot_of(number, slots)] = number
    wrong = [slot for slot in range(slots) if found[slot] != want[slot]]
    if wrong:
        raise RecordLost(image, wrong[0], want[wrong[0]], found[wrong[0]], len(wrong))
    if highest < durable:
        raise RecordsMissing(f"{image}: ends with record {highest}, the guest had {durable}")
    return highest


def numbers_in(image: Path, *, disk: str, format: str, region: int) -> list[int]:  # noqa: A002
    """The record number in each slot; 0 where a slot is empty, -1 where it is damaged."""
    data = _read(image, format, region)
    slots = 1 << ((len(data) // SLOT).bit_length() - 1)
    return [
        _number(data[slot * SLOT : (slot + 1) * SLOT], slot, slots, disk) for slot in range(slots)
    ]


def slot_of(number: int, slots: int) -> int:
    """The slot of a record: witness.c's ``permuted``, a permutation of all slots."""
    mask = slots - 1
    shift = (slots.bit_length() - 1) // 2 + 1
    index = ((number - 1) & mask) * 0x9E3779B1 & mask
    index ^= index >> shift
    index = index * 0x85EBCA6B & mask
    return index ^ index >> shift


def _number(record: bytes, slot: int, slots: int, disk: str) -> int:
    if record == _EMPTY:
        return 0
    magic, number, recorded_slot, recorded_slots, name = _HEADER.unpack_from(record)
    good = (
        magic == b"WITNESS1"
        and (recorded_slot, recorded_slots) == (slot, slots)
        and name.rstrip(b"\0").decode(errors="replace") == disk
        and zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little")
        and slot_of(number, slots) == slot
    )
    return number if good else -1


def _read(image: Path, format: str, region: int) -> bytes:  # noqa: A002
    """The first *region* bytes of what a guest would read; ``-U`` reads beside a guest."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        argv = ["qemu-img", "convert", "-U", "-f", format, "-O", "raw", str(image), str(raw)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise AssertionError(f"{image} does not open: {ran.stderr.strip()}")
        with raw.open("rb") as file:
            return file.read(region)
