"""Signals that arrive at the worst moment."""

from __future__ import annotations

import ctypes
import operator
import select
import signal
import time
from functools import partial
from typing import Any

import pytest

from reconciler.engine.stopping import handling
from reconciler.watch import triggers
from reconciler.watch.triggers import Trigger


def test_a_signal_just_before_a_wait_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The signal comes behind Python's last look at signals, before the system call.

    map() calls both in one instruction of Python, so that no handler runs in between.
    """
    wait = select.select
    come = partial(ctypes.CDLL(None)["raise"], int(signal.SIGHUP))

    def too_late(*words: Any) -> Any:
        monkeypatch.setattr(triggers.select, "select", wait)
        return list(map(operator.call, [come, partial(wait, *words)]))[-1]

    trigger = Trigger()
    monkeypatch.setattr(triggers.select, "select", too_late)
    started = time.monotonic()
    with handling({signal.SIGHUP: lambda *_: trigger.fire("SIGHUP")}, wakes=trigger.wakes):
        reasons = trigger.wait(20)
    trigger.close()
    assert reasons == ["SIGHUP"]
    assert time.monotonic() - started < 10
