"""What may take long beats, so that a watchdog takes no long work for a hang."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.tools import images, process, pulse, views

MIB = 1024 * 1024


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One for each beat that was heard."""
    heard: list[int] = []
    monkeypatch.setattr(pulse, "PAUSE", 0)
    pulse.heard_by(lambda: heard.append(1))
    yield heard
    pulse.heard_by(None)


def test_reading_a_view_beats_chunk_by_chunk(beats: list[int], tmp_path: Path) -> None:
    path = tmp_path / "b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", path], check=True)
    chain = images.walk(path, images.Trust()).images
    chunks = 4 * MIB // views.CHUNK

    views.digest(chain)
    assert len(beats) >= chunks
    beats.clear()

    assert views.first_difference(chain, chain, [(0, 4 * MIB)]) is None
    assert len(beats) >= 2 * chunks


@pytest.mark.parametrize(
    "script", ["sleep 0.5", "echo one; sleep 0.3; echo two", "exec >&- 2>&-; sleep 0.5"]
)
def test_a_program_that_is_waited_for_beats(
    beats: list[int], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(process, "TICK", 0.1)
    process.run(["sh", "-c", script])

    assert len(beats) >= 2


def test_beats_that_follow_at_once_are_heard_as_one(
    beats: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "PAUSE", 3600)
    monkeypatch.setattr(pulse, "_last", -3600.0)
    for _ in range(1000):
        pulse.beat()

    assert len(beats) == 1
