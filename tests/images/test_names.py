"""Names, links and folders: whatever an image is called, and however its overlay calls it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.images.cases import BIG_P, BIG_Q, B, P, Q, R, X
from tests.images.disks import (
    Disk,
    assert_done,
    assert_quiet,
    assert_untouched,
    folder_facts,
)

ODD_NAMES = [
    "with spaces and  more",
    "nbd:colon:first",
    "comma,comma,,more",
    "quote\"and'quote",
    "ünï-çødé-☃",
    "-leading-dash",
    "json:{}",
    "back\\slash and $HOME `x` %s [a]",
    "star*?[x]",
    "#hash = equals",
    "new.virt-chain-new",
]


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_odd_names_in_every_place(disk: Disk, odd: str) -> None:
    """Odd names for all images of a merge up, a merge down, a new top and a roll back."""
    base, p, q, x, y = (f"{odd}{number}" for number in "bpqxy")
    disk.chain({base: B, p: BIG_P, q: Q, x: X}, style="absolute")
    disk.spec(f"{base} <- {q} <- {x} <- {y}")

    merged = disk.apply()

    assert merged.code == 0, merged
    assert_done(disk, f"{base} <- {q} <- {x} <- {y}", current=x, gone=[p])
    assert_untouched(disk, base, x)
    assert_quiet(disk)

    disk.spec(f"{base} <- {q}", discard=[x, y])
    back = disk.apply()

    assert back.code == 0, back
    disk.golden[q] = disk.read(q)
    assert_done(disk, f"{base} <- {q}", current=q, gone=[p, x])


@pytest.mark.parametrize("odd", ["a:b", "-dash", "with space", "x,y"])
def test_odd_relative_names_stay_relative(disk: Disk, odd: str) -> None:
    base, p, x = f"{odd}b", f"{odd}p", f"{odd}x"
    disk.add(base, B)
    disk.add(p, P, on=base, recorded=f"./{base}.qcow2")
    disk.add(x, "64k:- 64k:X 384k:X", on=p, recorded=f"./{p}.qcow2")
    disk.keep()
    disk.spec(f"{base} <- {x}")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, f"{base} <- {x}", current=x, gone=[p])
    recorded = disk.headers(x)[0][1]
    assert recorded in (f"{base}.qcow2", f"./{base}.qcow2")


def test_an_image_with_a_newline_in_its_name_is_merged(disk: Disk) -> None:
    """A spec cannot name it; as an observed image it is dropped like any other."""
    odd = "new\nline\x1b[31m"
    disk.chain({"b": B, odd: P, "x": X})
    disk.spec("b <- x")

    plan = disk.plan()
    outcome = disk.apply()

    assert plan.steps == ["pull into x down to b, 64k", f"remove {odd}"]
    assert outcome.code == 0, outcome
    assert (odd in outcome.out, "\x1b" in outcome.out + outcome.err) == (False, False)
    assert r"new\nline\x1b[31m" in outcome.out
    assert_done(disk, "b <- x", current="x", gone=[odd])
    assert_quiet(disk)


@pytest.mark.parametrize("style", ["relative", "absolute", "file", "json"])
@pytest.mark.parametrize("p", [P, BIG_P], ids=["pull", "commit and rename"])
def test_every_way_to_record_a_backing_name(disk: Disk, style: str, p: str) -> None:
    disk.chain({"b": B, "p": p, "q": Q, "x": X}, style=style)
    disk.spec("b <- q <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])
    assert_untouched(disk, "b", "x")
    assert_quiet(disk)


def test_a_relative_chain_stays_relative_and_moves_as_one(disk: Disk) -> None:
    """After merges in every direction the folder may be moved, and everything reads the same."""
    disk.chain({"b": B, "p": P, "q": BIG_Q, "r": BIG_P, "s": R, "x": X})
    disk.spec("b <- q <- s <- x <- y")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert disk.headers("y") == [
        ("y", "x.qcow2"),
        ("x", "s.qcow2"),
        ("s", "q.qcow2"),
        ("q", "b.qcow2"),
        ("b", None),
    ]
    moved = disk.root / "elsewhere"
    os.rename(disk.images, moved)
    disk.paths = {name: moved / f"{name}.qcow2" for name in ("b", "q", "s", "x", "y")}
    assert {name: disk.read(name) for name in ("b", "q", "s", "x")} == {
        name: disk.golden[name] for name in ("b", "q", "s", "x")
    }
    assert disk.read("y") == disk.golden["x"]


def test_absolute_names_stay_absolute(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "q": BIG_Q, "x": X}, style="absolute")
    disk.spec("b <- q <- x <- y")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    folder = f"{disk.images}/"
    assert disk.headers("y") == [
        ("y", f"{folder}x.qcow2"),
        ("x", f"{folder}q.qcow2"),
        ("q", f"{folder}b.qcow2"),
        ("b", None),
    ]


@pytest.mark.parametrize("style", ["relative", "absolute"])
def test_a_chain_in_several_folders(disk: Disk, style: str) -> None:
    disk.chain(
        {"b": B, "p": BIG_P, "q": Q, "r": R, "x": X},
        style=style,
        b={"folder": "templates"},
        p={"folder": "old/deep"},
        q={"folder": "old"},
    )
    disk.spec("b <- q <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- q <- x", current="x", gone=["p", "r"])
    assert_untouched(disk, "b")
    relative = [name and not os.path.isabs(name) for _, name in disk.headers("x")[:2]]
    assert relative == [style == "relative"] * 2
    assert_quiet(disk)


def test_a_folder_behind_a_symbolic_link(disk: Disk) -> None:
    """Spec and headers go through a link; the images are the same files."""
    real = disk.images / "real"
    real.mkdir()
    (disk.images / "link").symlink_to("real")
    disk.chain({"b": B, "p": P, "x": X}, folder="link", style="absolute")
    disk.spec("b <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert disk.read("x") == disk.golden["x"]
    assert disk.read("b") == disk.golden["b"]
    assert sorted(folder_facts(disk.images)) == ["link", "real/b.qcow2", "real/x.qcow2"]
    assert_quiet(disk)


def test_images_that_are_symbolic_links(disk: Disk) -> None:
    """The link of a kept image stays a link, and the file behind it is merged into."""
    disk.chain({"b": B, "p": P, "q": BIG_Q, "x": X}, style="absolute", q={"folder": "far"})
    real = disk.path("q")
    link = disk.images / "q.qcow2"
    link.symlink_to(real)
    disk.paths["q"] = link
    disk.keep()
    disk.spec("b <- q <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert link.is_symlink()
    assert {name: disk.read(name) for name in ("b", "q", "x")} == {
        name: disk.golden[name] for name in ("b", "q", "x")
    }
    assert not disk.path("p").exists()
    assert_quiet(disk)


def test_the_active_image_is_a_symbolic_link(disk: Disk) -> None:
    """A merge by rename replaces the file behind the link, and the link stays."""
    disk.chain({"b": B, "p": BIG_P, "x": X}, style="absolute", x={"folder": "far"})
    link = disk.images / "x.qcow2"
    link.symlink_to(disk.path("x"))
    disk.paths["x"] = link
    disk.keep()
    disk.spec("b <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert link.is_symlink()
    assert disk.read("x") == disk.golden["x"]
    assert disk.read("b") == disk.golden["b"]
    assert not disk.path("p").exists()
    assert_quiet(disk)


@pytest.mark.parametrize("name", ["p", "q"])
def test_a_hard_linked_image_is_taken_as_shared(disk: Disk, name: str) -> None:
    """Who uses the second name is unknown: the file is only read, and stays."""
    disk.chain({"b": B, "p": BIG_P, "q": Q, "x": X})
    other = disk.root / "other-name.qcow2"
    os.link(disk.path(name), other)
    disk.keep()
    disk.spec("b <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    frozen = ["p"] if name == "p" else ["p", "q"]
    gone = ["q"] if name == "p" else []
    assert_done(disk, "b <- x", current="x", gone=gone)
    assert_untouched(disk, "b", *frozen)
    assert other.samefile(disk.path(name))


def test_two_names_of_one_image_are_one_image(disk: Disk, tmp_path: Path) -> None:
    """Identity is the file: a chain listed through a link has nothing to do."""
    disk.chain({"b": B, "x": X}, style="absolute")
    through = tmp_path / "through"
    through.symlink_to(disk.images)
    disk.spec("b <- x")
    text = disk.spec_file.read_text().replace(f'"{disk.images}"', f'"{through}"')
    disk.spec_file.write_text(text)

    plan = disk.plan()

    assert (plan.code, plan.steps) == (0, [])


def test_a_file_that_the_spec_lists_by_its_other_name_gets_that_name_alone(disk: Disk) -> None:
    """What a crash in a rename leaves, where the state file is lost, too."""
    disk.chain({"b": B, "p": P, "x": X})
    os.link(disk.path("p"), disk.images / "q.qcow2")
    disk.spec("b <- q <- x")

    assert disk.plan().steps == ["rename p to q"]
    assert disk.apply().code == 0

    disk.golden["q"] = disk.golden["p"]
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])
    assert_quiet(disk)


def test_who_stands_on_the_name_that_stays_keeps_no_other_name(disk: Disk) -> None:
    """Such as an image that was merged, and that nobody knows of any more."""
    disk.chain({"b": B, "p": P, "x": X})
    os.link(disk.path("p"), disk.images / "q.qcow2")
    disk.add("s", Q, on="p", recorded="q.qcow2")
    disk.spec("b <- q <- x")

    assert disk.plan().steps == ["rename p to q"]
    kept = [disk.images / "q.qcow2", disk.path("s")]
    before, view_of_s = [path.read_bytes() for path in kept], disk.read("s")
    assert disk.apply().code == 0

    assert [path.read_bytes() for path in kept] == before
    assert disk.stack("x") == "b <- q <- x"
    assert not disk.path("p").exists()
    assert (disk.read("x"), disk.read("s")) == (disk.golden["x"], view_of_s)
    assert_quiet(disk)


@pytest.mark.parametrize("taken", ["by its name", "from above"])
def test_a_name_that_only_a_shared_image_could_change_stays(disk: Disk, taken: str) -> None:
    disk.chain({"b": B, "p": P, "y": Q, "x": X})
    os.link(disk.path("p"), disk.images / "q.qcow2")
    disk.add("s", Q, on="p" if taken == "by its name" else "y")
    disk.keep()
    disk.spec("b <- q <- y <- x")

    assert disk.apply().code == 0

    assert_untouched(disk, "b", "p", "y", "s")
    assert disk.path("p").samefile(disk.path("q"))


def test_a_name_that_another_disk_lists_stays(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    os.link(disk.path("p"), disk.images / "q.qcow2")
    disk.add("o", Q, on="p", recorded="q.qcow2")
    disk.keep()
    chains = {"vm": ["b", "q", "x"], "other": ["b", "p", "o"]}
    text = f'version = 1\ndefaults.directory = "{disk.images}"\n'
    for name, chain in chains.items():
        listed = ", ".join(f'"{one}.qcow2"' for one in chain)
        text += f"[domains.{name}.disks.vda]\nchain = [{listed}]\n"
    disk.spec_file.write_text(text)

    assert disk.apply().code == 0

    assert_untouched(disk, "b", "p", "x", "o")
    assert disk.path("p").samefile(disk.images / "q.qcow2")


@pytest.mark.parametrize("why", ["a template", "three names", "another folder", "both are listed"])
def test_a_second_name_stays_where_somebody_may_want_it(disk: Disk, why: str) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    other = disk.images / "q.qcow2"
    if why == "another folder":
        other = disk.root / "elsewhere" / "q.qcow2"
        other.parent.mkdir()
    os.link(disk.path("b" if why == "a template" else "p"), other)
    if why == "three names":
        os.link(other, disk.images / "r.qcow2")
    listed = {
        "a template": [other, disk.path("p")],
        "both are listed": ["b.qcow2", "p.qcow2", other],
    }
    chain = listed.get(why, ["b.qcow2", other])
    words = ", ".join(f'{{ file = "{one}" }}' for one in chain)
    if why == "a template":
        words = words.replace(" }", ", template = true }", 1)
    disk.spec_file.write_text(
        f'version = 1\ndefaults.directory = "{disk.images}"\n[domains.vm.disks.vda]\n'
        f'chain = [{words}, {{ file = "x.qcow2" }}]\n'
    )

    said = disk.plan()

    assert not any("rename" in step for step in said.steps), said
    assert other.samefile(disk.path("b" if why == "a template" else "p"))
