"""The disks of one domain, each as far as it gets by itself, then together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reconciler.engine.apply.disk_run import Going
from reconciler.model.errors import ReconcilerError, StaleChain, worded

if TYPE_CHECKING:
    from reconciler.backends.together import Together


LEFT = "left as it is, because another disk of the domain cannot be changed now"


def all_or_none(
    bound: Sequence[int], going: dict[int, Any], errors: list[ReconcilerError | None]
) -> None:
    """None of the disks *bound* together is left in *going* where one of them failed."""
    if _split(bound, errors):
        for index in bound:
            going.pop(index, None)
            errors[index] = errors[index] or StaleChain(LEFT)


def _split(bound: Sequence[int], errors: Sequence[ReconcilerError | None]) -> bool:
    """True where one of the disks *bound* together failed."""
    return any(errors[index] is not None for index in bound)


def side_by_side(
    runs: dict[int, Going], bound: Sequence[int], errors: list[ReconcilerError | None]
) -> None:
    """
    Let *runs* go on until all have ended; those that failed leave their error in *errors*.

    Each goes as far as it can by itself.  When all wait, those that wait for
    the same go on together; the start of the domain comes last.  Once one of those
    *bound* together has failed, no other of them begins, none is a restore point of
    another moment, and the guest is not started on some of them.
    """
    waiting: dict[int, Together] = {}

    def go(index: int, failed: ReconcilerError | None = None) -> None:
        waiting.pop(index, None)
        try:
            run = runs[index]
            waiting[index] = next(run) if failed is None else run.throw(failed)
        except StopIteration:
            pass
        except ReconcilerError as error:
            errors[index] = error
        except OSError as error:  # between two steps
            errors[index] = StaleChain(f"{worded(error)}; nothing is lost: apply again")

    for index in runs:
        if index in bound and _split(bound, errors):
            errors[index] = StaleChain(LEFT)
        else:
            go(index)
    while waiting:
        from reconciler.backends.together import carry_out  # for libvirt alone

        kinds = {one.kind for one in waiting.values()}
        kind = min(kinds, key=("attach", "snapshot", "start").index)
        these = {index: one for index, one in waiting.items() if one.kind == kind}
        failed: ReconcilerError | None = None
        if kind != "attach" and not these.keys().isdisjoint(bound) and _split(bound, errors):
            failed = StaleChain(LEFT)
        try:
            if failed is None:
                carry_out(list(these.values()))
        except ReconcilerError as error:
            failed = error
        for index in these:
            go(index, failed)
