"""What `status --check` makes of a watch: a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.watch.status import check

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def told(*kinds: str, ago: float = 10, **more: Any) -> dict[str, Any]:
    disks = {f"vm{number}:vda": {"kind": kind} for number, kind in enumerate(kinds)}
    last = (NOW - timedelta(seconds=ago)).isoformat()
    base = {"pid": 1, "running": "pid 1", "holds": [], "interval": 300.0, "last_pass": last}
    return {**base, "disks": disks, "problem": None, "working": [], **more}


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        pytest.param(told("in force", "in force"), 0, "OK: 2 in force", id="all in force"),
        pytest.param(told(), 0, "OK: 0 in force", id="no disks"),
        pytest.param(told("in force", "vanished"), 0, "OK: 1 in force", id="vanished"),
        pytest.param(told("waiting"), 1, "WARNING: vm0:vda waiting", id="waiting"),
        pytest.param(told("held"), 1, "WARNING: vm0:vda held", id="held"),
        pytest.param(told("deferred"), 1, "WARNING: vm0:vda deferred", id="deferred"),
        pytest.param(told("suspended"), 1, "WARNING: vm0:vda suspended", id="suspended"),
        pytest.param(told("drift"), 1, "WARNING: vm0:vda drift", id="dry run"),
        pytest.param(
            told("in force", holds=[{"label": "vm0"}]), 1, "WARNING: vm0 held", id="a held domain"
        ),
        pytest.param(told("failing", "held"), 2, "CRITICAL: failing: vm0:vda", id="failing"),
        pytest.param(told("in force", running=None), 2, "CRITICAL: no watch", id="not alive"),
        pytest.param(told("in force", ago=700), 2, "CRITICAL: the last pass was 700 s", id="old"),
        pytest.param(told("in force", ago=650), 0, "OK", id="not too old"),
        pytest.param(
            told("drift", ago=9999, working=["vm0:vda"]), 1, "WARNING: vm0:vda drift", id="at work"
        ),
        pytest.param(told(problem="f:1:1: bad\nf:2:1: x"), 2, "failed: f:1:1: bad |", id="spec"),
        pytest.param({"holds": [], "disks": {}}, 3, "UNKNOWN: no watch has run", id="never"),
    ],
)
def test_check(data: dict[str, Any], code: int, said: str) -> None:
    health = check(data, NOW)

    assert (health.code, said in health.line) == (code, True), health
    assert "\n" not in health.line
