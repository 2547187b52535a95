"""Names of new overlays, made from a pattern."""

from __future__ import annotations

import string
from datetime import datetime

from reconciler.model.desired import OVERLAY_NAME

FIELDS = ("domain", "disk", "time")


def overlay_name(pattern: str, domain: str, disk: str, time: datetime) -> str:
    """
    The file name that *pattern* gives the next overlay of a disk.

    Raises:
        ValueError: It is no pattern, or its name is no name of a file.
    """
    fault = f"write one such as {OVERLAY_NAME}"
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{error}; {fault}") from error
    for _, field, _, conversion in parts:
        if field is not None and (field not in FIELDS or conversion):
            known = ", ".join(f"{{{one}}}" for one in FIELDS)
            raise ValueError(f"{{{field}}} is unknown; known are {known}, {fault}")
    plain = {"domain": domain.replace("/", "-"), "disk": disk.replace("/", "-")}
    try:
        name = pattern.format(**plain, time=time)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{error}; {fault}") from error
    if not name.isprintable() or name.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError(f"{name!r} is the name of no file; {fault}")
    return name


def fault(pattern: str) -> str | None:
    """What is wrong with *pattern*; None: nothing."""
    try:
        overlay_name(pattern, "web", "vda", datetime(2026, 1, 31, 12, 30))
    except ValueError as error:
        return str(error)
    return None
