"""The short part of the campaign, and proof that it sees a loss where there is one."""

from __future__ import annotations

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
    order = Order(20, first=1, last=2, kinds=kinds, runs=10, exhaustive=1000)

    tally = played(order)

    assert [line(one) for one in tally.problems] == []
    assert tally.total("struck") >= 5


WRONG = {
    "plain rebase": ("loss", Order(31, 0, 6, kinds=("kill-caller",), exhaustive=1)),
    "removes first": ("loss", Order(31, 0, 2, kinds=("kill-both",))),
    "forgets": ("loss", Order(31, 0, 6, kinds=("spec-changed", "kill-both"))),
    "always content": ("loss", Order(31, 0, 1, kinds=("eio", "enospc"))),
    "commits badly": ("loss", Order(31, 0, 6, kinds=("eio", "enospc"))),
}


@pytest.mark.parametrize("way", ways)
def test_a_broken_virt_chain_is_seen(way: str) -> None:
    """Each mistake that loses data is called a loss."""
    kind, order = WRONG[way]

    tally = played(Order(**{**{n: getattr(order, n) for n in order.__slots__}, "wrong": way}))

    assert kind in {worst_of(one) for one in tally.problems}


def test_a_run_is_repeated_by_its_name() -> None:
    """Case, kind and number say all: the same call is struck again."""
    order = Order(20, first=1, last=2, kinds=("kill-both",), runs=2, exhaustive=1000)
    struck = {}
    assert play([order], lambda one: struck.update({one.id: one.struck})) == []
    name = next(one for one, what in struck.items() if what)

    again: list[Result] = []
    assert repeat(name, again.append) == []

    assert [(one.id, one.struck) for one in again] == [(name, struck[name])]


def test_the_report_counts_what_was_told() -> None:
    tally = Tally()
    tally.add(Result("1.0:eio:3", "eio", "qemu-img: pwrite images/i1.qcow2", applies=1))
    tally.add(Result("1.0:eio:4", "eio", problems=[("stuck", "it says no"), ("loss", "i1")]))

    text = page(tally, 1, 5, "2030-01-01 00:00")

    assert "| eio  | 2    | 1      | 1       | 0     | 0       | 1      | 0     | 0      |" in text
    assert "python -m tests.faults --repeat '1.0:eio:4'" in text
    assert set(KINDS) >= {"kill-both", "eio"}
