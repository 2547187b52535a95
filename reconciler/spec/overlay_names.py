"""Names of new overlays, made from a pattern."""

from __future__ import annotations

import re
import string
from datetime import datetime

from reconciler.model.desired import OVERLAY_NAME

LONGEST = 255
"""Bytes of the longest file name."""

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
    for _, field, form, conversion in parts:
        if field is not None and (field not in FIELDS or conversion):
            known = ", ".join(f"{{{one}}}" for one in FIELDS)
            raise ValueError(f"{{{field}}} is unknown; known are {known}, {fault}")
        if field is not None and form and (wide := _too_wide(field, form)):
            what = f"{{{field}:{form[:40]}}} is {wide}; a file name has at most {LONGEST} bytes"
            raise ValueError(f"{what}; {fault}")
    plain = {"domain": domain.replace("/", "-"), "disk": disk.replace("/", "-")}
    try:
        name = pattern.format(**plain, time=time)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{error}; {fault}") from error
    if not name.isprintable() or name.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError(f"{name[:80]!r} is the name of no file; {fault}")
    if long := too_long(name):
        raise ValueError(f"{long}; {fault}")
    return name


def too_long(name: str) -> str | None:
    """What is wrong with the file name *name* where it is too long; None: nothing."""
    last = name.rpartition("/")[2]
    size = len(last.encode(errors="replace"))
    if size <= LONGEST:
        return None
    return f"{last[:40]!r}... has {size} bytes, and a file name has at most {LONGEST}"


def _too_wide(field: str, form: str) -> str | None:
    """Why *form* must not be filled in: it may ask for gigabytes; None: it may."""
    if "{" in form:
        return "a field within a field"
    numbers = re.findall(r"%[-_0^#]*([0-9]+)" if field == "time" else r"[0-9]+", form)
    widest = max(numbers, key=lambda one: (len(one.lstrip("0")), one.lstrip("0")), default="0")
    width = widest.lstrip("0")
    return "too wide" if len(width) > 3 or int(width or 0) > LONGEST else None


def fault(pattern: str) -> str | None:
    """What is wrong with *pattern*; None: nothing."""
    try:
        overlay_name(pattern, "web", "vda", datetime(2026, 1, 31, 12, 30))
    except ValueError as error:
        return str(error)
    return None
