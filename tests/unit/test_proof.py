"""The proof: what it rejects, what it accepts, and the laws of its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Resize,
    Step,
)
from reconciler.planner.proof import Data, ProofFailed, Word, World, Zeroes, prove, reduced
from tests.notation import MIB, chain, path

SIZE = 64 * MIB
BIG = {"virtual_size": 128 * MIB}
SMALL = {"virtual_size": 32 * MIB}


def commit(top: str, base: str, relink: bool = True) -> Commit:
    return Commit(path(top), path(base), relink)


def pull(into: str, base: str | None) -> Pull:
    return Pull(path(into), path(base) if base else None)


def create(name: str, backing: str | None, size: int = SIZE) -> Create:
    return Create(path(name), path(backing) if backing else None, "qcow2", size)


def rename(source: str, target: str) -> Rename:
    return Rename(path(source), path(target))


def remove(name: str) -> Remove:
    return Remove(path(name))


def rebase(name: str, backing: str) -> Rebase:
    return Rebase(path(name), path(backing))


def attach(name: str) -> Attach:
    return Attach(path(name))


def resize(name: str, size: int) -> Resize:
    return Resize(path(name), size)


def proven(
    observed: str,
    steps: Sequence[Step],
    *,
    keeps: str = "",
    untouched: str = "",
    current: str | None = "x",
    foreign: str = "(none)",
    facts: dict[str, dict[str, Any]] | None = None,
) -> World:
    there = chain(observed, facts)
    active = there.active
    return prove(
        World.of([there, chain(foreign, facts)], active.path if active else None),
        steps,
        kept=[path(name) for name in keeps.split()],
        untouched=[path(name) for name in untouched.split()],
        current=path(current) if current else None,
    )


BAD = [
    # id, observed, steps, rest, what is wrong
    (
        "a commit into a kept restore point",
        "b <- p <- q <- x*",
        [commit("q", "p")],
        {"keeps": "b p"},
        "commit q down into p changes the restore point p",
    ),
    (
        "a commit into an image below a kept restore point",
        "b <- p <- q <- x*",
        [commit("x", "b", relink=False)],
        {"keeps": "p"},
        "commit x down into b changes the restore point p",
    ),
    (
        "a commit into a shared image",
        "b <- p <- x*",
        [commit("x", "p")],
        {"untouched": "b p"},
        "commit x down into p changes p, which is not ours",
    ),
    (
        "a pull into a shared image",
        "b <- p <- x*",
        [pull("p", None)],
        {"untouched": "b p"},
        "pull up into p down to nothing changes p, which is not ours",
    ),
    (
        "another backing file for a shared image, though it reads the same",
        "b <- p <- x*",
        [create("y", "b"), commit("y", "b"), rebase("p", "b"), resize("p", 2 * SIZE)],
        {"untouched": "p", "current": "x"},
        "create y on b changes the current state",
    ),
    (
        "the removal of a template",
        "t <- x*",
        [pull("x", None), remove("t")],
        {"untouched": "t"},
        "remove t changes t, which is not ours",
    ),
    (
        "a template under another name",
        "t <- x*",
        [rename("t", "s")],
        {"untouched": "t"},
        "rename t to s changes t, which is not ours",
    ),
    (
        "the removal of what a kept image stands on",
        "b <- p <- x*",
        [remove("b")],
        {"keeps": "p"},
        "/images/b.qcow2 is named and does not exist",
    ),
    (
        "the removal of what the active image stands on",
        "b <- p <- x*",
        [remove("p")],
        {"keeps": "b"},
        "/images/p.qcow2 is named and does not exist",
    ),
    (
        "the removal of a kept restore point itself",
        "b <- p <- x*",
        [pull("x", None), remove("p")],
        {"keeps": "p"},
        "/images/p.qcow2 is named and does not exist",
    ),
    (
        "the removal of the active image",
        "b <- x*",
        [remove("x")],
        {"keeps": "b"},
        "/images/x.qcow2 is named and does not exist",
    ),
    (
        "another image under the name of a kept one",
        "b <- p <- q <- x*",
        [pull("x", "p"), rename("q", "p")],
        {"keeps": "p"},
        "p stands on itself",
    ),
    (
        "another image with a whole view under the name of a kept one",
        "b <- p <- q <- x*",
        [pull("q", None), pull("x", None), rename("q", "p")],
        {"keeps": "p"},
        "rename q to p changes the restore point p",
    ),
    (
        "another image under the name of the active one",
        "b <- p <- x*",
        [rename("p", "x")],
        {"keeps": "b"},
        "rename p to x changes the current state",
    ),
    (
        "the rename before the commit",
        "b <- p <- q <- x*",
        [rename("q", "x"), commit("x", "q", relink=False)],
        {"keeps": "b p"},
        "rename q to x changes the current state",
    ),
    (
        "the removal before the pull",
        "b <- p <- q <- x*",
        [remove("q"), pull("x", "p")],
        {"keeps": "b p"},
        "/images/q.qcow2 is named and does not exist",
    ),
    (
        "a pull after the data below was changed",
        "b <- p <- q <- x*",
        [commit("x", "q", relink=False), pull("p", None), commit("q", "p"), pull("q", None)],
        {"keeps": "p"},
        "commit q down into p changes the restore point p",
    ),
    (
        "a commit upwards",
        "b <- p <- x*",
        [commit("b", "p")],
        {},
        "/images/p.qcow2 is not below /images/b.qcow2",
    ),
    (
        "a pull down to an image that is not below",
        "b <- p <- x*",
        [pull("p", "x")],
        {},
        "/images/x.qcow2 is not below /images/p.qcow2",
    ),
    (
        "a step on an image that is not there",
        "b <- x*",
        [commit("y", "b")],
        {},
        "/images/y.qcow2 is named and does not exist",
    ),
    (
        "a rollback that nobody asked for",
        "b <- p <- x*",
        [attach("p")],
        {"keeps": "b"},
        "attach p changes the current state",
    ),
    (
        "a rollback too far",
        "b <- p <- x*",
        [attach("b")],
        {"current": "p"},
        "attach b changes the current state",
    ),
    (
        "a rollback that does not come",
        "b <- p <- x*",
        [remove("b")],
        {"current": "p"},
        "/images/b.qcow2 is named and does not exist",
    ),
    (
        "a new overlay on the wrong image",
        "b <- p <- x*",
        [create("y", "p")],
        {"keeps": "b p"},
        "create y on p changes the current state",
    ),
    (
        "a new file over a kept restore point",
        "b <- p <- x*",
        [create("p", "x")],
        {"keeps": "p"},
        None,
    ),
    (
        "a new overlay that is shorter than the disk",
        "b <- x*",
        [create("y", "x", size=SIZE // 2)],
        {"keeps": "b"},
        "create y on x changes the current state",
    ),
    (
        "a restore point that grows",
        "b <- p <- x*",
        [resize("p", 2 * SIZE)],
        {"keeps": "p"},
        "resize p to 134217728 changes the restore point p",
    ),
    (
        "a restore point that shrinks",
        "b <- p <- x*",
        [resize("p", SIZE // 2)],
        {"keeps": "p"},
        "resize p to 33554432 changes the restore point p",
    ),
    (
        "a disk that shrinks",
        "b <- x*",
        [resize("x", SIZE // 2)],
        {"keeps": "b"},
        "resize x to 33554432 changes the current state",
    ),
    (
        "a commit of an image that hides the end of a longer one",
        "b <- p <- q <- x*",
        [commit("q", "p")],
        {"keeps": "b", "facts": {"q": SMALL}},
        "commit q down into p: a commit never shrinks p",
    ),
    (
        "a commit below a restore point that was cut by a short image",
        "b <- p <- q <- r <- x*",
        [commit("q", "p")],
        {"keeps": "r", "facts": {"q": SMALL}},
        "commit q down into p: a commit never shrinks p",
    ),
    (
        "a commit of zeroes into a longer image, whose end they do not reach",
        "b <- p <- q <- r <- x*",
        [commit("q", "b")],
        {"keeps": "", "facts": {"p": SMALL, "q": {"virtual_size": 48 * MIB}}},
        "commit q down into b: a commit never shrinks b",
    ),
    (
        "a header that goes to an image that reads differently",
        "b <- p <- q <- x*",
        [commit("x", "q", relink=False), rename("q", "x"), rebase("x", "b"), commit("x", "b")],
        {"keeps": "b"},
        "commit x down into b changes the restore point b",
    ),
    (
        "an image that stands on itself",
        "b <- p <- x*",
        [pull("p", "p")],
        {"keeps": "b"},
        None,
    ),
    (
        "a pull out of an image whose backing file is gone",
        "b <- p <- x*",
        [Attach(path("b")), Remove(path("p")), pull("x", "p")],
        {"keeps": "b", "current": "b"},
        "/images/p.qcow2 is named and does not exist",
    ),
    (
        "a view that changes after many steps that change none",
        "b <- p <- q <- r <- x*",
        [pull("x", "b"), Remove(path("r")), Remove(path("q")), commit("x", "b")],
        {"keeps": "b"},
        "commit x down into b changes the restore point b",
    ),
    (
        "a base that stands on its own overlay",
        "b <- p <- x*",
        [rebase("b", "p")],
        {"keeps": "p"},
        None,
    ),
]


@pytest.mark.parametrize(
    ("observed", "steps", "rest", "wrong"), [pytest.param(*row, id=name) for name, *row in BAD]
)
def test_the_proof_rejects(
    observed: str, steps: list[Step], rest: dict[str, Any], wrong: str | None
) -> None:
    with pytest.raises(ProofFailed) as failed:
        proven(observed, steps, **rest)

    assert wrong in (None, str(failed.value))


GOOD = [
    # id, observed, steps, rest, the active image and what it then stands on
    ("nothing", "b <- x*", [], {"keeps": "b", "untouched": "b"}, "b <- x"),
    ("a new overlay", "b <- x*", [create("y", "x")], {"keeps": "b x"}, "b <- x <- y"),
    (
        "a new, larger overlay",
        "b <- x*",
        [create("y", "x", size=2 * SIZE)],
        {"keeps": "b x"},
        "b <- x <- y",
    ),
    (
        "a thin instance",
        "(none)",
        [create("y", "t")],
        {"foreign": "t", "untouched": "t", "current": None},
        "t <- y",
    ),
    (
        "a commit between kept restore points",
        "b <- p <- q <- r <- x*",
        [commit("r", "q"), remove("r")],
        {"keeps": "b p"},
        "b <- p <- q <- x",
    ),
    (
        "a commit below the top, then its name",
        "b <- p <- q <- r <- x*",
        [commit("x", "q", relink=False), rename("q", "x"), remove("r")],
        {"keeps": "b p"},
        "b <- p <- x",
    ),
    (
        "down and up into the middle",
        "b <- p <- q <- r <- x*",
        [
            commit("x", "q", relink=False),
            pull("q", "b"),
            rename("q", "x"),
            remove("r"),
            remove("p"),
        ],
        {"keeps": "b", "untouched": "b"},
        "b <- x",
    ),
    (
        "a kept restore point that is replaced by a file with the same view",
        "b <- p <- q <- x*",
        [commit("q", "p", relink=False), rename("p", "q")],
        {"keeps": "b q"},
        "b <- q <- x",
    ),
    ("a pull", "b <- p <- q <- x*", [pull("q", "b"), remove("p")], {"keeps": "b q"}, "b <- q <- x"),
    ("flatten", "b <- x*", [pull("x", None)], {"untouched": "b"}, "x"),
    (
        "the active image goes down",
        "b <- p <- x*",
        [commit("x", "p"), remove("x")],
        {"keeps": "b"},
        "b <- p",
    ),
    (
        "a rollback",
        "b <- p <- x*",
        [attach("p"), remove("x")],
        {"keeps": "b", "current": "p"},
        "b <- p",
    ),
    (
        "a rollback to a new overlay",
        "b <- p <- x*",
        [create("y", "p"), remove("x")],
        {"keeps": "b p", "current": "p"},
        "b <- p <- y",
    ),
    (
        "a format that is written down before a rollback",
        "b <- p <- x*",
        [rebase("p", "b"), attach("p"), remove("x")],
        {"keeps": "b p", "current": "p"},
        "b <- p",
    ),
    (
        "another base",
        "b <- p <- x*",
        [rebase("p", "c"), remove("b")],
        {"keeps": "p", "foreign": "c", "untouched": "c"},
        "c <- p <- x",
    ),
    (
        "another base below one that others stand on",
        "t <- p <- x*",
        [rebase("x", "c")],
        {"foreign": "t <- c", "untouched": "t c p"},
        "t <- c <- x",
    ),
    (
        "the disk grows",
        "b <- x*",
        [resize("x", 2 * SIZE)],
        {"keeps": "b", "untouched": "b"},
        "b <- x",
    ),
    (
        "a commit from the top, past an image that hides the end of a longer one",
        "b <- p <- q <- x*",
        [commit("x", "p", relink=False), rename("p", "x"), remove("q")],
        {"keeps": "b", "facts": {"q": SMALL}},
        "b <- x",
    ),
    (
        "a pull past an image that hides the end of a longer one",
        "b <- p <- q <- x*",
        [pull("x", "b"), remove("q"), remove("p")],
        {"keeps": "b", "facts": {"q": SMALL}},
        "b <- x",
    ),
    (
        "a commit into a shorter image, which grows",
        "b <- p <- q <- x*",
        [commit("q", "p", relink=False), rename("p", "q")],
        {"keeps": "b q", "facts": {"p": SMALL}},
        "b <- q <- x",
    ),
    (
        "a growing image, made as long as what stands on it before the commit",
        "b <- p <- q <- x*",
        [resize("q", SIZE), commit("q", "p"), remove("q")],
        {"keeps": "b", "facts": {"q": SMALL}},
        "b <- p <- x",
    ),
    (
        "libvirt forgets a snapshot",
        "b <- x*",
        [Forget("mon")],
        {"keeps": "b", "untouched": "b"},
        "b <- x",
    ),
]


@pytest.mark.parametrize(
    ("observed", "steps", "rest", "end"), [pytest.param(*row, id=name) for name, *row in GOOD]
)
def test_the_proof_accepts(
    observed: str, steps: list[Step], rest: dict[str, Any], end: str
) -> None:
    world = proven(observed, steps, **rest)
    found, at = [], world.active
    while at is not None:
        found.append(at.stem)
        at = world.images[at].backing

    assert " <- ".join(reversed(found)) == end


def test_a_commit_into_a_longer_image_shows_the_guest_what_it_never_had() -> None:
    """The disk would grow by the end of p, which x never showed."""
    with pytest.raises(ProofFailed) as failed:
        proven("b <- p <- x*", [commit("x", "p")], keeps="b", facts={"p": BIG})

    assert str(failed.value) == "commit x down into p: a commit never shrinks p"


DATA = st.builds(Data, st.sampled_from("abc"), st.integers(1, 4), st.just(False))
TOTAL = st.builds(Data, st.sampled_from("tu"), st.integers(1, 4), st.just(True))
LETTERS = st.one_of(DATA, TOTAL, st.builds(Zeroes, st.integers(0, 5)))
SIZES = st.integers(0, 5)


@st.composite
def words(draw: st.DrawFn) -> Word:
    """Letters of the same origin are one letter: an image had one size in the beginning."""
    seen: dict[str, Data] = {}
    word = draw(st.lists(LETTERS, max_size=8))
    return tuple(
        seen.setdefault(letter.origin, letter) if isinstance(letter, Data) else letter
        for letter in word
    )


def meaning(word: Word, size: int) -> tuple[tuple[str, ...], ...]:
    """
    For every byte: the letters that may show there, the topmost first.

    Nobody knows which bytes a letter writes, only that it writes none beyond
    its limit; zeroes and a total letter hide all below.  Zeroes at the end of
    the list say nothing: where nobody writes, there are zeroes.
    """
    shows = []
    for byte in range(size):
        seen: list[str] = []
        for letter in reversed(word):
            if isinstance(letter, Zeroes):
                if letter.start <= byte:
                    break
                continue
            if byte < letter.limit and letter.origin not in seen:
                seen.append(letter.origin)
            if letter.total:
                break
        shows.append(tuple(seen))
    return tuple(shows)


@given(words(), SIZES)
def test_a_reduced_word_means_the_same(word: Word, size: int) -> None:
    short = reduced(word, size)

    assert meaning(short, size) == meaning(word, size)


@given(words(), SIZES)
def test_a_reduced_word_is_reduced(word: Word, size: int) -> None:
    short = reduced(word, size)

    assert reduced(short, size) == short


@given(words(), SIZES)
def test_a_reduced_word_is_never_longer(word: Word, size: int) -> None:
    short = reduced(word, size)

    assert len(short) <= len(word)


@given(words(), words(), SIZES)
def test_words_that_mean_different_things_are_never_equal(one: Word, two: Word, size: int) -> None:
    equal = reduced(one, size) == reduced(two, size)

    assert not equal or meaning(one, size) == meaning(two, size)


@given(words(), st.integers(0, 7), SIZES)
def test_data_that_is_written_again_on_top_hides_where_it_was(
    word: Word, place: int, size: int
) -> None:
    again = word[place : place + 1]
    twice = reduced((*word, *again), size)
    once = reduced((*word[:place], *word[place + 1 :], *again), size)

    assert meaning(twice, size) == meaning(once, size)


@given(words(), words(), SIZES)
def test_nothing_shows_through_a_total_letter(below: Word, above: Word, size: int) -> None:
    total = Data("whole", 4, total=True)

    assert reduced((*below, total, *above), size) == reduced((total, *above), size)


@given(words(), SIZES)
def test_zeroes_beyond_the_end_of_the_reader_say_nothing(word: Word, size: int) -> None:
    beyond = (*word, Zeroes(size))

    assert reduced(beyond, size) == reduced(word, size)
