"""Steps: what each does to a chain, and how each is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.host import ACTS
from reconciler.model.image import Chain
from reconciler.model.steps import (
    STEPS,
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
    advance,
    as_data,
    from_data,
    rewritten,
    touched,
)
from tests.notation import MIB, chain, path

SIZE = 64 * MIB
BIG = {"virtual_size": 2 * SIZE}
B, C, P, Q, X, Y = (path(name) for name in "bcpqxy")

CASES = [
    # id, chain, step, outside, chain after
    ("create on the active image", "b*", Create(Y, B, "qcow2", SIZE), None, "b <- y*"),
    ("create a first image", "(none)", Create(Y, None, "qcow2", SIZE), None, "y*"),
    ("create on a lower image", "b <- p <- x*", Create(Y, P, "qcow2", SIZE), None, "b <- p <- y*"),
    ("create on a foreign image", "(none)", Create(Y, C, "qcow2", SIZE), "b <- c", "b <- c <- y*"),
    ("create anew", "b <- x*", Create(Y, None, "qcow2", SIZE), None, "y*"),
    ("commit", "b <- p <- q <- x*", Commit(Q, P), None, "b <- p <- x*"),
    ("commit over several", "b <- p <- q <- x*", Commit(X, B), None, "b*"),
    ("commit the active image", "b <- x*", Commit(X, B), None, "b*"),
    (
        "commit below the top, which keeps its name",
        "b <- p <- q <- x*",
        Commit(X, P, relink=False),
        None,
        "b <- p <- q <- x*",
    ),
    ("pull", "b <- p <- q <- x*", Pull(Q, B), None, "b <- q <- x*"),
    ("pull over several", "b <- p <- q <- x*", Pull(X, B), None, "b <- x*"),
    ("flatten", "b <- p <- x*", Pull(X, None), None, "x*"),
    ("flatten in the middle", "b <- p <- x*", Pull(P, None), None, "p <- x*"),
    ("rebase onto a foreign image", "b <- p <- x*", Rebase(P, C), "c", "c <- p <- x*"),
    (
        "rebase onto a foreign image with a chain of its own",
        "b <- p <- x*",
        Rebase(X, C),
        "b <- c",
        "b <- c <- x*",
    ),
    ("rebase that only records a format", "b <- p <- x*", Rebase(P, B), None, "b <- p <- x*"),
    ("rebase past an image of the chain", "b <- p <- x*", Rebase(X, B), None, "b <- x*"),
    ("rename to a new name", "b <- p <- x*", Rename(X, Y), None, "b <- p <- y*"),
    ("rename in the middle", "b <- p <- x*", Rename(P, Y), None, "b <- y <- x*"),
    ("rename over the one above", "b <- p <- x*", Rename(P, X), None, "b <- x*"),
    ("rename over one far above", "b <- p <- q <- x*", Rename(P, X), None, "b <- x*"),
    (
        "rename over one in the middle",
        "b <- p <- q <- x*",
        Rename(P, Q),
        None,
        "b <- q <- x*",
    ),
    ("a second name", "b <- p <- q <- x*", Rename(P, Q, link=True), None, "b <- q <- x*"),
    ("attach a lower image", "b <- p <- x*", Attach(P), None, "b <- p*"),
    ("attach the active image", "b <- x*", Attach(X), None, "b <- x*"),
    ("forget", "b <- x*", Forget("mon"), None, "b <- x*"),
    ("remove", "b <- x*", Remove(P), None, "b <- x*"),
    ("resize", "b <- x*", Resize(X, 2 * SIZE), None, "b <- x*"),
    ("repair", "b <- x*", Repair(B), None, "b <- x*"),
]


@pytest.mark.parametrize(
    ("before", "step", "outside", "after"), [pytest.param(*row, id=name) for name, *row in CASES]
)
def test_a_step_leaves(before: str, step: Step, outside: str | None, after: str) -> None:
    there = chain(outside) if outside else None
    found = advance(chain(before), step, there)

    assert str(found) == after


def test_every_step_has_a_row() -> None:
    assert {type(row[2]) for row in CASES} == set(STEPS)


SIZES = [
    # id, chain (q has 128 MiB, all others 64), step, sizes in MiB after
    ("resize", "b <- x*", Resize(X, 128 * MIB), [64, 128]),
    (
        "a new overlay has the size that is asked for",
        "b*",
        Create(X, B, "qcow2", 96 * MIB),
        [64, 96],
    ),
    ("commit grows a smaller image", "p <- q*", Commit(Q, P), [128]),
    ("commit never shrinks a larger one", "q <- p*", Commit(P, Q), [128]),
    ("commit below the top grows it, too", "p <- q*", Commit(Q, P, relink=False), [128, 128]),
    ("a pull changes no size", "p <- q <- x*", Pull(Q, None), [128, 64]),
    ("a rename takes the size along", "b <- q <- x*", Rename(Q, X), [64, 128]),
    ("a rename takes the size along to a new name", "b <- q*", Rename(Q, Y), [64, 128]),
]


@pytest.mark.parametrize(
    ("before", "step", "after"), [pytest.param(*row, id=name) for name, *row in SIZES]
)
def test_a_step_leaves_sizes(before: str, step: Step, after: list[int]) -> None:
    found = advance(chain(before, {"q": BIG}), step)

    assert [image.virtual_size // MIB for image in found] == after


def test_a_renamed_image_is_the_same_file() -> None:
    before = chain("b <- p <- x*")
    after = advance(before, Rename(P, X))

    assert after.image(X).identity == before.image(P).identity


def test_a_step_changes_no_other_image() -> None:
    before = chain("b <- p <- q <- x*")
    after = advance(before, Commit(Q, P))

    assert after == Chain((before[0], before[1], before[3]))


UNKNOWN = [
    # id, step: each names an image that the chain lacks
    ("commit from", Commit(Y, B)),
    ("commit into", Commit(X, Y)),
    ("pull into", Pull(Y, B)),
    ("pull down to", Pull(X, Y)),
    ("rebase", Rebase(Y, B)),
    ("rename", Rename(Y, X)),
    ("resize", Resize(Y, SIZE)),
    ("repair", Repair(Y)),
    ("attach", Attach(Y)),
    ("create on", Create(Q, Y, "qcow2", SIZE)),
]


@pytest.mark.parametrize("step", [pytest.param(*row, id=name) for name, *row in UNKNOWN])
def test_a_step_on_an_image_that_the_chain_lacks(step: Step) -> None:
    here = chain("b <- p <- x*")
    with pytest.raises(KeyError) as error:
        advance(here, step)

    assert "/images/y.qcow2 is not in b <- p <- x*" in str(error.value)


TOUCHED = [
    # id, step, images whose bytes or name it changes
    ("create", Create(Y, B, "qcow2", SIZE), (Y,)),
    ("commit", Commit(X, B), (B,)),
    ("pull", Pull(X, B), (X,)),
    ("rebase", Rebase(X, C), (X,)),
    ("rename", Rename(P, X), (X, P)),
    ("resize", Resize(X, SIZE), (X,)),
    ("repair", Repair(X), (X,)),
    ("attach", Attach(P), ()),
    ("forget", Forget("mon"), ()),
    ("remove", Remove(P), (P,)),
]


@pytest.mark.parametrize(
    ("step", "images"), [pytest.param(*row, id=name) for name, *row in TOUCHED]
)
def test_a_step_touches(step: Step, images: tuple[Path, ...]) -> None:
    assert touched(step) == images


SENTENCES = [
    # step, how it reads
    (Create(Y, B, "qcow2", SIZE), "create y on b"),
    (Create(Y, None, "raw", SIZE), "create y"),
    (Commit(X, B), "commit x down into b"),
    (Pull(X, B), "pull up into x down to b"),
    (Pull(X, None), "pull up into x down to nothing"),
    (Rebase(X, C), "rebase x onto c"),
    (Rename(P, X), "rename p to x"),
    (Resize(X, SIZE), f"resize x to {SIZE}"),
    (Repair(P), "repair p"),
    (Attach(P), "attach p"),
    (Forget("mon"), "forget snapshot mon"),
    (Remove(P), "remove p"),
]


@pytest.mark.parametrize(("step", "sentence"), [pytest.param(*row, id=row[1]) for row in SENTENCES])
def test_a_step_reads_as(step: Step, sentence: str) -> None:
    assert str(step) == sentence


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)
PATHS = NAMES.map(lambda name: Path("/images") / name)
BYTES = st.integers(1, 2**63 - 1)
ANY_STEP: st.SearchStrategy[Step] = st.one_of(
    st.builds(Create, PATHS, st.none() | PATHS, st.sampled_from(["raw", "qcow2"]), BYTES),
    st.builds(Commit, PATHS, PATHS, st.booleans()),
    st.builds(Pull, PATHS, st.none() | PATHS),
    st.builds(Rebase, PATHS, PATHS),
    st.builds(Rename, PATHS, PATHS, st.booleans()),
    st.builds(Resize, PATHS, BYTES),
    st.builds(Repair, PATHS),
    st.builds(Attach, PATHS),
    st.builds(Forget, NAMES),
    st.builds(Remove, PATHS),
)


@given(ANY_STEP)
def test_a_step_comes_back_from_its_data(step: Step) -> None:
    data = json.loads(json.dumps(as_data(step)))

    assert from_data(data) == step


def test_the_data_of_a_step() -> None:
    data = as_data(Pull(X, None))

    assert data == {"action": "pull", "into": "/images/x.qcow2", "base": None}


def test_a_missing_none_is_none() -> None:
    """TOML has no null: a state file leaves the key out."""
    step = from_data({"action": "pull", "into": str(X)})

    assert step == Pull(X, None)


def test_a_missing_flag_has_its_default() -> None:
    """DESIGN's plan file has `commit {top, base}`, and that relinks."""
    step = from_data({"action": "commit", "top": str(X), "base": str(B)})

    assert step == Commit(X, B, relink=True)


NONSENSE: list[tuple[str, dict[str, Any]]] = [
    ("nothing", {}),
    ("no action", {"image": str(X)}),
    ("an unknown action", {"action": "destroy", "image": str(X)}),
    ("an action that is no word", {"action": ["commit"], "top": str(X), "base": str(B)}),
    ("no image to remove", {"action": "remove"}),
    ("no base to commit into", {"action": "commit", "top": str(X)}),
    ("no top to commit", {"action": "commit", "base": str(B), "relink": True}),
    ("no image to pull into", {"action": "pull", "base": str(B)}),
    ("no backing file to rebase onto", {"action": "rebase", "image": str(X)}),
    ("no new name", {"action": "rename", "source": str(X)}),
    ("no size to grow to", {"action": "resize", "image": str(X)}),
    ("no size to create", {"action": "create", "image": str(X), "format": "qcow2"}),
    ("no format to create", {"action": "create", "image": str(X), "size": SIZE}),
    ("a number as an image", {"action": "remove", "image": 5}),
    ("a list as an image", {"action": "remove", "image": [str(X)]}),
    ("a word as a size", {"action": "resize", "image": str(X), "size": "large"}),
    ("a word as a flag", {"action": "commit", "top": str(X), "base": str(B), "relink": "no"}),
    (
        "an unknown format",
        {"action": "create", "image": str(X), "format": "vmdk", "size": SIZE, "backing": None},
    ),
]


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in NONSENSE])
def test_what_is_no_step(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_data(data)


@pytest.mark.parametrize("kind", STEPS)
def test_every_kind_of_step_says_itself_what_it_needs_rewrites_and_copies(kind: type[Step]) -> None:
    said = vars(kind)

    assert said["needs"] in ACTS
    assert set(said["rewrites"]) <= set(kind.__slots__)
    assert isinstance(said["copies"], bool)


@pytest.mark.parametrize(
    ("step", "images"),
    [
        (Create(Y, B, "qcow2", SIZE), ()),
        (Commit(X, B), (B,)),
        (Pull(X, B), (X,)),
        (Rebase(X, C), (X,)),
        (Resize(X, SIZE), (X,)),
        (Rename(P, X), ()),
        (Remove(P), ()),
    ],
    ids=str,
)
def test_a_step_rewrites(step: Step, images: tuple[Path, ...]) -> None:
    assert rewritten(step) == images
