"""
The proof that every plan must pass: played on a symbolic model, each kept view
reads the same after every step.

The model gives every image the data it holds as a word of letters, lowest
first.  A letter is the data that one image held in the beginning, or zeroes
from some byte on.  The view of an image is the word of its backing file
followed by its own: later letters win.  Because a letter writes the same bytes
wherever it stands, only its last place in a word counts, so two views are
equal if their words, reduced to last places, are.

An image that is shorter than the one below it reads, from above, as zeroes
beyond its end: the letter ``Zeroes(end)`` between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from reconciler.model.errors import ProofFailed
from reconciler.model.image import Chain, short_name
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
    Step,
)


@dataclass(frozen=True, slots=True)
class Data:
    """
    What one image held in the beginning.

    Attributes:
        origin: The image.
        limit: Its size in bytes then; the letter writes nothing beyond.
        total: Nothing below shows through, beyond *limit* neither.
    """

    origin: str
    limit: int
    total: bool = False


@dataclass(frozen=True, slots=True)
class Zeroes:
    """Zeroes from byte *start* to the end."""

    start: int


Letter = Data | Zeroes
Word = tuple[Letter, ...]


def reduced(word: Word, size: int) -> Word:
    """The one shortest form of *word*, as far as a reader of *size* bytes can tell."""
    last: dict[Letter, None] = {}
    zeroes_from = size
    for letter in reversed(word):
        if isinstance(letter, Zeroes):
            if letter.start < zeroes_from:
                last[letter] = None
                zeroes_from = letter.start
        elif letter not in last:
            last[letter] = None
            if letter.total:
                break
    letters: list[Letter] = []
    for letter in reversed(last):
        if isinstance(letter, Zeroes):
            _sink(letters, letter)
        else:
            letters.append(letter)
    return tuple(letters)


def _sink(letters: list[Letter], zeroes: Zeroes) -> None:
    """Put *zeroes* on top of *letters*, below all that write nothing where they do."""
    at = len(letters)
    while at:
        below = letters[at - 1]
        if (below.start if isinstance(below, Zeroes) else below.limit) > zeroes.start:
            break
        if isinstance(below, Zeroes) or below.total:
            return  # these bytes are zeroes already
        at -= 1
    letters.insert(at, zeroes)


@dataclass(frozen=True, slots=True)
class Held:
    """One image of the model: its data, what it stands on, and its size in bytes."""

    word: Word
    backing: Path | None
    size: int


@dataclass(frozen=True, slots=True)
class World:
    """All images of the model, and which one is active."""

    images: Mapping[Path, Held]
    active: Path | None

    @classmethod
    def of(cls, chains: Iterable[Chain], active: Path | None) -> World:
        """The world before the first step; every image holds the letter of its own."""
        images: dict[Path, Held] = {}
        for chain in chains:
            below: Path | None = None
            for image in chain:
                letter = Data(str(image.path), image.virtual_size, total=below is None)
                images[image.path] = Held((letter,), below, image.virtual_size)
                below = image.path
        return cls(images, active)

    def view(self, path: Path) -> Word:
        """The unreduced word of the view of *path*; ProofFailed where the chain is broken."""
        return self.above(None, path)

    def reads(self, path: Path, size: int | None = None) -> tuple[int, Word]:
        """Size and reduced word of what a reader of *path* sees, up to *size* bytes."""
        limit = self._held(path).size if size is None else size
        return limit, reduced(self.view(path), limit)

    def _held(self, path: Path) -> Held:
        try:
            return self.images[path]
        except KeyError:
            raise ProofFailed(f"{path} is named and does not exist") from None

    def _chain(self) -> Iterable[Path]:
        """The active image and all below it: those whose headers a step rewrites."""
        found: dict[Path, None] = {}
        at = self.active
        while at is not None and at in self.images and at not in found:
            found[at] = None
            at = self.images[at].backing
        return found

    def above(self, base: Path | None, top: Path) -> Word:
        """The word that *top* and all images above *base* add to the view of *base*."""
        downwards: list[Word] = []
        seen: set[Path] = set()
        at: Path | None = top
        while at != base:
            if at is None:
                raise ProofFailed(f"{base} is not below {top}")
            if at in seen:
                raise ProofFailed(f"{short_name(at)} stands on itself")
            seen.add(at)
            held = self._held(at)
            downwards.append(held.word)
            if held.backing is not None and (below := self._held(held.backing)).size != held.size:
                downwards.append((Zeroes(min(held.size, below.size)),))
            at = held.backing
        return tuple(letter for word in reversed(downwards) for letter in word)

    def after(self, step: Step) -> World:
        """The world that *step* leaves behind."""
        images = dict(self.images)
        active = self.active
        match step:
            case Create(image, backing, _, size):
                if image in self.images:
                    raise ProofFailed(f"{step} replaces an image")
                word: Word = () if backing else (Data(str(image), size, total=True),)
                images[image] = Held(word, backing, size)
                active = image
            case Commit(top, base, relink):
                lower = self._held(base)
                end = self._held(top).size
                if lower.size > end:
                    raise ProofFailed(f"{step}: a commit never shrinks {short_name(base)}")
                data = (*self.above(base, top), Zeroes(end))
                images[base] = Held((*lower.word, *data), lower.backing, end)
                if relink:
                    for path in self._chain():
                        if self.images[path].backing == top:
                            images[path] = replace(self.images[path], backing=base)
                    active = base if active == top else active
            case Pull(into, base):
                images[into] = replace(self._held(into), word=self.above(base, into), backing=base)
            case Rebase(image, backing):
                held = self._held(image)
                same = held.backing is not None and _same(self, held.backing, backing)
                word = held.word if same else self.above(None, image)
                images[image] = replace(held, word=word, backing=backing)
            case Rename(source, target) if source not in self.images:
                self._held(target)  # of the two names of a file, one goes
            case Rename(source, target):
                images[target] = images.pop(source)
                for path in self._chain():
                    if path in images and images[path].backing == source:
                        images[path] = replace(images[path], backing=target)
                active = target if active == source else active
            case Resize(image, size):
                held = self._held(image)
                images[image] = replace(held, word=(Zeroes(held.size), *held.word), size=size)
            case Attach(image):
                active = image
            case Remove(image):
                images.pop(image, None)
            case Repair(image):
                self._held(image)
            case Forget():
                pass
            case _:
                assert_never(step)
        return World(images, active)


def _same(world: World, one: Path, other: Path) -> bool:
    return one == other or (one in world.images and world.reads(one) == world.reads(other))


def prove(
    world: World,
    steps: Iterable[Step],
    *,
    kept: Iterable[Path],
    untouched: Iterable[Path],
    current: Path | None,
) -> World:
    """
    The world after *steps*, each of which keeps the promise.

    Args:
        world: Before the first step.
        kept: Restore points that must read the same at every moment.
        untouched: Images that must hold the same data and stand on the same
            image at every moment: templates, shared and foreign ones.
        current: The image whose view is the current state; None: a new disk.

    Raises:
        ProofFailed: A step breaks the promise.
    """
    views = {path: world.reads(path) for path in kept}
    before = world.active
    first, state = _grown_view(world, before), _grown_view(world, current)
    frozen = {path: world.images[path] for path in untouched if path in world.images}
    used: set[Path] = set()
    look = True  # the first step is judged in full
    for step in steps:
        earlier, world = world, world.after(step)
        changed = _changed(earlier, world)
        look = look or world.active != earlier.active or not changed.isdisjoint(used)
        same: set[Path] = set()
        for path, view in views.items() if look else ():
            if not _as_before(world, path, changed, same) and world.reads(path) != view:
                raise ProofFailed(f"{step} changes the restore point {short_name(path)}")
            same.add(path)
        for path, held in frozen.items() if not changed.isdisjoint(frozen) else ():
            if world.images.get(path) != held:
                raise ProofFailed(f"{step} changes {short_name(path)}, which is not ours")
        # until the switch of a rollback the guest has what is discarded
        expected = first if world.active == before != current else state
        if look and expected and not _shows(world, expected):
            raise ProofFailed(f"{step} changes the current state")
        if look:
            used, look = _made_of(world, [*views, world.active]), False
    if state and not _shows(world, state):
        raise ProofFailed("the last step does not end in the current state")
    return world


def _changed(before: World, after: World) -> set[Path]:
    """Images that are another one, or only there, in one of two worlds."""
    old, new = before.images, after.images
    gone = old.keys() - new.keys()
    return gone | {path for path, held in new.items() if old.get(path) is not held}


def _as_before(world: World, path: Path, changed: set[Path], same: set[Path]) -> bool:
    """
    True where the view of *path* must read as it did before a step.

    It must where *path* and all below it are unchanged, down to the base or to
    a view that reads the same: only the other views have to be read anew.

    Args:
        changed: Images that the step changed.
        same: Images whose views are known to read as before.
    """
    at: Path | None = path
    while at is not None and at not in same:
        if at in changed:
            return False
        at = world.images[at].backing
    return True


def _made_of(world: World, views: Iterable[Path | None]) -> set[Path]:
    """Every image that one of *views* reads from."""
    found: set[Path] = set()
    for at in views:
        while at is not None and at in world.images and at not in found:
            found.add(at)
            at = world.images[at].backing
    return found


def _grown_view(world: World, path: Path | None) -> tuple[int, Word] | None:
    """Size and word of a view, with zeroes behind its end: so a disk may grow."""
    if path is None:
        return None
    size = world.reads(path)[0]
    return size, (*world.view(path), Zeroes(size))


def _shows(world: World, expected: tuple[int, Word]) -> bool:
    """True where the active image reads as *expected*, and as zeroes beyond its end."""
    if world.active is None:
        return False
    size, word = world.reads(world.active)
    return size >= expected[0] and word == reduced(expected[1], size)
