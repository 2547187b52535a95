"""A look at one disk after a survey of all: what it must not miss."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine import looking
from reconciler.engine.disk_state import DiskState, OldLink, Unfinished, begun
from reconciler.engine.looking import Looking, look
from reconciler.engine.state import Session, StateFolder
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.steps import Commit
from reconciler.spec.read import load
from reconciler.tools import files, images, lookups, opening
from reconciler.tools.lookups import Lookups, Memory
from tests.images.cases import B, P, Q, X
from tests.images.disks import NOBODY, Disk, tool, view


class Scene:
    """Images of some disks below one folder, and their spec."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.states = StateFolder(root / "state")

    def make(self, name: str, below: str | None = None) -> Path:
        path = self.root / f"{name}.qcow2"
        path.parent.mkdir(exist_ok=True)
        onto = ["-F", "qcow2", "-b", str(self.root / f"{below}.qcow2")] if below else []
        tool("qemu-img", "create", "-q", "-f", "qcow2", *onto, path, *([] if below else ["64k"]))
        return path

    def spec(self, **chains: str) -> Spec:
        text = [f'version = 1\ndefaults.directory = "{self.root}"']
        for name, chain in chains.items():
            listed = ", ".join(f'"{one}.qcow2"' for one in chain.split(" <- "))
            text.append(f"[domains.{name}.disks.vda]\nchain = [{listed}]")
        (self.root / "spec.toml").write_text("\n".join(text) + "\n")
        return load([self.root / "spec.toml"])

    def merging(self, domain: str, top: str, base: str) -> None:
        """A commit of *top* into *base*, its backing file, was interrupted."""
        paths = [self.root / f"{name}.qcow2" for name in ("b", base, top)]
        links = tuple(OldLink(path, None, None, files.file_id(path)) for path in paths)
        steps = Unfinished((Commit(paths[2], paths[1], relink=True),), links=links)
        with self.states.locked(domain, "vda", lambda *_: nullcontext()) as session:
            session.write(begun(replace(session.state, active=paths[2]), steps))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(looking, "SHARE", 10**9)
    monkeypatch.setattr(looking, "GLANCE", 0)
    made = Scene(tmp_path)
    made.make("b")
    made.make("p", "b")
    made.make("x", "p")
    return made


def disk_of(spec: Spec, domain: str) -> DesiredDisk:
    return next(disk for disk in spec.disks if disk.domain == domain)


def users(again: Looking, disk: DesiredDisk) -> set[str]:
    """The names of images of *disk* that somebody else stands on."""
    task = again.again(disk).task
    assert task is not None
    return {path.stem for path in task.users}


def test_what_another_virt_chain_does_after_the_survey_is_seen(scene: Scene) -> None:
    """It writes its state before it relinks an overlay in its own folder."""
    scene.make("there/y", "b")
    spec = scene.spec(a="b <- p <- x", other="there/y")
    again, disk = Looking(spec, scene.states), disk_of(spec, "a")
    assert users(again, disk) == {"b"}

    onto = ("-F", "qcow2", "-b", scene.root / "p.qcow2", scene.root / "there/y.qcow2")
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", *onto)
    assert users(again, disk) == {"b"}  # a header alone tells nobody
    other = StateFolder(scene.states.folder)
    with other.locked("b", "vda", lambda *_: nullcontext()) as session:
        session.write(DiskState(active=scene.root / "there/y.qcow2"))

    assert users(again, disk) == {"b", "p"}


def test_an_overlay_that_is_made_by_hand_after_the_survey_is_seen(scene: Scene) -> None:
    """In a folder of the spec, and on an image in another one."""
    scene.make("there/d")
    spec = scene.spec(a="b <- p <- x", other="there/d")
    again, disk = Looking(spec, scene.states), disk_of(spec, "a")
    assert users(again, disk) == set()

    scene.make("there/y", "p")
    assert users(again, disk) == {"b", "p"}


def test_an_overlay_made_in_the_folder_of_a_disk_at_work_is_seen_once_that_is_done(
    scene: Scene,
) -> None:
    scene.make("there/d")
    spec = scene.spec(a="b <- p <- x", other="there/d")
    again, disk, other = Looking(spec, scene.states), disk_of(spec, "a"), disk_of(spec, "other")
    again.again(other)
    scene.make("there/y", "p")
    assert users(again, disk) == set()  # its own look would find it

    again.after(other)
    assert users(again, disk) == {"b", "p"}


def test_a_disk_that_was_left_hides_nothing(scene: Scene) -> None:
    scene.make("there/d")
    spec = scene.spec(a="b <- p <- x", other="there/d")
    again, disk, other = Looking(spec, scene.states), disk_of(spec, "a"), disk_of(spec, "other")
    again.again(other)
    scene.make("there/y", "p")
    again.leave(other)

    assert users(again, disk) == {"b", "p"}


def test_our_own_writes_need_no_new_survey(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = scene.spec(a="b <- p <- x")
    again, disk = Looking(spec, scene.states), disk_of(spec, "a")
    scene.states.folder.mkdir()
    again.again(disk)
    made: list[object] = []
    survey = looking.Survey
    monkeypatch.setattr(looking, "Survey", lambda *given: made.append(1) or survey(*given))

    for active in ("p", "x"):
        with scene.states.locked("a", "vda", lambda *_: nullcontext()) as session:
            session.write(DiskState(active=scene.root / f"{active}.qcow2"))
        again.again(disk)
        scene.make(f"new-{active}", active)
        again.again(disk)
        (scene.root / f"new-{active}.qcow2").unlink()
        again.after(disk)

    assert made == []


def test_steps_in_flight_under_another_name_of_an_image_are_seen(scene: Scene) -> None:
    (scene.root / "other").mkdir()
    os.link(scene.root / "p.qcow2", scene.root / "other" / "p.qcow2")
    scene.make("other/y", "other/p")
    spec = scene.spec(a="b <- p", c="b <- other/p <- other/y")
    scene.merging("a", "x", "p")

    error = look(spec, scene.states, [disk_of(spec, "c")])[0].error
    assert error is not None
    assert "is being merged by a:vda, which was interrupted" in error
    assert Looking(spec, scene.states).again(disk_of(spec, "c")).error == error


def test_steps_in_flight_of_two_disks_on_one_image_are_both_seen(scene: Scene) -> None:
    scene.make("y", "p")
    spec = scene.spec(a="b <- p <- x", c="b <- p <- y")
    scene.merging("a", "x", "p")
    scene.merging("c", "y", "p")

    error = look(spec, scene.states, [disk_of(spec, "c")])[0].error
    assert error is not None
    assert "is being merged by a:vda, which was interrupted" in error
    assert Looking(spec, scene.states).again(disk_of(spec, "c")).error == error


def test_who_can_no_longer_be_asked_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that an overlay lies in may not be looked into any more."""
    assert os.geteuid() == 0, "root can look into every folder; run the tests as root"
    monkeypatch.setattr(looking, "SHARE", 10**9)
    monkeypatch.setattr(looking, "GLANCE", 0)
    root = Path(tempfile.mkdtemp(dir="/var/tmp"))
    root.chmod(0o755)
    try:
        made = Scene(root)
        made.make("b")
        made.make("p", "b")
        made.make("x", "p")
        made.make("there/y", "p")
        spec = made.spec(a="b <- p <- x", c="there/new")
        again, disk = Looking(spec, made.states), disk_of(spec, "a")
        os.seteuid(NOBODY)
        before = users(again, disk)
        os.seteuid(0)
        (root / "there").chmod(0)
        os.seteuid(NOBODY)
        after = users(again, disk)
    finally:
        os.seteuid(0)
        shutil.rmtree(root)
    assert before == after == {"b", "p"}


def test_an_error_that_passes_is_not_remembered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, active = Memory(), scene.root / "x.qcow2"
    time.sleep(0.05)
    with monkeypatch.context() as patched:

        def full(*_: object) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patched.setattr(lookups, "open_resolved", full)
        with pytest.raises(images.ObserveError, match="Too many open files"):
            images.walk(active, images.Trust(), Lookups(memory))

    assert opening.open_resolved is lookups.open_resolved
    assert len(images.walk(active, images.Trust(), Lookups(memory))) == 3


def test_who_comes_to_use_an_image_between_two_merges_of_a_disk_keeps_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one may take hours."""
    monkeypatch.setattr(looking, "GLANCE", 0)
    disk.chain({"b": B, "p": P, "q": Q, "r": P, "x": X})
    mine = disk.root / "mine"
    mine.mkdir()
    tool("qemu-img", "create", "-q", "-f", "qcow2", mine / "d.qcow2", "64k")
    other = f'[domains.other.disks.vda]\nchain = ["{mine / "d.qcow2"}"]'
    disk.spec("b <- q <- x", active="x.qcow2", more=other)
    steps = disk.plan("--json").steps
    write = Session.write
    made: dict[str, Any] = {}

    def and_clone(session: Session, state: DiskState) -> None:
        write(session, state)
        if state.leftovers and not made:  # the first merge is done
            for name in ("q", "x"):
                made[name] = mine / f"on-{name}.qcow2"
                onto = ("-F", "qcow2", "-b", disk.path(name))
                tool("qemu-img", "create", "-q", "-f", "qcow2", *onto, made[name])
            made["seen"] = view(made["q"]), view(made["x"])

    monkeypatch.setattr(Session, "write", and_clone)
    outcome = disk.apply("-y")

    assert [step.split()[0] for step in steps] == ["pull", "pull", "remove", "remove"]
    assert outcome.code == 1, outcome
    assert "uses" in outcome.err
    assert "by now; plan again" in outcome.err
    assert (view(made["q"]), view(made["x"])) == made["seen"]
