"""Who a file is: images that are missing, replaced or written to by somebody else, and `adopt`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli import adopting
from reconciler.engine.disk_state import OldLink, Unfinished, begun
from reconciler.engine.state import StateFolder, waiting
from reconciler.model.steps import Pull
from reconciler.tools.files import file_id
from reconciler.tools.quarantine import FOLDER
from tests.images.cases import B, P, X
from tests.images.disks import (
    Disk,
    Outcome,
    assert_quiet,
    command,
    folder_facts,
    process,
    quarantined,
    tool,
    view,
    write,
)


def run(disk: Disk, *words: str | Path) -> Outcome:
    return command(*words, "--state-dir", disk.state)


def killed(disk: Disk) -> Outcome:
    """An apply in a process of its own, which a tool kills."""
    return process("apply", "-y", "--state-dir", disk.state, disk.spec_file, env=dict(os.environ))


def applied(disk: Disk, chain: str = "b <- p <- x") -> Disk:
    """*disk* after its spec was applied once, so that its images are remembered."""
    disk.spec(chain)
    outcome = disk.apply()
    assert outcome.code == 0, outcome
    disk.keep()
    return disk


@pytest.fixture
def three(disk: Disk) -> Disk:
    disk.add("b", "512k:A")
    disk.add("p", "64k:P 448k:-", on="b")
    disk.add("x", "64k:- 64k:X 384k:-", on="p")
    return applied(disk)


def test_an_active_image_that_is_missing_is_never_made_anew(three: Disk) -> None:
    """Its folder may not be mounted: an empty image in its place would hide the guest's data."""
    three.path("x").rename(three.root / "away.qcow2")

    plan, outcome = three.plan(), three.apply()
    assert plan.error is not None
    assert "is missing, and the state file names it as the active image" in plan.error
    assert "is its folder mounted?" in plan.error
    assert "virt-chain adopt vm:vda p.qcow2" in plan.error
    assert outcome.code == 1
    assert not three.path("x").exists()

    (three.root / "away.qcow2").rename(three.path("x"))
    assert three.plan().steps == []


def test_a_person_says_that_the_active_image_is_gone_for_good(three: Disk) -> None:
    three.path("x").unlink()
    adopted = run(three, "adopt", "vm:vda", "p.qcow2", "-y", "--spec", three.spec_file)
    assert adopted.code == 0, adopted
    assert f"no longer {three.path('x')}, which is missing" in adopted.out

    three.spec("b <- p <- y")
    assert three.apply().code == 0
    assert view(three.path("y")) == three.golden["p"]


def test_nothing_is_adopted_without_a_person(three: Disk) -> None:
    three.path("x").unlink()
    adopted = run(three, "adopt", "vm:vda", "p.qcow2", "--spec", three.spec_file)

    assert adopted.code == 1
    assert "stdin is not a terminal; use -y to adopt without confirmation" in adopted.err
    assert three.plan().error is not None


def test_a_disk_whose_image_is_gone_may_begin_anew(disk: Disk) -> None:
    disk.spec("x", sizes={"x": "1M"})
    assert disk.apply().code == 0
    disk.path("x").unlink()
    assert "virt-chain adopt vm:vda --new" in (disk.plan().error or "")
    assert run(disk, "adopt", "vm:vda", "--new", "-y", "--spec", disk.spec_file).code == 0

    assert disk.apply().code == 0
    assert disk.path("x").exists()


def replaced(path: Path, below: str | None) -> None:
    """Another image under the same name, as a newer template is put there."""
    new = path.with_name("new.qcow2")
    on = ["-b", below, "-F", "qcow2"] if below else []
    tool("qemu-img", "create", "-q", "-f", "qcow2", *on, new, "512k", cwd=path.parent)
    write(new, "64k:N")
    os.rename(new, path)


CHANGES = {
    "replaced": (lambda disk: replaced(disk.path("b"), None), "b.qcow2 is another file now"),
    "written to": (lambda disk: write(disk.path("b"), "64k:W"), "b.qcow2 was written to"),
    "committed by hand": (
        lambda disk: tool("qemu-img", "commit", "-q", "-d", "-b", disk.path("p"), disk.path("x")),
        "p.qcow2 was written to",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_from_outside_is_told_first_and_nothing_copies_its_data(
    three: Disk, name: str
) -> None:
    change, told = CHANGES[name]
    change(three)
    files = sorted(three.images.iterdir())
    shown = run(three, "show", three.spec_file)
    three.spec("b <- x")
    planned, outcome = run(three, "plan", three.spec_file), three.apply()

    assert told in shown.out
    assert told in planned.out
    assert outcome.code == 1
    assert "virt-chain adopt vm:vda" in outcome.out
    assert sorted(three.images.iterdir()) == files

    assert run(three, "adopt", "vm:vda", "-y", "--spec", three.spec_file).code == 0
    expected = view(three.path("x"))
    assert three.apply().code == 0
    assert view(three.path("x")) == expected
    assert told not in run(three, "plan", three.spec_file).out


def test_a_merge_upward_by_hand_changes_no_restore_point(three: Disk) -> None:
    relink = ["qemu-img", "rebase", "-q", "-F", "qcow2", "-b", "b.qcow2", three.path("x")]
    tool(*relink, cwd=three.images)
    three.spec("b <- x")

    planned = run(three, "plan", three.spec_file)
    assert "WARNING" not in planned.out
    assert view(three.path("x")) == three.golden["x"]


def test_a_disk_with_nothing_to_do_tells_of_a_change_too(three: Disk) -> None:
    replaced(three.path("b"), None)
    planned = run(three, "plan", three.spec_file)

    assert planned.code == 0
    assert "WARNING: changed by another program: b.qcow2 is another file now" in planned.out
    data = run(three, "plan", three.spec_file, "--json").data
    assert "b.qcow2 is another file now" in data["domains"][0]["disks"][0]["warnings"][0]


def test_a_new_overlay_may_be_made_on_a_changed_image(three: Disk) -> None:
    """It copies nothing, and a snapshot may be what is needed most."""
    replaced(three.path("b"), None)
    three.spec("b <- p <- x <- y")

    assert three.apply().code == 0


@pytest.fixture
def five(disk: Disk) -> Disk:
    disk.add("b", "512k:A")
    for name, below, at in (("p", "b", 0), ("q", "p", 1), ("r", "q", 2), ("x", "r", 3)):
        text = f"64k:{name.upper()} {448 - 64 * at}k:-"
        disk.add(name, f"{64 * at}k:- {text}" if at else text, on=below)
    applied(disk, "b <- p <- q <- r <- x")
    write(disk.path("b"), "448k:- 64k:W")
    disk.keep()
    return disk


@pytest.mark.parametrize(
    ("chain", "sizes", "stack"),
    [
        ("b <- p <- q <- x", {}, "b <- p <- q <- x"),
        ("b <- p <- q <- r", {}, "b <- p <- q <- r"),
        ("b <- p <- q <- r <- x", {"x": "1M"}, "b <- p <- q <- r <- x"),
        ("b <- p <- q <- r <- x <- y", {}, "b <- p <- q <- r <- x <- y"),
    ],
)
def test_what_lies_far_above_a_changed_image_is_merged_and_grown(
    five: Disk, chain: str, sizes: dict[str, str], stack: str
) -> None:
    five.spec(chain, sizes=sizes)
    outcome = five.apply()

    assert outcome.code == 0, outcome
    assert "WARNING: changed by another program: b.qcow2 was written to" in outcome.out
    top = stack.rpartition(" ")[2]
    assert five.stack(top) == stack
    assert five.read(top)[: 512 * 1024] == five.golden["x"]
    assert [five.read(name) == five.golden[name] for name in ("b", "p", "q")] == [True] * 3
    assert "b.qcow2 was written to" in run(five, "plan", five.spec_file).out


@pytest.mark.parametrize("chain", ["b <- q <- r <- x", "b <- x", "p <- q <- r <- x", "b <- p <- y"])
def test_what_stands_on_a_changed_image_is_not_merged(five: Disk, chain: str) -> None:
    five.spec(chain, discard=["q", "r", "x"] if chain.endswith("y") else [])
    outcome = five.apply()

    assert outcome.code == 1, outcome
    assert "virt-chain adopt vm:vda" in outcome.out
    assert five.stack("x") == "b <- p <- q <- r <- x"


def test_a_merge_that_would_fill_clusters_from_a_changed_image_is_refused(disk: Disk) -> None:
    for name, below, size in (("b", None, "64k"), ("p", "b", "64k"), ("q", "p", "64k")):
        disk.add(name, "64k:Q 448k:-" if below else "512k:A", on=below, cluster_size=size)
    disk.add("x", "512k:-", on="q", cluster_size="256k")
    applied(disk, "b <- p <- q <- x")
    write(disk.path("b"), "448k:- 64k:W")
    disk.spec("b <- p <- x")

    assert "was written to" in disk.apply().out
    assert disk.stack("x") == "b <- p <- q <- x"


def test_owner_mode_and_names_may_change(three: Disk) -> None:
    """libvirt gives images another owner at each start of a guest, and back."""
    os.chmod(three.path("b"), 0o640)
    os.link(three.path("p"), three.root / "backup.qcow2")
    os.unlink(three.root / "backup.qcow2")

    assert "WARNING" not in run(three, "plan", three.spec_file).out
    assert three.plan().steps == []


def test_the_active_image_may_have_been_written_to(three: Disk) -> None:
    write(three.path("x"), "64k:Y")

    assert "WARNING" not in run(three, "plan", three.spec_file).out


NOT_X = "x.qcow2, the active image, is another file now"


@pytest.mark.parametrize("below", [None, "p.qcow2"])
@pytest.mark.parametrize(
    ("chain", "keys"),
    [
        ("b <- p <- x", {"sizes": {"x": "2M"}}),
        ("b <- x", {}),
        ("b <- p <- z", {}),
        ("b <- p <- y", {"discard": ["x"]}),
    ],
)
def test_another_file_in_the_place_of_the_active_image_is_told_first_and_stays_as_it_is(
    three: Disk, below: str | None, chain: str, keys: dict[str, Any]
) -> None:
    """Such as the disk of another guest, restored to the wrong folder."""
    replaced(three.path("x"), below)
    there = folder_facts(three.images)
    shown = run(three, "show", three.spec_file)
    settled = run(three, "plan", three.spec_file)
    three.spec(chain, **keys)
    planned, outcome = run(three, "plan", three.spec_file), three.apply()

    for said in (shown, settled, planned):
        assert f"WARNING: changed by another program: {NOT_X}" in said.out
    assert outcome.code == 1, outcome
    assert "virt-chain adopt vm:vda" in outcome.out
    assert folder_facts(three.images) == there

    adopted = run(three, "adopt", "vm:vda", "-y", "--spec", three.spec_file)
    assert NOT_X in adopted.out
    assert "is another file now" not in run(three, "plan", three.spec_file).out


def test_an_image_that_was_replaced_while_it_was_active_is_told_below_a_snapshot(
    three: Disk,
) -> None:
    replaced(three.path("x"), "p.qcow2")
    three.spec("b <- p <- x <- y")
    assert three.apply().code == 0
    planned = run(three, "plan", three.spec_file)
    three.spec("b <- p <- y")

    assert "WARNING: changed by another program: x.qcow2 is another file now" in planned.out
    assert three.apply().code == 1


@pytest.mark.parametrize(
    ("chain", "discard"),
    [
        ("b <- p <- x <- y", []),
        ("b <- x", []),
        ("b <- p", []),
        ("b", []),
        ("b <- p <- z", []),
        ("b <- p <- y", ["x"]),
        ("b <- p", ["x"]),
    ],
)
def test_an_active_image_that_was_made_or_merged_by_an_apply_is_known_as_it_is_now(
    three: Disk, chain: str, discard: list[str]
) -> None:
    three.spec(chain, discard=discard)
    assert three.apply().code == 0
    assert_quiet(three)
    top = chain.rpartition(" ")[2]
    replaced(three.path(top), None)

    told = f"{top}.qcow2, the active image, is another file now"
    assert told in run(three, "plan", three.spec_file).out


def test_a_state_file_that_does_not_know_who_the_active_image_was_is_valid(three: Disk) -> None:
    file = three.state / "vm.toml"
    text = file.read_text()
    head, table, rest = text.partition("[disks.vda.actives]\n")
    assert table
    file.write_text(head + rest.partition("\n")[2])
    planned = three.plan()

    assert (planned.code, planned.steps) == (0, [])
    assert three.apply().code == 0
    assert_quiet(three)
    assert file.read_text().count("[disks.vda.actives]") == 1


def interrupted(
    three: Disk, monkeypatch: pytest.MonkeyPatch, before: str, when: str = "unfinished"
) -> None:
    """An apply that drops p, killed in a call of qemu-img once the state file has *when*."""
    fake = three.root / "bin" / "qemu-img"
    fake.parent.mkdir()
    real = shutil.which("qemu-img")
    fake.write_text(
        "#!/bin/bash\n"
        f'if [ "$1" = {before} ] && grep -q {when} {three.state}/vm.toml 2>/dev/null; then\n'
        f'  kill -9 $PPID; sleep 5\nfi\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    three.spec("b <- x")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        assert killed(three).code != 0
    assert when in (three.state / "vm.toml").read_text()


def test_steps_in_flight_never_go_on_in_a_file_that_somebody_has_put_back(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = three.root / "backup.qcow2"
    shutil.copy2(three.path("p"), backup)
    interrupted(three, monkeypatch, "check")
    three.path("p").unlink()
    shutil.copy2(backup, three.path("p"))
    outcome = three.apply()

    assert outcome.code == 1
    assert f"{three.path('p')} is not the file that an interrupted merge" in outcome.out
    assert "virt-chain adopt vm:vda" in outcome.out
    assert run(three, "adopt", "vm:vda", "-y", "--spec", three.spec_file).code == 0
    assert three.apply().code == 0
    assert view(three.path("x")) == three.golden["x"]


def test_a_leftover_that_was_restored_from_a_backup_is_never_removed(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = three.root / "backup.qcow2"
    shutil.copy2(three.path("p"), backup)
    os.utime(backup, (time.time() - 86400,) * 2)
    interrupted(three, monkeypatch, "info", when="leftovers")
    three.path("p").unlink()
    shutil.copy2(backup, three.path("p"))
    three.apply()

    assert three.path("p").exists()
    assert view(three.path("x")) == three.golden["x"]


def test_a_leftover_that_a_program_has_open_stays(three: Disk) -> None:
    (three.root / "state").mkdir(exist_ok=True)
    three.spec("b <- x")
    reader = ["qemu-io", "-r", "-f", "qcow2", "-c", "sleep 20000", str(three.path("p"))]
    with subprocess.Popen(reader, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        outcome = three.apply()
        process.kill()

    assert outcome.code == 0, outcome
    assert three.path("p").exists()
    assert "p.qcow2 stays on disk: another program has it open" in outcome.out + outcome.err


def test_a_base_that_was_moved_is_found_where_the_spec_lists_it(three: Disk) -> None:
    pool = three.root / "pool"
    pool.mkdir()
    three.path("b").rename(pool / "b.qcow2")
    three.spec("b <- p <- x", more=f"# the pool\n# {pool}")
    text = three.spec_file.read_text().replace('"b.qcow2"', f'"{pool}/b.qcow2"')
    three.spec_file.write_text(text)
    error = three.plan().error or ""

    command_line = error.partition("relink it: ")[2]
    assert command_line == (
        f"qemu-img rebase -u -F qcow2 -b {pool}/b.qcow2 {three.images.resolve()}/p.qcow2"
    )
    tool(*command_line.split())
    assert three.plan().error is None
    assert view(three.path("x")) == three.golden["x"]


def test_a_merge_goes_on_in_a_folder_that_was_moved_and_left_a_link(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(three, monkeypatch, "check")
    elsewhere = three.root / "elsewhere"
    three.images.rename(elsewhere)
    three.images.symlink_to(elsewhere)
    other = three.root / "other.toml"
    other.write_text(three.spec_file.read_text().replace('"vm"', "twin"))
    twin = run(three, "plan", other)
    assert (twin.code, "is being merged by vm:vda, which was interrupted" in twin.out) == (1, True)
    assert "finishes what was interrupted" in run(three, "plan", three.spec_file).out
    assert three.apply().code == 0
    assert_quiet(three)
    assert three.stack("x") == "b <- x"
    assert view(three.path("x")) == three.golden["x"]


@pytest.mark.parametrize("style", ["relative", "absolute"])
def test_images_that_were_moved_are_found_by_following_what_is_said(disk: Disk, style: str) -> None:
    disk.add("b", "512k:A")
    disk.add("p", "64k:P 448k:-", on="b", style=style)
    disk.add("x", "64k:- 64k:X 384k:-", on="p", style=style)
    applied(disk)
    elsewhere = disk.root / "elsewhere"
    disk.images.rename(elsewhere)
    disk.spec_file.write_text(disk.spec_file.read_text().replace("/images", "/elsewhere"))
    error = disk.plan().error or ""
    words = error.partition("go on from ")[2].partition("virt-chain ")[2].split()

    assert words == ["adopt", "vm:vda", f"{elsewhere}/x.qcow2"], error
    for _ in range(3 if style == "absolute" else 1):
        adopted = run(disk, *words, "-y", "--spec", disk.spec_file)
        if relink := adopted.err.partition("relink it: ")[2]:
            tool(*relink.split())
    assert adopted.code == 0, adopted
    assert disk.apply().code == 0
    assert view(elsewhere / "x.qcow2") == disk.golden["x"]


def test_a_copy_of_the_images_is_told_from_the_images(three: Disk) -> None:
    copy = three.root / "copy"
    shutil.copytree(three.images, copy)
    three.spec_file.write_text(three.spec_file.read_text().replace("/images", "/copy"))
    error = three.plan().error or ""

    assert error.startswith(
        f"{copy}/x.qcow2 exists, and the active image of vm:vda is another file of that name, "
        f"{three.path('x')}"
    )
    assert error.endswith(f"virt-chain adopt vm:vda {copy}/x.qcow2")
    assert run(three, *error.split()[-3:], "-y", "--spec", three.spec_file).code == 0
    assert three.apply().code == 0
    for file in copy.iterdir():
        file.unlink()
    three.spec_file.write_text(three.spec_file.read_text().replace("/copy", "/images"))
    shutil.rmtree(three.state)
    assert three.apply().code == 0


@pytest.mark.parametrize(
    "listed", ["b <- p <- x <- wed", "b <- p <- wed", "b <- x <- wed", "b <- wed"]
)
def test_nothing_goes_on_above_a_copy_of_the_images(three: Disk, listed: str) -> None:
    """The guest may use the copy by now: what is remembered is of the old folder."""
    copy = three.root / "copy"
    shutil.copytree(three.images, copy)
    if listed == "b <- x <- wed":
        tool("qemu-img", "rebase", "-q", "-F", "qcow2", "-b", "b.qcow2", copy / "x.qcow2")
    three.spec(listed)
    three.spec_file.write_text(three.spec_file.read_text().replace("/images", "/copy"))
    before = folder_facts(three.images), folder_facts(copy)
    refused = three.apply()

    assert refused.code == 1
    assert "is another file of that name" in refused.out or "has another file" in refused.out
    assert (folder_facts(three.images), folder_facts(copy)) == before


def test_a_snapshot_above_a_copy_is_taken_once_the_copy_is_adopted(three: Disk) -> None:
    copy = three.root / "copy"
    shutil.copytree(three.images, copy)
    write(copy / "x.qcow2", "192k:- 64k:W")
    golden = view(copy / "x.qcow2")
    three.spec_file.write_text(three.spec_file.read_text().replace("/images", "/copy"))
    before = three.spec_file.read_text()
    words = ("snapshot", "vm", "wed", "-y", "--spec", three.spec_file)
    refused = run(three, *words)

    assert refused.code == 1
    assert f"virt-chain adopt vm:vda {copy}/x.qcow2" in refused.out
    assert three.spec_file.read_text() == before
    assert (
        run(three, "adopt", "vm:vda", copy / "x.qcow2", "-y", "--spec", three.spec_file).code == 0
    )
    assert run(three, *words).code == 0
    assert view(copy / "wed.qcow2") == view(copy / "x.qcow2") == golden
    assert three.read("x") == three.golden["x"]


def test_a_template_of_the_same_name_in_another_folder_is_no_copy(disk: Disk) -> None:
    disk.chain({"b": B, "x": X})
    disk.spec("b <- x", templates=["b"])
    assert disk.apply().code == 0
    newer = disk.root / "newer"
    newer.mkdir()
    shutil.copy(disk.path("b"), newer)
    text = disk.spec_file.read_text().replace("b.qcow2", f"{newer}/b.qcow2")
    disk.spec_file.write_text(text.replace("x.qcow2", "y.qcow2"))

    assert disk.apply().code == 0
    assert disk.read("y") == disk.golden["x"]


def test_a_change_that_a_snapshot_stands_on_is_not_forgotten(three: Disk) -> None:
    """A watch that takes a snapshot every night is no person who has checked anything."""
    write(three.path("p"), "64k:- 64k:W")
    three.spec("b <- p <- x <- y")
    assert three.apply().code == 0

    assert "p.qcow2 was written to" in run(three, "plan", three.spec_file).out
    three.spec("b <- x <- y")
    assert three.apply().code == 1


def test_what_was_changed_while_somebody_was_asked_is_not_adopted(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(three.path("b"), "64k:W")
    show = adopting._show

    def show_and_write(adoption: object) -> None:
        show(adoption)  # type: ignore[arg-type]
        write(three.path("p"), "64k:- 64k:W")

    monkeypatch.setattr(adopting, "_show", show_and_write)
    adopted = run(three, "adopt", "vm:vda", "-y", "--spec", three.spec_file)

    assert adopted.code == 1
    assert "has changed meanwhile" in adopted.err
    assert "b.qcow2 was written to" in run(three, "plan", three.spec_file).out


def test_a_merge_that_was_interrupted_is_not_given_up_by_naming_an_image(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(three, monkeypatch, "check")
    for words in ([], ["x.qcow2"], ["p.qcow2"]):
        adopted = run(three, "adopt", "vm:vda", *words, "-y", "--spec", three.spec_file)
        assert adopted.code == 1, adopted
        assert "virt-chain apply finishes them" in adopted.err

    assert three.apply().code == 0
    assert view(three.path("x")) == three.golden["x"]


def test_a_state_file_that_is_older_than_the_images_is_brought_up_to_date(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state directory comes back from a backup that was made in the middle of an apply."""
    interrupted(three, monkeypatch, "check")
    shutil.copytree(three.state, three.root / "backup")
    assert three.apply().code == 0
    three.spec("b <- x <- y")
    assert three.apply().code == 0
    write(three.path("y"), "256k:- 64k:Y 192k:-")
    current = view(three.path("y"))
    shutil.rmtree(three.state)
    (three.root / "backup").rename(three.state)

    command_ = f"virt-chain adopt vm:vda {three.path('y')}"
    adopt = ["adopt", "vm:vda", "-y", "--spec", three.spec_file]
    for told in (three.apply().out, run(three, *adopt).err):
        assert "y.qcow2 stands on it" in " ".join(told.split())
        assert command_ in told
    assert run(three, "adopt", *command_.split()[2:], *adopt[2:]).code == 0
    assert three.apply().code == 0
    assert_quiet(three)
    assert three.stack("y") == "b <- x <- y"
    assert view(three.path("y")) == current
    assert view(three.path("x")) == three.golden["x"]


def test_a_merge_in_flight_is_given_up_below_an_overlay_that_was_made_since(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the merge has done so far, its overlay reads as before."""
    interrupted(three, monkeypatch, "check")
    three.add("y", "256k:- 64k:Y 192k:-", on="x")
    current = view(three.path("y"))
    adopt = ["adopt", "vm:vda", three.path("y"), "-y", "--spec", three.spec_file]
    three.spec("b <- x <- y")

    assert f"virt-chain adopt vm:vda {three.path('y')}" in three.apply().out
    assert run(three, *adopt).code == 0
    assert three.apply().code == 0
    assert view(three.path("y")) == current
    assert view(three.path("x")) == three.golden["x"]


def test_nothing_is_adopted_that_another_disk_is_merging(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(three, monkeypatch, "check")
    three.add("z", "512k:-", on="x")
    twin = three.root / "twin.toml"
    twin.write_text(three.spec_file.read_text().replace('"vm"', "twin"))
    adopted = run(three, "adopt", "twin:vda", three.path("z"), "-y", "--spec", twin)

    assert adopted.code == 1
    assert "is being merged by vm:vda, which was interrupted" in adopted.err


def test_adopting_waits_for_who_works_in_the_folder(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(three.path("b"), "64k:W")
    monkeypatch.setattr(adopting, "PATIENCE", 0.1)
    words = ["adopt", "vm:vda", "-y", "--spec", three.spec_file]
    with StateFolder(three.state).folders_locked([three.images], waiting(0)):
        adopted = run(three, *words)

    assert (adopted.code, f"is working on {three.images}" in adopted.err) == (1, True)
    assert run(three, *words).code == 0


def test_a_leftover_that_another_disk_lists_keeps_what_it_stands_on(
    three: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.add("q", "64k:Q 448k:-", on="p")
    tool("qemu-img", "rebase", "-q", "-u", "-F", "qcow2", "-b", "q.qcow2", three.path("x"))
    three.spec("b <- p <- q <- x")
    assert three.apply().code == 0
    three.keep()
    interrupted(three, monkeypatch, "info", when="leftovers")
    left = {name for name in "pq" if three.path(name).exists()}
    text = three.spec_file.read_text()
    other = (
        '[domains.other.disks.vda]\nchain = [{ file = "q.qcow2", template = true }, "o.qcow2"]\n'
    )
    three.spec_file.write_text(text + other)
    three.apply()

    assert left == {"p", "q"}
    assert view(three.path("q")) == three.golden["q"]


def test_overlays_of_disks_that_another_spec_was_applied_for_are_known(disk: Disk) -> None:
    """A spec and a folder for each VM: the state directory is what they share."""
    disk.add("b", "512k:A")
    disk.add("p", "64k:P 448k:-", on="b")
    disk.add("x", "64k:- 64k:X 384k:-", on="p")
    applied(disk)
    elsewhere = disk.root / "elsewhere"
    elsewhere.mkdir()
    other = elsewhere / "o.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.path("p"), other)
    spec = elsewhere / "o.toml"
    chain = ", ".join(f'"{path}"' for path in (disk.path("b"), disk.path("p"), other))
    spec.write_text(f"version = 1\n[domains.o.disks.vda]\nchain = [{chain}]\n")
    assert run(disk, "apply", "-y", spec).code == 0
    before = view(other)
    disk.spec("b <- x")
    assert disk.apply().code == 0

    assert view(other) == before
    assert disk.path("p").exists()


@pytest.mark.parametrize("kind", ["qed", "qcow"])
def test_an_overlay_in_another_format_keeps_what_it_stands_on(three: Disk, kind: str) -> None:
    other = three.images / f"o.{kind}"
    tool("qemu-img", "create", "-q", "-f", kind, "-F", "qcow2", "-b", three.path("p"), other)
    before = view(other, kind)
    three.spec("b <- x")
    assert three.apply().code == 0

    assert view(other, kind) == before


def test_a_rollback_goes_only_to_a_state_that_is_on_the_disk(three: Disk) -> None:
    three.spec("b <- gone <- p <- x")
    back = run(three, "rollback", "vm", "--to", "gone.qcow2", "-y", "--spec", three.spec_file)

    assert back.code == 1
    assert view(three.path("x")) == three.golden["x"]
    assert '"gone.qcow2"' in three.spec_file.read_text()


@pytest.mark.parametrize("name", ["x.qcow2", "chain.toml"])
def test_a_plan_is_saved_over_nothing_but_a_plan(three: Disk, name: str) -> None:
    file = three.path("x") if name == "x.qcow2" else three.spec_file
    before = file.read_bytes()
    planned = run(three, "plan", three.spec_file, "-o", file)

    assert planned.code == 1
    assert f"{file} exists and is not a plan file; nothing was overwritten" in planned.err
    assert file.read_bytes() == before
    new = three.root / "plan.json"
    assert run(three, "plan", three.spec_file, "-o", new).code == 0
    assert run(three, "plan", three.spec_file, "-o", new).code == 0


def test_a_disk_under_another_name_does_not_stand_in_its_own_way(three: Disk) -> None:
    """A domain was renamed: what was recorded under the old name is nobody else's claim."""
    for chain in ("b <- p <- x", "b <- p <- x <- y", "b <- y"):
        three.spec(chain, target="web.vda")
        outcome = three.apply()
        assert outcome.code == 0, outcome

    assert view(three.path("y")) == three.golden["x"]
    assert not three.path("p").exists()


def test_the_image_of_another_disk_is_not_adopted(disk: Disk) -> None:
    disk.add("b", "512k:A")
    disk.add("x", "64k:X 448k:-", on="b")
    disk.add("y", "64k:Y 448k:-", on="b")
    chain = f'["{disk.path("b")}", "{disk.path("y")}"]'
    disk.spec("b <- x", active="x.qcow2", more=f"[domains.o.disks.vda]\nchain = {chain}\n")
    assert disk.apply().code == 0

    adopted = run(disk, "adopt", "vm:vda", disk.path("y"), "-y", "--spec", disk.spec_file)

    assert adopted.code == 1
    assert f"o:vda has {disk.path('y')} as its image, or lists it" in adopted.err
    assert disk.plan().steps == []


def test_after_a_killed_guest_nothing_goes_on_from_a_header_whose_data_may_be_missing(
    three: Disk,
) -> None:
    """QEMU died with the header of a pull on the disk, and its data in memory alone."""
    states, b, p, x = StateFolder(three.state), *map(three.path, "bpx")
    below = {p: "b.qcow2", x: "p.qcow2"}
    links = tuple(
        OldLink(path, below.get(path), "qcow2" if path in below else None, file_id(path))
        for path in (b, p, x)
    )
    with states.locked("vm", "vda", waiting(1)) as session:
        session.write(begun(session.state, Unfinished((Pull(x, b),), links=links, live=True)))
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", x)
    three.add("z", "512k:-", on="x")
    three.spec("b <- x <- z")

    refused = three.plan().error
    adopted = run(three, "adopt", "vm:vda", three.path("z"), "-y", "--spec", three.spec_file)

    assert refused is not None
    back = f"qemu-img rebase -u -F qcow2 -b p.qcow2 {x}"
    assert back in refused
    assert (adopted.code, back in adopted.err) == (1, True)
    tool(*back.split())
    adopted = run(three, "adopt", "vm:vda", three.path("z"), "-y", "--spec", three.spec_file)
    assert adopted.code == 0, adopted
    assert three.apply().code == 0
    assert three.stack("z") == "b <- x <- z"
    assert three.read("z") == three.golden["x"]


def moved_out(disk: Disk, said: str) -> str:
    """Do what *said* names after ``first: ``; what adopt says."""
    told = ""
    for words in said.rstrip().partition("first: ")[2].split("; "):
        program, *rest = shlex.split(words)
        if program == "mv":
            tool(program, *rest)
        else:
            assert program == "virt-chain"
            adopted = run(disk, *rest, "-y", "--spec", disk.spec_file)
            assert adopted.code == 0, adopted
            told += adopted.out
    return told


@pytest.mark.parametrize("style", ["absolute", "relative"])
def test_an_image_in_quarantine_is_moved_out_before_it_is_adopted(disk: Disk, style: str) -> None:
    disk.chain({"b": B, "p": P, "x": X}, style=style)
    before = disk.spec("b <- p <- x").read_text()
    assert disk.apply().code == 0
    disk.spec("b <- y", discard=["p", "x"])
    assert disk.apply().code == 0
    put = {name.rpartition("/")[2].partition("~")[0]: name for name in quarantined(disk)}
    place = disk.images / put["x.qcow2"]
    known = folder_facts(disk.state)
    refused = run(disk, "adopt", "vm:vda", place, "-y", "--spec", disk.spec_file)

    assert refused.code == 1
    assert f"{place} is in quarantine" in refused.err
    assert "mixture" not in refused.err
    assert folder_facts(disk.state) == known
    moved_out(disk, refused.err)
    disk.spec_file.write_text(before)
    assert disk.read("x") == disk.golden["x"]
    assert quarantined(disk) == {}
    assert_quiet(disk)


def test_an_image_whose_backing_file_was_overwritten_is_told_before_it_is_adopted(
    three: Disk,
) -> None:
    three.spec("b <- p <- y", discard=["x"])
    assert three.apply().code == 0
    write(three.path("y"), "64k:- 64k:Y")
    (name,) = quarantined(three)
    three.spec("b <- p", discard=["x"])
    planned = three.plan()
    assert planned.steps == ["commit y into p, 64k", "remove y"]
    assert three.apply().code == 0
    refused = run(three, "adopt", "vm:vda", three.images / name, "-y", "--spec", three.spec_file)
    three.spec("b <- p <- x <- new", discard=["y"])
    again = three.plan()

    mixture = "unless that was only a merge of images below p.qcow2, x.qcow2 reads a mixture"
    told = f"{three.path('p')}, which it stands on, was written to since ("
    notes = " ".join(again.data["domains"][0]["disks"][0]["notes"])
    for said, then in ((refused.err, "move it out first:"), (notes, "to have it back:")):
        assert told in said
        assert said.index(told) < said.index(mixture) < said.index(f"if it was, {then} mv -n")
    assert refused.code == 1
    tool("mv", "-n", three.images / name, three.path("x"))
    adopted = run(three, "adopt", "vm:vda", "x.qcow2", "-y", "--spec", three.spec_file)
    assert f"{three.path('p')} was written to (" in adopted.out
    assert mixture in adopted.out


def test_an_image_whose_backing_file_is_gone_is_told_before_it_is_moved(three: Disk) -> None:
    three.spec("b <- y", discard=["p", "x"])
    assert three.apply().code == 0
    put = {
        was.removesuffix(".qcow2"): three.images / name for name, was in quarantined(three).items()
    }
    put["p"].unlink()
    refused = run(three, "adopt", "vm:vda", put["x"], "-y", "--spec", three.spec_file)

    assert f"{three.path('p')}, which it stands on, is not there any more; put tha" in refused.err


SEVERAL = {
    "as the rollback left it": (
        "b <- y",
        ["p", "x"],
        "list p.qcow2 and x.qcow2 in place of y.qcow2 and take them off `discard`",
        "to go on from x, the active image, list p and x in place of y.qcow2 and take them ",
    ),
    "with the active image": (
        "b <- x",
        ["p"],
        "take p.qcow2 off `discard`",
        "x stands above p; take p off `discard` to merge it",
    ),
}


@pytest.mark.parametrize(("chain", "discard", "edit", "error"), SEVERAL.values(), ids=SEVERAL)
def test_a_rollback_over_several_images_is_taken_back_as_it_is_told(
    three: Disk, chain: str, discard: list[str], edit: str, error: str
) -> None:
    three.spec("b <- y", discard=["p", "x"])
    assert three.apply().code == 0
    (name,) = (name for name, was in quarantined(three).items() if was == "x.qcow2")
    three.spec(chain, discard=discard)
    refused = run(three, "adopt", "vm:vda", three.images / name, "-y", "--spec", three.spec_file)
    adopted = moved_out(three, refused.err)

    assert f"Adopted. In {three.spec_file}, {edit}; then run: virt-chain plan" in adopted
    assert error in (three.plan().error or "")
    three.spec("b <- p <- x")
    assert_quiet(three)


def test_a_rollback_is_taken_back_as_it_is_told(three: Disk) -> None:
    """Each act names the next one: the images out of quarantine, adopt, then the spec."""
    act = ("--spec", three.spec_file, "--state-dir", three.state)
    assert command("rollback", "vm", "--to", "p.qcow2", "-y", *act).code == 0
    (overlay,) = three.images.glob("vm-vda-*")
    write(overlay, "64k:- 64k:Y")
    since = view(overlay)
    (name,) = quarantined(three)
    tool("mv", "-n", three.images / name, three.path("x"))
    adopted = command("adopt", "vm:vda", "x.qcow2", "-y", *act)
    edit = f"list x.qcow2 in place of {overlay.name} and take it off `discard`"
    assert f"Adopted. In {three.spec_file}, {edit}; then run: virt-chain plan" in adopted.out

    before = three.everything()
    planned = three.plan()
    snapshot = command("snapshot", "vm", "fri", "--no-apply", *act)
    assert three.apply().code == 1
    for error in (planned.error or "", snapshot.out):
        assert "is not in the observed chain b <- p <- x*" in error
        way = f"list it in place of {overlay.name} and take it off `discard`"
        assert f"to go on from x, the active image, {way}" in error
    assert three.everything() == before

    three.spec("b <- p <- x")
    assert_quiet(three)
    assert three.read("x") == three.golden["x"]
    assert view(overlay) == since


def test_adopting_a_listed_image_asks_for_no_edit(three: Disk) -> None:
    three.path("x").rename(three.root / "away.qcow2")
    adopted = run(three, "adopt", "vm:vda", "p.qcow2", "-y", "--spec", three.spec_file)

    assert adopted.out.endswith("Adopted. See what is left to do with: virt-chain plan\n")


def test_adopting_an_overlay_made_by_hand_tells_to_list_it(three: Disk) -> None:
    three.add("mine", "64k:Z", on="x")
    adopted = run(three, "adopt", "vm:vda", "mine.qcow2", "-y", "--spec", three.spec_file)

    assert "list mine.qcow2 on top of the chain; then run: virt-chain plan" in adopted.out
    three.spec("b <- p <- x <- mine")
    assert_quiet(three)


def cut(disk: Disk) -> Path:
    """The state file of *disk*, cut as by a full filesystem."""
    (file,) = disk.state.glob("vm.toml")
    file.write_bytes(file.read_bytes()[:40])
    return file


def moved_away(said: str) -> None:
    """Move a state file away as *said* names it."""
    words = said.partition("move the file away: ")[2].partition("; ")[0]
    tool(*shlex.split(words))


def test_a_damaged_state_file_is_moved_away_and_all_goes_on(three: Disk) -> None:
    file = cut(three)
    before = folder_facts(three.images)
    planned, applied = three.plan(), three.apply()
    for words in ([], ["x.qcow2"]):
        adopted = run(three, "adopt", "vm:vda", *words, "-y", "--spec", three.spec_file)
        assert adopted.code == 1
        assert f"{file} cannot be used" in adopted.err
        assert "move the file away" in adopted.err
        assert "IMAGE" not in adopted.err
    assert (planned.code, applied.code) == (1, 1)
    assert folder_facts(three.images) == before
    for _ in range(2):  # the second one is kept beside the first
        moved_away(planned.error or "")
        assert three.plan().steps == []
        assert three.apply().code == 0
        file.write_text("x = [")
    moved_away(planned.error or "")

    assert len(list(three.state.glob("vm.toml.damaged*"))) == 3
    assert three.plan().steps == []
    assert folder_facts(three.images) == before


def test_show_draws_the_images_beside_a_damaged_state_file(three: Disk) -> None:
    cut(three)
    shown = run(three, "show", three.spec_file)

    assert shown.code == 1
    assert "active: vm:vda" in shown.out
    assert shown.out.count("restore point") == 2
    assert "move the file away" in " ".join(shown.out.split())


def test_an_active_image_that_only_a_damaged_state_file_had_is_adopted(three: Disk) -> None:
    """The guest goes on in an overlay that no spec lists, and nothing is made in its place."""
    three.add("mine", "64k:Z", on="x")
    assert run(three, "adopt", "vm:vda", "mine.qcow2", "-y", "--spec", three.spec_file).code == 0
    cut(three)
    moved_away(three.plan().error or "")
    refused = three.apply()
    assert refused.code == 1
    assert f"virt-chain adopt vm:vda {three.path('mine')}" in refused.out + refused.err
    again = run(three, "adopt", "vm:vda", "mine.qcow2", "-y", "--spec", three.spec_file)
    assert again.code == 0, again
    assert f"{three.path('mine')} is the active image; none was remembered" in again.out
    three.spec("b <- p <- x <- mine")
    assert_quiet(three)


def test_an_image_is_moved_out_of_quarantine_over_no_other(three: Disk) -> None:
    three.spec("b <- p <- y", discard=["x"])
    assert three.apply().code == 0
    (name,) = quarantined(three)
    three.path("x").write_text("somebody else's")
    refused = run(three, "adopt", "vm:vda", three.images / name, "-y", "--spec", three.spec_file)
    moved_out(three, refused.err)

    assert three.path("x").read_text() == "somebody else's"
    assert view(three.images / "x-1.qcow2") == three.golden["x"]
    assert three.active() == three.images / "x-1.qcow2"


def test_an_active_image_that_lies_in_quarantine_is_never_removed(three: Disk) -> None:
    """An earlier version adopted such an image."""
    put = three.images / FOLDER / "x.qcow2~20200101T000000Z"
    put.parent.mkdir(0o700)
    tool("mv", three.path("x"), put)
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", three.path("p"), put)
    (known,) = three.state.glob("vm.toml")
    known.write_text(known.read_text().replace(str(three.path("x")), str(put)))
    emptied = run(three, "gc", three.spec_file)
    refused = run(three, "adopt", "vm:vda", "-y", "--spec", three.spec_file)

    assert emptied.out == f"in use  {put}  it is in the chain of vm:vda\n", emptied
    moved_out(three, refused.err)
    assert three.read("x") == three.golden["x"]
    assert_quiet(three)
