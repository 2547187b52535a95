"""
Plans for a guest that runs, and for one that has just been shut off.

libvirt pulls only into the active image, commits any image into a lower one
and renames nothing; the rest of a plan waits until the domain is off.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from reconciler.model.domain import Saved
from reconciler.model.errors import Refused
from reconciler.model.image import Chain
from reconciler.model.plan import DiskPlan, PlannedStep, State
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Remove,
    Rename,
    Resize,
    advance,
)
from reconciler.planner.making import make_plan, needed
from reconciler.planner.task import Task, View, Wanted
from tests.notation import MIB, line, lines, names, path, plan
from tests.unit.test_planner_properties import (
    Case,
    Disks,
    File,
    Promise,
    cases,
    copied,
    staying,
)

BIG = {"size": 128 * MIB}
SHORT = {"virtual_size": 32 * MIB}
KNOWN_AS_P = {"q": {"second": path("p"), "links": 2}}
"""q was merged while the guest ran, and QEMU knows it as p."""
NO_LINK_HERE = "/other/p"

# Data, in MiB: t and b 0-9, c 0-7, p 0-4, q 0-19, r 1, x 1-2; an image has 64 MiB.


def domain(observed: str, desired: str, state: State = "running", **rest: Any) -> DiskPlan:
    """The plan of a disk of a domain whose active image is that of *observed*."""
    there = names(observed)
    rest.setdefault("attached", path(there[-1]) if there else None)
    return plan(observed, desired, state=state, **rest)


def told(planned: PlannedStep) -> str:
    """`notation.line`, and whether it is a second name, and whether it waits."""
    link = isinstance(planned.step, Rename) and planned.step.link
    waits = planned.deferred is not None
    return f"{line(planned)}{', link' if link else ''}{', waits' if waits else ''}"


def rows(*tables: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*row, id=name) for table in tables for name, *row in table]


DONE_NOW = [
    # id, observed, desired, rest, steps
    ("as it should be", "b <- p <- x*", "b <- p <- x*", {}, []),
    ("a snapshot", "b*", "b <- x*", {}, ["create x on b, qcow2, 64 MiB"]),
    (
        "two snapshots",
        "b*",
        "b <- y <- z*",
        {},
        ["create y on b, qcow2, 64 MiB", "create z on y, qcow2, 64 MiB"],
    ),
    (
        "a larger snapshot",
        "b*",
        "b <- y*",
        {"wanted": {"y": BIG}},
        ["create y on b, qcow2, 128 MiB"],
    ),
    (
        "the active image grows",
        "b <- p <- x*",
        "b <- p <- x*",
        {"wanted": {"x": BIG}},
        [f"resize x to {128 * MIB}"],
    ),
    (
        "dropped below the active image: up, though down is cheaper",
        "b <- p <- q <- r <- x*",
        "b <- p <- x*",
        {},
        ["pull up into x down to p [18 MiB]", "remove r", "remove q"],
    ),
    (
        "dropped below a kept inactive image: down, and a second name",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {},
        ["commit q down into p, relink [20 MiB]", "rename p to q, link"],
    ),
    (
        "two dropped below a kept inactive image",
        "b <- p <- q <- r <- x*",
        "b <- r <- x*",
        {},
        ["commit r down into p, relink [20 MiB]", "rename p to r, link", "remove q"],
    ),
    (
        "dropped below an inactive and below the active image",
        "b <- p <- q <- r <- x*",
        "b <- q <- x*",
        {},
        [
            "commit q down into p, relink [20 MiB]",
            "rename p to q, link",
            "pull up into x down to q",
            "remove r",
        ],
    ),
    (
        "dropped below an inactive image, and a snapshot",
        "b <- p <- q <- x*",
        "b <- q <- x <- y*",
        {},
        [
            "commit q down into p, relink [20 MiB]",
            "rename p to q, link",
            "create y on x, qcow2, 64 MiB",
        ],
    ),
    (
        "flatten; the base stays",
        "b <- x*",
        "x*",
        {},
        ["pull up into x down to nothing [8.0 MiB]"],
    ),
    (
        "flatten; the base goes",
        "b <- x*",
        "x*",
        {"remove_base": True},
        ["pull up into x down to nothing [8.0 MiB]", "remove b"],
    ),
    (
        "a base that may go is used up under an inactive image",
        "b <- p <- x*",
        "p <- x*",
        {"remove_base": True},
        ["commit p down into b, relink [5.0 MiB]", "rename b to p, link"],
    ),
    (
        "the active image goes down, however large it is",
        "b <- p <- x*",
        "b <- p*",
        {"data": {"x": range(1, 20)}},
        ["commit x down into p, relink [19 MiB]", "remove x"],
    ),
    (
        "the active image and the one below go down",
        "b <- p <- q <- x*",
        "b <- p*",
        {},
        ["commit x down into p, relink [20 MiB]", "remove x", "remove q"],
    ),
    (
        "the active image goes down and grows",
        "b <- p <- x*",
        "b <- p*",
        {"wanted": {"p": BIG}},
        ["commit x down into p, relink [2.0 MiB]", f"resize p to {128 * MIB}", "remove x"],
    ),
    (
        "the active image under a new name: a snapshot takes its data",
        "b <- p <- x*",
        "b <- p <- y*",
        {},
        ["create y on x, qcow2, 64 MiB", "pull up into y down to p [2.0 MiB]", "remove x"],
    ),
    (
        "the active image under a new name, and a snapshot",
        "b <- p <- x*",
        "b <- p <- y <- z*",
        {},
        [
            "create y on x, qcow2, 64 MiB",
            "pull up into y down to p [2.0 MiB]",
            "create z on y, qcow2, 64 MiB",
            "remove x",
        ],
    ),
    (
        "a golden base, its data in a snapshot",
        "b*",
        "y*",
        {},
        ["create y on b, qcow2, 64 MiB", "pull up into y down to nothing [10 MiB]"],
    ),
    (
        "into an image whose view nobody needs, where the active one must stay as it is",
        "b <- p <- q <- r <- x*",
        "b <- ~p <- x*",
        {"facts": {"x": {"snapshots": 1}}},
        ["commit r down into p, relink [20 MiB]", "remove r", "remove q"],
    ),
    (
        "up from an image whose view nobody needs",
        "b <- p <- q <- x*",
        "b <- ~p <- x*",
        {"data": {"q": range(4), "x": range(10)}},
        ["pull up into x down to p", "remove q"],
    ),
    (
        "above a shared image: up",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"shared": {"p": "w"}},
        ["pull up into x down to p [18 MiB]", "remove q"],
    ),
    (
        "a dropped shared image below the active one: its data is copied up",
        "b <- p <- q <- x*",
        "b <- x*",
        {"shared": {"p": "w"}},
        ["pull up into x down to b [18 MiB]", "remove q"],
    ),
    (
        "an active image that is shorter takes the data of a longer one",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"x": SHORT}},
        ["pull up into x down to p [18 MiB]", "remove q"],
    ),
    (
        "no format has to be recorded first: QEMU knows it",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": {"recorded_format": None}}},
        ["pull up into x down to p [18 MiB]", "remove q"],
    ),
    (
        "a managed save does not hinder a guest that runs",
        "b <- p <- x*",
        "b <- p*",
        {"pinned": "it is saved"},
        ["commit x down into p, relink [2.0 MiB]", "remove x"],
    ),
    (
        "what is discarded and not there any more does not matter",
        "b <- p <- x*",
        "b <- p <- x*",
        {"discard": "q"},
        [],
    ),
    (
        "a snapshot of a paused guest",
        "b*",
        "b <- x*",
        {"state": "paused"},
        ["create x on b, qcow2, 64 MiB"],
    ),
]

WAITING = [
    # id, observed, desired, rest, steps
    (
        "another base",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"]},
        ["rebase p onto c [5.0 MiB], waits"],
    ),
    (
        "another base; the merge above it is done now and first",
        "b <- p <- q <- r <- x*",
        "c <- q <- x*",
        {"foreign": ["c"]},
        [
            "pull up into x down to q",
            "rebase q onto c, waits",
            "remove r",
            "remove p, waits",
        ],
    ),
    (
        "a golden base below an inactive image",
        "b <- p <- x*",
        "p <- x*",
        {},
        ["pull up into p down to nothing [5.0 MiB], waits"],
    ),
    (
        "a golden base below an inactive image; the active one goes down now",
        "b <- p <- q <- r <- x*",
        "q <- r*",
        {},
        [
            "commit x down into r, relink [2.0 MiB]",
            "pull up into q down to nothing, waits",
            "remove x",
            "remove p, waits",
        ],
    ),
    (
        "a short image below an inactive one",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"p": SHORT}},
        ["pull up into q down to b, waits", "remove p, waits"],
    ),
    (
        "a short image below the active one",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"facts": {"q": SHORT}},
        ["commit x down into q [2.0 MiB], waits", "rename q to x, waits"],
    ),
    (
        "a short image below an inactive one; what is above is merged now",
        "b <- p <- q <- r <- x*",
        "b <- q <- x*",
        {"facts": {"p": SHORT}},
        [
            "pull up into x down to q",
            "pull up into q down to b, waits",
            "remove r",
            "remove p, waits",
        ],
    ),
    (
        "a shared image below an inactive one",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"shared": {"p": "w"}},
        ["pull up into q down to b, waits"],
    ),
    (
        "a template below an inactive image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"templates": "p"},
        ["pull up into q down to b, waits"],
    ),
    (
        "a shared image below an inactive one, and a snapshot, which is taken now",
        "b <- p <- q <- x*",
        "b <- q <- x <- y*",
        {"shared": {"p": "w"}},
        ["create y on x, qcow2, 64 MiB", "pull up into q down to b, waits"],
    ),
    (
        "two dropped, the lower one shared",
        "b <- p <- q <- r <- x*",
        "b <- r <- x*",
        {"shared": {"p": "w"}},
        [
            "commit r down into q [1.0 MiB], waits",
            "pull up into q down to b, waits",
            "rename q to r, waits",
        ],
    ),
    (
        "no hard links across filesystems",
        f"b <- {NO_LINK_HERE} <- q <- x*",
        "b <- q <- x*",
        {},
        ["pull up into q down to b, waits", "remove p, waits"],
    ),
    (
        "a file with a hard link of somebody else's",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"p": {"links": 2}}},
        ["pull up into q down to b, waits"],
    ),
    (
        "a paused guest",
        "b <- p <- q <- r <- x*",
        "b <- q <- x*",
        {"state": "paused"},
        [
            "pull up into q down to b, waits",
            "pull up into x down to q, waits",
            "remove r, waits",
            "remove p, waits",
        ],
    ),
    (
        "a paused guest whose active image gets a new name",
        "b <- p <- x*",
        "b <- p <- y*",
        {"state": "paused"},
        ["rename x to y, waits"],
    ),
    (
        "a paused guest, and a snapshot, which is taken now",
        "b <- p <- q <- x*",
        "b <- q <- x <- y*",
        {"state": "paused"},
        [
            "create y on x, qcow2, 64 MiB",
            "pull up into q down to b, waits",
            "remove p, waits",
        ],
    ),
    (
        "a golden base as another one",
        "b*",
        "c <- y*",
        {"foreign": ["c"]},
        ["create y on b, qcow2, 64 MiB, waits", "rebase y onto c [10 MiB], waits"],
    ),
    (
        "a snapshot of an image that is only made when the guest is off",
        "b*",
        "c <- y <- z*",
        {"foreign": ["c"]},
        [
            "create y on b, qcow2, 64 MiB, waits",
            "rebase y onto c [10 MiB], waits",
            "create z on y, qcow2, 64 MiB, waits",
        ],
    ),
    (
        "a snapshot of an image that gets its name when the paused guest is off",
        "b <- p <- x*",
        "b <- p <- y <- z*",
        {"state": "paused"},
        ["rename x to y, waits", "create z on y, qcow2, 64 MiB, waits"],
    ),
    (
        "an image grows that gets its name when the paused guest is off",
        "b <- p <- x*",
        "b <- p <- y*",
        {"state": "paused", "wanted": {"y": BIG}},
        ["rename x to y, waits", f"resize y to {128 * MIB}, waits"],
    ),
    (
        "an image grows that is active only when the paused guest is off",
        "b <- p <- x*",
        "b <- p*",
        {"state": "paused", "wanted": {"p": BIG}},
        [
            "commit x down into p, relink [2.0 MiB], waits",
            f"resize p to {128 * MIB}, waits",
            "remove x, waits",
        ],
    ),
]

BORDERS = [
    # the border between two runs is free; a way that can be gone now is taken
    (
        "nothing waits where one border needs no waiting",
        "b <- p <- q <- r <- x*",
        "b <- ~p <- x*",
        {"data": {"q": [1], "r": range(20), "x": [1, 2]}},
    ),
    (
        "nothing waits where one border needs no waiting, under a new name",
        "b <- p <- q <- r <- x*",
        "b <- ~p <- y*",
        {"data": {"q": [1], "r": range(20), "x": [1, 2]}},
    ),
    (
        "the active image goes down first, and the one below, active then, is pulled into",
        "b <- q <- x*",
        "q*",
        {},
    ),
    (
        "the same above a shared image",
        "b <- p <- q <- x*",
        "b <- q*",
        {"shared": {"p": "w"}},
    ),
    (
        "no snapshot is taken of an image that is only made when the guest is off",
        "b <- p <- x*",
        "b <- ~p <- y*",
        {"facts": {"p": {"virtual_size": 128 * MIB}}, "data": {"p": []}},
    ),
]

SECOND_NAMES: list[tuple[Any, ...]] = [
    # id, observed, desired, rest, steps
    (
        "the name goes when the guest is off",
        "b <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P},
        ["rename p to q, waits"],
    ),
    (
        "the name goes when the paused guest is off",
        "b <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P, "state": "paused"},
        ["rename p to q, waits"],
    ),
    (
        "the guest is off: the name goes",
        "b <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P, "state": "shut-off"},
        ["rename p to q"],
    ),
    (
        "the guest is off: the name goes before anything else",
        "b <- q <- r <- x*",
        "b <- r <- x*",
        {"facts": KNOWN_AS_P, "state": "shut-off"},
        ["rename p to q", "commit r down into q [1.0 MiB]", "rename q to r"],
    ),
    (
        "the guest is off: the name goes, and an image above is dropped",
        "b <- q <- r <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P, "state": "shut-off"},
        ["rename p to q", "pull up into x down to q", "remove r"],
    ),
    (
        "the guest is off: the name goes, and an image below is dropped",
        "b <- c <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P, "state": "shut-off"},
        ["rename p to q", "pull up into q down to b", "remove c"],
    ),
    (
        "the guest is off: a name that went is not removed once more",
        "b <- q <- x*",
        "b <- x*",
        {"facts": KNOWN_AS_P, "state": "shut-off", "data": {"q": [1], "x": range(9)}},
        ["rename p to q", "pull up into x down to b", "remove q"],
    ),
    (
        "the file gets a third name, and loses the one that neither QEMU nor the spec has",
        "b <- q <- r <- x*",
        "b <- r <- x*",
        {"facts": KNOWN_AS_P},
        ["commit r down into q, relink [1.0 MiB]", "rename q to r, link"],
    ),
    (
        "merges above are done now",
        "b <- q <- r <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P},
        ["pull up into x down to q", "rename p to q, waits", "remove r"],
    ),
    (
        "a snapshot is taken now",
        "b <- q <- x*",
        "b <- q <- x <- y*",
        {"facts": KNOWN_AS_P},
        ["create y on x, qcow2, 64 MiB", "rename p to q, waits"],
    ),
    (
        "merged up: both names go",
        "b <- q <- x*",
        "b <- x*",
        {"facts": KNOWN_AS_P},
        ["pull up into x down to b [18 MiB]", "remove q", "remove p"],
    ),
    (
        "merged down with the one above: both names go",
        "b <- c <- q <- r <- x*",
        "b <- r <- x*",
        {"facts": KNOWN_AS_P},
        [
            "commit r down into c, relink [20 MiB]",
            "rename c to r, link",
            "remove q",
            "remove p",
        ],
    ),
    (
        "merged down under its own name: its other name goes",
        "b <- c <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P},
        ["commit q down into c, relink [20 MiB]", "rename c to q, link", "remove p"],
    ),
    (
        "it becomes active",
        "b <- q <- x*",
        "b <- q*",
        {"facts": KNOWN_AS_P},
        ["commit x down into q, relink [2.0 MiB]", "rename p to q, waits", "remove x"],
    ),
    (
        "it is active, and a snapshot is taken",
        "b <- q*",
        "b <- q <- y*",
        {"facts": KNOWN_AS_P},
        ["create y on q, qcow2, 64 MiB", "rename p to q, waits"],
    ),
    (
        "it is active, the guest is off: the definition follows",
        "b <- q*",
        "b <- q*",
        {"facts": KNOWN_AS_P, "state": "shut-off", "attached": path("p")},
        ["attach q", "rename p to q"],
    ),
]

SHUT_OFF: list[tuple[Any, ...]] = [
    # id, observed, desired, rest, steps
    ("as it should be", "b <- p <- x*", "b <- p <- x*", {}, []),
    (
        "the active image goes down",
        "b <- p <- x*",
        "b <- p*",
        {},
        ["commit x down into p, relink [2.0 MiB]", "attach p", "remove x"],
    ),
    (
        "another file under the same name",
        "b <- p <- x*",
        "b <- x*",
        {},
        ["commit x down into p [2.0 MiB]", "rename p to x"],
    ),
    (
        "another name of the active image",
        "b <- p <- x*",
        "b <- p <- y*",
        {},
        ["rename x to y", "attach y"],
    ),
    (
        "a snapshot",
        "b <- p <- x*",
        "b <- p <- x <- y*",
        {},
        ["create y on x, qcow2, 64 MiB", "attach y"],
    ),
    (
        "two snapshots",
        "b*",
        "b <- y <- z*",
        {},
        ["create y on b, qcow2, 64 MiB", "create z on y, qcow2, 64 MiB", "attach z"],
    ),
    (
        "the active image goes down and grows",
        "b <- p <- x*",
        "b <- p*",
        {"wanted": {"p": BIG}},
        [
            "commit x down into p, relink [2.0 MiB]",
            f"resize p to {128 * MIB}",
            "attach p",
            "remove x",
        ],
    ),
    (
        "roll back to a new overlay",
        "b <- p <- x*",
        "b <- p <- y*",
        {"discard": "x"},
        ["create y on p, qcow2, 64 MiB", "attach y", "remove x"],
    ),
    (
        "roll back to a restore point itself",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x"},
        ["attach p", "remove x"],
    ),
    (
        "a definition with an older image",
        "b <- p <- x*",
        "b <- p <- x*",
        {"attached": path("p")},
        ["attach x"],
    ),
    (
        "formats are recorded first",
        "b <- p <- x*",
        "b <- p*",
        {"facts": {"x": {"recorded_format": None}}},
        [
            "rebase x onto p",
            "commit x down into p, relink [2.0 MiB]",
            "attach p",
            "remove x",
        ],
    ),
    (
        "a managed save: what is below the active image is merged",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"pinned": "it is saved"},
        ["pull up into q down to b", "remove p"],
    ),
]

OFF = [(*row[:3], {"state": "shut-off", **row[3]}, row[4]) for row in SHUT_OFF]

S_P, S_Q, S_X = ({f"s-{name}": Saved(path(name))} for name in "pqx")
"""libvirt's snapshots, each with the image that holds its state."""

SNAPSHOTS = [
    # id, observed, desired, rest, steps
    (
        "of an image that is removed",
        "b <- p <- q <- x*",
        "b <- p <- x*",
        {"snapshots": S_P | S_Q | S_X},
        ["pull up into x down to p [18 MiB]", "forget snapshot s-q", "remove q"],
    ),
    (
        "of two images that are removed",
        "b <- p <- q <- x*",
        "b <- x*",
        {"snapshots": S_P | S_Q | S_X},
        [
            "pull up into x down to b [18 MiB]",
            "forget snapshot s-q",
            "remove q",
            "forget snapshot s-p",
            "remove p",
        ],
    ),
    (
        "of a restore point that the guest writes to again",
        "b <- p <- x*",
        "b <- p*",
        {"snapshots": S_P | {"s-b": Saved(path("b"))}},
        ["forget snapshot s-p", "commit x down into p, relink [2.0 MiB]", "remove x"],
    ),
    (
        "of an image that is removed later",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"snapshots": S_P | S_Q, "state": "paused"},
        ["pull up into q down to b, waits", "forget snapshot s-p, waits", "remove p, waits"],
    ),
    (
        "one now and one later",
        "b <- p <- q <- r <- x*",
        "q <- x*",
        {"snapshots": S_P | {"s-r": Saved(path("r"))}},
        [
            "pull up into x down to q",
            "pull up into q down to nothing, waits",
            "forget snapshot s-r",
            "remove r",
            "forget snapshot s-p, waits",
            "remove p, waits",
        ],
    ),
    (
        "of what is discarded",
        "b <- p <- x*",
        "b <- p <- y*",
        {"snapshots": S_P | S_X, "state": "shut-off", "discard": "x"},
        ["create y on p, qcow2, 64 MiB", "attach y", "forget snapshot s-x", "remove x"],
    ),
    (
        "of a restore point that is rolled back to, and written to",
        "b <- p <- x*",
        "b <- p*",
        {"snapshots": S_P | S_X, "state": "shut-off", "discard": "x"},
        ["forget snapshot s-p", "attach p", "forget snapshot s-x", "remove x"],
    ),
    (
        "while its image has two names",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"snapshots": S_P | S_Q},
        ["forget snapshot s-p", "commit q down into p, relink [20 MiB]", "rename p to q, link"],
    ),
    (
        "when the second name goes",
        "b <- q <- x*",
        "b <- q <- x*",
        {"snapshots": S_P | S_Q, "state": "shut-off", "facts": KNOWN_AS_P},
        ["forget snapshot s-p", "rename p to q"],
    ),
    (
        "of a dropped image whose file lives on under another name",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"snapshots": S_P | S_Q, "state": "shut-off", "data": {"q": [1], "p": range(30)}},
        ["forget snapshot s-p", "commit q down into p [1.0 MiB]", "rename p to q"],
    ),
    (
        "of an image that somebody else stands on, and that stays",
        "b <- p <- q <- x*",
        "b <- x*",
        {"snapshots": S_P, "state": "shut-off", "shared": {"p": "other"}},
        ["commit x down into q [2.0 MiB]", "pull up into q down to b", "rename q to x"],
    ),
    (
        "of a golden base that is dropped, and stays",
        "b <- p <- x*",
        "p <- x*",
        {"snapshots": {"s-b": Saved(path("b"))}, "state": "shut-off"},
        ["pull up into p down to nothing [5.0 MiB]"],
    ),
]

DEFINED = [
    # id, observed, desired, rest, steps
    (
        "a definition that spells out another chain",
        "b <- x*",
        "b <- x*",
        {"outdated": (path("b"), path("p"), path("x"))},
        ["attach x"],
    ),
    (
        "whatever else is done puts the definition right",
        "b <- p <- x*",
        "b <- x*",
        {"outdated": (path("b"), path("x"))},
        ["commit x down into p [2.0 MiB]", "rename p to x"],
    ),
]
DEFINED_OFF = [(*row[:3], {"state": "shut-off", **row[3]}, row[4]) for row in DEFINED]

TABLES = (DONE_NOW, WAITING, SECOND_NAMES, OFF, SNAPSHOTS, DEFINED_OFF)


@pytest.mark.parametrize(("observed", "desired", "rest", "steps"), rows(*TABLES))
def test_plan(observed: str, desired: str, rest: dict[str, Any], steps: list[str]) -> None:
    made = domain(observed, desired, **rest)
    later = [one for one in made.steps if one.deferred is not None]

    assert [told(one) for one in (*made.now, *later)] == sorted(steps, key=waits)


def waits(text: str) -> bool:
    return text.endswith(", waits")


@pytest.mark.parametrize(("observed", "desired", "rest"), rows(BORDERS))
def test_nothing_waits_that_libvirt_can_do(
    observed: str, desired: str, rest: dict[str, Any]
) -> None:
    made = domain(observed, desired, **rest)

    assert [told(planned) for planned in made.steps if planned.deferred] == []


@pytest.mark.parametrize(
    ("observed", "desired", "rest", "steps"), rows(DONE_NOW, WAITING, SECOND_NAMES)
)
def test_merges_that_are_done_now_come_before_those_that_wait(
    observed: str, desired: str, rest: dict[str, Any], steps: list[str]
) -> None:
    made = domain(observed, desired, **rest)
    merges = [one for one in made.steps if not isinstance(one.step, Remove | Forget)]
    late = [one.deferred is not None for one in merges]

    assert late == sorted(late)


@pytest.mark.parametrize(("observed", "desired", "rest", "steps"), rows(*TABLES))
def test_each_step_done_now_begins_where_the_last_one_done_now_ended(
    observed: str, desired: str, rest: dict[str, Any], steps: list[str]
) -> None:
    """The executor compares the chain with `before` and `after`, of removals too."""
    made = domain(observed, desired, **rest)
    end = made.observed
    for one in made.now:
        assert str(one.before) == str(end), one.step
        end = advance(end, one.step)
        assert str(one.after) == str(end), one.step


WHY = [
    # id, observed, desired, rest, a part of the reason
    (
        "another base",
        "b <- p*",
        "c <- p*",
        {"foreign": ["c"]},
        "p: a running guest cannot go to a foreign base",
    ),
    (
        "a golden base",
        "b <- p <- x*",
        "p <- x*",
        {},
        (
            "b: a dropped base stays as it is unless remove_base = true; "
            "p: libvirt pulls only into the active image"
        ),
    ),
    (
        "a short image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"p": SHORT}},
        "p, q: an image is shorter than the one above it, which block jobs read wrong",
    ),
    (
        "a shared image",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"shared": {"p": "w"}},
        "p: w stands on it; q: libvirt pulls only into the active image",
    ),
    (
        "a paused guest",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"state": "paused"},
        "p, q: a paused guest cannot be made to flush; resume it, or shut it off",
    ),
    (
        "another filesystem",
        f"b <- {NO_LINK_HERE} <- q <- x*",
        "b <- q <- x*",
        {},
        "p: it lies on another filesystem or mount than q",
    ),
    (
        "a second name",
        "b <- q <- x*",
        "b <- q <- x*",
        {"facts": KNOWN_AS_P},
        "QEMU knows q as p.qcow2 until the guest is off",
    ),
]


@pytest.mark.parametrize(("observed", "desired", "rest", "why"), rows(WHY))
def test_what_waits_says_why(observed: str, desired: str, rest: dict[str, Any], why: str) -> None:
    made = domain(observed, desired, **rest)

    assert why in (made.steps[0].deferred or "")


def test_a_removal_that_waits_says_for_what() -> None:
    made = domain("b <- p <- q <- x*", "b <- q <- x*", "paused")

    assert made.steps[-1].step == Remove(path("p"))
    assert made.steps[-1].deferred == "after the steps that wait"


REFUSALS = [
    # id, observed, desired, rest, reason
    (
        "discard while the guest runs",
        "b <- p <- x*",
        "b <- p*",
        {"discard": "x"},
        "x is discarded, and the guest is running",
    ),
    (
        "discard while the guest is paused",
        "b <- p <- q <- x*",
        "b <- p <- y*",
        {"discard": "q x", "state": "paused"},
        "q, x is discarded, and the guest is paused",
    ),
    (
        "what a guest that is off could not have either: internal snapshots",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"q": {"snapshots": 1}}},
        "dropping p would have to change an image that must stay as it is",
    ),
    (
        "what a guest that is off could not have either: dirty bitmaps",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"facts": {"p": {"bitmaps": 1}}},
        "dropping p would have to change an image that must stay as it is",
    ),
    (
        "what a guest that is off could not have either: another order",
        "b <- p <- x*",
        "b <- x <- p*",
        {},
        "the observed chain is b <- p <- x*: a chain is a history, and its order is fixed",
    ),
    (
        "no room now",
        "b <- p <- q <- x*",
        "b <- q <- x*",
        {"free": {1: MIB}},
        "commit q down into p needs 24.4 MiB in /images, where 1.0 MiB are free",
    ),
    (
        "a managed save, and the active image goes down",
        "b <- p <- x*",
        "b <- p*",
        {"state": "shut-off", "pinned": "it is saved"},
        "p would become the active image: it is saved",
    ),
    (
        "a managed save, and a snapshot",
        "b <- p <- x*",
        "b <- p <- x <- y*",
        {"state": "shut-off", "pinned": "it is saved"},
        "y would become the active image: it is saved",
    ),
    (
        "a managed save, and a rollback",
        "b <- p <- x*",
        "b <- p*",
        {"state": "shut-off", "pinned": "it is saved", "discard": "x"},
        "p would become the active image: it is saved",
    ),
]


@pytest.mark.parametrize(("observed", "desired", "rest", "reason"), rows(REFUSALS))
def test_refusal(observed: str, desired: str, rest: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        domain(observed, desired, **rest)

    assert refused.value.reason.startswith(reason)
    assert refused.value.way_out


@pytest.mark.parametrize(
    ("observed", "shared", "taken"),
    [
        pytest.param("b <- q <- x*", "q", {path("p")}, id="that others know an image by"),
        pytest.param("b <- q <- r <- x*", "r", set(), id="below an image that others stand on"),
    ],
)
@pytest.mark.parametrize("state", ["running", "shut-off"])
def test_a_second_name_stays(observed: str, shared: str, taken: set[Path], state: State) -> None:
    """Headers of others name it, or the header of a shared image would have to be changed."""
    rest: dict[str, Any] = {"shared": {shared: "w"}, "taken": frozenset(taken)}
    try:
        made = domain(observed, observed, state, facts=KNOWN_AS_P, **rest)
    except Refused:
        return

    assert made.steps == ()


def test_a_second_name_that_nobody_else_knows_goes_when_the_guest_is_off() -> None:
    made = domain("b <- q <- x*", "b <- q <- x*", "shut-off", facts=KNOWN_AS_P, shared={"q": "w"})

    assert lines(made) == ["rename p to q"]


GROUPS = [
    # id, observed, desired, rest; the attach is in the group of the step before it
    ("after a merge", "b <- p <- x*", "b <- p*", {}),
    ("after a rename", "b <- p <- x*", "b <- p <- y*", {}),
    ("after a snapshot", "b <- p <- x*", "b <- p <- x <- y*", {}),
    ("after a resize", "b <- p <- x*", "b <- p*", {"wanted": {"p": BIG}}),
    (
        "after a resize alone",
        "b <- x*",
        "b <- x*",
        {"wanted": {"x": BIG}, "attached": path("b")},
    ),
    ("after a rollback", "b <- p <- x*", "b <- p <- y*", {"discard": "x"}),
]


@pytest.mark.parametrize(("observed", "desired", "rest"), rows(GROUPS))
def test_the_domain_gets_its_image_in_one_group_with_the_step_before(
    observed: str, desired: str, rest: dict[str, Any]
) -> None:
    made = domain(observed, desired, "shut-off", **rest)
    merges = [one for one in made.steps if not isinstance(one.step, Remove | Forget)]

    assert merges[-1].step == Attach(made.desired[-1])
    assert merges[-1].group is not None
    assert merges[-1].group == merges[-2].group
    assert made.steps[: len(merges)] == tuple(merges)


def test_a_second_name_and_its_commit_are_one_group() -> None:
    made = domain("b <- p <- q <- x*", "b <- q <- x*")

    assert len({one.group for one in made.steps}) == 1
    assert made.steps[0].group is not None


def test_the_reason_of_a_second_name_says_what_qemu_calls_it() -> None:
    made = domain("b <- p <- q <- x*", "b <- q <- x*")

    assert made.steps[1].reason == ("its file holds the merged data; QEMU calls it p while it runs")


def test_a_file_with_two_names_is_shared_only_if_it_has_a_third() -> None:
    observed, desired = "b <- q <- r <- x*", "b <- r <- x*"
    two = domain(observed, desired, facts=KNOWN_AS_P)
    three = domain(observed, desired, facts={"q": {"second": path("p"), "links": 3}})

    assert [one.deferred for one in two.steps] == [None, None]
    assert "it has a second name (hard link)" in (three.steps[0].deferred or "")


# Random guests


Second = dict[Path, Path]
"""By the name that the spec has, the name by which QEMU knows the file."""


def seen(case: Case, disks: Disks, second: Second, state: State) -> Task:
    """What the planner is told of *disks* as the disks of a domain."""
    task = case.task(disks)
    chain = Chain(
        tuple(
            replace(one, second=second[one.path], links=one.links + 1)
            if one.path in second
            else one
            for one in task.chain
        )
    )
    wanted = tuple(
        replace(one, image=chain.image(one.path)) if one.path in chain else one
        for one in task.wanted
    )
    return replace(task, chain=chain, wanted=wanted, state=state, attached=disks.active)


def planned(case: Case, disks: Disks, second: Second, state: State) -> DiskPlan:
    task = seen(case, disks, second, state)
    return make_plan(task, {at: View(disks.extents(at), disks.forged) for at in needed(task)})


def can_be_done(one: PlannedStep, state: State) -> bool:
    """True for what libvirt does with a guest that is on."""
    chain = one.before
    assert chain.active
    active = chain.active.path
    match one.step:
        case Create(_, backing):
            return backing == active
        case Resize(image):
            return image == active
        case Pull(into, base):
            group = (*chain.between(base, into), chain.image(into))
            dips = any(a.virtual_size < b.virtual_size for a, b in pairwise(group))
            return state == "running" and into == active and not dips
        case Commit(top, base, relink):
            group = (chain.image(base), *chain.between(base, top), chain.image(top))
            dips = any(a.virtual_size < b.virtual_size for a, b in pairwise(group))
            return state == "running" and relink and not dips
        case Rename(source, target, link):
            return state == "running" and link and source != active and target != active
        case Remove(image):
            return image not in chain
        case Forget():
            return True
        case _:
            return False


def play(made: DiskPlan, disks: Disks, second: Second, promise: Promise) -> None:
    """Carry out what is done now; *disks* and *second* are changed."""
    others = set(second.values())
    for one in made.now:
        match one.step:
            case Rename(source, target) if second.get(target) == source:
                del second[target]
                others.remove(source)
            case Remove(image) if image in others and image not in disks.files:
                others.remove(image)
            case Remove(image):
                disks.run(one.step)
                second.pop(image, None)
            case Rename(source, target, link):
                disks.run(one.step)
                known = second.pop(source, source)
                second.pop(target, None)
                if link:
                    second[target] = known
            case _:
                price = disks.run(one.step)
                foreign = not made.observed or one.step.action == "rebase"
                assert price <= one.bytes if foreign else price == one.bytes
        promise.holds(disks)
        if isinstance(one.step, Remove | Forget):
            continue  # their chain is that behind the steps that wait
        assert one.after.paths == tuple(disks.below(disks.active))[::-1]


def with_formats(case: Case) -> Case:
    """*case* with every format recorded: QEMU has them from its XML."""
    disks = copied(case.disks)
    for file in disks.files.values():
        file.recorded = True
    return replace(case, disks=disks, busy=False)


def a_case(desired: str, *, size: int = 0, **data: int) -> Case:
    """Images with so much data, base first, and a chain to be reached; *size*: of larger disks."""
    files: dict[Path, File] = {}
    for number, (name, count) in enumerate(data.items()):
        cells = {at: f"{name}.{at}" for at in range(count)}
        files[path(name)] = File(number, size or count, cells, next(reversed(files), None))
    wanted = tuple(
        Wanted(path(name.strip("~")), name, restore_point="~" not in name)
        for name in names(desired)
    )
    return Case(Disks(files, next(reversed(files))), wanted)


@settings(settings.get_profile("planner"), max_examples=800)
@given(cases().map(with_formats), st.sampled_from(["running", "running", "paused"]))
@example(a_case("b <- q <- x*", b=4, p=4, q=4, x=4), "running")
@example(a_case("b <- q <- x*", b=4, p=3, q=4, x=4), "running")
@example(a_case("b <- q <- y*", b=4, p=4, q=4, x=4), "paused")
@example(a_case("~q <- x <- y*", size=2, b=0, p=0, q=0, r=1, x=0), "running")
def test_what_can_be_done_now_is_done_and_the_rest_when_the_guest_is_off(
    case: Case, state: State
) -> None:
    disks = copied(case.disks)
    if disks.active is None:
        return
    disks.may_lose_bitmaps = frozenset(
        file.number for at, file in disks.files.items() if case.drop_bitmaps or at in case.discard
    )
    second: Second = {}
    promise = Promise.of(case)
    try:
        made = planned(case, disks, second, state)
    except Refused:
        event("refused")
        return
    event(f"{min(len(made.now), 4)} now, {min(len(made.steps) - len(made.now), 4)} later")

    assert [str(one.step) for one in made.now if not can_be_done(one, state)] == []

    play(made, disks, second, promise)
    again = planned(case, disks, second, state)
    if any(isinstance(one.step, Create) for one in made.now):
        # apply goes on: what a snapshot was taken of is active no more, and may be merged cheaper
        play(again, disks, second, promise)
        again = planned(case, disks, second, state)

    assert [told(one) for one in again.now] == []

    play(planned(case, disks, second, "shut-off"), disks, second, promise)

    assert tuple(disks.below(disks.active))[::-1] == case.names
    assert set(disks.files) == set(case.names) | staying(case)
    assert second == {}
    assert planned(case, disks, second, "shut-off").steps == ()


@settings(settings.get_profile("planner"), max_examples=300)
@given(cases().map(with_formats), st.sampled_from(["running", "paused"]))
def test_a_running_guest_is_refused_only_what_it_would_be_refused_when_off(
    case: Case, state: State
) -> None:
    """What the planner can do when the guest is off is at worst put off."""
    case, disks = replace(case, free=1 << 40), case.disks  # a pull may need more room
    if disks.active is None or case.discard:
        return
    try:
        made = planned(case, disks, {}, "shut-off")
    except Refused:
        return
    event(f"{min(len(made.steps), 4)} steps")
    while_on = planned(case, disks, {}, state)

    assert bool(while_on.steps) == bool(made.steps)
    assert while_on.desired == made.desired


@settings(settings.get_profile("planner"), max_examples=300)
@given(cases().map(with_formats), st.lists(st.integers(1, 255), min_size=2, max_size=2))
def test_one_spec_after_another_while_the_guest_runs(case: Case, kept: list[int]) -> None:
    """A bit of *kept* says whether the image of that place is in the next spec."""
    disks, second = copied(case.disks), Second()
    new = [one for one in case.wanted if one.path not in disks.files]
    if disks.active is None or len(new) > 1:
        return
    disks.may_lose_bitmaps = frozenset(file.number for file in disks.files.values())
    wanted = tuple(replace(one, size=None, restore_point=True) for one in case.wanted)
    case = replace(case, discard=frozenset(), free=1 << 40, drop_bitmaps=True)
    state: State = "running"
    for bits in (*kept, None, None):
        case = replace(case, disks=copied(disks), wanted=wanted)
        try:
            made = planned(case, disks, second, state)
        except Refused:
            event("refused")
            return
        names_before = set(second.values())
        play(made, disks, second, Promise.of(case))
        removed = {one.step.image for one in made.now if isinstance(one.step, Remove)}
        if state == "running":
            assert names_before <= {*second.values(), *removed}, "a name was left behind"
        if bits is None:
            state = "shut-off"
            continue
        chain = tuple(disks.below(disks.active))[::-1]
        listed = [at for place, at in enumerate(chain) if bits >> place & 1] or [*chain[-1:]]
        wanted = tuple(Wanted(at, at.name) for at in listed)

    assert second == {}
    assert tuple(disks.below(disks.active))[::-1] == case.names
    assert planned(case, disks, second, "shut-off").steps == ()


def test_the_image_with_two_names_is_told_by_advance() -> None:
    """What the executor compares the chain with that it finds, and plans from next."""
    made = domain("b <- p <- q <- x*", "b <- q <- x <- y*")
    chain = made.observed
    for one in made.now:
        chain = advance(chain, one.step)

    assert chain == made.steps[-1].after
    assert str(chain) == "b <- q <- x <- y*"
    assert chain.image(path("q")).second == path("p")


def test_metadata_goes_together_with_the_merge_that_ends_its_state() -> None:
    """An interruption in between leaves both to be finished."""
    made = domain("b <- p <- x*", "b <- p*", snapshots=S_P)

    assert [one.group is not None for one in made.steps[:2]] == [True, True]
    assert made.steps[0].group == made.steps[1].group


def test_memory_that_can_no_longer_be_restored_is_named() -> None:
    saved = Saved(path("p"), Path("/mem/s1"), 96 * MIB)
    made = domain("b <- p <- x*", "b <- x*", snapshots={"s1": saved})

    assert len(made.notes) == 1
    assert made.notes[0].startswith("/mem/s1 (96 MiB): the guest's memory of libvirt's snapshot s1")
    assert "can no longer be restored" in made.notes[0]


NVRAM = "the NVRAM of the guest's firmware (/vars/web.fd)"


@pytest.mark.parametrize(
    ("observed", "desired", "discard", "note"),
    [
        ("x*", "x <- y*", "", f"not part of a restore point: {NVRAM}; copy it yourself"),
        ("b <- x*", "b <- x <- y*", "", None),
        ("b <- x*", "b*", "x", f"not rolled back: {NVRAM}; put an older copy there"),
        ("b <- x*", "b <- y*", "x", f"not rolled back: {NVRAM}; put an older copy there"),
        ("b <- p <- x*", "b <- x*", "", None),
    ],
    ids=["first restore point", "second", "rollback to base", "rollback to an overlay", "drop"],
)
def test_what_is_in_no_disk_is_told_of(
    observed: str, desired: str, discard: str, note: str | None
) -> None:
    made = domain(observed, desired, "shut-off", discard=discard, beside=(NVRAM,))

    assert made.error is None
    assert [one for one in made.notes if "NVRAM" in one] == [
        one for one in made.notes if note and one.startswith(note)
    ]
    assert any("NVRAM" in one for one in made.notes) == (note is not None)


@pytest.mark.parametrize("state", ["running", "shut-off"])
def test_a_chain_grows_as_far_as_libvirt_can_follow(state: State) -> None:
    grown = domain("b <- x*", "b <- x <- y*", state, deepest=3)

    assert any(isinstance(one.step, Create) for one in grown.steps)
    with pytest.raises(Refused, match="would grow to 3 images, and with more than 2 this"):
        domain("b <- x*", "b <- x <- y*", state, deepest=2)


def test_a_chain_that_is_too_deep_for_libvirt_can_be_merged() -> None:
    made = domain("b <- x <- y*", "b <- y*", deepest=1)

    assert made.steps


@pytest.mark.parametrize("state", ["running", "shut-off"])
@pytest.mark.parametrize(
    ("desired", "discard"),
    [("b <- p <- x <- new*", "y"), ("b <- p <- new*", "x y"), ("b <- new*", "p x y")],
    ids=["as long", "shorter", "short enough"],
)
def test_a_chain_that_is_too_deep_for_libvirt_can_be_rolled_back(
    state: State, desired: str, discard: str
) -> None:
    made = domain(
        "b <- p <- x <- y*", desired, state, discard=discard, on_running="restart", deepest=2
    )

    assert any(isinstance(one.step, Create) for one in made.steps)
    assert max(len(one.after) for one in made.steps) <= 4


@pytest.mark.parametrize(
    "desired",
    ["b <- p <- x <- y <- new*", "b <- p <- y <- new <- newer*"],
    ids=["grows", "grows after a merge"],
)
def test_a_chain_that_is_too_deep_for_libvirt_gets_no_deeper(desired: str) -> None:
    with pytest.raises(Refused, match=r"would grow to \d images, and with more than 2 this"):
        domain("b <- p <- x <- y*", desired, deepest=2)


def test_a_chain_that_is_too_deep_for_libvirt_stays_as_deep_as_it_is() -> None:
    made = domain("b <- p <- x <- y*", "b <- p <- y <- new*", deepest=2)

    assert [len(one.after) for one in made.steps] == [3, 4, 4]


def test_a_transient_domain_is_not_stopped_for_a_rollback() -> None:
    with pytest.raises(Refused, match="transient: once stopped, it is gone"):
        domain("b <- x*", "b <- y*", discard="x", on_running="restart", transient=True)
