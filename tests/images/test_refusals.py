"""What cannot be done is refused before the first change, with the reason and a way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.images.cases import BIG_P, BIG_Q, B, P, Q, R, X
from tests.images.disks import (
    Disk,
    assert_done,
    assert_quiet,
    assert_untouched,
    command,
    folder_facts,
    held_open,
    tool,
    view,
    write,
)


def refused(disk: Disk, *words: str) -> None:
    """`plan` and `apply` both refuse with all of *words*, and change nothing at all."""
    before = folder_facts(disk.images)

    plan, applied = disk.plan(), disk.apply()

    assert (plan.code, applied.code) == (1, 1), applied
    assert plan.error is not None
    assert [word for word in words if word not in plan.error] == [], plan.error
    assert [word for word in words if word not in applied.out + applied.err] == [], applied
    assert "Traceback" not in applied.err
    assert plan.data["summary"]["errors"] == 1
    assert folder_facts(disk.images) == before


def test_another_order(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- x <- p", active="x.qcow2")

    refused(disk, "history", "order", "b <- p <- x")


def test_another_base_under_version_2_without_one(disk: Disk) -> None:
    """A rebase by QEMU 7.2 writes no zeroes into it; with clusters that read as zeroes it does."""
    disk.add("c", "1M:C")
    disk.add("x", "512k:X 512k:-", compat="0.10")
    disk.keep()
    disk.spec("c <- x", active="x.qcow2")

    said = disk.apply()

    assert said.code == 1
    assert "run qemu-img amend -o compat=1.1 first" in said.out + said.err
    assert_untouched(disk, "c", "x")

    tool("qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1", disk.path("x"))
    assert disk.apply().code == 0
    assert disk.stack("x") == "c <- x"
    assert disk.read("x") == disk.golden["x"]


def test_a_missing_image_below_a_kept_one(disk: Disk) -> None:
    disk.chain({"b": B, "x": X})
    disk.spec("b <- p <- x")

    refused(disk, str(disk.path("p")), "does not exist", "new image can only be added on top")


def test_a_broken_chain_names_the_file_and_who_names_it(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.path("p").unlink()
    disk.spec("b <- x")

    refused(disk, f"{disk.path('p')} does not exist", f"{disk.path('x')} names it", "'p.qcow2'")


def test_a_chain_that_loops(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "x.qcow2", disk.path("p"))
    disk.spec("b <- x")

    refused(disk, "loops", "x <- p <- x")


def test_an_image_that_stands_on_itself(disk: Disk) -> None:
    disk.chain({"x": X})
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "x.qcow2", disk.path("x"))
    disk.spec("x <- y")

    refused(disk, "loops", "x <- x")


def test_an_unlisted_overlay_on_the_active_image(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.add("mine", R, on="x")
    disk.spec("b <- x")

    refused(disk, str(disk.path("mine")), "stands on", "current state", "virt-chain adopt vm:vda")


def test_a_listed_overlay_on_the_active_image_is_told_before_a_copy_of_it(disk: Disk) -> None:
    disk.chain({"b": B, "p": P})
    disk.spec("b <- p")
    assert disk.apply().code == 0
    for name in ("copy", "x"):
        disk.add(name, X, on="p")
    disk.keep()
    disk.spec("b <- p <- x")
    adopt = "virt-chain adopt vm:vda"

    way = f"if the guest uses x.qcow2, run: {adopt} x.qcow2; if it uses {disk.path('copy')}"
    refused(disk, f"{disk.path('x')} and {disk.path('copy')} stand on p", way)
    words = ("--spec", disk.spec_file, "--state-dir", disk.state)
    assert command("adopt", "vm:vda", "x.qcow2", "-y", *words).code == 0
    assert_quiet(disk)
    assert disk.active() == disk.path("x")
    assert_untouched(disk, "copy")


def test_an_active_image_that_only_its_overlay_lists(disk: Disk) -> None:
    """Without state file and `active`, the unlisted x may hold the current state."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- p", discard=["x"])

    refused(disk, str(disk.path("x")), "may hold the current state")


@pytest.mark.parametrize("name", ["x", "p"])
def test_an_image_that_a_guest_has_open(disk: Disk, name: str) -> None:
    """The refusal ends with the guest: afterwards the same command works."""
    disk.chain({"b": B, "p": BIG_P, "x": X})
    disk.spec("b <- x")
    before = folder_facts(disk.images)
    with held_open(disk.path(name)):
        outcome = disk.apply()

        assert outcome.code == 1, outcome
        assert folder_facts(disk.images) == before
        if name == "x":
            assert disk.plan().error is not None
            assert f"{disk.path('x')} is open for writing" in str(disk.plan().error)
    done = disk.apply()

    assert done.code == 0, done
    assert_done(disk, "b <- x", current="x", gone=["p"])


def test_an_image_that_a_storage_daemon_exports(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- x")
    ready = disk.root / "pid"
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk.path('x')}",
            "--nbd-server",
            f"addr.type=unix,addr.path={disk.root / 's'}",
            "--export",
            "type=nbd,id=e,node-name=disk,writable=on",
            "--pidfile",
            str(ready),
        ]
    )
    try:
        for _ in range(200):
            if ready.exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(0.05)
        refused(disk, "is open for writing", "shut the guest off")
    finally:
        daemon.terminate()
        daemon.wait()
    assert disk.apply().code == 0


def test_internal_snapshots_that_would_be_lost(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "q": P, "x": X})
    tool("qemu-img", "snapshot", "-c", "inner", disk.path("q"))
    disk.spec("b <- x")

    refused(disk, "internal snapshot", "qemu-img snapshot -d")


def test_internal_snapshots_of_a_survivor_stay_readable(disk: Disk) -> None:
    """The file of p takes q's data and name; what p's internal snapshot reads is still there."""
    disk.chain({"b": B, "p": P, "q": P, "x": X})
    tool("qemu-img", "snapshot", "-c", "inner", disk.path("p"))
    disk.keep()
    inner = snapshot_view(disk, "p")
    disk.spec("b <- q <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])
    assert snapshot_view(disk, "q") == inner


def test_internal_snapshots_of_other_images_stay_readable(disk: Disk) -> None:
    """Snapshots in the base and in the active image read the same after a merge between."""
    disk.chain({"b": B, "p": P, "q": BIG_Q, "r": R, "x": X})
    for name in ("b", "r", "x"):
        write(disk.path(name), "448k:- 64k:I")
        tool("qemu-img", "snapshot", "-c", "inner", disk.path(name))
        write(disk.path(name), "384k:- 64k:J 64k:J")
    disk.keep()
    inner = {name: snapshot_view(disk, name) for name in ("b", "r", "x")}
    disk.spec("b <- q <- r <- x")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- q <- r <- x", current="x", gone=["p"])
    assert {name: snapshot_view(disk, name) for name in ("b", "r", "x")} == inner


def snapshot_view(disk: Disk, name: str) -> bytes:
    """What *name* reads after `snapshot -a`, tried on a copy beside it."""
    copy = disk.images / ".copy"
    try:
        tool("cp", disk.path(name), copy)
        tool("qemu-img", "snapshot", "-a", "inner", copy)
        return view(copy)
    finally:
        copy.unlink()


def test_dirty_bitmaps_are_kept_unless_said_otherwise(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    tool("qemu-img", "bitmap", "--add", disk.path("p"), "backup")
    disk.keep()
    disk.spec("b <- x")

    refused(disk, "dirty bitmap", 'bitmaps = "drop"')

    disk.spec("b <- x", bitmaps="drop")
    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert_done(disk, "b <- x", current="x", gone=["p"])


def test_a_shared_image_that_would_become_active(disk: Disk) -> None:
    """The guest would write what another chain stands on."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.add("other", R, on="p")
    disk.spec("b <- p", active="x.qcow2")

    refused(disk, "other.qcow2 stands on it")


def test_a_shared_image_that_a_roll_back_would_make_active(disk: Disk) -> None:
    """Writing into p would change the other disk, and no unlisted overlay is overlooked."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.add("other", R, on="p")
    disk.spec("b <- p", active="x.qcow2", discard=["x"])

    refused(disk, "other.qcow2")


def test_discard_takes_images_from_the_top_only(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- x", discard=["p"])

    refused(disk, "`discard`", "x stands above p")


def test_a_foreign_image_on_top(disk: Disk) -> None:
    disk.chain({"b": B, "x": X})
    disk.add("other", B)
    disk.spec("b <- other", active="x.qcow2")

    refused(disk, "other", "not in the observed chain b <- x*", "list x, the active image")


def test_a_disk_never_shrinks(disk: Disk) -> None:
    disk.chain({"b": B, "x": X})
    disk.spec("b <- x", sizes={"x": "256K"})

    refused(disk, "never shrinks")


def test_a_new_disk_without_a_size(disk: Disk) -> None:
    disk.keep()
    disk.spec("x")

    refused(disk, "x.qcow2 does not exist", "size")


def test_a_new_disk_of_a_size_reads_zeroes(disk: Disk) -> None:
    disk.keep()
    disk.spec("x", sizes={"x": "1M"})

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert disk.read("x") == bytes(1024 * 1024)
    assert_quiet(disk)


def test_an_external_data_file(disk: Disk) -> None:
    disk.chain({"b": B})
    data = disk.root / "data"
    tool(
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}",
        "-b", disk.path("b"), "-F", "qcow2", disk.path("p"),
    )  # fmt: skip
    disk.add("x", X, on="b")
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", disk.path("p"), disk.path("x"))
    disk.spec("b <- x")

    refused(disk, "external data file")


@pytest.mark.parametrize("name", ["relative", "absolute", "file:"])
@pytest.mark.parametrize("chain", ["d.raw", "d.raw <- x"], ids=["alone", "below an overlay"])
def test_an_external_data_file_is_no_disk_of_its_own(disk: Disk, chain: str, name: str) -> None:
    """A guest that writes to the other image changes it, without a word in its own header."""
    data = disk.images / "d.raw"
    recorded = {"relative": "d.raw", "absolute": str(data), "file:": f"file:{data}"}[name]
    options = f"data_file={recorded},data_file_raw=on"
    if name == "relative":
        tool(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            "w.qcow2",
            "1M",
            cwd=disk.images,
        )
    else:
        tool(
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, disk.images / "w.qcow2", "1M"
        )
    disk.spec(chain, formats={"d.raw": "raw"})
    before = folder_facts(disk.images)

    said = f"{data} is the external data file of {disk.images / 'w.qcow2'}, and no disk image"
    refused(disk, said)
    assert folder_facts(disk.images) == before


def test_a_raw_image_that_could_be_taken_for_another_format(disk: Disk) -> None:
    """A guest that forges a qcow2 header in its first sector gets no host file opened."""
    disk.chain({"b.raw": B, "x": "512k:X"}, **{"b.raw": {"raw": True}, "x": {"style": "absolute"}})
    forged = disk.root / "sector"
    forged.write_bytes(disk.path("x").read_bytes()[:512])
    tool("qemu-io", "-f", "qcow2", "-c", f"write -s {forged} 0 512", disk.path("x"))
    disk.keep()
    disk.spec("b.raw", formats={"b.raw": "raw"}, active="x.qcow2")

    refused(disk, "first sector looks like an image header")


@pytest.mark.parametrize(
    ("name", "what"),
    [("nbd://localhost/x", "no local file"), ("file:relative.qcow2", "depends on the folder")],
)
def test_backing_names_that_lead_away(disk: Disk, name: str, what: str) -> None:
    disk.chain({"b": B, "x": X})
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", name, disk.path("x"))
    disk.spec("b <- x")

    refused(disk, name, what)


def test_a_fifo_in_the_place_of_an_image(disk: Disk) -> None:
    """It is refused at once; nobody waits for its other end."""
    disk.chain({"b": B, "x": X})
    disk.path("b").unlink()
    os.mkfifo(disk.path("b"))
    disk.spec("b <- x")

    outcome = disk.plan()

    assert (outcome.code, "no regular file" in str(outcome.error)) == (1, True)


def test_templates_and_shared_images_survive_everything_above_them(disk: Disk) -> None:
    """Merges, a flatten and a roll back, one after the other: the template never changes."""
    disk.chain({"t": B, "p": P, "q": Q, "x": X})
    disk.add("other", R, on="t")
    disk.keep()
    for chain, keys in (
        ("t <- q <- x", {}),
        ("t <- x", {}),
        ("t <- x <- y", {}),
        ("t <- z", {"discard": ["y"]}),
        ("z", {"remove_base": True}),
    ):
        disk.spec(chain, templates=["t"] if "t" in chain.split(" <- ") else [], **keys)
        outcome = disk.apply()
        assert outcome.code == 0, (chain, outcome)
        assert_untouched(disk, "t", "other")
    assert disk.read("z") == disk.golden["x"]
    assert disk.read("other") == disk.golden["other"]


def test_owner_mode_and_labels_survive(disk: Disk) -> None:
    """A commit and rename leaves the user's file as the user had it."""
    disk.chain({"b": B, "p": BIG_P, "x": X})
    owner = (os.geteuid(), os.getegid()) if os.geteuid() else (64055, 110)
    for name, mode in (("b", 0o440), ("p", 0o600), ("x", 0o664)):
        os.chmod(disk.path(name), mode)
    os.chown(disk.path("x"), *owner)
    os.setxattr(disk.path("x"), "user.label", b"mine")
    disk.keep()
    disk.spec("b <- x <- y")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    found = [facts_of(disk.path(name)) for name in ("b", "x", "y")]
    assert found[0][1:] == (0o440, os.geteuid(), os.getegid())
    assert found[1][1:] == (0o664, *owner)
    assert found[2][1:] == (0o660, *owner)
    assert os.getxattr(disk.path("x"), "user.label") == b"mine"


@pytest.mark.parametrize(
    ("chain", "discard"),
    [("b <- p", ()), ("b <- p", ("x",)), ("b", ())],
    ids=["merged down", "rolled back", "merged down by two"],
)
def test_what_becomes_active_belongs_to_whom_the_active_image_did(
    disk: Disk, chain: str, discard: tuple[str, ...]
) -> None:
    """A base that root made is no use to the guest's own user, nor open to all what was not."""
    disk.chain({"b": B, "p": P, "x": X})
    for name in "bp":
        os.chmod(disk.path(name), 0o644)
    owner = (os.geteuid(), os.getegid()) if os.geteuid() else (64055, 110)
    os.chown(disk.path("x"), *owner)
    os.chmod(disk.path("x"), 0o600)
    os.setxattr(disk.path("x"), "user.label", b"mine")
    disk.keep()
    disk.spec(chain, discard=discard, active=disk.listed("x"))

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    active = disk.path(chain[-1])
    assert facts_of(active)[1:] == (0o600, *owner)
    assert os.getxattr(active, "user.label") == b"mine"


def facts_of(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return path.name, found.st_mode & 0o7777, found.st_uid, found.st_gid


def test_a_chain_of_two_hundred_images(disk: Disk) -> None:
    """`show`, `plan` and `apply` drop the middle 198 of them in one go."""
    disk.add("i0", B)
    below = "i0"
    for number in range(1, 200):
        at = number % 8
        data = f"{64 * at}k:- 4k:{chr(65 + number % 26)}" if at else "4k:Z"
        name = f"i{number}"
        if number % 3 != 1:
            disk.add(name, "512k:-", on=below, size="512k", cluster_size="4k")
        else:  # written where QEMU need not open all that is below
            disk.add(name, data, on="i0", size="512k", cluster_size="4k")  # whole clusters alone
            onto = ["-F", "qcow2", "-b", f"{below}.qcow2"]
            tool("qemu-img", "rebase", "-u", "-f", "qcow2", *onto, disk.path(name))
        below = name
    disk.golden = {name: disk.read(name) for name in ("i0", "i199")}
    disk.before = folder_facts(disk.images)
    disk.spec("i0 <- i199")

    shown = disk.show()["disks"][0]
    steps = disk.plan().steps
    outcome = disk.apply("--max-drops", "198")

    assert len(shown["images"]) == 200
    assert steps[0].startswith(("pull into i199 down to i0", "commit i199 into"))
    assert outcome.code == 0, outcome
    assert_done(disk, "i0 <- i199", current="i199", gone=[f"i{n}" for n in range(1, 199)])
    assert_quiet(disk)


def test_a_folder_that_is_mounted_read_only(disk: Disk) -> None:
    """As systemd's ProtectSystem=strict leaves a folder that ReadWritePaths does not list."""
    disk.chain({"b": B, "p": P, "x": X})
    before = folder_facts(disk.images)
    mount = ["mount", "--bind", disk.images, disk.images]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        tool("mount", "-o", "remount,bind,ro", disk.images)
        for chain in ("b <- x", "b <- p <- x <- y"):
            disk.spec(chain)
            applied = disk.apply()

            assert applied.code == 1, applied
            said = f"virt-chain cannot write to {disk.images}: it is mounted read-only here"
            assert applied.err.count(said) == 1, applied
            assert "ReadWritePaths=" in applied.err
    finally:
        tool("umount", "-l", disk.images)

    assert folder_facts(disk.images) == before
    disk.apply()
    assert disk.path("y").exists()


def test_a_json_name_that_spells_out_the_images_below_is_refused_with_the_relink(
    disk: Disk,
) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    graph: dict[str, object] = {}
    for name in ("b", "p"):
        file = {"driver": "file", "filename": str(disk.path(name))}
        graph = {"driver": "qcow2", "file": file, **({"backing": graph} if graph else {})}
    said = f"json:{json.dumps(graph)}"
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", said, disk.path("x"))
    # taken as it is, it would name b for ever: p may stand on another image, and x is lost
    shutil.copy(disk.path("p"), disk.root / "before")
    disk.path("b").rename(disk.root / "c")
    below = ("-u", "-f", "qcow2", "-F", "qcow2", "-b", disk.root / "c", disk.path("p"))
    tool("qemu-img", "rebase", *below)
    tool("qemu-img", "info", "--backing-chain", disk.path("p"))
    tool("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", disk.path("x"), code=1)
    (disk.root / "c").rename(disk.path("b"))
    (disk.root / "before").rename(disk.path("p"))
    disk.spec("b <- x", active="x.qcow2")
    relink = f"qemu-img rebase -u -F qcow2 -b '{disk.path('p')}' '{disk.path('x')}'"
    refused = disk.plan()
    subprocess.run(relink, shell=True, check=True)

    assert refused.error is not None
    assert refused.error.endswith(relink)
    assert disk.apply().code == 0


@pytest.mark.parametrize("name", ["b", "p", "x"])
@pytest.mark.parametrize(
    ("chain", "keys"), [("b <- x", {}), ("b <- p <- x", {"sizes": {"x": "2M"}})]
)
def test_an_image_that_is_marked_corrupt_is_told_and_not_written_to(
    disk: Disk, name: str, chain: str, keys: dict[str, Any]
) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    with disk.path(name).open("r+b") as file:
        file.seek(79)  # the lowest byte of the incompatible features
        file.write(b"\x02")
    disk.spec("b <- p <- x")
    before = folder_facts(disk.images)[f"{name}.qcow2"]
    settled, shown = disk.plan(), disk.show()["disks"][0]
    disk.spec(chain, active="x.qcow2", **keys)
    outcome = disk.apply()

    warnings = settled.data["domains"][0]["disks"][0]["warnings"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{name}.qcow2")
    assert "is marked corrupt" in warnings[0]
    assert ("the active image" in warnings[0]) == (name == "x")
    assert f"qemu-img check -r all '{disk.path(name)}'" in warnings[0]
    assert shown["warnings"] == warnings
    assert folder_facts(disk.images)[f"{name}.qcow2"] == before
    if chain == "b <- x" and name != "b":
        assert outcome.code == 1
        assert f"({name}: it is marked corrupt" in outcome.out
