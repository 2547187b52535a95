"""The host's own config: what may be done here, whatever a spec says."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reconciler.model.desired import Location
from reconciler.model.errors import Problem, SpecError
from reconciler.model.host import Host, Limits
from reconciler.model.units import parse_size
from reconciler.spec import schema
from reconciler.spec.document import Document, read_document

CONFIG = Path("/etc/virt-chain/config.toml")
ENVIRONMENT = "VIRT_CHAIN_CONFIG"

LONGEST = 10 * 366 * 86400
"""Seconds of the longest duration: ten years."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def read_host(environment: Mapping[str, str] | None = None) -> Host:
    """
    The config of this host; the defaults where there is none.

    Raises:
        SpecError: The file cannot be read, has problems, or others may write to it.
    """
    path = config_file(environment)
    if path == CONFIG and not path.exists():
        return Host()
    _see_that_it_is_ours(path)
    if path.is_file() and path.stat().st_size == 0:
        return Host()
    document = read_document(path)
    problems = [
        document.problem(one.path, one.what) for one in schema.check(document.data, "config")
    ]
    if problems:
        raise SpecError(problems)
    return _host(document)


def config_file(environment: Mapping[str, str] | None = None) -> Path:
    """The config of this host, whether it exists or not."""
    named = (os.environ if environment is None else environment).get(ENVIRONMENT)
    return Path(named) if named else CONFIG


def _see_that_it_is_ours(path: Path) -> None:
    """
    Whoever may write to the config, or put another file in its place, opens any file.

    So the file, the folders that lead to it and the links among them belong to
    root or to this user, and nobody else may write there.  In a folder with the
    sticky bit, as /tmp is, others cannot touch what is not theirs.
    """
    try:
        for one, found in _way_to(os.path.join(os.getcwd(), path)):
            others = 0 if stat.S_ISLNK(found.st_mode) else stat.S_IWGRP | stat.S_IWOTH
            if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
                others = 0
            if found.st_mode & others or found.st_uid not in (0, os.geteuid()):
                isdir = stat.S_ISDIR(found.st_mode)
                where = f"the folder {one}, which leads to it" if isdir else "this file"
                if stat.S_ISLNK(found.st_mode):
                    where = f"the link {one}, which leads to it"
                what = f"others may write to {where}; chown it to root, and chmod go-w"
                raise SpecError([Problem(Location(path, 1, 1), "config", what)])
    except OSError:
        return  # reading it tells why


def _way_to(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every folder and link on the way to the file *path*, from the root, and the file."""
    at, rest, links = "/", path.split("/"), 0
    yield at, os.lstat(at)
    while rest:
        name = rest.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        one = os.path.join(at, name)
        found = os.lstat(one)
        yield one, found
        if not stat.S_ISLNK(found.st_mode):
            at = one
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(one)
        at, rest = "/" if target.startswith("/") else at, [*target.split("/"), *rest]


def _host(document: Document) -> Host:
    data, default = document.data, Host()
    roots = data.get("allowed_roots")
    limits = data.get("limits", {})
    return Host(
        allowed_roots=None if roots is None else tuple(Path(root) for root in roots),
        max_drops=data.get("max_drops", default.max_drops),
        quarantine=_quarantine(document),
        limits=Limits(
            memory=_size(document, "memory", limits, default.limits.memory),
            seconds=limits.get("seconds", default.limits.seconds),
            output=_size(document, "output", limits, default.limits.output),
        ),
        allow=frozenset(data.get("allow", default.allow)),
        specs=tuple(Path(spec) for spec in data.get("specs", ())),
    )


def _quarantine(document: Document) -> int | None:
    text = document.data.get("quarantine")
    try:
        return None if text is None else duration(text)
    except ValueError as error:
        raise SpecError([document.problem(("quarantine",), str(error))]) from error


def _size(document: Document, key: str, limits: Mapping[str, Any], default: int) -> int:
    try:
        return parse_size(limits[key]) if key in limits else default
    except (ValueError, OverflowError) as error:
        raise SpecError([document.problem(("limits", key), str(error))]) from error


def duration(text: str) -> int:
    """
    Seconds meant by *text*: ``90s``, ``12h``, ``7d``, ``2w``, ``0``.

    Raises:
        ValueError: It is no duration, or one of more than ten years.
    """
    found = re.fullmatch(r"([0-9]+)([smhdw])", text)
    if text == "0":
        return 0
    if found is None:
        raise ValueError(f"{text!r} is no duration; write one such as 12h, 7d or 2w")
    seconds = int(found[1]) * _SECONDS[found[2]] if len(found[1]) <= 12 else LONGEST + 1
    if seconds > LONGEST:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise ValueError(f"{shown!r} is more than ten years; write a shorter time, such as 520w")
    return seconds
