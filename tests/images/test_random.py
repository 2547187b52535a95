"""Random chains and random wishes: what is applied reads as before, what is not says why."""

from __future__ import annotations

import random

import pytest

from tests.images.disks import Disk, assert_done, assert_quiet
from tests.images.random_chains import random_chain, random_wish

SEEDS = (*range(36), 129, 187, 221, 449)
"""The last four found bugs once."""


@pytest.mark.parametrize("seed", SEEDS)
def test_random_chain_and_wish(disk: Disk, seed: int) -> None:
    dice = random.Random(seed)
    names, raw_base = random_chain(disk, dice)
    disk.keep()
    wish = random_wish(dice, names)
    formats = {names[0]: "raw"} if raw_base and names[0] in wish.chain else {}
    discard = wish.keys.pop("discard", [])
    disk.spec(wish.chain, discard=discard, formats=formats, **wish.keys)

    outcome = disk.apply()

    if outcome.code == 0:
        disk.formats["new"] = "qcow2"
        assert_done(disk, wish.chain, current=wish.current, gone=wish.gone)
        assert_quiet(disk)
        return
    assert disk.plan().error, f"it was planned, and failed: {outcome}"
    assert "; " in (disk.plan().error or ""), "a refusal says why, and what to write instead"
    assert all(disk.read(name) == disk.golden[name] for name in names)
