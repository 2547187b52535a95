"""What the disks of a domain do at the same moment, and what one does not do without the others."""

from __future__ import annotations

from typing import Any, cast

import pytest

from reconciler.backends import together
from reconciler.backends.together import Together
from reconciler.engine.apply.side_by_side import LEFT, side_by_side
from reconciler.model.errors import ReconcilerError, StaleChain
from tests.notation import path


class Disks:
    """Two disks of a running or stopped domain, and what happens to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        monkeypatch.setattr(together, "carry_out", self._carry_out)

    def _carry_out(self, asked: list[Together]) -> None:
        self.log.append(f"{asked[0].kind} of {' and '.join(one.target for one in asked)}")

    def going(self, target: str, *kinds: str, fails: str | None = None) -> Any:
        """A disk that waits for each of *kinds*; it *fails* in place of one of them."""

        def waits(kind: str) -> Together:
            return Together(cast(Any, kind), cast(Any, None), "web", target, path(target))

        for kind in kinds:
            if kind == fails:
                raise StaleChain("no room")
            try:
                yield waits(kind)
            except ReconcilerError:
                if kind == "start":  # its disk is put back
                    yield waits("attach")
                raise


WAITING = [
    # id, what each disk waits for, what fails, what happens
    ("a snapshot", ["snapshot"], "snapshot", []),
    ("a restart", ["attach", "start"], "start", ["attach of vda and vdb", "attach of vda"]),
    ("a restart, early", ["attach", "start"], "attach", ["attach of vda", "attach of vda"]),
]


@pytest.mark.parametrize(
    ("kinds", "fails", "done"), [pytest.param(*case, id=name) for name, *case in WAITING]
)
def test_no_disk_goes_on_without_another_that_it_is_bound_to(
    monkeypatch: pytest.MonkeyPatch, kinds: list[str], fails: str, done: list[str]
) -> None:
    disks = Disks(monkeypatch)
    errors: list[ReconcilerError | None] = [None, None]
    runs = {0: disks.going("vda", *kinds), 1: disks.going("vdb", *kinds, fails=fails)}
    side_by_side(runs, [0, 1], errors)

    assert disks.log == done
    assert list(map(str, errors)) == [LEFT, "no room"]


@pytest.mark.parametrize("bound", [[], [1]], ids=["neither", "the one that fails"])
def test_a_disk_that_is_not_bound_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch, bound: list[int]
) -> None:
    disks = Disks(monkeypatch)
    errors: list[ReconcilerError | None] = [None, None]
    runs = {0: disks.going("vda", "snapshot"), 1: disks.going("vdb", "snapshot", fails="snapshot")}
    side_by_side(runs, bound, errors)

    assert disks.log == ["snapshot of vda"]
    assert errors[0] is None


def test_no_other_disk_begins_once_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(monkeypatch)
    errors: list[ReconcilerError | None] = [None, None]
    runs = {0: disks.going("vda", "attach", fails="attach"), 1: disks.going("vdb", "attach")}
    side_by_side(runs, [0, 1], errors)

    assert disks.log == []
    assert list(map(str, errors)) == ["no room", LEFT]
