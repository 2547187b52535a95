"""
The power goes at random moments of an apply, on real ext4 and XFS.

Whatever was written since the last flush may be missing: every promise holds,
and the next apply ends in the desired chain.  `tests.faults.power` does the same
for as long as one likes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.power import CASES, FILESYSTEMS, World, lose_power, scene
from tests.faults.power_device import Unusable, after, prepare, record, require, rooms_for
from tests.faults.power_log import Filesystem, Recording, cut
from tests.images.cases import Case
from tests.images.disks import KIB, Disk, Outcome, assert_done, differing, tool
from tests.images.test_interruptions import struck

CUTS = 10
"""Power losses for each recorded run."""


def case(name: str) -> Case:
    """The scenario of that name."""
    return next(one for one in CASES if one.name == name)


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder with a short name: the socket in it must fit 108 bytes."""
    require()
    with tempfile.TemporaryDirectory(prefix="power-") as name:
        yield Path(name)


RUNS = [
    ("a new overlay", World("ext4", restless=True)),
    ("scattered clusters up", World("ext4", apart=True)),
    ("pull into an image in the middle", World("xfs", restless=True)),
    ("roll back, merge below, new top", World("xfs", apart=True, verify="none")),
]


@pytest.mark.parametrize(
    ("name", "world"), [pytest.param(*run, id=f"{run[0]}: {run[1]}") for run in RUNS]
)
def test_power_loss_keeps_every_promise(work: Path, name: str, world: World) -> None:
    disk, recording = scene(work, case(name), world)
    assert recording.ended > 10, "the run was recorded"

    wrong = {seed: lose_power(disk, case(name), recording, seed) for seed in range(CUTS)}

    assert {seed: said for seed, said in wrong.items() if said} == {}


def right_after_flushes(recording: Recording) -> list[int]:
    """Moments at which all that was written in one room is durable, and nothing else."""
    events = recording.events[: recording.ended]
    return [number + 1 for number, event in enumerate(events) if event.is_flush]


def test_the_next_run_mends_leaks(work: Path) -> None:
    """The merge is written once more, and the clusters of the first time go back."""
    one = case("scattered clusters onto another base")
    disk, recording = scene(work, one, World("ext4"))
    points = right_after_flushes(recording)[20::40]

    wrong = {point: lose_power(disk, one, recording, 0, point=point) for point in points}

    assert {point: said for point, said in wrong.items() if said} == {}


def test_a_relinked_header_is_known_though_the_file_time_is_the_old_one(work: Path) -> None:
    """
    fdatasync makes the new header durable, and leaves the modification time behind.

    What had begun is finished all the same.
    """
    one = case("pulled into the dropped active image, which takes p's name")
    disk, recording = scene(work, one, World("ext4"))
    points = right_after_flushes(recording)

    wrong = {point: lose_power(disk, one, recording, 0, point=point) for point in points}

    assert {point: said for point, said in wrong.items() if said} == {}


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_what_a_commit_overwrote_is_told_though_the_file_time_is_the_old_one(
    work: Path, filesystem: Filesystem
) -> None:
    """
    fdatasync makes the copied data durable, and leaves the modification time behind.

    A spec that wants the overwritten restore point back is told that it is gone.
    """
    one = case("scattered clusters down, in place")
    disk, recording = scene(work, one, World(filesystem, apart=True))
    points = right_after_flushes(recording)
    # most writes before one flush: the copy itself
    copied = max(pairwise(points), key=lambda pair: pair[1] - pair[0])[1]

    assert lose_power(disk, one, recording, 0, point=copied, back=True) == []


def test_disks_may_have_other_numbers_after_the_power_was_gone(work: Path) -> None:
    """A file on a disk with another device number is still the file that was merged."""
    one = case("flatten")
    disk, recording = scene(work, one, World("ext4"))
    points = right_after_flushes(recording)[::2]

    wrong = {
        point: lose_power(disk, one, recording, 0, point=point, moved=True) for point in points
    }

    assert {point: said for point, said in wrong.items() if said} == {}


def test_what_apply_has_said_is_durable(work: Path) -> None:
    """The power goes right after exit code 0: there is nothing left to do."""
    one = case("commit, pull and rename to the active image")
    disk, recording = scene(work, one, World("ext4", apart=True))

    for seed in range(3):
        with after(recording, cut(recording, seed, recording.ended), work / "rebuilt"):
            outcome = disk.apply()

            assert outcome == Outcome(0, "Nothing to do: 1 disk is as the spec says.\n", "")
            assert_done(disk, one.chain, current=one.top, gone=one.gone)


def test_leftovers_go_from_the_top_down(tmp_path: Path) -> None:
    """Nothing is removed while a header names it, in the run after an interruption too."""
    one = case("the two highest committed into p")
    disk = Disk(tmp_path)
    one.prepare(disk)
    first, _ = struck(disk, "killed after", 3)
    assert first.acts == ["rename_over vm.toml", "qemu-img commit", "rename_over vm.toml"]

    second, _ = struck(disk, "killed after", 1)

    assert second.acts == ["remove x.qcow2"], "q is below x"


def by_plain_rebase(disk: Disk) -> None:
    """What people type: the default cache, and the header before the data."""
    x, b = disk.path("x"), disk.path("b")
    tool("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", b, x)


def test_the_rig_sees_what_a_plain_rebase_loses(work: Path) -> None:
    """A rig that sees no loss here would prove nothing anywhere.  Source: FIELD_NOTES §1.1."""
    one = case("flatten")
    disk, recording = scene(work, one, World("ext4"), run=by_plain_rebase)

    assert any(loses_the_current_state(disk, recording, seed, work) for seed in range(200))


def loses_the_current_state(disk: Disk, recording: Recording, seed: int, work: Path) -> bool:
    """True where x reads otherwise after the power loss, whatever its header says."""
    with after(recording, cut(recording, seed), work / "rebuilt"):
        return bool(differing(disk.read("x"), disk.golden["x"]))


def fill_nothing() -> None:
    """The filesystems stay empty."""


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_only_what_was_flushed_is_sure_to_survive(work: Path, filesystem: Filesystem) -> None:
    """fsync reaches the log as a flush of its own room, and no flush means no promise."""
    rooms = rooms_for(work / "disk", filesystem, apart=True)
    safe, unsafe, other = (work / "disk" / name for name in ("safe", "unsafe", "state/other"))

    def run() -> None:
        # one after the other, so that only the last is covered by no flush of its room
        other.write_bytes(b"o" * 64 * KIB)
        safe.write_bytes(b"s" * 64 * KIB)
        with safe.open("rb") as file:
            os.fsync(file.fileno())
        unsafe.write_bytes(b"u" * 64 * KIB)

    prepare(work / "base", rooms, fill_nothing)
    recording = record(work / "log", work / "base", rooms, run, restless=False)
    survived = {"safe": 0, "unsafe": 0, "other": 0}
    flushed = [event.room for event in recording.events[: recording.ended] if event.is_flush]
    last = len(recording.events)
    for seed in range(CUTS):
        one = cut(recording, seed, point=recording.ended if seed else last)
        with after(recording, one, work / "rebuilt"):
            for path in (safe, unsafe, other):
                whole = path.exists() and path.read_bytes() == path.name[:1].encode() * 64 * KIB
                survived[path.name] += whole

    assert 0 in flushed
    assert survived == {"safe": CUTS, "unsafe": 1, "other": 1}


def test_a_machine_without_root_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(Unusable) as caught:
        require()

    said = str(caught.value)
    assert "the program mkfs.xfs" in said
    assert "root, who may mount" in said
