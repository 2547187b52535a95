"""A random disk with a random wish, and what must hold of it at every moment."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reconciler.tools import files
from tests.faults.strike import Ended, Striker
from tests.images.disks import Disk, differing, info, short, tool, view
from tests.images.random_chains import Wish, random_chain, random_wish

OWNER = (12345, 12346)
MODES = (0o640, 0o600, 0o660)
ATTEMPTS = 60
"""Chains that are made until a wish can be planned and has steps."""

Current = Literal["active", "anywhere", "seen"]
Problem = tuple[str, str]
"""What kind of a problem (`loss`, `stuck`, `untidy`, `leaks`), and what it is."""


@dataclass(slots=True)
class Scene:
    """
    A disk, the wish for it, and its golden copies.

    Attributes:
        currents: Images whose golden copies may be the current state.
        fixed: Files that are as they were, whatever happens, by their name in the folder.
        shared: Those of them that somebody else stands on.
        released: Those of them that a later wish of this run may change.
        manners: Owner and mode of each file of the chain.
        active_manners: Those of the image that the guest writes.
        listing: Files in the folder after an apply that nothing disturbed.
        calls, tools: How much such an apply does.
    """

    name: str
    disk: Disk
    striker: Striker
    saved: Path
    names: list[str] = field(default_factory=list)
    wish: Wish = field(default_factory=lambda: Wish("", "", []))
    formats: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    manners: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    active_manners: tuple[int, int, int] = (0, 0, 0)
    listing: frozenset[str] = frozenset()
    calls: int = 0
    tools: int = 0
    going: set[str] = field(default_factory=set)
    """Files that will be removed, as a state file said that was lost since."""
    undecided: bool = False
    """A later wish takes the discarding back: either golden copy may be the current state."""

    @property
    def discarded(self) -> list[str]:
        return list(self.wish.keys.get("discard", ()))

    @property
    def currents(self) -> frozenset[str]:
        return frozenset({self.wish.current, *self.discarded[-1:]})

    # Making it

    def build(self) -> None:
        """Make chains until one has a wish that can be planned and has steps."""
        for attempt in range(ATTEMPTS):
            self._clear()
            dice = random.Random(f"{self.name}/{attempt}")
            names, raw_base = random_chain(self.disk, dice)
            self.names = names
            self.disk.add("bystander", "64k:Z 64k:- 64k:Y")
            (self.disk.images / "note.txt").write_text("not an image\n")
            shared = dice.choice(names[:-1]) if dice.random() < 0.2 else None
            if shared and not (raw_base and shared == names[0]):
                self.disk.add("shared", "64k:- 64k:S", on=shared)
            else:
                shared = None
            for number, name in enumerate(names):
                os.chown(self.disk.path(name), *OWNER)
                self.disk.path(name).chmod(MODES[number % len(MODES)])
            self.wish = random_wish(dice, names)
            self.formats = {names[0]: "raw"} if raw_base else {}
            self.write_spec(self.wish)
            if self._has_steps():
                self.disk.keep()
                self._remember(shared)
                self.save()
                return
        raise AssertionError(f"{self.name}: no wish of {ATTEMPTS} can be planned")

    def _clear(self) -> None:
        for path in (self.disk.images, self.disk.state):
            shutil.rmtree(path, ignore_errors=True)
        self.disk.paths.clear()
        self.disk.formats.clear()
        self.disk.images.mkdir(parents=True)

    def _has_steps(self) -> bool:
        said = self.striker.run(["plan", "--json", *self._where()])
        if said.code:
            return False
        disk = json.loads(said.out)["domains"][0]["disks"][0]
        return bool(disk["steps"]) and not disk["error"]

    def _remember(self, shared: str | None) -> None:
        last = self.wish.chain.removeprefix("~").split(" <- ")
        fixed = {"bystander.qcow2", "note.txt"}
        if shared:
            upto = self.names[: self.names.index(shared) + 1]
            self.shared = {"shared.qcow2", *(self.disk.path(name).name for name in upto)}
            fixed |= self.shared
        if self.names[0] not in [word.removeprefix("~") for word in last] and not (
            self.wish.keys.get("remove_base")
        ):
            fixed.add(self.disk.path(self.names[0]).name)
        self.fixed = {name: _still(self.disk.images / name) for name in fixed}
        self.manners = {
            self.disk.path(name).name: _manners(self.disk.path(name)) for name in self.names
        }
        self.active_manners = self.manners[self.disk.path(self.names[-1]).name]

    def save(self) -> None:
        """Copy all images away, owners and times too."""
        shutil.rmtree(self.saved, ignore_errors=True)
        tool("cp", "-a", self.disk.images, self.saved)

    def restore(self) -> None:
        self.going, self.released = set(), set()
        for path in (self.disk.images, self.disk.state):
            shutil.rmtree(path, ignore_errors=True)
        tool("cp", "-a", "--sparse=always", self.saved, self.disk.images)
        self.undecided = False
        self.going = set()
        self.write_spec(self.wish)

    def write_spec(self, wish: Wish) -> None:
        """Let the spec say *wish*."""
        listed = _words(wish.chain)
        formats = {name: one for name, one in self.formats.items() if name in listed}
        keys = {key: value for key, value in wish.keys.items() if key != "discard"}
        discard = wish.keys.get("discard", ())
        self.disk.spec(wish.chain, discard=discard, formats=formats, **keys)

    def _where(self) -> list[str | Path]:
        return ["--state-dir", self.disk.state, self.disk.spec_file]

    @property
    def applying(self) -> list[str | Path]:
        """The words of an apply."""
        return ["apply", "-y", *self._where()]

    def lose_state(self) -> None:
        """Remember what the state file says now: it will not say it any more."""
        self.going = _going(self.disk.state / "vm.toml")

    # What must hold

    def kept(self, *wishes: Wish) -> list[str]:
        """Restore points that all of *wishes*, and the observed chain, have."""
        points = [
            {word for word in wish.chain.split(" <- ")[:-1] if not word.startswith("~")}
            for wish in wishes
        ]
        return [name for name in self.names if all(name in one for one in points)]

    def active(self) -> tuple[Path | None, str]:
        """The image that the guest would be started from, or why none is told."""
        said = self.striker.run(["show", "--json", *self._where()])
        try:
            images = json.loads(said.out)["disks"][0]["images"]
        except (ValueError, LookupError):
            return None, f"show says {said.text[:300]!r}"
        found = [Path(image["path"]) for image in images if image["role"] == "active"]
        return (found[0], "") if found else (None, f"show has no active image: {said.text[:300]}")

    def broken(self, *wishes: Wish, current: Current = "active") -> list[Problem]:
        """
        What of DESIGN §2 does not hold right now, in words.

        Args:
            current: Where the current state has to be: in the active image, in
                any image (who knows the active one?), or it was looked at already.
        """
        wrong = [
            ("loss", f"the restore point {name} {said}")
            for name in self.kept(*wishes)
            if (said := self.differs(self.disk.path(name), name))
        ]
        wrong += self._changed_outside() + self._dangling()
        if current == "seen":
            return wrong
        active, why = self.active() if current == "active" else (None, "")
        if active is not None:
            return wrong + self.wrong_current(active)
        if self._nowhere():
            return [*wrong, ("loss", "no image of the folder reads as the current state")]
        return [*wrong, ("stuck", why)] if why else wrong

    def wrong_current(self, active: Path) -> list[Problem]:
        """What the guest would read wrong if it were started from *active*."""
        name = short(active)
        # until the guest goes back, it is where it was
        may = {name} if name in self.discarded else self.currents - {*self.discarded}
        may = self.currents if self.undecided else may
        said = [self.differs(active, golden) for golden in sorted(may)]
        return [] if "" in said else [("loss", f"the current state, in {name}, {said[0]}")]

    def differs(self, path: Path, golden: str) -> str:
        """How the view of *path* differs from a golden copy; empty: it does not."""
        try:
            name = path.name if path.name in self.disk.formats else short(path)
            now = view(path, self.disk.formats.get(name, "qcow2"))
        except (AssertionError, OSError) as error:
            return f"cannot be read: {str(error)[:300]}"
        found = differing(now, self.disk.golden[golden])
        return f"reads {found}" if found else ""

    def _nowhere(self) -> bool:
        """True where no file of the folder reads as the current state."""
        paths = [path for path in self.disk.images.iterdir() if _is_image(path)]
        paths += [self.disk.path(name) for name, one in self.formats.items() if one == "raw"]
        return all(
            self.differs(path, golden)
            for path in paths
            if path.exists()
            for golden in self.currents
        )

    def release(self, wish: Wish) -> None:
        """A base that the first wish left alone may change where *wish* lists or gives it away."""
        base = self.names[0]
        if base in _words(wish.chain) or wish.keys.get("remove_base"):
            self.released = {self.disk.path(base).name} - self.shared

    def _changed_outside(self) -> list[Problem]:
        return [
            ("loss", f"{name}, which is not ours to change, was changed")
            for name, before in self.fixed.items()
            if name not in self.released and _still(self.disk.images / name) != before
        ]

    def _dangling(self) -> list[Problem]:
        """Images whose backing file is gone."""
        going = self.going | _going(self.disk.state / "vm.toml")
        wrong: list[Problem] = []
        for path in sorted(self.disk.images.iterdir()):
            if not _is_image(path) or path.name.endswith(files.NEW):
                continue
            below = _recorded(path)
            if below is not None and not below.exists():
                kind = "untidy" if path.name in going else "loss"
                wrong.append((kind, f"{path.name} names {below.name}, which is gone"))
        return wrong

    def not_done(self, wish: Wish, ended: Ended, *, listing: bool = True) -> list[Problem]:
        """
        What is wrong after an apply of *wish* that ended with exit code 0.

        Args:
            listing: No file may be left over or be gone.
        """
        names = _words(wish.chain)
        active, why = self.active()
        if active is None:
            return [("loss", f"exit 0, and {why}; it said {ended.text[:300]}")]
        try:
            stack = self.disk.stack(short(active) if active.suffix == ".qcow2" else active.name)
        except AssertionError as error:
            return [("loss", f"exit 0, and the chain is broken: {str(error)[:300]}")]
        wrong: list[Problem] = []
        if stack != " <- ".join(names):
            wrong.append(("loss", f"exit 0, and the chain is {stack}, not {wish.chain}"))
        wrong += self.wrong_current(active)
        wrong += self._unsound(wish, manners=wish is self.wish)
        now = {path.name for path in self.disk.images.iterdir()}
        if listing and now != self.listing:
            left, gone = sorted(now - self.listing), sorted(self.listing - now)
            wrong.append(("untidy", f"files left over: {left}, files gone: {gone}"))
        return wrong + self._unquiet()

    def _unsound(self, wish: Wish, *, manners: bool) -> list[Problem]:
        wrong: list[Problem] = []
        names = _words(wish.chain)
        for name in names:
            path = self.disk.path(name)
            if not path.exists():
                continue
            had = {self.manners.get(path.name)}
            # owner and mode follow the guest's image to where it goes; a rollback may put another
            # image on top of that at once
            if name == names[-1] or "discard" in wish.keys:
                had.add(self.active_manners)
            if manners and None not in had and _manners(path) not in had:
                wrong.append(("untidy", f"owner and mode of {name} are {_manners(path)}"))
            if self.disk.formats.get(name, "qcow2") == "qcow2":
                said = tool("qemu-img", "check", "--output=json", "-f", "qcow2", path, code=None)
                told = json.loads(said)
                if told.get("corruptions") or told.get("check-errors"):
                    wrong.append(("loss", f"qemu-img check of {name}: {told}"))
                elif told.get("leaks"):
                    wrong.append(("leaks", f"{name} has {told['leaks']} leaked clusters"))
        return wrong

    def _unquiet(self) -> list[Problem]:
        """What a second apply does, which has nothing to do."""
        before = self.disk.everything()
        said = self.striker.run(self.applying)
        if said.code or not said.out.startswith("Nothing to do"):
            return [("untidy", f"a second apply says {said.text[:300]!r}")]
        if self.disk.everything() != before:
            return [("untidy", "a second apply writes")]
        return []


def _going(state: Path) -> set[str]:
    """Names of files that the state file says will be removed."""
    try:
        disks = tomllib.loads(state.read_text()).get("disks", {}).values()
        return {
            Path(one["path"]).name
            for disk in disks
            for one in (*disk.get("leftovers", ()), *disk.get("unfinished", {}).get("remove", ()))
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _words(chain: str) -> list[str]:
    return [word.strip().removeprefix("~") for word in chain.split(" <- ")]


def _is_image(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"QFI\xfb"


def _recorded(path: Path) -> Path | None:
    """The backing file that the header of *path* names."""
    try:
        name: str | None = info(path).get("backing-filename")
    except AssertionError:
        return None
    if name is None:
        return None
    if name.startswith("json:"):
        return Path(json.loads(name.removeprefix("json:"))["file"]["filename"])
    return path.parent / name.removeprefix("file:")


def _manners(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _still(path: Path) -> tuple[str, int, int]:
    """All of a file that must not change, but for its inode."""
    if not path.exists():
        return "gone", 0, 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = path.stat()
    return digest, found.st_mtime_ns, found.st_mode
