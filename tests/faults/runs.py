"""One run of the campaign: a fault, what follows it, and what was wrong."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from reconciler.tools import files
from tests.faults.kinds import KINDS, Kind
from tests.faults.scenes import Current, Problem, Scene
from tests.faults.strike import Ended, How, Strike
from tests.images.disks import tool
from tests.images.random_chains import Wish, random_wish

PATIENCE = 3
"""Applies without a fault after which a disk has to be as its spec says."""
SECOND = ("kill-caller", "kill-both", "tear-both", "eio", "enospc", "boundary-after")
"""Kinds of a fault that comes while an earlier one is mended."""


@dataclass(slots=True)
class Result:
    """
    What became of one run.

    Attributes:
        id: ``seed.case:kind:number``, which repeats the run.
        struck: The call that was struck; empty: the run ended before.
        applies: Applies without a fault until the disk was as its spec says; 0: none was needed.
        refused: What an apply said that rightly refused to go on.
    """

    id: str
    kind: str
    struck: str = ""
    applies: int = 0
    refused: str = ""
    problems: list[Problem] = field(default_factory=list)


class Run:
    """Plays one fault on a scene."""

    def __init__(self, scene: Scene, kind: Kind, at: int) -> None:
        self.scene, self.kind, self.at = scene, kind, at
        self.result = Result(f"{scene.name}:{kind.name}:{at}", kind.name)
        self.dice = random.Random(self.result.id)
        self.striker = scene.striker
        self.wishes: list[Wish] = [scene.wish]
        self.undo: list[Callable[[], object]] = []
        self.listing = True
        self.certain = True

    def play(self) -> Result:
        """Strike, look, recover, look."""
        self.scene.restore()
        try:
            ended = self._struck(self.kind, self.at)
        finally:
            for one in reversed(self.undo):
                one()
        self.result.struck = ended.struck
        self._after(ended)
        # no image is read again once one reads wrong: the first problem is the one that tells
        if not self.result.problems:
            self._then()
        if not self.result.problems:
            self._recover()
        return self.result

    def _struck(self, kind: Kind, at: int) -> Ended:
        strike = self._strike(kind, at)
        return self.striker.run(self.scene.applying, strike)

    def _strike(self, kind: Kind, at: int) -> Strike:
        if kind.limit:
            what, least, most = kind.limit
            return Strike(How.COUNT, 0, limits={what: self.dice.randint(least, most)})
        hours = self.dice.choice([-100_000, -25, -1, 1, 30, 100_000])
        return Strike(
            kind.how,
            at,
            kind.error,
            kind.forever,
            kind.classes,
            clock=hours * 3600,
            meanwhile=self._world(kind) if kind.world else None,
        )

    def _after(self, ended: Ended) -> None:
        """Look at what a run that may have been struck has left."""
        problems = self.result.problems
        if ended.hung:
            problems.append(("stuck", "it never ends"))
        if "Traceback" in ended.err:
            problems.append(("untidy", f"traceback: {ended.err[-600:]}"))
        if ended.code == 0:
            problems += self.scene.not_done(self.wishes[-1], ended, listing=False)
        elif ended.code == 1 and not ended.text:
            problems.append(("untidy", "exit 1 without a word"))
        problems += self.scene.broken(*self.wishes, current="active" if ended.code else "seen")

    # What the world does

    def _world(self, kind: Kind) -> Callable[[], bool]:
        match kind.world:
            case "no space":
                return self._fill
            case "read-only":
                return lambda: self._remount("ro") and self._later(lambda: self._remount("rw"))
            case "immutable":
                return self._immutable
            case "a second apply":
                return self._second_apply
        raise AssertionError(kind.world)

    def _later(self, undo: Callable[[], object]) -> bool:
        self.undo.append(undo)
        return True

    def _fill(self) -> bool:
        filler, room = self.scene.disk.root / "filler", os.statvfs(self.scene.disk.root)
        left = self.dice.choice([0, 0, 4096, 65536, 400_000])
        with filler.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))
        return self._later(filler.unlink)

    def _remount(self, how: str) -> bool:
        argv = ["mount", "-o", f"remount,{how}", os.fspath(self.scene.disk.root)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def _immutable(self) -> bool:
        path = self.scene.disk.path(self.dice.choice(self.scene.names))
        argv = ["chattr", "+i", os.fspath(path)]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            return False
        return self._later(lambda: tool("chattr", "-i", path))

    def _second_apply(self) -> bool:
        child = self.striker.start(self.scene.applying, None, armed=False)

        def ended() -> None:
            said = self.striker.ended.pop(child, None)
            if said is None:
                said = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if said not in (0, 1):
                self.result.problems.append(("untidy", f"the second apply ended with {said}"))

        return self._later(ended)

    # What happens before the next apply

    def _then(self) -> None:
        match self.kind.then:
            case "again":
                self._again()
            case "spec changed":
                self._spec_changed()
            case "state lost":
                self.scene.lose_state()
                shutil.rmtree(self.scene.disk.state, ignore_errors=True)
                self._without_state()
            case "state truncated" | "state edited":
                self.scene.lose_state()
                self._state_damaged()
            case "stale files":
                self._stale_files()

    def _again(self) -> None:
        for _ in range(self.dice.randint(1, 2)):
            kind = KINDS[self.dice.choice(SECOND)]
            most = self.scene.tools if kind.tools else self.scene.calls
            at = 1 + int(most * self.dice.random() ** 2)
            ended = self._struck(kind, at)
            self.result.struck += f"; {ended.struck}"
            self._after(ended)
            if self.result.problems:
                return

    def _spec_changed(self) -> None:
        """Another wish, over what there is; where it is refused the first one has to converge."""
        names = [
            name
            for name in self.scene.names
            if name not in self.scene.discarded and self.scene.disk.path(name).exists()
        ]
        if self.scene.disk.path("new").exists():
            names.append("new")
        wish = random_wish(self.dice, names, "newer" if "new" in names else "new")
        while "discard" in wish.keys:
            wish = random_wish(self.dice, names, "newer" if "new" in names else "new")
        wish.keys["active"] = self.scene.wish.keys["active"]
        self.scene.write_spec(wish)
        self.wishes.append(wish)
        self.scene.release(wish)
        self.scene.undecided = bool(self.scene.discarded)
        ended = self.striker.run(self.scene.applying)
        self._after(ended)
        if ended.code == 0:
            self.listing = False
            left = [one.name for one in self.scene.disk.images.glob(f".*{files.NEW}")]
            if left:
                self.result.problems.append(("untidy", f"files left over: {left}"))
            return
        self.result.refused = ended.text
        self.wishes.pop()
        self.scene.write_spec(self.scene.wish)

    def _without_state(self) -> None:
        """A refusal is right here where it says why; nothing may be lost."""
        ended = self.striker.run(self.scene.applying)
        self.certain = self.listing = False
        if ended.code == 0:
            self._after(ended)
            return
        self.result.refused = ended.text or "nothing"
        if not ended.text:
            self.result.problems.append(("untidy", "exit 1 without a word"))
        self.result.problems += self.scene.broken(*self.wishes, current="anywhere")

    def _state_damaged(self) -> None:
        file = self.scene.disk.state / "vm.toml"
        if not file.exists():
            return
        content = bytearray(file.read_bytes())
        if self.kind.then == "state truncated":
            del content[self.dice.randrange(len(content)) :]
        else:
            content[self.dice.randrange(len(content))] = self.dice.choice(
                b'0123456789abi"= \n\0\xff'
            )
        file.write_bytes(content)
        ended = self.striker.run(self.scene.applying)
        self.certain = self.listing = False
        if ended.code == 0:
            self._after(ended)
            return
        self.result.refused = ended.text or "nothing"
        if not re.search("damaged|cannot be read", ended.err):
            self.result.refused = f"(not called damaged) {self.result.refused}"
        self.result.problems += self.scene.broken(*self.wishes, current="anywhere")
        file.rename(file.with_suffix(".old"))
        if not self.result.problems:
            self._without_state()

    def _stale_files(self) -> None:
        """What earlier versions and killed runs may have left about."""
        for path in [*self.scene.disk.images.iterdir()]:
            stale = path.with_name(f".{path.name}{files.NEW}")
            if not stale.exists():
                stale.write_bytes(b"stale")
        new = self.scene.disk.path("new")
        new.with_name(f".{new.name}{files.NEW}").write_bytes(b"stale")
        locks = self.scene.disk.state / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        (locks / "vm:vda").write_text("4711\n")
        (self.scene.disk.state / ".lock").write_text("4711\n")
        (self.scene.disk.state / ".vm.toml.new").write_text("version = ")
        self.listing = False

    # The next applies

    def _recover(self) -> None:
        for count in range(1, PATIENCE + 1):
            ended = self.striker.run(self.scene.applying)
            if "Traceback" in ended.err:
                self.result.problems.append(("untidy", f"traceback: {ended.err[-600:]}"))
            if ended.code == 0:
                self.result.applies = count
                wish = self.wishes[-1]
                wrong = self.scene.not_done(wish, ended, listing=self.listing)
                self.result.problems += wrong + self.scene.broken(*self.wishes, current="seen")
                return
        current: Current = "active" if self.certain else "anywhere"
        self.result.problems += self.scene.broken(*self.wishes, current=current)
        if self.certain:
            said = f"after {PATIENCE} applies it says {ended.text[-700:]!r}"
            self.result.problems.append(("stuck", said))
        else:
            self.result.refused = ended.text or self.result.refused


def count(scene: Scene) -> list[Problem]:
    """An apply that nothing disturbs: how much it does, and what it leaves."""
    scene.restore()
    ended = scene.striker.run(scene.applying)
    scene.calls, scene.tools = ended.calls, ended.tools
    scene.listing = frozenset(path.name for path in scene.disk.images.iterdir())
    if ended.code:
        said = f"it was planned, and failed: {ended.text[-700:]}"
        return [("stuck", said), *scene.broken(scene.wish)]
    return scene.not_done(scene.wish, ended) + scene.broken(scene.wish, current="seen")


def numbers(kind: Kind, scene: Scene, dice: random.Random, most: int) -> Sequence[int]:
    """Numbers at which *kind* strikes *scene*: all of them, or *most* random ones."""
    last = scene.tools if kind.tools else scene.calls
    if kind.limit:
        return [dice.randint(1, 10**6) for _ in range(most)]
    return sorted(dice.sample(range(1, last + 1), min(most, last)))
