"""When a pass may take it that nothing has changed."""

from __future__ import annotations

import pytest

from reconciler.engine.state import StateFolder
from reconciler.spec import load
from reconciler.tools.moment import Moment
from reconciler.watch import world
from tests.images.disks import Disk


def test_only_files_of_this_host_alone_are_known_by_their_times(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.state.mkdir()
    spec, states = load([disk.spec_file]), StateFolder(disk.state)
    moment = Moment()
    moment.settled = 1 << 62  # however fresh the files are
    here = world.World.of(spec, states, (), moment)
    monkeypatch.setattr(world, "on_local", lambda name: disk.images not in disk.path(name).parents)

    assert here is not None
    assert world.World.of(spec, states, (), moment) is None
