"""Files of our own, read back: strict, and told in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.engine.history import Record
from reconciler.tools.decoding import decoded, moment
from reconciler.watch.holds import Suspension

GOOD: dict[str, Any] = {
    "time": "2030-01-01T00:00:00+00:00",
    "domain": "web",
    "target": "vda",
    "spec": "sha256:00",
    "status": "applied",
    "message": None,
    "steps": ["create x on b"],
}


def test_what_was_written_comes_back() -> None:
    assert decoded(Record, GOOD) == Record(**{**GOOD, "steps": ("create x on b",)})
    assert decoded(Record, {**GOOD, "seconds": 1}).seconds == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param({**GOOD, "since": 1}, "unknown key since", id="an unknown key"),
        pytest.param({}, "a missing key at time", id="a missing key"),
        pytest.param({**GOOD, "steps": "ab"}, "'ab' is not a list at steps", id="no list"),
        pytest.param({**GOOD, "steps": [1]}, "1 is not a text at steps", id="no text in a list"),
        pytest.param({**GOOD, "domain": True}, "True is not a text at domain", id="no text"),
        pytest.param({**GOOD, "message": []}, "[] is not a text at message", id="no message"),
        pytest.param({**GOOD, "seconds": "1"}, "'1' is not a number at seconds", id="no number"),
        pytest.param([1], "[1] is not a table", id="no table"),
        pytest.param(None, "None is not a table", id="nothing"),
    ],
)
def test_what_is_damaged_is_told_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        decoded(Record, data)

    assert str(raised.value) == said


def test_a_table_inside_of_a_table_is_told_too() -> None:
    with pytest.raises(ValueError, match="5 is not a table"):
        decoded(dict[str, Suspension], {"web:vda": 5})


@pytest.mark.parametrize("text", ["2030-01-01T00:00:00", "tomorrow", ""])
def test_a_time_has_its_zone(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        moment(text)
