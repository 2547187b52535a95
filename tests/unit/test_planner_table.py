"""Plans as a table: what is observed, what is desired, and every step between."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from reconciler.model.errors import Refused
from reconciler.model.plan import DiskPlan
from reconciler.planner.making import make_plan
from reconciler.planner.price import room
from reconciler.planner.proof import ProofFailed
from tests.notation import MIB, OTHER, line, lines, path, plan, task, views

RAW = {"format": "raw"}
NO_FORMAT = {"recorded_format": None}
BIG = {"virtual_size": 128 * MIB}
SMALL = {"virtual_size": 32 * MIB}

# Data, in MiB, where a row says nothing else (notation.DATA):
# t and b 0-9, c 0-7, p 0-4, q 0-19, r 1, x 1-2; an image has 64 MiB.

DESIGN = [
    # id, observed, desired, rest, steps; the rows of DESIGN §4
    ("as it should be", "b <- p <- x*", "b <- p <- x*", {}, []),
    ("a new overlay on a disk", "b*", "b <- x*", {}, ["create x on b, qcow2, 64 MiB"]),
    (
        "a thin instance of a template",
        "(none)",
        "t <- x*",
        {"foreign": ["t"], "templates": "t"},
        ["create x on t, qcow2, 64 MiB"],
    ),
    (
        "a new disk of a size",
        "(none)",
        "x*",
        {"wanted": {"x": {"size": 10 * MIB}}},
        ["create x, qcow2, 10 MiB"],
    ),
    (
        "two dropped below a small active image",
        "b <- p <- q <- r <- x*",
        "b <- p <- x*",
        {},
        ["commit x down into q [2.0 MiB]", "rename q to x", "remove r"],
    ),
    (
        "two dropped below a large active image",
        "b <- p <- q <- r <- x*",
        "b <- p <- x*",
        {"data": {"q": [1, 5, 6, 7], "x": range(1, 20), "r": [0, 1]}},
        ["pull up into x down to p [1.0 MiB]", "remove r", "remove q"],
    ),
    (
        "one dropped below a large kept image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"data": {"p": range(30)}},
        ["pull up into q down to b [10 MiB]", "remove p"],
    ),
    (
        "one dropped below a small kept image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"data": {"p": range(30), "q": [1]}},
        ["commit q down into p [1.0 MiB]", "rename p to q"],
    ),
    (
        "a dropped base stays as it is",
        "b <- p <- x*",
        "p <- x*",
        {},
        ["pull up into p down to nothing [5.0 MiB]"],
    ),
    (
        "a base that may go is used up",
        "b <- p <- x*",
        "p <- x*",
        {"remove_base": True, "data": {"b": range(30), "p": [1]}},
        ["commit p down into b [1.0 MiB]", "rename b to p"],
    ),
    (
        "a base that may go is pulled up where that is cheaper",
        "b <- p <- x*",
        "p <- x*",
        {"remove_base": True, "data": {"b": range(6)}},
        ["pull up into p down to nothing [1.0 MiB]", "remove b"],
    ),
    ("flatten", "b <- x*", "x*", {}, ["pull up into x down to nothing [8.0 MiB]"]),
    (
        "flatten and use up the base",
        "b <- x*",
        "x*",
        {"remove_base": True},
        ["commit x down into b [2.0 MiB]", "rename b to x"],
    ),
    (
        "the active image goes down",
        "b <- p <- x*",
        "b <- p*",
        {},
        ["commit x down into p, relink [2.0 MiB]", "remove x"],
    ),
    (
        "the active image is large, and takes the name of the one below",
        "b <- p <- x*",
        "b <- p*",
        {"data": {"x": range(1, 20)}},
        ["pull up into x down to b [1.0 MiB]", "rename x to p"],
    ),
    (
        "into an image whose view nobody needs",
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        {"data": {"q": [1, 3]}, "facts": {"x": {"snapshots": 1}}},
        ["commit q down into p, relink [2.0 MiB]", "remove q"],
    ),
    (
        "under the name of an image whose view nobody needs",
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        {"data": {"q": range(1, 20)}},
        ["pull up into q down to b [1.0 MiB]", "rename q to p"],
    ),
    (
        "up from an image whose view nobody needs",
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        {"data": {"q": range(4), "x": range(10)}},
        ["pull up into x down to p", "remove q"],
    ),
    (
        "roll back to a new overlay",
        "b <- p <- x*",
        "b <- p <- y*",
        {"discard": "x"},
        ["create y on p, qcow2, 64 MiB", "remove x"],
    ),
    (
        "roll back to a restore point itself",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x"},
        ["attach p", "remove x"],
    ),
    ("the active image under a new name", "b <- p <- x*", "b <- p <- y*", {}, ["rename x to y"]),
    (
        "another base",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"]},
        ["rebase p onto c [5.0 MiB]"],
    ),
]

MEETING = [
    # rules that meet in one plan
    (
        "merges, then new overlays on top",
        "b <- p <- q <- x*",
        "b <- q <- x <- y <- z*",
        {"data": {"p": range(30)}},
        [
            "pull up into q down to b [10 MiB]",
            "create y on x, qcow2, 64 MiB",
            "create z on y, qcow2, 64 MiB",
            "remove p",
        ],
    ),
    (
        "two new overlays, the upper one larger",
        "b*",
        "b <- y <- z*",
        {"wanted": {"z": {"size": 128 * MIB}}},
        ["create y on b, qcow2, 64 MiB", "create z on y, qcow2, 128 MiB"],
    ),
    (
        "two new overlays, the lower one larger",
        "b*",
        "b <- y <- z*",
        {"wanted": {"y": {"size": 128 * MIB}}},
        ["create y on b, qcow2, 128 MiB", "create z on y, qcow2, 128 MiB"],
    ),
    (
        "two new images, the lower one takes the dropped data",
        "b <- p <- x*",
        "b <- p <- y <- z*",
        {},
        ["rename x to y", "create z on y, qcow2, 64 MiB"],
    ),
    (
        "a new disk with a restore point",
        "(none)",
        "y <- z*",
        {"wanted": {"y": {"size": 10 * MIB}}},
        ["create y, qcow2, 10 MiB", "create z on y, qcow2, 10 MiB"],
    ),
    (
        "a thin instance of a template with a restore point",
        "(none)",
        "t <- y <- z*",
        {"foreign": ["t"], "templates": "t"},
        ["create y on t, qcow2, 64 MiB", "create z on y, qcow2, 64 MiB"],
    ),
    (
        "a flattened copy with a new overlay",
        "b*",
        "y <- z*",
        {},
        [
            "create y on b, qcow2, 64 MiB",
            "pull up into y down to nothing [10 MiB]",
            "create z on y, qcow2, 64 MiB",
        ],
    ),
    (
        "several groups at once",
        "b <- p <- q <- r <- x*",
        "b <- q <- x*",
        {"data": {"p": range(30), "r": range(5)}},
        [
            "pull up into q down to b [10 MiB]",
            "commit x down into r [2.0 MiB]",
            "rename r to x",
            "remove p",
        ],
    ),
    (
        "the active image goes down, and so does a group below",
        "b <- p <- q <- r <- x*",
        "b <- q <- r*",
        {"data": {"p": range(30), "q": [1], "x": [1], "r": [3, 4]}},
        [
            "commit q down into p [1.0 MiB]",
            "rename p to q",
            "commit x down into r, relink [1.0 MiB]",
            "remove x",
        ],
    ),
    (
        "the middle survives: down into it first, then up",
        "b <- p <- q <- r <- x*",
        "b <- x*",
        {"data": {"p": range(18, 23), "r": [0], "x": [1, 2]}},
        [
            "commit x down into q [3.0 MiB]",
            "pull up into q down to b [3.0 MiB]",
            "rename q to x",
            "remove r",
            "remove p",
        ],
    ),
    (
        "the middle survives under the name of the lowest",
        "b <- p <- q <- r <- x*",
        "b <- p*",
        {"data": {"p": range(18, 23), "r": [0], "x": [1, 2]}},
        [
            "commit x down into q, relink [3.0 MiB]",
            "pull up into q down to b [3.0 MiB]",
            "rename q to p",
            "remove x",
            "remove r",
        ],
    ),
    (
        "another base and a dropped image, which stays the larger",
        "b <- p <- q <- x*",
        "c <- q <- x*",
        {"foreign": ["c"], "data": {"p": range(30), "q": [1]}},
        [
            "commit q down into p [1.0 MiB]",
            "rebase p onto c",
            "rename p to q",
        ],
    ),
    (
        "another base and a dropped image below a large one",
        "b <- p <- q*",
        "c <- q*",
        {"foreign": ["c"]},
        ["rebase q onto c", "remove p"],
    ),
    (
        "another base, and the old one may go",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"], "remove_base": True, "data": {"b": range(30), "p": [1]}},
        ["commit p down into b [1.0 MiB]", "rebase b onto c", "rename b to p"],
    ),
    (
        "another base under a new name",
        "b <- p*",
        "c <- y*",
        {"foreign": ["c"]},
        ["rebase p onto c [5.0 MiB]", "rename p to y"],
    ),
    (
        "another image in the middle, which stands on our template",
        "t <- p*",
        "t <- c <- p*",
        {"foreign": ["t <- c"], "templates": "t", "shared": {"t": "c.qcow2"}},
        ["rebase p onto c [3.0 MiB]"],
    ),
    (
        "a golden base as another one, data in a new file",
        "b*",
        "c <- y*",
        {"foreign": ["c"]},
        ["create y on b, qcow2, 64 MiB", "rebase y onto c [10 MiB]"],
    ),
    (
        "roll back and merge below",
        "b <- p <- q <- x*",
        "b <- q <- y*",
        {"discard": "x", "data": {"p": range(30)}},
        [
            "attach q",
            "pull up into q down to b [10 MiB]",
            "create y on q, qcow2, 64 MiB",
            "remove x",
            "remove p",
        ],
    ),
    (
        "roll back, and what is then the active image goes under a new name",
        "b <- p <- q <- x*",
        "b <- p <- y*",
        {"discard": "x"},
        ["attach q", "rename q to y", "remove x"],
    ),
    (
        "roll back by two",
        "b <- p <- q <- x*",
        "b <- p <- y*",
        {"discard": "x q"},
        ["create y on p, qcow2, 64 MiB", "remove x", "remove q"],
    ),
    (
        "roll back, and the restore point goes down",
        "b <- p <- q <- x*",
        "b <- p*",
        {"discard": "x", "data": {"q": [1]}},
        ["attach q", "commit q down into p, relink [1.0 MiB]", "remove x", "remove q"],
    ),
    (
        "names to discard that are not there",
        "b <- p*",
        "b <- p*",
        {"discard": "x w"},
        [],
    ),
    (
        "discard the whole disk and begin anew",
        "b <- x*",
        "y*",
        {"discard": "b x", "wanted": {"y": {"size": 10 * MIB}}},
        ["create y, qcow2, 10 MiB", "remove x", "remove b"],
    ),
    (
        "discard the whole disk and begin with a template",
        "b <- x*",
        "t <- y*",
        {"discard": "b x", "foreign": ["t"], "templates": "t"},
        ["create y on t, qcow2, 64 MiB", "remove x", "remove b"],
    ),
    (
        "discard a shared image, and what it stands on is merged from then on",
        "b <- p <- q <- x*",
        "b <- y*",
        {"discard": "q x", "shared": {"q": "other"}},
        [
            "create y on p, qcow2, 64 MiB",
            "pull up into y down to b [5.0 MiB]",
            "remove x",
        ],
    ),
    (
        "discard a shared image: the chain leaves it, the file stays",
        "b <- p <- x*",
        "b <- p <- y*",
        {"discard": "x", "shared": {"x": "other"}},
        ["create y on p, qcow2, 64 MiB"],
    ),
    (
        "the base goes, and a group above",
        "b <- p <- q <- r <- x*",
        "p <- r <- x*",
        {"remove_base": True, "data": {"b": range(30), "q": [1, 2], "r": range(4)}},
        [
            "commit p down into b [5.0 MiB]",
            "rename b to p",
            "pull up into r down to p",
            "remove q",
        ],
    ),
    (
        "base, middle and active into one file",
        "b <- p <- x*",
        "x*",
        {"remove_base": True},
        ["commit x down into b [5.0 MiB]", "rename b to x", "remove p"],
    ),
    (
        "the golden base stays, and a group above is merged with it",
        "b <- p <- x*",
        "x*",
        {"data": {"b": range(30)}},
        [
            "commit x down into p [2.0 MiB]",
            "pull up into p down to nothing [25 MiB]",
            "rename p to x",
        ],
    ),
    (
        "a template that the spec no longer lists stays, whatever remove_base says",
        "t <- p <- x*",
        "p <- x*",
        {"remove_base": True, "templates": "t"},
        ["pull up into p down to nothing [5.0 MiB]"],
    ),
    (
        "the border between two groups is where it is cheapest",
        "b <- p <- q <- r <- x*",
        "b <- ~p <- x*",
        {"data": {"p": range(40, 50), "q": range(40, 60), "r": range(20), "x": [1]}},
        [
            "pull up into q down to b",
            "rename q to p",
            "commit x down into r [1.0 MiB]",
            "rename r to x",
        ],
    ),
    (
        "everything goes down into an image whose view nobody needs, and a new one on top",
        "b <- p <- x*",
        "b <- ~p <- y*",
        {"data": {"p": range(30)}},
        ["rename x to y"],
    ),
    (
        "two images whose views nobody needs, and data between them and above",
        "b <- p <- q <- r <- x*",
        "~b <- ~q <- x*",
        {"data": {"b": [40], "p": range(40, 60), "q": [0], "r": range(30), "x": [50]}},
        [
            "pull up into p down to nothing",
            "rename p to b",
            "pull up into r down to b",
            "rename r to q",
        ],
    ),
    (
        "an image whose view nobody needs, and which is shared, takes nothing",
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        {"shared": {"p": "other"}, "data": {"p": range(30), "q": range(1, 20)}},
        ["commit x down into q [2.0 MiB]", "rename q to x"],
    ),
    (
        "the disk grows after the merge",
        "b <- p <- x*",
        "b <- x*",
        {"wanted": {"x": {"size": 128 * MIB}}},
        [
            "commit x down into p [2.0 MiB]",
            "rename p to x",
            f"resize x to {128 * MIB}",
        ],
    ),
    (
        "the disk grows",
        "b*",
        "b*",
        {"wanted": {"b": {"size": 128 * MIB}}},
        ["resize b to 134217728"],
    ),
    (
        "the active image is a new file that is to be larger",
        "b <- p <- x*",
        "b <- p <- y*",
        {"wanted": {"y": {"size": 128 * MIB}}},
        ["rename x to y", f"resize y to {128 * MIB}"],
    ),
    (
        "a flattened copy that is to be larger",
        "b*",
        "y*",
        {"wanted": {"y": {"size": 128 * MIB}}},
        [
            "create y on b, qcow2, 64 MiB",
            "pull up into y down to nothing [10 MiB]",
            f"resize y to {128 * MIB}",
        ],
    ),
    (
        "a new, larger overlay grows nothing below",
        "b <- x*",
        "b <- x <- y*",
        {"wanted": {"y": {"size": 128 * MIB}}},
        ["create y on x, qcow2, 128 MiB"],
    ),
    (
        "the new active image stands on one that took the data: only the new one is larger",
        "b <- p <- x*",
        "b <- p <- y <- z*",
        {"wanted": {"z": {"size": 128 * MIB}}},
        ["rename x to y", "create z on y, qcow2, 128 MiB"],
    ),
    (
        "the active image goes down into a smaller one, which grows with it",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"x": BIG}, "wanted": {"p": {"size": 128 * MIB}}},
        ["commit x down into p, relink [2.0 MiB]", "remove x"],
    ),
    (
        "the active image does not go down into a larger one",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"p": BIG}},
        ["pull up into x down to b [3.0 MiB]", "rename x to p"],
    ),
    (
        "an image between that is shorter than both",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": SMALL}},
        ["commit x down into q [2.0 MiB]", "rename q to x"],
    ),
    (
        "formats are written down before a commit",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"p": NO_FORMAT, "x": NO_FORMAT}},
        [
            "rebase p onto b",
            "rebase x onto q",
            "commit x down into q [2.0 MiB]",
            "rename q to x",
        ],
    ),
    (
        "formats are written down before a commit, and what is discarded is left alone",
        "b <- p <- q <- x*",
        "b <- p*",
        {"facts": {"p": NO_FORMAT, "x": NO_FORMAT}, "discard": "x", "data": {"q": [1]}},
        [
            "rebase p onto b",
            "attach q",
            "commit q down into p, relink [1.0 MiB]",
            "remove x",
            "remove q",
        ],
    ),
    (
        "formats are written down before a foreign base",
        "b <- p*",
        "c <- p*",
        {"facts": {"p": NO_FORMAT}, "foreign": ["c"]},
        ["rebase p onto b", "rebase p onto c [5.0 MiB]"],
    ),
    (
        "a dropped shared image is read, and stays",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"shared": {"q": "other"}},
        ["pull up into x down to p [18 MiB]"],
    ),
    (
        "a dropped image below a shared one stays, too",
        "b <- p <- q <- x*",
        "b <- x*",
        {"shared": {"q": "other"}},
        ["pull up into x down to b [18 MiB]"],
    ),
    (
        "merges above a shared image may go both ways",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"shared": {"p": "other"}},
        ["commit x down into q [2.0 MiB]", "rename q to x"],
    ),
    (
        "a hard link makes an image a shared one",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"links": 2}}},
        ["pull up into x down to p [18 MiB]"],
    ),
    (
        "the data of a shared active image ends in a new file",
        "b <- p <- x*",
        "b <- p <- y*",
        {"shared": {"x": "other"}},
        ["create y on x, qcow2, 64 MiB", "pull up into y down to p [2.0 MiB]"],
    ),
    (
        "another filesystem: pulled up, as no rename can lead there",
        "b <- p <- /other/q <- x*",
        "b <- p <- x*",
        {"data": {"/other/q": range(20)}},
        ["pull up into x down to p [18 MiB]", "remove q"],
    ),
    (
        "a new name on another filesystem is a new file",
        "b <- p <- x*",
        "b <- p <- /other/y*",
        {},
        ["create y on x, qcow2, 64 MiB", "pull up into y down to p [2.0 MiB]", "remove x"],
    ),
    (
        "a new name in another folder of the same filesystem",
        "b <- p <- x*",
        "b <- p <- /other/y*",
        {"filesystems": {path("x").parent: 1, OTHER: 1}},
        ["rename x to y"],
    ),
    (
        "down into a raw base",
        "b <- x*",
        "b*",
        {"facts": {"b": RAW}},
        ["commit x down into b, relink [2.0 MiB]", "remove x"],
    ),
    (
        "a raw base does not take the name of a qcow2 image",
        "b <- p <- x*",
        "p <- x*",
        {"facts": {"b": RAW}, "remove_base": True, "data": {"b": range(30), "p": [1]}},
        ["pull up into p down to nothing [29 MiB]", "remove b"],
    ),
    (
        "a raw active image under a new raw name",
        "b*",
        "y*",
        {"facts": {"b": RAW}, "wanted": {"y": RAW}, "remove_base": True},
        ["rename b to y"],
    ),
    (
        "internal snapshots in the image that takes the data from above",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"p": {"snapshots": 2}}},
        ["commit x down into p, relink [2.0 MiB]", "remove x"],
    ),
    (
        "internal snapshots in the large image keep the merge off the cheap way",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"p": {"snapshots": 2}}, "data": {"x": range(1, 20)}},
        ["commit x down into p, relink [19 MiB]", "remove x"],
    ),
    (
        "internal snapshots above the merge read as before",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"x": {"snapshots": 2}}, "data": {"p": range(30), "q": [1]}},
        ["commit q down into p [1.0 MiB]", "rename p to q"],
    ),
    (
        "internal snapshots of a golden base stay with it",
        "b <- x*",
        "x*",
        {"facts": {"b": {"snapshots": 2}}},
        ["pull up into x down to nothing [8.0 MiB]"],
    ),
    (
        "bitmaps of the image that stays the same view",
        "b <- p <- x*",
        "b <- x*",
        {"facts": {"x": {"bitmaps": 1}}},
        ["pull up into x down to b [3.0 MiB]", "remove p"],
    ),
    (
        "bitmaps that may go",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"bitmaps": 1}, "x": {"bitmaps": 1}}, "bitmaps": "drop"},
        ["commit x down into q [2.0 MiB]", "rename q to x"],
    ),
    (
        "internal snapshots and bitmaps of what is discarded go with it",
        "b <- p <- x*",
        "b <- p <- y*",
        {"facts": {"x": {"snapshots": 1, "bitmaps": 1}}, "discard": "x"},
        ["create y on p, qcow2, 64 MiB", "remove x"],
    ),
    (
        "an encrypted image that nothing changes",
        "b <- p <- x*",
        "b <- p <- x <- y*",
        {"facts": {"b": {"encrypted": True}}},
        ["create y on x, qcow2, 64 MiB"],
    ),
    (
        "a busy disk that is as it should be",
        "b <- x*",
        "b <- x*",
        {"busy": True},
        [],
    ),
]


def rows(*tables: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*row, id=name) for table in tables for name, *row in table]


@pytest.mark.parametrize(("observed", "desired", "rest", "steps"), rows(DESIGN, MEETING))
def test_plan(observed: str, desired: str, rest: dict[str, Any], steps: list[str]) -> None:
    made = plan(observed, desired, **rest)

    assert lines(made) == steps


@pytest.mark.parametrize(("observed", "desired", "rest", "steps"), rows(DESIGN, MEETING))
def test_every_step_begins_where_the_last_one_ended(
    observed: str, desired: str, rest: dict[str, Any], steps: list[str]
) -> None:
    made = plan(observed, desired, **rest)
    chains = [made.observed, *(planned.after for planned in made.steps)]

    assert [planned.before for planned in made.steps] == chains[:-1]
    assert chains[-1].paths == made.desired


IN_THE_WAY = "leave q in the chain, or remove what stands in the way"
MUST_CHANGE = "dropping q would have to change an image that must stay as it is"

REFUSALS = [
    # id, observed, desired, rest, reason, way out
    (
        "an unlisted overlay on the active image",
        "b*",
        "b <- x*",
        {"strangers": (path("z"),)},
        "/images/z.qcow2 stands on b, the active image, and may hold the current state",
        "if the guest uses it, list it on top and run: virt-chain adopt web01:vda /images/z.qcow2",
    ),
    (
        "two unlisted overlays on the active image",
        "b*",
        "b <- x*",
        {"strangers": (path("y"), path("z"))},
        (
            "/images/y.qcow2 and /images/z.qcow2 stand on b, the active image, and may hold the "
            "current state"
        ),
        (
            "if the guest uses /images/y.qcow2, list that on top and run: "
            "virt-chain adopt web01:vda /images/y.qcow2"
        ),
    ),
    (
        "a listed overlay on the active image, and an unlisted one",
        "b*",
        "b <- x*",
        {"foreign": ["b <- x"], "strangers": (path("z"),)},
        (
            "/images/x.qcow2 and /images/z.qcow2 stand on b, the active image, and may hold the "
            "current state"
        ),
        (
            "if the guest uses x, run: virt-chain adopt web01:vda x; if it uses /images/z.qcow2, "
            "list that on top and run: virt-chain adopt web01:vda /images/z.qcow2"
        ),
    ),
    (
        "another order",
        "b <- p <- x*",
        "b <- x <- p*",
        {},
        "the observed chain is b <- p <- x*: a chain is a history, and its order is fixed",
        "list the images in that order, not as b <- x <- p",
    ),
    (
        "a missing image below a kept one",
        "b <- p*",
        "b <- n <- p*",
        {},
        "/images/n.qcow2 does not exist, and the chain lists it below p",
        "restore the file, or take n off the chain; a new image can only be added on top",
    ),
    (
        "a missing base",
        "b <- p*",
        "n <- p*",
        {},
        "/images/n.qcow2 does not exist, and the chain lists it below p",
        "restore the file, or take n off the chain; a new image can only be added on top",
    ),
    (
        "discard below an image that stays",
        "b <- p <- q <- x*",
        "b <- x*",
        {"discard": "p"},
        "`discard` takes images from the top of b <- p <- q <- x*, and q and x stand above p",
        "take p off `discard` to merge it",
    ),
    (
        "discard below images that the spec does not list either",
        "b <- p <- q <- x*",
        "b <- y*",
        {"discard": "p"},
        "`discard` takes images from the top of b <- p <- q <- x*, and q and x stand above p",
        (
            "take p off `discard` to merge it; or, to throw the current state away and go back to "
            "what is below p, list q and x there, too"
        ),
    ),
    (
        "a foreign image on top",
        "b <- p*",
        "b <- c*",
        {"foreign": ["b <- c"]},
        (
            "c exists and is not in the observed chain b <- p*: the current state cannot end in a "
            "foreign image"
        ),
        (
            "list p, the active image, or a new name in place of c; if the guest uses c, run: "
            "virt-chain adopt web01:vda c"
        ),
    ),
    (
        "a foreign image on top of the active one",
        "b <- p*",
        "b <- p <- c*",
        {"foreign": ["b <- p <- c"]},
        (
            "c exists and is not in the observed chain b <- p*: the current state cannot end in a "
            "foreign image"
        ),
        (
            "list a new name in place of c, or take it off the chain; if the guest uses c, run: "
            "virt-chain adopt web01:vda c"
        ),
    ),
    (
        "a foreign image on top, where the active one is discarded",
        "b <- p*",
        "b <- c*",
        {"foreign": ["b <- c"], "discard": "p"},
        (
            "c exists and is not in the observed chain b <- p*: the current state cannot end in a "
            "foreign image"
        ),
        (
            "to go on from p, the active image, list it in place of c and take it off `discard`; "
            "if the guest uses c, run: virt-chain adopt web01:vda c"
        ),
    ),
    (
        "a foreign image on top, where the active one and others are discarded",
        "b <- p <- q*",
        "b <- c*",
        {"foreign": ["b <- c"], "discard": "p q"},
        (
            "c exists and is not in the observed chain b <- p <- q*: the current state cannot end "
            "in a foreign image"
        ),
        (
            "to go on from q, the active image, list p and q in place of c and take them off "
            "`discard`; if the guest uses c, run: virt-chain adopt web01:vda c"
        ),
    ),
    (
        "a new image on a foreign one, where the active one is discarded",
        "b <- p*",
        "b <- c <- y*",
        {"foreign": ["b <- c"], "discard": "p"},
        (
            "c exists and is not in the observed chain b <- p*: it stands on b and does not hold "
            "the current state"
        ),
        (
            "to go on from p, the active image, list it in place of c and take it off `discard`; "
            "if the guest uses c, run: virt-chain adopt web01:vda c"
        ),
    ),
    (
        "a foreign image that stands on another one than the spec has",
        "b <- p*",
        "c <- p*",
        {"foreign": ["d <- c"]},
        "c exists outside the chain, and its own chain is d <- c",
        "list just these images below and including c, or give a new image another name",
    ),
    (
        "a foreign image above one of ours that it does not stand on",
        "b <- p*",
        "b <- c <- p*",
        {"foreign": ["c"]},
        "c exists outside the chain, and its own chain is c",
        "list just these images below and including c, or give a new image another name",
    ),
    (
        "internal snapshots in a dropped image and in the one it goes into",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"snapshots": 2}, "x": {"snapshots": 1}}},
        (
            f"{MUST_CHANGE} (q: the 1 internal snapshot(s) of x would be lost; delete them with "
            "qemu-img snapshot -d, or keep the image; x: the 2 internal snapshot(s) of q would be "
            "lost; delete them with qemu-img snapshot -d, or keep the image)"
        ),
        IN_THE_WAY,
    ),
    (
        "another base under qcow2 version 2 that has none",
        "p*",
        "c <- p*",
        {"foreign": ["c"], "facts": {"p": {"version": 2}}},
        (
            "moving p would have to change an image that must stay as it is (p: qcow2 version 2 "
            "without a backing file cannot keep zeroes that another base would show through; run "
            "qemu-img amend -o compat=1.1 first)"
        ),
        "leave p in the chain, or remove what stands in the way",
    ),
    (
        "internal snapshots would read another base",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"], "facts": {"p": {"snapshots": 1}}},
        (
            "dropping b would have to change an image that must stay as it is (b: the 1 internal "
            "snapshot(s) of p would be lost; delete them with qemu-img snapshot -d, or keep the "
            "image; p: its 1 internal snapshot(s) would read another backing file; delete them "
            "with qemu-img snapshot -d first)"
        ),
        "leave b in the chain, or remove what stands in the way",
    ),
    (
        "dirty bitmaps in a dropped image",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"bitmaps": 2}}},
        (
            f'{MUST_CHANGE} (q: its 2 dirty bitmap(s) would be wrong; write bitmaps = "drop"; '
            'x: the 2 dirty bitmap(s) of q would be lost; write bitmaps = "drop" to allow it)'
        ),
        IN_THE_WAY,
    ),
    (
        "an encrypted image",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"encrypted": True}}},
        (
            f"{MUST_CHANGE} (q: encrypted images are left alone; decrypt with qemu-img convert "
            "first)"
        ),
        IN_THE_WAY,
    ),
    (
        "an external data file",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"x": {"data_file": True}}},
        f"{MUST_CHANGE} (x: its data lies in an external data file, which is left alone)",
        IN_THE_WAY,
    ),
    (
        "an image that is marked corrupt",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"corrupt": True}}},
        f"{MUST_CHANGE} (q: it is marked corrupt; run qemu-img check -r all first)",
        IN_THE_WAY,
    ),
    (
        "unknown features",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"unknown_features": 0x40}}},
        f"{MUST_CHANGE} (q: unknown incompatible features 0x40)",
        IN_THE_WAY,
    ),
    (
        "a guest that forged an image header, and a raw base",
        "b <- x*",
        "b*",
        {"facts": {"b": RAW}, "forged": True},
        (
            "dropping x would have to change an image that must stay as it is (b: the guest's "
            "first sector looks like an image header, and raw would be taken for it; x: it is "
            "qcow2, and b is raw)"
        ),
        "leave x in the chain, or remove what stands in the way",
    ),
    (
        "below a shared image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"shared": {"q": "web02:vda"}},
        (
            "dropping p would have to change an image that must stay as it is (p: q, which is "
            "shared, stands on it; q: web02:vda stands on it)"
        ),
        "leave p in the chain, or remove what stands in the way",
    ),
    (
        "below a template",
        "b <- t <- x*",
        "t <- x*",
        {"templates": "t", "remove_base": True},
        (
            "dropping b would have to change an image that must stay as it is (b: t, which is "
            "shared, stands on it; t: it is a template)"
        ),
        "leave b in the chain, or remove what stands in the way",
    ),
    (
        "below an image with a second name",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"q": {"links": 2}}},
        (
            "dropping p would have to change an image that must stay as it is (p: q, which is "
            "shared, stands on it; q: it has a second name (hard link))"
        ),
        "leave p in the chain, or remove what stands in the way",
    ),
    (
        "another base below a shared image",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"], "facts": {"p": {"links": 2}}},
        (
            "dropping b would have to change an image that must stay as it is (b: a dropped base "
            "stays as it is unless remove_base = true; p: it has a second name (hard link))"
        ),
        "leave b in the chain, or remove what stands in the way",
    ),
    (
        "too little room",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"free": {1: MIB}},
        (
            "commit x down into q needs 6.0 MiB in /images, where 1.0 MiB are free "
            "(images are removed last)"
        ),
        "free some room (virt-chain gc --all empties the quarantine), or merge less",
    ),
    (
        "too little room for two merges at once",
        "b <- p <- q <- r <- x*",
        "b <- q <- x*",
        {"free": {1: 16 * MIB}, "data": {"p": range(30), "r": range(5)}},
        (
            "commit x down into r needs 20.2 MiB in /images, where 16 MiB are free (images are "
            "removed last)"
        ),
        "free some room (virt-chain gc --all empties the quarantine), or merge less",
    ),
    (
        "a smaller size on a restore point",
        "b <- x*",
        "b <- x*",
        {"wanted": {"b": {"size": 32 * MIB}}},
        "b has 64 MiB, the spec says 32 MiB; the size of a restore point is fixed",
        "leave `size` out, or put it on the active image",
    ),
    (
        "a larger size on a restore point",
        "b <- x*",
        "b <- x*",
        {"wanted": {"b": {"size": 128 * MIB}}},
        "b has 64 MiB, the spec says 128 MiB; the size of a restore point is fixed",
        "leave `size` out, or put it on the active image",
    ),
    (
        "another size than a foreign image has",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"], "wanted": {"c": {"size": 128 * MIB}}},
        "c has 64 MiB, the spec says 128 MiB; the size of a restore point is fixed",
        "leave `size` out, or put it on the active image",
    ),
    (
        "a shrinking active image",
        "b <- x*",
        "b <- x*",
        {"wanted": {"x": {"size": 32 * MIB}}},
        "x has 64 MiB, the spec says 32 MiB; a disk never shrinks",
        f"write size = {64 * MIB}, or leave `size` out",
    ),
    (
        "a new name for the active image with a smaller size",
        "b <- x*",
        "b <- y*",
        {"wanted": {"y": {"size": 32 * MIB}}},
        "y has 64 MiB, the spec says 32 MiB; a disk never shrinks",
        f"write size = {64 * MIB}, or leave `size` out",
    ),
    (
        "the restore point that becomes active is smaller than the current state",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"x": BIG}, "wanted": {"p": {"size": 64 * MIB}}},
        "p has 128 MiB, the spec says 64 MiB; a disk never shrinks",
        f"write size = {128 * MIB}, or leave `size` out",
    ),
    (
        "a new overlay smaller than what it stands on",
        "b*",
        "b <- y*",
        {"wanted": {"y": {"size": 32 * MIB}}},
        "y is to have 32 MiB, less than the 64 MiB of the image below it",
        "leave `size` out, or write a larger one",
    ),
    (
        "a new disk of unknown size",
        "(none)",
        "x*",
        {},
        "/images/x.qcow2 does not exist, and nothing says how large it is to be",
        'write { file = "x", size = "10G" }, or restore the file',
    ),
    (
        "a raw overlay",
        "b*",
        "b <- y*",
        {"wanted": {"y": RAW}},
        "y is to be raw, and a raw image has no backing file",
        'write format = "qcow2"',
    ),
    (
        "an overlay where raw is the default",
        "b*",
        "b <- y*",
        {"default_format": "raw"},
        "y is to be raw, and a raw image has no backing file",
        'write format = "qcow2"',
    ),
    (
        "the active image is busy",
        "b <- x*",
        "b <- x <- y*",
        {"busy": True},
        "/images/x.qcow2 is open for writing by another program",
        "shut the guest off, then plan again",
    ),
    (
        "a shared overlay that records no format, and another base",
        "b <- p <- q*",
        "c <- q*",
        {"facts": {"p": NO_FORMAT}, "shared": {"p": "other"}, "foreign": ["c"]},
        "p is shared and does not record the format of b, so qemu-img would have to guess it",
        "record it: qemu-img rebase -u -F qcow2 -b 'b.qcow2' '/images/p.qcow2'",
    ),
    (
        "a new overlay on an encrypted image",
        "b*",
        "b <- y*",
        {"facts": {"b": {"encrypted": True}}},
        "b is encrypted or has an external data file",
        "create the overlay by hand and list it",
    ),
]


@pytest.mark.parametrize(("observed", "desired", "rest", "reason", "way_out"), rows(REFUSALS))
def test_refusal(
    observed: str, desired: str, rest: dict[str, Any], reason: str, way_out: str
) -> None:
    with pytest.raises(Refused) as refused:
        plan(observed, desired, **rest)

    assert (refused.value.reason, refused.value.way_out) == (reason, way_out)
    assert str(refused.value) == f"{reason}; {way_out}"


def outcome(observed: str, desired: str, **rest: Any) -> list[str] | str:
    """The steps as lines, or ``refused``; any other error is a bug and comes out."""
    try:
        return lines(plan(observed, desired, **rest))
    except Refused as refused:
        return "refused" if refused.reason and refused.way_out else "refused without a word"


MUST_BE_REFUSED = [
    # id, observed, desired, rest: whatever the words, this may not become a plan
    ("down into a shared image", "b <- p <- x*", "b <- p*", {"shared": {"p": "web02:vda"}}),
    ("down into a template", "b <- t <- x*", "b <- t*", {"templates": "t"}),
    (
        "down into an image with a second name",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"p": {"links": 2}}},
    ),
    (
        "a shared restore point as the active image: the guest would write into it",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x", "shared": {"p": "other"}},
    ),
    (
        "a template as the active image: the guest would write into it",
        "t <- x*",
        "t*",
        {"discard": "x", "templates": "t"},
    ),
    (
        "an image with a second name as the active image: the guest would write into it",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x", "facts": {"p": {"links": 2}}},
    ),
    (
        "a foreign image as the active image of a disk that is thrown away",
        "b*",
        "c*",
        {"discard": "b", "foreign": ["c"]},
    ),
    (
        "a template alone as a new disk",
        "(none)",
        "t*",
        {"foreign": ["t"], "templates": "t"},
    ),
    (
        "a larger size for an image with a second name",
        "b <- p*",
        "b <- p*",
        {"facts": {"p": {"links": 2}}, "wanted": {"p": {"size": 128 * MIB}}},
    ),
    (
        "a raw name for the data of a qcow2 image",
        "b*",
        "y*",
        {"wanted": {"y": RAW}},
    ),
    (
        "a smaller new restore point for the data of a dropped image",
        "b <- p <- x*",
        "b <- p <- y <- z*",
        {"wanted": {"y": {"size": 32 * MIB}}},
    ),
    (
        "a larger size for an encrypted image",
        "b <- p*",
        "b <- p*",
        {"facts": {"p": {"encrypted": True}}, "wanted": {"p": {"size": 128 * MIB}}},
    ),
]


@pytest.mark.parametrize(("observed", "desired", "rest"), rows(MUST_BE_REFUSED))
def test_what_would_break_the_promise_is_refused(
    observed: str, desired: str, rest: dict[str, Any]
) -> None:
    found = outcome(observed, desired, **rest)

    assert found == "refused"


def test_a_raw_base_with_a_new_raw_name_never_becomes_a_qcow2_file() -> None:
    """The spec says raw, so the next look would read a qcow2 file as a raw disk."""
    facts, wanted = {"b": RAW}, {"y": RAW}
    found = outcome("b*", "y*", facts=facts, wanted=wanted)

    assert not any("qcow2" in step for step in found)


def test_a_larger_new_restore_point_takes_the_dropped_data_and_grows() -> None:
    wanted = {"y": {"size": 128 * MIB}}
    found = outcome("b <- p <- x*", "b <- p <- y <- z*", wanted=wanted)

    assert found in (
        "refused",
        ["rename x to y", f"resize y to {128 * MIB}", "create z on y, qcow2, 128 MiB"],
    )


def test_an_image_that_takes_data_keeps_the_size_that_the_spec_says() -> None:
    """The next plan would be refused: the size of a restore point is fixed."""
    made = plan(
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        facts={"q": BIG, "x": BIG},
        wanted={"p": {"size": 64 * MIB}},
        data={"q": range(1, 20)},
    )

    assert made.steps[-1].after.image(path("p")).virtual_size == 64 * MIB


def test_the_disk_grows_after_a_commit_past_an_image_longer_than_the_active_one() -> None:
    """What lies beyond the end of x in q is never committed, and never comes back."""
    facts, wanted = {"q": BIG}, {"p": {"size": 128 * MIB}}
    made = plan("b <- p <- q <- x*", "b <- p*", facts=facts, wanted=wanted, data={"q": [1]})

    assert lines(made) == [
        "commit x down into p, relink [2.0 MiB]",
        f"resize p to {128 * MIB}",
        "remove x",
        "remove q",
    ]


def test_a_short_foreign_image_hides_what_has_to_be_copied_up() -> None:
    """c ends at 32 MiB, and x read the end of b through nothing until now."""
    made = plan(
        "b <- x*",
        "b <- c <- x*",
        foreign=["b <- c"],
        shared={"b": "c.qcow2"},
        facts={"c": SMALL},
        data={"b": range(40, 50), "c": [], "x": []},
    )

    assert lines(made) == ["rebase x onto c [10 MiB]"]


def test_an_overlay_on_a_larger_new_one_is_as_large() -> None:
    wanted = {"y": {"size": 128 * MIB}}
    made = plan("b <- x*", "b <- x <- y <- z*", wanted=wanted)

    assert lines(made) == ["create y on x, qcow2, 128 MiB", "create z on y, qcow2, 128 MiB"]


@pytest.mark.parametrize(
    ("observed", "desired", "rest"),
    rows(
        [
            (
                "on the active image",
                "b*",
                "b <- c <- y*",
                {"foreign": ["b <- c"], "shared": {"b": "c.qcow2"}},
            ),
            (
                "on a restore point that becomes the current state",
                "b <- p <- q*",
                "b <- p <- c <- y*",
                {"foreign": ["b <- p <- c"], "shared": {"p": "c.qcow2"}, "discard": "q"},
            ),
        ]
    ),
)
def test_a_listed_foreign_overlay_never_fails_the_proof(
    observed: str, desired: str, rest: dict[str, Any]
) -> None:
    """The new active image must read as the old one, not as the foreign overlay."""
    try:
        found = outcome(observed, desired, **rest)
    except ProofFailed as error:
        pytest.fail(f"a plan that broke the promise was made: {error}")

    assert found == "refused" or "rebase y onto c" in "".join(found)


def points(made: DiskPlan) -> tuple[list[str], list[str], list[str]]:
    kept, dropped, discarded = (
        [one.stem for one in group]
        for group in (
            made.restore_points.kept,
            made.restore_points.dropped,
            made.restore_points.discarded,
        )
    )
    return kept, dropped, discarded


POINTS = [
    # id, observed, desired, rest, kept, dropped, discarded
    ("a new overlay", "b <- p*", "b <- p <- x*", {}, ["b", "p"], [], []),
    ("dropped below", "b <- p <- q <- x*", "b <- p <- x*", {}, ["b", "p"], ["q"], []),
    ("the active image goes down", "b <- p <- x*", "b <- p*", {}, ["b"], ["p"], []),
    (
        "rolled back to a new overlay",
        "b <- p <- x*",
        "b <- p <- y*",
        {"discard": "x"},
        ["b", "p"],
        [],
        ["x"],
    ),
    (
        "rolled back to the restore point itself",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x"},
        ["b"],
        ["p"],
        ["x"],
    ),
    ("nobody needs its view", "b <- p <- x*", "b <- ~p <- x*", {}, ["b"], [], []),
    ("flattened", "b <- x*", "x*", {}, [], ["b"], []),
    (
        "another image comes in above a base that both chains have",
        "t <- p*",
        "t <- c <- p*",
        {"foreign": ["t <- c"], "templates": "t"},
        ["t"],
        [],
        [],
    ),
]


@pytest.mark.parametrize(
    ("observed", "desired", "rest", "kept", "dropped", "discarded"), rows(POINTS)
)
def test_restore_points(
    observed: str,
    desired: str,
    rest: dict[str, Any],
    kept: list[str],
    dropped: list[str],
    discarded: list[str],
) -> None:
    made = plan(observed, desired, **rest)

    assert points(made) == (kept, dropped, discarded)


NOTES = [
    # id, observed, desired, rest, notes
    ("all is said by the steps", "b <- p <- q <- x*", "b <- p <- x*", {}, []),
    (
        "a golden base",
        "b <- x*",
        "x*",
        {},
        ["b stays on disk: a dropped base is kept unless remove_base = true"],
    ),
    (
        "a shared image",
        "b <- p <- q <- x*",
        "b <- x*",
        {"shared": {"q": "web02:vda"}},
        ["p stays on disk: a shared image stands on it", "q stays on disk: web02:vda stands on it"],
    ),
    (
        "a restore point that is written from now on",
        "b <- p <- x*",
        "b <- p*",
        {},
        ["p becomes active: its restore point is given up"],
    ),
    (
        "a restore point that nobody needs is written from now on",
        "b <- p <- x*",
        "b <- ~p*",
        {},
        [],
    ),
]


@pytest.mark.parametrize(("observed", "desired", "rest", "notes"), rows(NOTES))
def test_notes(observed: str, desired: str, rest: dict[str, Any], notes: list[str]) -> None:
    made = plan(observed, desired, **rest)

    assert list(made.notes) == notes


def test_the_dearest_step_says_what_the_other_way_would_copy() -> None:
    made = plan("b <- p <- q <- r <- x*", "b <- p <- x*")

    assert made.steps[0].reason == "cheapest: pulling up would copy 18 MiB"


def test_a_step_that_removes_an_image_says_what_it_frees() -> None:
    facts = {"r": {"actual_size": 3 * MIB}}
    made = plan("b <- p <- q <- r <- x*", "b <- p <- x*", facts=facts)
    freed = {line(one): one.frees for one in made.steps}

    assert freed == {"commit x down into q [2.0 MiB]": 0, "rename q to x": 0, "remove r": 3 * MIB}


def test_steps_of_one_merge_share_a_group() -> None:
    made = plan(
        "b <- p <- q <- r <- x*",
        "b <- q <- x <- y*",
        data={"p": range(30), "q": [1], "r": range(5)},
    )
    groups = [
        [line(one) for one in steps] for _, steps in groupby(made.steps, lambda one: one.group)
    ]

    assert groups == [
        ["commit q down into p [1.0 MiB]", "rename p to q"],
        ["commit x down into r [2.0 MiB]", "rename r to x"],
        ["create y on x, qcow2, 64 MiB"],
    ]


def test_just_enough_room_is_enough() -> None:
    free = {1: room(2 * MIB)}
    made = plan("b <- p <- q <- x*", "b <- p <- x*", free=free)

    assert lines(made) == ["commit x down into q [2.0 MiB]", "rename q to x"]


def test_room_on_another_filesystem_does_not_count() -> None:
    free = {1: 1 << 40, 2: 0}
    made = plan("b <- p <- q <- x*", "b <- p <- x*", free=free)

    assert lines(made) == ["commit x down into q [2.0 MiB]", "rename q to x"]


CHANGES = [
    # id, what differs from `b <- p <- q <- x*` to `b <- p <- x*`
    ("the size of an image", {"facts": {"p": BIG}}),
    ("a recorded backing name", {"facts": {"p": {"recorded": "/images/b.qcow2"}}}),
    ("an internal snapshot", {"facts": {"b": {"snapshots": 1}}}),
    ("a dirty bitmap", {"facts": {"b": {"bitmaps": 1}}}),
    ("somebody who stands on an image", {"shared": {"p": "web02:vda"}}),
    ("a template", {"templates": "b"}),
    ("the discard list", {"discard": "w"}),
    ("what the spec says of a base", {"remove_base": True}),
    ("what the spec says of bitmaps", {"bitmaps": "drop"}),
    ("a second name of an image that takes data", {"facts": {"b": {"links": 2}}}),
    ("an image that is marked corrupt", {"facts": {"b": {"corrupt": True}}}),
]


@pytest.mark.parametrize("rest", rows(CHANGES))
def test_the_fingerprint_changes_with(rest: dict[str, Any]) -> None:
    before = plan("b <- p <- q <- x*", "b <- p <- x*").fingerprint
    after = plan("b <- p <- q <- x*", "b <- p <- x*", **rest).fingerprint

    assert before != after


def test_the_fingerprint_stays_while_the_guest_writes() -> None:
    before = plan("b <- p <- x*", "b <- x*")
    facts = {"x": {"actual_size": 7 * MIB}}
    after = plan("b <- p <- x*", "b <- x*", facts=facts, data={"x": range(1, 20)})

    assert before.fingerprint == after.fingerprint


def test_views_are_asked_for_only_where_something_is_merged() -> None:
    quiet = task("b <- p*", "b <- p <- x*")
    merging = task("b <- p <- q <- x*", "b <- q <- x <- y*")

    assert list(views(quiet)) == []
    assert list(views(merging)) == [path("q")]


def test_a_plan_needs_no_view_that_was_not_asked_for() -> None:
    one = task("b <- p <- q <- r <- x*", "b <- ~p <- ~q <- x*")
    made = make_plan(one, views(one))

    assert made.desired == (path("b"), path("p"), path("q"), path("x"))


def test_an_image_that_was_not_closed_cleanly_is_repaired_first() -> None:
    made = plan("b <- p <- x*", "b <- x*", facts={"b": {"dirty": True}})

    assert str(made.steps[0].step) == "repair b"


def test_a_dirty_template_below_a_commit_is_named_with_its_repair() -> None:
    # x and p lie on two filesystems, so only the commit is left
    with pytest.raises(Refused) as refused:
        plan("b <- p <- /other/x*", "b <- p*", facts={"b": {"dirty": True}}, templates="b")

    assert "repair it with: qemu-img check -r all '/images/b.qcow2'" in str(refused.value)


def test_a_removed_image_that_quarantine_keeps_frees_nothing() -> None:
    facts = {"x": {"actual_size": 3 * MIB}}
    made = plan("b <- x*", "b*", facts=facts, discard="x", keep_discarded=604800)

    removed = next(one for one in made.steps if line(one) == "remove x")

    assert removed.frees == 0
    assert removed.reason == (
        "its data is thrown away; quarantine keeps it for 7 days, "
        "virt-chain gc --all frees its room now"
    )
