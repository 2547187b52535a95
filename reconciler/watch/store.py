"""Small JSON files in the state directory: private, replaced in one durable act."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.engine.state import StateFolder
from reconciler.model.errors import StateError
from reconciler.tools.lookups import Lookups, Memory

VERSION = 1
Data = dict[str, Any]


def _parse(_: str, descriptor: int, __: os.stat_result) -> Data:
    with open(descriptor, encoding="utf-8", closefd=False) as file:
        data: Data = json.loads(file.read())
    if data.pop("version") != VERSION:
        raise ValueError("another version of virt-chain has written it")
    return data


@dataclass(slots=True)
class Store:
    """
    One file; it is read when it was replaced since.

    Attributes:
        way_out: What to do with a damaged one, for the reader.
    """

    folder: Path
    name: str
    way_out: str
    _memory: Memory = field(default_factory=Memory)

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def read(self) -> Data:
        """
        What the file holds; empty where there is none.  Callers leave it as it is.

        Raises:
            StateError: It is there and cannot be read.
        """
        lookups = Lookups(self._memory)
        try:
            return lookups.read(lookups.real(str(self.path)), _parse)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateError(f"{self.path} cannot be read ({error}); {self.way_out}") from error

    def change(self, change: Callable[[Data], Data]) -> None:
        """
        Replace what the file holds by what *change* makes of it.

        Raises:
            StateError: It cannot be read or written.
        """
        states = StateFolder(self.folder)
        states.replace_file(
            self.path, lambda: json.dumps({"version": VERSION, **change(dict(self.read()))}) + "\n"
        )
