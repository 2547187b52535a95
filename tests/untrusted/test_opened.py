"""
Which files are opened: those below the roots, and no other, whatever a header says.

Each class of error that other programs had is named by its CVE number.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.images.disks import Disk, command, facts, folder_facts, tool
from tests.untrusted.scene import (
    Scene,
    assert_refused,
    bounded,
    empty,
    header,
    json_name,
    patch,
)

DATA_FILE, UNKNOWN = 1 << 2, 1 << 40


def backing_outside(scene: Scene) -> None:
    empty(scene.images / "x.qcow2", str(scene.canary_image))
    scene.spec("x")


def raw_backing_outside(scene: Scene) -> None:
    empty(scene.images / "b.qcow2", str(scene.canary), "raw")
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x")


def json_backing_outside(scene: Scene) -> None:
    name = json_name(driver="raw", file={"driver": "file", "filename": str(scene.canary)})
    empty(scene.images / "x.qcow2", name, "raw")
    scene.spec("x")


def climbing_name(scene: Scene) -> None:
    empty(scene.images / "x.qcow2", "../outside/canary.qcow2")
    scene.spec("x")


def vmdk_descriptor(scene: Scene) -> None:
    """A text file that, taken for VMDK, makes QEMU read another file as the disk."""
    (scene.images / "b.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 2048 FLAT "{scene.canary}" 0\n'
    )
    empty(scene.images / "x.qcow2", "b.vmdk", "vmdk")
    scene.spec("x")


def vmdk_without_a_format(scene: Scene) -> None:
    """No format is recorded, and none is guessed: the descriptor is no qcow2 image."""
    vmdk_descriptor(scene)
    empty(scene.images / "x.qcow2", "b.vmdk", "")
    scene.spec("x")


def data_file(scene: Scene) -> None:
    """A real image whose clusters lie in a file of the host."""
    tool(
        "qemu-img", "create", "-q", "-f", "qcow2", "-o",
        f"data_file={scene.outside / 'new'},data_file_raw=on", scene.images / "b.qcow2", "1M",
    )  # fmt: skip
    (scene.outside / "new").unlink()
    content = (scene.images / "b.qcow2").read_bytes()
    at = content.index(struct.pack(">I", 0x44415441))
    name = bytes(scene.canary)
    patch(scene.images / "b.qcow2", at + 4, struct.pack(">I", len(name)) + name.ljust(104, b"\0"))
    empty(scene.images / "p.qcow2", "b.qcow2")
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("b <- x")


def data_file_by_json(scene: Scene) -> None:
    name = json_name(
        driver="qcow2",
        file={"driver": "file", "filename": str(scene.images / "b.qcow2")},
        **{"data-file": {"driver": "file", "filename": str(scene.canary)}},
    )
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", name)
    scene.spec("b <- x")


def unknown_feature(scene: Scene) -> None:
    (scene.images / "b.qcow2").write_bytes(header(incompatible=UNKNOWN))
    empty(scene.images / "p.qcow2", "b.qcow2")
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("b <- x")


def encrypted(scene: Scene) -> None:
    empty(scene.images / "b.qcow2")
    patch(scene.images / "b.qcow2", 32, struct.pack(">I", 2))
    empty(scene.images / "p.qcow2", "b.qcow2")
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("b <- x")


def protocol(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        empty(scene.images / "x.qcow2", name.replace("CANARY", str(scene.canary)), "raw")
        scene.spec("x")

    return make


CASES: list[tuple[str, Callable[[Scene], None], str]] = [
    # id, what was written, what is said
    ("CVE-2013-4463 a backing file of the host", backing_outside, "is never opened"),
    ("CVE-2015-1850 a raw backing file of the host", raw_backing_outside, "is never opened"),
    ("CVE-2015-1851 a json: backing file of the host", json_backing_outside, "is never opened"),
    ("CVE-2024-32498 an external data file", data_file, "external data file"),
    ("CVE-2024-4467 a data file in a json: name", data_file_by_json, "no plain qcow2 or raw"),
    ("CVE-2022-47951 a VMDK descriptor", vmdk_descriptor, "has the format vmdk"),
    ("CVE-2022-47951 a VMDK descriptor to be guessed", vmdk_without_a_format, "no qcow2 image"),
    ("a name that climbs", climbing_name, "is never opened"),
    ("an unknown incompatible feature", unknown_feature, "unknown incompatible features"),
    ("encryption", encrypted, "encrypted"),
    ("nbd", protocol("nbd://127.0.0.1:10809/x"), "no local file"),
    ("fd", protocol("fd:3"), "no local file"),
    ("vvfat", protocol("vvfat:CANARY"), "no local file"),
    ("a device", protocol("/dev/zero"), "never opened"),
    ("proc", protocol("/proc/self/environ"), "never opened"),
]


@pytest.mark.parametrize(("make", "said"), [pytest.param(*c, id=name) for name, *c in CASES])
def test_a_file_of_the_host_is_never_opened(
    scene: Scene, make: Callable[[Scene], None], said: str
) -> None:
    make(scene)
    before = folder_facts(scene.images), folder_facts(scene.outside)

    seen = scene.traced("apply")

    assert_refused(seen.outcome, said)
    assert [name for name in seen.opened if name.startswith(str(scene.outside))] == []
    assert not seen.opened & {"/dev/zero", "/proc/self/environ"}
    assert [one for one in seen.connected if "AF_INET" in one] == []
    assert seen.ran <= {"virt-chain", "python3", "qemu-img"}, seen.ran
    assert (folder_facts(scene.images), folder_facts(scene.outside)) == before


@pytest.mark.parametrize(
    "make",
    [data_file, unknown_feature, encrypted],
    ids=["data file", "unknown feature", "encryption"],
)
@pytest.mark.parametrize("verb", ["plan", "show"])
def test_no_tool_opens_an_image_with_strange_features(
    scene: Scene, make: Callable[[Scene], None], verb: str
) -> None:
    make(scene)

    seen = scene.traced(verb)

    assert "qemu-img" not in seen.ran
    assert str(scene.canary) not in seen.opened


def test_strace_sees_what_is_opened(scene: Scene) -> None:
    """The proof above would notice: an honest image is seen, and so is qemu-img."""
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x <- y")  # QEMU is asked about disks that have steps

    seen = scene.traced("plan")

    assert seen.outcome.code == 0
    assert {str(scene.images / "b.qcow2"), str(scene.images / "x.qcow2")} <= seen.opened
    assert "qemu-img" in seen.ran


# No format is ever guessed


@pytest.mark.parametrize("recorded", ["raw", ""], ids=["recorded", "not recorded"])
def test_a_raw_disk_with_a_forged_header_stays_raw(scene: Scene, recorded: str) -> None:
    """CVE-2008-2004: a merge above it reads the header as the bytes of a disk."""
    forged = header(backing=bytes(scene.canary_image)).ljust(1 << 20, b"\0")
    (scene.images / "b.raw").write_bytes(forged)
    empty(scene.images / "p.qcow2", "b.raw", recorded)
    empty(scene.images / "q.qcow2", "p.qcow2")
    empty(scene.images / "x.qcow2", "q.qcow2")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 81 64k 64k", _plain(scene, "q"))
    scene.spec("b.raw <- p <- x", formats={"b.raw": "raw"})

    seen = scene.traced("apply")

    assert seen.outcome.code == 0, seen.outcome
    assert str(scene.canary_image) not in seen.opened
    assert (scene.images / "b.raw").read_bytes() == forged
    below = scene.disk.headers("x")[1:] if recorded else []
    assert [name for name, _ in below] in ([], ["p", "b.raw"])
    whole = tool("qemu-img", "map", "--output=json", "-f", "raw", scene.images / "b.raw")
    assert json.loads(whole)[0]["depth"] == 0


def _plain(scene: Scene, name: str) -> str:
    """The name by which qemu-io opens an image without the files below it."""
    file = {"driver": "file", "filename": str(scene.images / f"{name}.qcow2")}
    return json_name(driver="qcow2", backing=None, file=file)


# What is no regular file


@contextmanager
def _listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has 107 bytes at most
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)
        server.listen()
        yield


KINDS = ["fifo", "socket", "folder", "device", "link to a fifo", "link to a device", "loop"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["active", "backing"])
def test_what_is_no_regular_file_is_refused_at_once(scene: Scene, kind: str, place: str) -> None:
    target = scene.images / "b.qcow2"
    with _listening(scene.images / "socket"):
        match kind:
            case "fifo":
                os.mkfifo(target)
            case "socket":
                os.link(scene.images / "socket", target)
            case "folder":
                target.mkdir()
            case "device":
                os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
            case "link to a fifo":
                os.mkfifo(scene.images / "fifo")
                target.symlink_to("fifo")
            case "link to a device":
                target.symlink_to("/dev/zero")
            case _:
                target.symlink_to("b.qcow2")
        if place == "backing":
            empty(scene.images / "x.qcow2", "b.qcow2", "raw")
        scene.spec("b <- x" if place == "backing" else "b")
        outcome = scene.run("plan")

    assert outcome.code == 1, outcome
    said = ("no regular file", "never opened", "cannot be read", "Too many levels", "folder")
    assert any(one in outcome.out + outcome.err for one in said), outcome


# Roots of the host


def test_nothing_is_made_outside_of_the_allowed_roots(scene: Scene, config: Path) -> None:
    """A spec that somebody else wrote makes no file where the host does not allow it."""
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    wanted = scene.outside / "made.qcow2"
    scene.root.joinpath("chain.toml").write_text(
        f'version = 1\n[domains.vm.disks.vda]\nchain = [{{ file = "{wanted}", size = "1M" }}]\n'
    )

    outcome = scene.run("apply")

    assert_refused(outcome, str(wanted), str(scene.images))
    assert not wanted.exists()


def test_no_overlay_is_made_outside_of_the_allowed_roots(scene: Scene, config: Path) -> None:
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    empty(scene.images / "b.qcow2")
    wanted = scene.outside / "made.qcow2"
    scene.root.joinpath("chain.toml").write_text(
        f'version = 1\n[domains.vm.disks.vda]\nchain = ["{scene.images}/b.qcow2", "{wanted}"]\n'
    )

    outcome = scene.run("apply")

    assert_refused(outcome, str(wanted), str(scene.images))
    assert not wanted.exists()


def test_a_spec_without_allowed_roots_opens_the_folders_it_lists_alone(
    scene: Scene, config: Path
) -> None:
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    scene.root.joinpath("chain.toml").write_text(
        f'version = 1\n[domains.vm.disks.vda]\nchain = ["{scene.canary_image}"]\n'
    )

    seen = scene.traced("apply")

    assert_refused(seen.outcome, "is never opened")
    assert str(scene.canary_image) not in seen.opened


def test_gc_empties_no_quarantine_outside_of_the_allowed_roots(scene: Scene, config: Path) -> None:
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    kept = scene.outside / ".virt-chain-quarantine" / "x.qcow2~20200101T000000Z"
    kept.parent.mkdir()
    kept.write_bytes(b"theirs")
    spec = scene.root / "chain.toml"
    spec.write_text(f'version = 1\n[domains.vm.disks.vda]\nchain = ["{scene.canary_image}"]\n')

    bounded("gc", "--all", spec)

    assert kept.exists()


# Rights of what is made


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o777, 0o600, 0o660])
def test_a_new_overlay_is_never_readable_by_others(scene: Scene, mode: int) -> None:
    """CVE-2025-13193: it holds the guest's data from its first write on."""
    empty(scene.images / "b.qcow2").chmod(mode)
    scene.spec("b <- x <- y")

    outcome = bounded(*scene.words("apply"), umask=0)

    assert outcome.code == 0, outcome
    for name in "xy":
        made = stat.S_IMODE((scene.images / f"{name}.qcow2").stat().st_mode)
        assert made & 0o007 == 0, oct(made)
    left = {path.name for path in scene.images.iterdir()}
    assert left == {"b.qcow2", "x.qcow2", "y.qcow2"}


SPY = """#!/bin/sh
{real} "$@"
code=$?
[ "$1" = create ] && ls -ln {images}/.*.virt-chain-new >> {log} 2>/dev/null
exit $code
"""


def test_an_overlay_is_not_readable_by_others_while_it_is_made(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2025-13193: between its making and its last name, too."""
    disk.add("b", "64k:A")
    disk.path("b").chmod(0o666)
    spies, log = disk.root / "bin", disk.root / "log"
    spies.mkdir()
    (spies / "qemu-img").write_text(
        SPY.format(real="/usr/bin/qemu-img", images=disk.images, log=log)
    )
    (spies / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{spies}:{os.environ['PATH']}")
    disk.spec("b <- x")
    old = os.umask(0)
    try:
        outcome = disk.apply()
    finally:
        os.umask(old)

    assert outcome.code == 0, outcome
    assert [line[:10] for line in log.read_text().splitlines()] == ["-rw-------"]


def test_state_and_history_are_for_their_owner_alone(scene: Scene) -> None:
    empty(scene.images / "b.qcow2")
    scene.spec("b <- x")

    assert bounded(*scene.words("apply"), umask=0).code == 0

    state = scene.root / "state"
    others = {
        str(path.relative_to(state)): oct(path.stat().st_mode & 0o077)
        for path in [*state.rglob("*"), state]
        if path.stat().st_mode & 0o077
    }
    assert others == {}


# Links


def test_a_link_out_of_the_roots_is_refused(scene: Scene, config: Path) -> None:
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    (scene.images / "x.qcow2").symlink_to(scene.canary_image)
    scene.spec("x <- y")

    seen = scene.traced("apply")

    assert_refused(seen.outcome, "is never opened")
    assert str(scene.canary_image) not in seen.opened
    assert not (scene.images / "y.qcow2").exists()


def test_a_backing_file_that_is_a_link_out_of_the_roots_is_refused(scene: Scene) -> None:
    (scene.images / "b.qcow2").symlink_to(scene.canary_image)
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("x")

    seen = scene.traced("apply")

    assert_refused(seen.outcome, "is never opened")
    assert str(scene.canary_image) not in seen.opened


def test_a_folder_that_is_a_link_out_of_the_roots_is_refused(scene: Scene) -> None:
    (scene.images / "far").symlink_to(scene.outside)
    empty(scene.images / "x.qcow2", "far/canary.qcow2")
    scene.spec("x")

    seen = scene.traced("apply")

    assert_refused(seen.outcome, "is never opened")
    assert str(scene.canary_image) not in seen.opened


def test_a_new_image_is_not_made_through_a_link(scene: Scene, config: Path) -> None:
    """A link that leads nowhere yet would lead the new image out."""
    config.write_text(f"allowed_roots = [{json.dumps(str(scene.images))}]\n")
    empty(scene.images / "b.qcow2")
    (scene.images / "x.qcow2").symlink_to(scene.outside / "made.qcow2")
    scene.spec("b <- x")

    outcome = scene.run("apply")

    assert outcome.code == 1, outcome
    assert not (scene.outside / "made.qcow2").exists()


def test_a_link_in_the_place_of_the_temporary_name_is_not_followed(scene: Scene) -> None:
    empty(scene.images / "b.qcow2")
    (scene.images / ".x.qcow2.virt-chain-new").symlink_to(scene.canary)
    before = facts(scene.canary)
    scene.spec("b <- x")

    assert scene.run("apply").code == 0

    assert facts(scene.canary) == before
    assert not (scene.images / "x.qcow2").is_symlink()


def test_the_header_of_a_bystander_that_links_out_is_only_read_by_us(scene: Scene) -> None:
    """
    QEMU would follow the link, and what it leads to may stand on our images.

    A backing name, which a guest may have written, is still followed nowhere else.
    """
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", "b.qcow2")
    (scene.images / "other.qcow2").symlink_to(scene.canary_image)
    (scene.images / "kernel").symlink_to("/proc/self/environ")
    empty(scene.images / "third.qcow2", str(scene.canary))
    scene.spec("b <- x")

    seen = scene.traced("plan")

    assert seen.outcome.code == 0, seen.outcome
    assert str(scene.canary_image) in seen.opened
    assert "qemu-img" not in seen.ran
    assert not seen.opened & {str(scene.canary), "/proc/self/environ"}


def test_a_hard_link_to_a_file_of_the_host_is_only_read(scene: Scene) -> None:
    """Whoever may make the link could read the file; nobody gets it written."""
    os.link(scene.canary_image, scene.images / "p.qcow2")
    before = facts(scene.canary_image)
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("x")

    outcome = scene.run("apply")

    assert outcome.code == 0, outcome
    assert facts(scene.canary_image) == before


def test_the_quarantine_is_no_link(scene: Scene) -> None:
    """A discarded image is not moved through a link that was put in the folder."""
    disk = scene.disk
    disk.chain({"b": "64k:A", "x": "64k:X"})
    (scene.images / ".virt-chain-quarantine").symlink_to(scene.outside)
    disk.spec("b <- y", discard=["x"], active="x.qcow2")
    before = folder_facts(scene.outside)

    outcome = command(*scene.words("apply"))

    assert outcome.code == 1, outcome
    assert folder_facts(scene.outside) == before
    assert (scene.images / "x.qcow2").exists()


def grown(scene: Scene) -> None:
    data_file(scene)
    scene.spec("b <- p <- x", sizes={"x": "2M"})


def rebased(scene: Scene) -> None:
    data_file(scene)
    empty(scene.images / "v.qcow2")
    empty(scene.images / "w.qcow2", "v.qcow2")
    scene.spec("b <- p <- w", active="w.qcow2")


def rolled_back(scene: Scene) -> None:
    data_file(scene)
    scene.spec("b <- p <- y", discard=["x"], active="x.qcow2")


def snapshot(scene: Scene) -> None:
    data_file(scene)
    scene.spec("b <- p <- x <- y")


def instance(scene: Scene) -> None:
    data_file(scene)
    scene.spec("b <- p <- n")


@pytest.mark.parametrize("make", [grown, rebased, rolled_back, snapshot, instance])
def test_no_step_of_any_kind_opens_a_data_file(scene: Scene, make: Callable[[Scene], None]) -> None:
    """CVE-2024-32498, CVE-2024-4467: whether the step is done or refused."""
    make(scene)
    before = folder_facts(scene.outside)

    seen = scene.traced("apply")

    assert str(scene.canary) not in seen.opened
    assert folder_facts(scene.outside) == before
