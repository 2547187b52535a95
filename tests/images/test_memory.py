"""What earlier looks found serves the next one, and never in place of what is there now."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.engine import looking
from reconciler.engine.disk_state import DiskState, Leftover
from reconciler.engine.looking import Looking, look
from reconciler.engine.state import StateFolder
from reconciler.engine.tasks import Look
from reconciler.model.desired import Spec
from reconciler.model.host import Host
from reconciler.spec.read import load
from reconciler.tools import files, images, lookups
from reconciler.tools.lookups import Lookups, Memory
from tests.images.disks import tool

ROUNDS = 150


class Yard:
    """A folder of images behind a link, three disks on one template, and people at work."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.random = chance
        self.host = Host(allowed_roots=(root,) if chance.random() < 0.7 else None)
        self.store, self.folder = root / "store", root / "images"
        self.store.mkdir()
        self.folder.symlink_to(self.store)
        self.spec_file = root / "spec.toml"
        self.states = StateFolder(root / "state")
        self.made = 0
        self.chains = {"a": ["t", "a1", "a2"], "b": ["t", "b1", "b2"], "c": ["t", "c1"]}
        for chain in self.chains.values():
            for below, name in zip([None, *chain], chain, strict=False):
                if not self.path(name).exists():
                    self.make(name, below)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.qcow2"

    def make(self, name: str, below: str | None) -> None:
        onto = ["-u", "-F", "qcow2", "-b", f"{below}.qcow2"] if below else []
        tool("qemu-img", "create", "-q", "-f", "qcow2", *onto, self.path(name), "64k")

    def spec(self) -> Spec:
        text = ["version = 1", f'defaults.directory = "{self.folder}"']
        for name, chain in self.chains.items():
            listed = ", ".join(f'"{one}.qcow2"' for one in chain[1:])
            text.append(f"[domains.{name}.disks.vda]")
            text.append(f'chain = [{{ file = "t.qcow2", template = true }}, {listed}]')
        self.spec_file.write_text("\n".join(text) + "\n")
        return load([self.spec_file]).on(self.host)

    # What people do

    def relink(self) -> None:
        """Another backing file, with the old modification time put back."""
        found = self.path("b2").stat()
        below = self.random.choice(["t", "b1", "a1"])
        arguments = ["-u", "-f", "qcow2", "-F", "qcow2", "-b", f"{below}.qcow2"]
        tool("qemu-img", "rebase", *arguments, self.path("b2"), code=None)
        os.utime(self.path("b2"), ns=(found.st_atime_ns, found.st_mtime_ns))

    def overlay(self) -> None:
        """An image that nobody lists, on some other."""
        self.made += 1
        self.make(f"n{self.made}", self.random.choice(["t", "a1", "a2", "b1", "b2", "c1"]))

    def remove(self) -> None:
        """The last such image goes; or the top of a listed chain."""
        if self.made:
            self.path(f"n{self.made}").unlink(missing_ok=True)
            self.made -= 1
        else:
            self.path("c1").unlink(missing_ok=True)

    def replace(self) -> None:
        """A copy in the place of an image."""
        name = self.random.choice(["t", "a1", "b1", "c1"])
        if not self.path(name).exists():
            self.make(name, "t")
        copy = self.path("copy")
        shutil.copy2(self.path(name), copy)
        os.rename(copy, self.path(name))

    def switch(self) -> None:
        """The link to the folder leads to a new place: a copy, or the same folder renamed."""
        there = self.folder.resolve()
        there_now = there.with_name(f"store-{self.random.randrange(10**9)}")
        if self.random.random() < 0.5:
            shutil.copytree(there, there_now, symlinks=True)
        else:
            os.rename(there, there_now)
        link = self.folder.with_name("link")
        link.symlink_to(there_now)
        os.rename(link, self.folder)

    def link(self) -> None:
        """A name in the chain becomes a link to an image, or an image again."""
        at = self.path("b1")
        if at.is_symlink():
            at.unlink()
            self.make("b1", "t")
        else:
            at.unlink()
            at.symlink_to("a1.qcow2")

    def second_name(self) -> None:
        """A hard link, which tells of itself in the change time alone."""
        name = self.folder / f"hard-{self.random.randrange(10**9)}"
        os.link(self.path("a1"), name)

    def damage(self) -> None:
        """A header that no longer is one; and back."""
        if self.path("b2").read_bytes()[:4] == b"QFI\xfb":
            self.path("b2").write_bytes(b"nonsense")
        else:
            self.path("b2").unlink()
            self.make("b2", "b1" if self.path("b1").exists() else "t")

    def remember(self) -> None:
        """A state file tells of another active image, or of a leftover."""
        active = self.path(self.random.choice(self.chains["b"]))
        left = ()
        if self.random.random() < 0.3 and (who := files.file_id(active.resolve())) is not None:
            left = (Leftover(active.resolve(), who),)
        below = [self.path(name).resolve() for name in ("t", "b1")]
        known = {path: who for path in below if (who := files.file_id(path)) is not None}
        with self.states.locked("b", "vda", lambda *_: nullcontext()) as session:
            session.write(DiskState(active=active, leftovers=left, images=known))

    def edit(self) -> None:
        """The spec asks for more, or for less."""
        chain = self.chains["b"]
        self.chains["b"] = chain[:-1] if len(chain) > 3 else [*chain, "b3"]

    def nothing(self) -> None:
        """Nobody does anything."""

    def act(self) -> Callable[[], None]:
        return self.random.choice(
            [
                self.relink,
                self.overlay,
                self.remove,
                self.replace,
                self.switch,
                self.link,
                self.second_name,
                self.damage,
                self.remember,
                self.edit,
                self.nothing,
                self.nothing,
            ]
        )


def comparable(found: Look) -> Look:
    """*found* without the free space of the filesystem, which others use, too."""
    return found if found.task is None else replace(found, task=replace(found.task, free={}))


@pytest.mark.parametrize("seed", range(3))
def test_a_look_with_a_memory_finds_what_a_look_without_one_finds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = Yard(tmp_path, random.Random(seed))
    memory = Memory()
    recalled: list[str] = []
    confirms = Lookups.confirms

    def counted(self: Lookups, evidence: lookups.Evidence) -> bool:
        found = confirms(self, evidence)
        recalled.extend(["yes"] * found)
        return found

    monkeypatch.setattr(Lookups, "confirms", counted)
    spec = yard.spec()
    for number in range(ROUNDS):
        act = yard.act()
        act()
        if act == yard.edit:
            spec = yard.spec()
        if yard.random.random() < 0.8:
            time.sleep(0.05)
        chosen = [yard.random.choice(spec.disks)]
        fresh = look(spec, yard.states, chosen)
        remembered = look(spec, yard.states, chosen, memory=memory)
        told = f"round {number} of seed {seed}, after {act.__name__}"
        assert list(map(comparable, remembered)) == list(map(comparable, fresh)), told
    assert len(recalled) > ROUNDS


def who_aside(found: Look) -> Look:
    """*found* without the names of those who use its images."""
    task = found.task and replace(found.task, users=dict.fromkeys(found.task.users, ()), free={})
    return replace(found, task=task, claimed=dict.fromkeys(found.claimed, ""))


@pytest.mark.parametrize("seed", range(3))
def test_a_look_at_one_disk_after_a_survey_of_all_finds_what_a_new_survey_finds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "SHARE", 10**9)
    yard = Yard(tmp_path, random.Random(seed))
    spec = yard.spec()
    again = Looking(spec, yard.states)
    for number in range(ROUNDS // 2):
        act = yard.act()
        if act in (yard.switch, yard.link, yard.edit):
            continue  # what the names of a spec lead to is as the survey found it
        act()
        chosen = yard.random.choice(spec.disks)
        told = f"round {number} of seed {seed}, after {act.__name__}"
        fresh = look(spec, yard.states, [chosen])[0]
        assert who_aside(again.again(chosen)) == who_aside(fresh), told


def test_images_that_are_as_they_were_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = Yard(tmp_path, random.Random(0))
    spec, memory = yard.spec(), Memory()
    time.sleep(0.05)
    chosen = [disk for disk in spec.disks if disk.domain == "a"]
    look(spec, yard.states, chosen, memory=memory)

    read: list[str] = []
    header = images.qcow2.read_header
    monkeypatch.setattr(
        images.qcow2,
        "read_header",
        lambda fd, name: read.append(Path(name).stem) or header(fd, name),
    )
    look(spec, yard.states, chosen, memory=memory)
    assert read == []

    yard.relink()
    time.sleep(0.05)
    look(spec, yard.states, chosen, memory=memory)
    assert set(read) == {"b2"}

    monkeypatch.setattr(lookups, "_LOCAL", frozenset())  # as on NFS
    read.clear()
    look(spec, yard.states, chosen, memory=memory)
    assert {"a1", "a2", "b1", "b2", "c1", "t"} <= set(read)


def test_a_folder_link_inside_a_backing_name_that_is_switched_is_seen(tmp_path: Path) -> None:
    """A name in a header may lead elsewhere though no header, and no listed name, has changed."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        tool("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / version / "t.qcow2", "64k")
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "img").mkdir()
    overlay = tmp_path / "img" / "x.qcow2"
    backing = tmp_path / "current" / "t.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, overlay)
    spec_file = tmp_path / "s.toml"
    spec_file.write_text(
        f'version = 1\n[domains.o.disks.vda]\nchain = ["{backing}", "{overlay}"]\n'
        f'[domains.d.disks.vda]\nchain = ["{tmp_path}/v2/t.qcow2"]\n'
    )
    spec = load([spec_file]).on(Host(allowed_roots=(tmp_path,)))
    states, memory = StateFolder(tmp_path / "state"), Memory()
    time.sleep(0.05)
    chosen = [disk for disk in spec.disks if disk.domain == "d"]
    (before,) = look(spec, states, chosen, memory)
    (tmp_path / "new").symlink_to("v2")
    os.rename(tmp_path / "new", tmp_path / "current")
    (after,) = look(spec, states, chosen, memory)

    assert before.task is not None
    assert after.task is not None
    assert before.task.users == {}
    assert after.task.users == {tmp_path / "v2" / "t.qcow2": ("x.qcow2", "o:vda")}
