"""When a pass may take it that nothing has changed."""

from __future__ import annotations

import pytest

from reconciler.engine.state import StateFolder
from reconciler.spec import load
from reconciler.tools import moment
from reconciler.watch.world import World
from tests.images.disks import Disk


def at_rest() -> moment.Moment:
    """A moment at which all files are settled, however fresh they are."""
    found = moment.Moment()
    found.settled = 1 << 62
    return found


def test_only_files_of_this_host_alone_are_known_by_their_times(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.state.mkdir()
    spec, states = load([disk.spec_file]), StateFolder(disk.state)
    here = World.of(spec, states, (), at_rest())
    monkeypatch.setattr(
        moment, "_on_local", lambda name: disk.images not in disk.path(name).parents
    )

    assert here is not None
    assert World.of(spec, states, (), at_rest()) is None
