"""
What reached a device, in order, and what is left of it when the power goes.

A device that is built again has each write that a flush of its room followed,
and any part of the later ones: whole, torn at sectors or pages, or not at all.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.images.disks import tool

Filesystem = Literal["ext4", "xfs"]

SECTOR = 512
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Room:
    """One filesystem on the device: where it lies, in bytes, and where it is mounted."""

    filesystem: Filesystem
    offset: int
    size: int
    mounted: Path


@dataclass(frozen=True, slots=True)
class Event:
    """
    A write or a flush that reached the device.

    Attributes:
        room: Number of the room that it was for.
        offset, length: The bytes that were written; a flush has none.
        data: Where they are in the log file.
    """

    room: int
    offset: int = 0
    length: int = 0
    data: int = 0

    @property
    def is_flush(self) -> bool:
        return not self.length


@dataclass(frozen=True, slots=True)
class Recording:
    """
    All that was written while something ran on the filesystems of a device.

    Attributes:
        base: The device as it was before, durably.
        log: The log file that holds the data.
        ended: How many events there were when the run ended; later ones are
            of the unmounting.
    """

    rooms: tuple[Room, ...]
    base: Path
    log: Path
    events: tuple[Event, ...]
    ended: int


_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
_FLUSH, _DISCARD, _MARK = 1, 4, 8


def parse(log: Path) -> Iterator[Event]:
    """
    The writes and flushes in a log file, in order, all as of room 0.

    A discard is passed over: a device may ignore it.

    Source: Linux, drivers/md/dm-log-writes.c; QEMU, block/blklogwrites.c.
    """
    with log.open("rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version) == (_MAGIC, 1), f"{log} is no log of writes"
        at = sector
        for _ in range(count):
            file.seek(at)
            start, sectors, flags, extra = _ENTRY.unpack(file.read(_ENTRY.size))
            at += sector
            assert not extra, "only marks have data of their own, and nobody makes any"
            if flags & _DISCARD:
                continue
            if sectors:
                yield Event(0, start * sector, sectors * sector, at)
                at += sectors * sector
            if flags & _FLUSH:
                yield Event(0)


def merged(rooms: Sequence[Room], device: Path, logs: Sequence[Path]) -> Iterator[Event]:
    """
    The writes of all rooms in their one order, each followed by the flushes of its room.

    A flush stands as early as it may have been: right behind the last write of
    its room, before writes of other rooms that came between.
    """
    own = [list(parse(log)) for log in logs]
    for event in parse(device):
        if event.is_flush:
            continue
        room = next(
            n for n, one in enumerate(rooms) if one.offset <= event.offset < one.offset + one.size
        )
        while own[room][0].is_flush:  # before the first write
            own[room].pop(0)
        known = own[room].pop(0)
        assert (known.offset + rooms[room].offset, known.length) == (event.offset, event.length)
        yield replace(event, room=room)
        if own[room] and own[room][0].is_flush:
            yield Event(room)
        while own[room] and own[room][0].is_flush:
            own[room].pop(0)
    assert not any(not event.is_flush for left in own for event in left), "writes got lost"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the log file that go to *offset* of the device."""

    offset: int
    length: int
    data: int


@dataclass(frozen=True, slots=True)
class Cut:
    """
    What is on the device when the power goes.

    Attributes:
        point: How many events there were.
        lost: How many of the writes that no flush followed are missing or torn.
    """

    point: int
    pieces: tuple[Piece, ...]
    lost: int


def cut(recording: Recording, seed: int, point: int | None = None) -> Cut:
    """
    The power goes, and some of the writes since the last flush are lost.

    Args:
        point: After how many events; left out: at a random moment.
    """
    dice = random.Random(seed)
    events = recording.events
    if point is None:
        point = dice.randint(0, len(events))
        if dice.random() < 0.5:  # right before a flush the most can be lost
            point = dice.choice([n for n, event in enumerate(events) if event.is_flush])
    kept = dict.fromkeys(range(len(recording.rooms)), 0)
    for number, event in enumerate(events[:point]):
        if event.is_flush:
            kept[event.room] = number
    survive = dice.choice([0.0, 0.1, 0.5, 0.9, dice.random()])
    pieces: list[Piece] = []
    lost = 0
    for number, event in enumerate(events[:point]):
        if event.is_flush:
            continue
        whole = Piece(event.offset, event.length, event.data)
        if number < kept[event.room]:
            pieces.append(whole)
        elif dice.random() < 0.15:
            lost += 1
            # ext4 relies on a disk that writes its superblock whole
            first = event.offset < recording.rooms[event.room].offset + PAGE
            pieces += torn(whole, PAGE if first else dice.choice([SECTOR, PAGE]), dice)
        elif dice.random() < survive:
            pieces.append(whole)
        else:
            lost += 1
    return Cut(point, tuple(pieces), lost)


def torn(write: Piece, unit: int, dice: random.Random) -> Iterator[Piece]:
    """Any part of *write*, in pieces of *unit* bytes."""
    survive = dice.random()
    for at in range(0, write.length, unit):
        if dice.random() < survive:
            yield Piece(write.offset + at, min(unit, write.length - at), write.data + at)


def rebuild(recording: Recording, cut: Cut, device: Path) -> None:
    """Write *device* as *cut* left it."""
    tool("cp", "--sparse=always", recording.base, device)
    with recording.log.open("rb") as log, device.open("r+b") as file:
        for piece in cut.pieces:
            log.seek(piece.data)
            file.seek(piece.offset)
            file.write(log.read(piece.length))
