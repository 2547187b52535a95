"""What a watch writes: one form a stream, and nothing twice; and what it reads of its own files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli import logs
from tests.images.disks import process
from tests.watch.watcher import Watcher, until


def test_every_line_of_a_watch_is_json_and_a_warning_comes_once(watcher: Watcher) -> None:
    """A header that cannot be read is warned of at every look."""
    (watcher.disk.images / "broken.qcow2").write_bytes(b"QFI\xfb\0\0\0\x09" + bytes(4096))
    watcher.start(interval="1s")
    first = watcher.told()["next_pass"]
    until(lambda: watcher.told()["next_pass"] > first, "a second pass")
    watcher.disk.spec_file.touch()
    watcher.stop()

    lines = [json.loads(line) for line in watcher.log.read_text().splitlines()]
    said = [one["text"] for one in lines if one["event"] == "log"]
    assert len(said) == len(set(said))


def test_a_second_watch_says_in_the_same_form_why_it_ends(watcher: Watcher) -> None:
    watcher.start()

    other = process("watch", "--state-dir", watcher.disk.state, watcher.disk.spec_file)

    assert other.code == 1
    assert [json.loads(line)["level"] for line in other.err.splitlines()] == ["error"]


def test_a_warning_is_told_again_once_it_says_something_else() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    told: list[str] = []
    try:
        logs.to_voice(lambda _, text: told.append(text))
        log = logging.getLogger("reconciler.test")
        for why in ("no", "no", "never", "never"):
            log.warning("%s cannot be read: %s", Path("/a"), why)
            log.warning("%s cannot be read: %s", Path("/b"), "no")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = before
        root.setLevel(level)

    assert told == ["/a cannot be read: no", "/b cannot be read: no", "/a cannot be read: never"]


GOOD: dict[str, Any] = {
    "version": 1,
    "pid": 1,
    "started": "2030-01-01T00:00:00+00:00",
    "spec": [],
    "interval": 300.0,
    "dry_run": False,
    "problem": None,
    "working": [],
    "disks": {"vm:vda": {"kind": "in force"}},
    "last_pass": "2030-01-01T00:00:00+00:00",
    "next_pass": "2030-01-01T00:00:00+00:00",
}
DAMAGED = [
    pytest.param("{", id="cut"),
    pytest.param(json.dumps({**GOOD, "version": 2}), id="another version"),
    pytest.param(json.dumps({**GOOD, "since": 1}), id="an unknown key"),
    pytest.param(json.dumps({"version": 1, "pid": 1}), id="missing keys"),
    pytest.param(
        json.dumps({**GOOD, "disks": {"vm:vda": {"kind": "held", "since": 1}}}), id="of a disk"
    ),
    pytest.param(json.dumps({**GOOD, "disks": {"vm:vda": 5}}), id="no disk"),
    pytest.param(json.dumps({**GOOD, "disks": {"vm:vda": {"kind": "odd"}}}), id="an odd kind"),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_status_file_is_told(watcher: Watcher, text: str) -> None:
    watcher.disk.state.mkdir()
    (watcher.disk.state / "watch.json").write_text(text)

    told = watcher.command("status")

    assert (told.code, told.err.count("\n")) == (1, 1), told
    assert "watch.json" in told.err
    assert "remove it, and the next pass of a watch writes it anew" in told.err


def test_a_watch_starts_over_from_a_damaged_status_file(watcher: Watcher) -> None:
    watcher.disk.state.mkdir()
    (watcher.disk.state / "watch.json").write_text(json.dumps({**GOOD, "since": 1}))

    with pytest.raises(Exception, match="unknown key since"):
        watcher.told()
    (watcher.disk.state / "watch.json").write_text("{")
    process = _started(watcher)

    assert watcher.kind() == "in force"
    assert process.poll() is None
    assert "this watch starts without it" in watcher.said("status")[0]


def _started(watcher: Watcher) -> Any:
    """A watch that is ready, though its status cannot be read at first."""
    from reconciler.model.errors import StateError

    told = watcher.told

    def tolerant() -> dict[str, Any]:
        try:
            return told()
        except StateError:
            return {}

    watcher.told = tolerant  # type: ignore[method-assign]
    return watcher.start()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("holds.json", {"holds": [{"label": "vm"}]}),
        ("holds.json", {"holds": [5]}),
        ("holds.json", {"hold": []}),
        (
            "holds.json",
            {
                "holds": [
                    {"label": "vm", "reason": "", "who": "", "since": "", "until": "2030-01-01"}
                ]
            },
        ),
        ("suspended.json", {"vm:vda": {"failures": 1}}),
        ("suspended.json", {"vm:vda": {"failures": 1, "until": "x", "why": "", "spec": ""}}),
        ("suspended.json", {"vm:vda": 5}),
    ],
)
@pytest.mark.parametrize("words", ["status", "release vm", "hold vm --reason why"])
def test_damaged_holds_and_suspensions_are_told(
    watcher: Watcher, name: str, data: dict[str, Any], words: str
) -> None:
    watcher.disk.state.mkdir()
    (watcher.disk.state / name).write_text(json.dumps({"version": 1, **data}))
    if words.startswith("hold") and name != "holds.json":
        return

    told = watcher.command(*words.split())

    assert (told.code, told.err.count("\n")) == (1, 1), told
    assert f"{name} is damaged (" in told.err
    assert "remove it" in told.err
