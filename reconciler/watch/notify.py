"""Telling systemd: readiness, a line of status, and that we are alive.  Source: sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> None:
    """Send *lines*, such as ``READY=1``; without systemd nothing happens."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    address = f"\0{name[1:]}" if name[0] == "@" else name
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall("\n".join(lines).encode())


def watchdog_pause() -> float | None:
    """Seconds after which systemd wants to hear from us again, halved; None: it does not ask."""
    with suppress(ValueError):
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return int(os.environ.get("WATCHDOG_USEC", "")) / 2_000_000
    return None
