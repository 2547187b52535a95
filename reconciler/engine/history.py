"""The history: what was applied when, from which spec, and how it ended."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from reconciler.tools.decoding import decoded

log = logging.getLogger(__name__)

FILE = "history.jsonl"
LONGEST = 4 * 1024 * 1024
"""Bytes from which on the file is put aside; the one put aside before goes."""


@dataclass(frozen=True, slots=True)
class Record:
    """
    One disk of one apply.

    Attributes:
        time: When it ended, UTC, ISO 8601.
        spec: Digest of all spec files together.
        status: ``applied`` or ``failed``.
        message: Why it failed; None: it did not.
        steps: Each step that was done, in words and in that order, whatever came after it.
        seconds: How long these steps took together; None: an older virt-chain has not told.
    """

    time: str
    domain: str
    target: str
    spec: str
    status: str
    message: str | None
    steps: tuple[str, ...]
    seconds: float | None = None


def spec_digest(sources: Sequence[Path]) -> str:
    """A digest of the spec files *sources* as they are now."""
    total = hashlib.sha256()
    for source in sources:
        with suppress(OSError):
            total.update(source.read_bytes())
    return f"sha256:{total.hexdigest()}"


def add(folder: Path, record: Record) -> None:
    """Append *record* to the history in the state directory; what cannot be is only logged."""
    path = folder / FILE
    try:
        with suppress(FileNotFoundError):
            if path.stat().st_size > LONGEST:
                os.replace(path, path.with_suffix(".jsonl.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            os.write(descriptor, (json.dumps(asdict(record)) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


def read(folder: Path) -> Iterator[Record]:
    """All records, oldest first; a damaged line is passed over, and told of in a warning."""
    for path in (folder / f"{FILE}.1", folder / FILE):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            continue
        damaged = 0
        for line in text.splitlines():
            try:
                yield decoded(Record, json.loads(line))
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            lines = "1 line is" if damaged == 1 else f"{damaged} lines are"
            log.warning(
                "%s: %s damaged or of another version of virt-chain, and left out", path, lines
            )
