"""Names in a spec that look mistyped, before they cost restore points."""

from __future__ import annotations

import pytest

from tests.notation import plan

ASKED = "ARE THESE NAMES RIGHT? {} do not exist; restore points that would go: {}"
DOUBTED = [
    # id, observed, desired, what does not exist, what would go, and what is meant
    (
        "all names are mistyped",
        "base <- monday <- tuesday <- live*",
        "base <- mondya <- tusday <- liev*",
        "mondya, tusday, liev",
        "monday and tuesday",
        {"mondya": "monday", "tusday": "tuesday", "liev": "live"},
    ),
    (
        "those above a kept one",
        "base <- monday <- tuesday <- wednesday*",
        "base <- monday <- tuesdya <- wednsday*",
        "tuesdya, wednsday",
        "tuesday",
        {"tuesdya": "tuesday", "wednsday": "wednesday"},
    ),
    (
        "all restore points would go for names that nobody knows",
        "base <- monday <- tuesday <- live*",
        "base <- one <- two*",
        "one, two",
        "monday and tuesday",
        {},
    ),
]


@pytest.mark.parametrize(
    ("observed", "desired", "new", "gone", "meant"),
    [pytest.param(*case, id=name) for name, *case in DOUBTED],
)
def test_names_that_look_mistyped_are_asked_about(
    observed: str, desired: str, new: str, gone: str, meant: dict[str, str]
) -> None:
    made = plan(observed, desired, templates="base")

    hints = [f"{one}: did you mean {other}.qcow2?" for one, other in meant.items()]
    assert made.steps
    assert made.doubts == ("; ".join([ASKED.format(new, gone), *hints]),)


@pytest.mark.parametrize(
    ("observed", "desired"),
    [
        ("base <- monday <- live*", "base <- monday <- live*"),
        ("base <- monday <- live*", "base <- monday <- live <- new*"),
        ("base <- monday <- live*", "base <- monday <- live <- live2 <- live3*"),
        ("base <- monday <- tuesday <- live*", "base <- live*"),
        ("base <- day1 <- day2 <- day3*", "base <- day2 <- day3 <- day4*"),
        ("base <- day1 <- day2 <- day3 <- day4*", "base <- day3 <- day4 <- day5 <- day6*"),
        ("base <- monday <- live*", "base <- monday <- next*"),
    ],
)
def test_what_people_do_every_day_is_not_asked_about(observed: str, desired: str) -> None:
    """Snapshots, drops, and the oldest days that go while new ones come."""
    assert plan(observed, desired, templates="base").doubts == ()
