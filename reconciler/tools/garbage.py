"""Python's garbage collector, while what is made lives on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """
    Nothing is looked through for cycles meanwhile.

    Specs and surveys are read without a cycle, and looking for some takes up to a third of
    the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
