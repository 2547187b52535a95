"""The short part of the campaign, and proof that it sees a loss where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.campaign import Order, play, repeat
from tests.faults.kinds import KINDS
from tests.faults.report import Tally, line, page, worst_of
from tests.faults.runs import Result
from tests.faults.wrong import ways

CASES = {
    "kills": ("kill-caller", "kill-both", "kill-virt-chain", "tear-both", "boundary-after"),
    "errors": ("eio", "enospc", "eio-sync", "short-write", "tool-fails", "edquot-forever"),
    "sequences": ("again", "spec-changed", "stale-files", "state-lost"),
    "the world": ("no-space", "read-only", "immutable", "two-at-once", "sigterm", "open-files"),
}


def played(*orders: Order) -> Tally:
    """Play *orders*; no worker may die."""
    tally = Tally()
    died = play(orders, tally.add)
    assert died == []
    return tally


@pytest.mark.parametrize("kinds", CASES.values(), ids=CASES)
def test_what_breaks_a_run_loses_nothing(kinds: tuple[str, ...]) -> None:
    """The next apply ends in the desired chain."""
    case = 1 + list(CASES.values()).index(kinds)
    order = Order(20, first=case, last=case + 1, kinds=kinds, runs=10, exhaustive=1000)

    tally = played(order)

    assert [line(one) for one in tally.problems] == []
    assert tally.total("struck") >= 5


WRONG = {
    "plain rebase": ("31.0:kill-caller", 44),
    "removes first": ("31.6:undisturbed", 0),
    "relinks first": ("31.0:kill-both", 36),
    "always content": ("31.0:eio", 10),
    "commits badly": ("31.3:eio", 50),
}
"""Where each mistake loses data with QEMU 7.2; elsewhere it may be a few calls later or before."""


def nearby(number: int) -> Iterator[int]:
    """*number*, and the numbers around it."""
    yield number
    for distance in range(1, 13):
        yield from (number + distance, max(1, number - distance))


@pytest.mark.parametrize("way", ways)
def test_a_broken_virt_chain_is_seen(way: str) -> None:
    """Each mistake that loses data is called a loss."""
    name, number = WRONG[way]
    seen: list[str] = []

    runs = [f"{name}:{at}" for at in nearby(number)]
    assert repeat(runs, lambda one: seen.append(worst_of(one)), way) == []

    assert seen[-1] == "loss"


def test_a_run_is_repeated_by_its_name() -> None:
    """Case, kind and number say all: the same call is struck again."""
    order = Order(20, first=1, last=2, kinds=("kill-both",), runs=2, exhaustive=1000)
    struck = {}
    assert play([order], lambda one: struck.update({one.id: one.struck})) == []
    name = next(one for one, what in struck.items() if what)

    again: list[Result] = []
    assert repeat([name], again.append) == []

    assert [(one.id, one.struck) for one in again] == [(name, struck[name])]


def test_the_report_counts_what_was_told() -> None:
    tally = Tally()
    tally.add(Result("1.0:eio:3", "eio", "qemu-img: pwrite images/i1.qcow2", applies=1))
    tally.add(Result("1.0:eio:4", "eio", problems=[("stuck", "it says no"), ("loss", "i1")]))

    text = page(tally, 1, 5, "2030-01-01 00:00")

    assert "| eio  | 2    | 1      | 1       | 0     | 0       | 1      | 0     | 0      |" in text
    assert "python -m tests.faults --repeat '1.0:eio:4'" in text
    assert set(KINDS) >= {"kill-both", "eio"}
