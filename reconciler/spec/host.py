"""The host's own config: what may be done here, whatever a spec says."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
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
    """Whoever may write to the config may open any file with virt-chain's rights."""
    try:
        found = path.stat()
    except OSError:
        return  # reading it tells why
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others or found.st_uid not in (0, os.geteuid()):
        what = "others may write to this file; chown it to root, and chmod go-w"
        raise SpecError([Problem(Location(path, 1, 1), "config", what)])


def _host(document: Document) -> Host:
    data, default = document.data, Host()
    roots = data.get("allowed_roots")
    limits = data.get("limits", {})
    return Host(
        allowed_roots=None if roots is None else tuple(Path(root) for root in roots),
        max_drops=data.get("max_drops", default.max_drops),
        quarantine=duration(data["quarantine"]) if "quarantine" in data else None,
        limits=Limits(
            memory=_size(document, "memory", limits, default.limits.memory),
            seconds=limits.get("seconds", default.limits.seconds),
            output=_size(document, "output", limits, default.limits.output),
        ),
        allow=frozenset(data.get("allow", default.allow)),
    )


def _size(document: Document, key: str, limits: Mapping[str, Any], default: int) -> int:
    try:
        return parse_size(limits[key]) if key in limits else default
    except (ValueError, OverflowError) as error:
        raise SpecError([document.problem(("limits", key), str(error))]) from error


def duration(text: str) -> int:
    """
    Seconds meant by *text*: ``90s``, ``12h``, ``7d``, ``2w``, ``0``.

    Raises:
        ValueError: It is no duration.
    """
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if text == "0":
        return 0
    if found is None:
        raise ValueError(f"{text!r} is no duration; write one such as 12h, 7d or 2w")
    return int(found[1]) * _SECONDS[found[2]]
