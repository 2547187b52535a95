"""
Backing names in formats that are never opened: whose overlay needs an image all the same.

Source: QEMU, block/qcow.c (struct QCowHeader, big-endian) and docs/interop/qed_spec.txt
(little-endian).
"""

from __future__ import annotations

import os
import struct

_QCOW1 = struct.Struct(">4sIQI")
_QED = struct.Struct("<4sIIIQQQQQII")
_HAS_BACKING = 1
_LONGEST = 4096
"""Bytes of the longest name that is read."""


def backing_name(descriptor: int) -> str | None:
    """The backing name in a qcow version 1 or QED image; None: it is neither, or has none."""
    start = os.pread(descriptor, _QED.size, 0)
    if len(start) < _QED.size:
        return None
    if start[:8] == b"QFI\xfb\0\0\0\1":
        _, _, at, length = _QCOW1.unpack_from(start)
    elif start[:4] == b"QED\0":
        fields = _QED.unpack(start)
        if not fields[4] & _HAS_BACKING:
            return None
        at, length = fields[9], fields[10]
    else:
        return None
    if not at or not 0 < length <= _LONGEST:
        return None
    return os.fsdecode(os.pread(descriptor, length, at))
