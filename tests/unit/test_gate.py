"""The gate: what has to be allowed before any steps begin, over all rounds of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from reconciler.engine.gate import EVERYTHING, Gate, needs
from reconciler.model.image import Chain
from reconciler.model.plan import DiskPlan, PlannedStep, RestorePoints
from reconciler.model.steps import Create, Pull, Remove, Step
from tests.notation import path

MERGE = (Pull(path("x"), path("b")), Remove(path("p")))


def disk(
    name: str = "web",
    *steps: Step,
    dropped: str = "",
    discarded: str = "",
    resumed: bool = False,
    deferred: bool = False,
    restart: bool = False,
) -> Any:
    """A plan, with as much of a look as a gate asks for."""
    plan = DiskPlan(
        name,
        "vda",
        Chain(),
        (),
        tuple(
            PlannedStep(step, Chain(), Chain(), deferred="it runs" if deferred else None)
            for step in steps
        ),
        RestorePoints((), tuple(map(path, dropped.split())), tuple(map(path, discarded.split()))),
        restart=restart,
    )
    return plan, SimpleNamespace(resumed=object() if resumed else None)


def gate(max_drops: int | None = 2, allow: Any = EVERYTHING, confirm: Any = None) -> Gate:
    return Gate(allow, max_drops, lambda total, most: f"{total} of {most}", confirm)


def entered(at: Gate, *disks: Any) -> tuple[list[str], dict[str, str]]:
    admitted = at.enter(disks)
    refused = {plan.domain: why for plan, why in admitted.refused}
    return [plan.domain for plan, _ in admitted.work], refused


@dataclass(frozen=True)
class Unknown:
    action: ClassVar[str] = "snapshot_internal"
    image: Path


@pytest.mark.parametrize(
    ("made", "needed"),
    [
        pytest.param(disk("web", Create(path("x"), None, "qcow2", 512)), {"create"}, id="create"),
        pytest.param(disk("web", *MERGE), {"merge"}, id="merge"),
        pytest.param(disk("web", *MERGE, discarded="p"), {"merge", "discard"}, id="discard"),
        pytest.param(disk("web", *MERGE, restart=True), {"merge", "restart"}, id="restart"),
        pytest.param(disk("web", *MERGE, discarded="p", deferred=True), set(), id="all waits"),
        pytest.param(disk("web", *MERGE, resumed=True), set(), id="finishing"),
        pytest.param(disk("web", Unknown(path("x"))), {"person"}, id="an unknown kind"),  # type: ignore[arg-type]
    ],
)
def test_a_plan_needs_what_its_steps_say(made: Any, needed: set[str]) -> None:
    plan, look = made

    assert needs(plan, finishing=look.resumed is not None) == needed


def test_what_is_not_allowed_waits_and_the_rest_goes_on() -> None:
    merging = gate(allow=frozenset(("create",)))

    assert entered(merging, disk("a", *MERGE), disk("b", MERGE[0]), disk("c")) == (
        ["c"],
        {
            "a": "needs merge, which the host's config does not allow without a person",
            "b": "needs merge, which the host's config does not allow without a person",
        },
    )


def test_restore_points_are_counted_over_all_rounds() -> None:
    run = gate(max_drops=3)

    assert entered(run, disk("a", *MERGE, dropped="p q")) == (["a"], {})
    assert entered(run, disk("a", *MERGE, dropped="r s"), disk("b", *MERGE)) == (
        ["b"],
        {"a": "4 of 3"},
    )
    assert entered(run, disk("a", *MERGE, dropped="r")) == (["a"], {})


def test_a_restore_point_whose_drop_goes_on_in_the_next_round_counts_once() -> None:
    run = gate(max_drops=2)

    assert entered(run, disk("a", *MERGE, dropped="p q")) == (["a"], {})
    assert entered(run, disk("a", *MERGE, dropped="p q")) == (["a"], {})


def test_who_asks_is_asked_about_every_round_that_has_steps() -> None:
    asked: list[list[str]] = []

    def confirm(plan: Any) -> bool:
        asked.append([one.domain for one in plan.disks])
        return len(asked) < 2

    run = gate(None, confirm=confirm)

    assert entered(run, disk("a", *MERGE, dropped="p q r"), disk("b")) == (["a", "b"], {})
    assert entered(run, disk("a", *MERGE), disk("b")) == (
        ["b"],
        {"a": "2 more steps were not confirmed; virt-chain apply asks again"},
    )
    assert entered(run, disk("b")) == (["b"], {})
    assert asked == [["a"], ["a"]]
