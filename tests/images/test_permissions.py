"""Operators who are not root: what they may not change is told before anything is changed."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from reconciler.cli.progress import Silent
from reconciler.engine import permitted
from reconciler.engine.apply.applier import Applier
from reconciler.engine.apply.options import Options
from reconciler.engine.looking import look
from reconciler.engine.planning import plan_disk
from reconciler.engine.state import StateFolder
from reconciler.model.domain import Domain
from reconciler.model.errors import HypervisorError
from reconciler.spec import load
from reconciler.tools import permissions
from reconciler.tools.quarantine import FOLDER
from tests.images.cases import B, P, Q, X
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


class Stopping:
    """A libvirt that is only asked to stop a guest, and does not."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def stop(self, name: str, _: float) -> None:
        self.asked.append(name)
        raise HypervisorError("it does not stop")

    def domain(self, _: str) -> None:
        return None


@pytest.mark.parametrize("restarts", [True, False], ids=["for itself", "for another disk"])
def test_what_a_plan_needs_once_the_guest_is_off_is_asked_before_it_is_stopped(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """While a guest runs, QEMU writes to the images, and this user need not be allowed to."""
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.add("d", B)
    vdb = f"\n[domains.vm.disks.vdb]\nchain = ['{disk.path('d')}', '{disk.images}/e.qcow2']\n"
    disk.spec("b <- q <- y", active="x.qcow2", discard=["x"], more=vdb)
    spec, states, host = load([disk.spec_file]), StateFolder(disk.state), Stopping()
    running = Domain("vm", "running")
    looks = [
        replace(found, host=cast(Any, host), domain=running)
        for found in look(spec, states, spec.disks)
    ]
    plans = [plan_disk(found) for found in looks]
    plans = [replace(plans[0], restart=restarts), replace(plans[1], restart=not restarts)]
    written = {disk.path("b"), disk.path("q")}
    monkeypatch.setattr(permissions, "_allowed", lambda path, _: path not in written)
    applier = Applier(spec, states, Options(), Silent())
    refused, other = applier.apply(list(zip(plans, looks, strict=True)))

    assert "may not write to" in str(refused)
    assert host.asked == ([] if restarts else ["vm"])
    assert "it does not stop" in str(other) or restarts
    assert (
        any("apply will be refused" in note for note in permitted.notes(plans[0], looks[0]))
        == restarts
    )
