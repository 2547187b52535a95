"""Operators who are not root: what they may not change is told before anything is changed."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from reconciler.tools.quarantine import FOLDER
from tests.images.disks import NOBODY, Disk, assert_done, folder_facts, unprivileged


def of_root(path: Path, mode: int) -> None:
    os.chown(path, 0, 0)
    path.chmod(mode)


CHAINS = {
    "a merge": "b <- x",
    "a snapshot": "b <- p <- x <- y",
    "a rename": "b <- p <- z",
    "a rollback": "b <- p <- y",
}


# (mode of the folder, what is said, what needs more than that mode)
FOLDERS = [
    (
        0o755,
        "the user nobody may not create, rename or remove files in {} (owner root, mode",
        tuple(CHAINS),
    ),
    (
        0o1777,
        "belongs to root, and in {} only the owner of a file may rename or rem",
        ("a merge", "a rename", "a rollback"),  # everybody may make new files there
    ),
]


@pytest.mark.parametrize(
    ("mode", "said", "name"),
    [(mode, said, name) for mode, said, names in FOLDERS for name in names],
)
def test_a_folder_that_this_user_may_not_change_is_told_before_the_first_change(
    theirs: Disk, mode: int, said: str, name: str
) -> None:
    disk, said = theirs, said.format(theirs.images)
    of_root(disk.images, mode)
    if mode == 0o1777:
        of_root(disk.path("p" if name == "a merge" else "x"), 0o666)
    keys = {"discard": ["x"]} if name == "a rollback" else {}
    disk.spec(CHAINS[name], active="x.qcow2", **keys)
    disk.keep()
    planned, applied = unprivileged(disk, "plan"), unprivileged(disk, "apply", "-y")

    assert planned.code == 0, planned
    assert "apply will be refused: " in planned.out
    assert applied.code == 1, applied
    assert said in applied.err
    assert "run virt-chain as root" in applied.err
    assert folder_facts(disk.images) == disk.before

    for path in (disk.images, *disk.paths.values()):
        os.chown(path, NOBODY, NOBODY)
    assert unprivileged(disk, "apply", "-y").code == 0


@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [
        (
            0,
            0o644,
            "x.qcow2 belongs to root, and the user nobody may not change it; run virt-chain as",
        ),
        (
            0,
            0o666,
            "x.qcow2 belongs to root, and the user nobody may not change it; run virt-chain as",
        ),
        (
            1,
            0o666,
            "x.qcow2 belongs to {}, and the user nobody may not change it; run virt-chain as {}",
        ),
        (
            NOBODY,
            0o444,
            "the user nobody may not write to {x} (owner nobody, mode 0444); run virt-c",
        ),
    ],
)
def test_an_image_that_this_user_may_not_change_is_told_with_its_owner(
    theirs: Disk, owner: int, mode: int, said: str
) -> None:
    disk = theirs
    os.chown(disk.path("x"), owner, 0)
    disk.path("x").chmod(mode)
    disk.spec("b <- x", active="x.qcow2")
    disk.keep()
    planned, applied = unprivileged(disk, "plan"), unprivileged(disk, "apply", "-y")

    name = pwd.getpwuid(owner).pw_name
    assert said.format(name, name, x=disk.path("x")) in applied.err
    assert "apply will be refused: " in planned.out
    assert "immutable" not in applied.err
    assert applied.code == 1, applied
    assert folder_facts(disk.images) == disk.before


def test_who_owns_images_and_folder_applies_as_root_does(theirs: Disk) -> None:
    theirs.spec("b <- x", active="x.qcow2")
    planned, applied = unprivileged(theirs, "plan"), unprivileged(theirs, "apply", "-y")

    assert "refused" not in planned.out
    assert applied.code == 0, applied
    assert_done(theirs, "b <- x", current="x", gone=["p"])


def test_a_quarantine_of_another_user_is_told_before_the_first_change(theirs: Disk) -> None:
    disk = theirs
    disk.images.joinpath(FOLDER).mkdir(0o700)
    disk.spec("b <- p <- y", active="x.qcow2", discard=["x"])
    disk.keep()
    applied = unprivileged(disk, "apply", "-y")

    assert f"remove files in {disk.images / FOLDER} (owner root, mode 0700)" in applied.err
    assert folder_facts(disk.images) == disk.before


def test_a_state_directory_whose_files_are_hidden_is_not_taken_for_an_empty_one(
    theirs: Disk,
) -> None:
    """Else a disk would go on from the highest image that its spec lists."""
    assert unprivileged(theirs, "apply", "-y").code == 0
    of_root(theirs.state, 0o744)  # to be listed, and not to be looked into
    theirs.spec("b <- x", active="x.qcow2")
    theirs.keep()
    planned, applied = unprivileged(theirs, "plan"), unprivileged(theirs, "apply", "-y")
    theirs.state.chmod(0o755)

    for outcome in (planned, applied):
        assert outcome.code != 0, outcome
        told = outcome.out + outcome.err
        assert f"{theirs.state}/vm.toml cannot be read: Permission denied" in told
        assert "run as its owner, or name another with --state-dir" in told
    assert folder_facts(theirs.images) == theirs.before
