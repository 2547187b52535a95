"""Sizes in bytes, read from and written for people."""

from __future__ import annotations

import re
from fractions import Fraction

SECTOR = 512
"""Virtual sizes are multiples of this many bytes."""

_SIZE = re.compile(
    r"(?P<number>\d{1,20}(?:\.\d{1,20})?)\s*(?P<unit>[KMGTPE]?)(?:i?B)?", re.ASCII | re.IGNORECASE
)
_POWERS = {unit: power for power, unit in enumerate(["", "K", "M", "G", "T", "P", "E"])}


def parse_size(text: str | int) -> int:
    """
    Bytes meant by *text*: ``1073741824``, ``"10G"``, ``"512 MiB"``, ``"1.5T"``.

    Units are powers of 1024, as qemu-img has them.

    Raises:
        ValueError: *text* is no size, is not positive, or is no multiple of 512 bytes.
    """
    size = _bytes(text, "size")
    if not 0 < size < 2**63:
        raise ValueError(f"{text!r} is out of range; a disk has from 512 bytes to 8 EiB")
    if size % SECTOR:
        raise ValueError(f"{text!r} is no multiple of 512 bytes")
    return size


def parse_rate(text: str) -> int:
    """
    Bytes a second meant by *text*: ``100000000``, ``"100M"``; units as `parse_size` has them.

    Raises:
        ValueError: *text* is no rate, or no rate that anything is copied at.
    """
    rate = _bytes(text, "rate")
    if not 0 < rate < 2**63:
        raise ValueError(f"{text!r} is out of range; write bytes a second, such as 100M")
    return rate


def _bytes(text: str | int, what: str) -> int:
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if not match:
        shown = repr(text) if len(text) <= 80 else f"{text[:77]!r}..."
        raise ValueError(f"{shown} is no {what}; write bytes or a unit, such as 10G or 512M")
    return int(Fraction(match["number"]) * 1024 ** _POWERS[match["unit"].upper()])


def human_size(size: float) -> str:
    """*size* bytes for a reader: ``0 B``, ``512 B``, ``64 KiB``, ``8.0 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        text = f"{value:.0f}" if value == int(value) >= 10 or value >= 99.95 else f"{value:.1f}"
        if unit == "B":
            text = f"{value:.0f}"
        if float(text) < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{text} {unit}"


def human_time(seconds: int) -> str:
    """*seconds* in the largest unit that says them exactly: ``7 days``, ``90 minutes``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length} {unit}{'' if seconds == length else 's'}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"
