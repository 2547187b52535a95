"""`snapshot`, `drop` and `rollback`: the line in the spec, and what it does to real images."""

from __future__ import annotations

import fcntl
import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from reconciler.cli import editing
from reconciler.cli.applying import Session
from reconciler.cli.editing import Texts
from reconciler.engine.state import StateFolder, waiting
from reconciler.spec import load
from reconciler.spec.edit import add_overlay
from reconciler.tools import qemuimg, statx
from tests.images.cases import B, P, Q, X
from tests.images.disks import (
    EXECUTABLE,
    Disk,
    Outcome,
    assert_quiet,
    command,
    folder_facts,
    process,
    tool,
    view,
    write,
)

TIME = r"\d{8}T\d{6}"

SPEC = """\
# The virtual machine.
version = 1

[defaults]
directory = "images"  # here

[domains.vm.disks.vda]
chain = [
  {{ file = "b.qcow2", template = true }},
  "p.qcow2",  # fresh
{more}]
"""


@pytest.fixture
def vm(disk: Disk) -> Disk:
    """The chain b <- p <- x, and a spec with comments."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec_file.write_text(SPEC.format(more='  "x.qcow2",\n'))
    return disk


def act(disk: Disk, *words: str | Path) -> Outcome:
    return command(*words, "--spec", disk.spec_file, "--state-dir", disk.state)


def overlays(disk: Disk) -> list[str]:
    """Images that the scene did not make."""
    return sorted(path.stem for path in disk.images.glob("*.qcow2") if path.stem not in "bpx")


def test_a_snapshot_is_one_line_and_one_overlay(vm: Disk) -> None:
    done = act(vm, "snapshot", "vm", "-y")

    assert done.code == 0, done
    [new] = overlays(vm)
    assert re.fullmatch(f"vm-vda-{TIME}", new)
    assert vm.spec_file.read_text() == SPEC.format(more=f'  "x.qcow2",\n  "{new}.qcow2",\n')
    assert vm.stack(new) == f"b <- p <- x <- {new}"
    assert done.out.startswith(f'{vm.spec_file}\n  +   "{new}.qcow2",\n\nvm:vda  offline')
    assert vm.read("x") == vm.read(new) == vm.golden["x"]
    assert_quiet(vm)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mon", "mon.qcow2"), ("mon.qcow2", "mon.qcow2"), ("v1.2", "v1.2.qcow2"), ("a.img", "a.img")],
)
def test_a_snapshot_has_the_name_it_is_given(vm: Disk, name: str, file: str) -> None:
    done = act(vm, "snapshot", "vm:vda", name, "-y")

    assert done.code == 0, done
    assert vm.spec_file.read_text() == SPEC.format(more=f'  "x.qcow2",\n  "{file}",\n')
    assert (vm.images / file).exists()


def test_a_snapshot_of_several_disks_names_each(vm: Disk) -> None:
    vm.add("d", B)
    vm.spec_file.write_text(
        vm.spec_file.read_text() + "\n[domains.vm]\ndisks.vdb.chain = ['d.qcow2']\n"
    )

    done = act(vm, "snapshot", "vm", "mon", "-y")

    assert done.code == 0, done
    assert vm.spec_file.read_text() == (
        SPEC.format(more='  "x.qcow2",\n  "mon-vda.qcow2",\n')
        + "\n[domains.vm]\ndisks.vdb.chain = ['d.qcow2', 'mon-vdb.qcow2']\n"
    )
    assert overlays(vm) == ["d", "mon-vda", "mon-vdb"]

    back = act(vm, "rollback", "vm:vdb", "--to", "d", "-y")

    assert back.code == 0, back
    assert vm.spec_file.read_text().endswith("disks.vdb.discard = ['mon-vdb.qcow2']\n")


@pytest.mark.parametrize("taken", ["p", "x.qcow2", "free"])
def test_a_name_that_is_taken_is_refused(vm: Disk, taken: str) -> None:
    (vm.images / "free.qcow2").touch()
    before = vm.everything()

    done = act(vm, "snapshot", "vm", taken, "-y")

    assert (done.code, done.out) == (1, "")
    assert "is taken: it exists, or the spec lists or discards it" in done.err
    assert vm.everything() == before


@pytest.mark.parametrize("name", ["", "..", "folder/", "new\nline"])
def test_a_name_that_is_none_is_refused(vm: Disk, name: str) -> None:
    before = vm.spec_file.read_bytes(), vm.everything()

    done = act(vm, "snapshot", "vm", name, "-y")

    assert (done.code, done.out) == (1, "")
    assert "is the name of no file; write one such as before-upgrade" in done.err
    assert (vm.spec_file.read_bytes(), vm.everything()) == before


def test_names_come_from_the_pattern_of_the_spec(vm: Disk) -> None:
    text = vm.spec_file.read_text().replace("# here", '\noverlay_name = "{disk}.of.{domain}.img"')
    vm.spec_file.write_text(text)

    for _ in range(3):
        assert act(vm, "snapshot", "vm", "-y").code == 0

    assert vm.stack("vda.of.vm-3.img") == (
        "b <- p <- x <- vda.of.vm.img <- vda.of.vm-2.img <- vda.of.vm-3.img"
    )


def test_a_pattern_that_is_none_is_told_with_its_place(vm: Disk) -> None:
    vm.spec_file.write_text(vm.spec_file.read_text().replace("# here", '\noverlay_name = "{host}"'))

    done = command("validate", vm.spec_file)

    assert done.code == 1
    assert done.err.startswith(
        f"{vm.spec_file}:6:1: defaults.overlay_name: overlay_name: {{host}} is unknown; "
    )


def test_without_apply_only_the_spec_is_edited(vm: Disk) -> None:
    before = folder_facts(vm.images)

    done = act(vm, "snapshot", "vm", "mon", "--no-apply")

    assert done.code == 0, done
    assert vm.spec_file.read_text() == SPEC.format(more='  "x.qcow2",\n  "mon.qcow2",\n')
    assert folder_facts(vm.images) == before
    assert done.out.endswith(f"Apply it with: virt-chain apply {vm.spec_file}\n")
    assert vm.apply().code == 0
    assert vm.stack("mon") == "b <- p <- x <- mon"


@pytest.mark.parametrize("answer", ["n\n", "\n", "y\n"])
def test_who_is_asked_may_say_no(vm: Disk, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    before = vm.spec_file.read_bytes()

    done = act(vm, "snapshot", "vm", "mon")

    yes = answer == "y\n"
    assert done.code == (0 if yes else 1)
    assert (vm.images / "mon.qcow2").exists() == yes
    assert (vm.spec_file.read_bytes() != before) == yes


def test_without_a_terminal_nothing_is_written(vm: Disk) -> None:
    before = vm.spec_file.read_bytes(), folder_facts(vm.images)

    done = process("snapshot", "vm", "--spec", vm.spec_file, "--state-dir", vm.state)

    assert (done.code, "there is no terminal to ask on" in done.err) == (1, True)
    assert (vm.spec_file.read_bytes(), folder_facts(vm.images)) == before
    assert [path.name for path in vm.root.glob(".*")] == []


def test_a_plan_with_an_error_leaves_the_spec_alone(vm: Disk) -> None:
    vm.add("stranger", X, on="x")
    before = vm.spec_file.read_bytes()

    for words in (["-y"], ["--no-apply"]):
        done = act(vm, "snapshot", "vm", "mon", *words)

        assert done.code == 1
        assert "stands on" in done.out
        assert done.err == (
            f"virt-chain: nothing was done: this cannot be planned; {vm.spec_file} is as it was\n"
        )
        assert vm.spec_file.read_bytes() == before


@pytest.mark.parametrize("way", ["p", "p.qcow2", "path"])
def test_a_drop_takes_the_line_out(vm: Disk, way: str) -> None:
    image = str(vm.path("p")) if way == "path" else way

    done = act(vm, "drop", "vm", image, "-y")

    assert done.code == 0, done
    text = SPEC.format(more='  "x.qcow2",\n').replace('  "p.qcow2",  # fresh\n', "")
    assert vm.spec_file.read_text() == text
    assert vm.stack("x") == "b <- x"
    assert vm.read("x") == vm.golden["x"]
    assert_quiet(vm)


def test_several_images_are_dropped_at_once(vm: Disk) -> None:
    vm.add("y", Q, on="x")
    vm.keep()
    vm.spec_file.write_text(SPEC.format(more='  "x.qcow2",\n  "y.qcow2"\n'))

    done = act(vm, "drop", "vm:vda", "p", "x", "-y")

    assert done.code == 0, done
    assert vm.stack("y") == "b <- y"
    assert vm.read("y") == vm.golden["y"]


REFUSED = [
    # id, words, what is said
    (
        "a template",
        ["drop", "vm", "b"],
        (
            "b is a template of vm:vda, and stays; edit the spec by hand to take this disk off it "
            "(its data is copied up)"
        ),
    ),
    (
        "an unknown image",
        ["drop", "vm", "tue"],
        "no image tue here; the chain of vm:vda is b <- p <- x*",
    ),
    (
        "another's image",
        ["drop", "vm", "p"],
        (
            "p is shared with other:vda, and stays; edit the spec by hand to take this disk off it "
            "(its data is copied up)"
        ),
    ),
    ("an unknown domain", ["snapshot", "vm2"], "the spec has no vm2; it has vm:vda, other:vda"),
    ("an unknown disk", ["drop", "vm:vdb", "p"], "the spec has no vm:vdb; it has vm:vda"),
    (
        "no way back",
        ["rollback", "vm", "--to", "x"],
        (
            "vm:vda is on x already, and has nothing above it to go back from "
            "(its chain is b <- p <- x*)"
        ),
    ),
    (
        "back to an unknown image",
        ["rollback", "vm", "--to", "z"],
        "no image z here; the chain of vm:vda is b <- p <- x*",
    ),
]


@pytest.mark.parametrize(
    ("words", "said"), [pytest.param(*case, id=name) for name, *case in REFUSED]
)
def test_what_cannot_be_meant_is_refused(vm: Disk, words: list[str], said: str) -> None:
    vm.add("o", X, on="p")
    other = '[domains.other.disks.vda]\nchain = ["b.qcow2", "p.qcow2", "o.qcow2"]\n'
    vm.spec_file.write_text(vm.spec_file.read_text() + other)
    before = vm.spec_file.read_bytes(), vm.everything()

    done = act(vm, *words, "-y")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"virt-chain: {said}")
    assert (vm.spec_file.read_bytes(), vm.everything()) == before


def test_a_roll_back_goes_on_in_a_new_overlay(vm: Disk) -> None:
    done = act(vm, "rollback", "vm", "--to", "p", "-y")

    assert done.code == 0, done
    [new] = overlays(vm)
    assert vm.spec_file.read_text() == (
        SPEC.format(more=f'  "{new}.qcow2",\n') + 'discard = ["x.qcow2"]\n'
    )
    assert vm.stack(new) == f"b <- p <- {new}"
    assert vm.read(new) == vm.golden["p"]
    assert not vm.path("x").exists()
    assert_quiet(vm)


def test_a_roll_back_to_a_template_starts_anew(vm: Disk) -> None:
    done = act(vm, "rollback", "vm", "--to", "b", "-y")

    assert done.code == 0, done
    [new] = overlays(vm)
    assert vm.stack(new) == f"b <- {new}"
    assert vm.read(new) == vm.golden["b"]
    assert not vm.path("p").exists()
    assert not vm.path("x").exists()
    assert vm.spec_file.read_text().endswith('discard = ["p.qcow2", "x.qcow2"]\n')


def test_acts_follow_one_another(vm: Disk) -> None:
    assert act(vm, "snapshot", "vm", "mon", "-y").code == 0
    write(vm.path("mon"), "64k:- 64k:M")
    assert act(vm, "snapshot", "vm", "tue", "-y").code == 0
    monday = vm.read("mon")
    assert act(vm, "drop", "vm", "x", "-y").code == 0
    assert act(vm, "rollback", "vm", "--to", "mon", "-y").code == 0

    [new] = [name for name in overlays(vm) if name.startswith("vm")]
    assert vm.stack(new) == f"b <- p <- mon <- {new}"
    assert vm.read(new) == vm.read("mon") == monday
    assert vm.spec_file.read_text().endswith('discard = ["tue.qcow2"]\n')


def test_in_a_folder_the_file_that_has_the_domain_is_edited(vm: Disk) -> None:
    folder = vm.root / "specs"
    folder.mkdir()
    (folder / "a.toml").write_text(f'version = 1\n[defaults]\ndirectory = "{vm.images}"\n')
    (folder / "b.toml").write_text(
        'version = 1\n[domains.vm.disks.vda]\nchain = ["b.qcow2", "p.qcow2", "x.qcow2"]'
    )
    before = (folder / "a.toml").read_bytes()

    done = command("snapshot", "vm", "mon", "-y", "--spec", folder, "--state-dir", vm.state)

    assert done.code == 0, done
    assert (folder / "a.toml").read_bytes() == before
    assert (folder / "b.toml").read_text() == (
        "version = 1\n[domains.vm.disks.vda]\n"
        'chain = ["b.qcow2", "p.qcow2", "x.qcow2", "mon.qcow2"]'
    )
    assert sorted(path.name for path in folder.iterdir()) == ["a.toml", "b.toml"]


def test_a_link_is_followed_and_mode_and_owner_stay(vm: Disk) -> None:
    real = vm.root / "real.toml"
    vm.spec_file.rename(real)
    vm.spec_file.symlink_to("real.toml")
    real.chmod(0o640)
    owner = real.stat().st_uid, real.stat().st_gid

    done = act(vm, "snapshot", "vm", "mon", "-y")

    assert done.code == 0, done
    assert vm.spec_file.is_symlink()
    assert '"mon.qcow2"' in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert (real.stat().st_uid, real.stat().st_gid) == owner


def test_a_spec_that_is_taken_back_after_a_rollback_waits_for_a_person(disk: Disk) -> None:
    """The names are to be had again, and so are the images: they are in quarantine."""
    disk.chain({"b": B, "p": P, "x": X})
    before = disk.spec("b <- p <- x").read_text()
    assert disk.apply().code == 0
    assert act(disk, "rollback", "vm", "--to", "b.qcow2", "-y").code == 0
    disk.spec_file.write_text(before)
    refused = disk.apply()
    doubt, waits, _ = refused.err.partition("; without a person that is not applied")

    assert (refused.code, bool(waits)) == (1, True), refused
    assert "p.qcow2 and x.qcow2: the quarantine has images of that name" in doubt
    for words in doubt.partition("have them back: ")[2].split("; "):
        if words.startswith("mv "):
            tool(*shlex.split(words))
        else:
            adopted = act(disk, *shlex.split(words)[1:], "-y")
            assert adopted.code == 0, adopted
    assert disk.apply().code == 0
    assert disk.read("x") == disk.golden["x"]
    assert disk.read("p") == disk.golden["p"]
    assert_quiet(disk)


def test_one_name_that_the_quarantine_has_is_only_told(disk: Disk) -> None:
    disk.chain({"b": B, "x": X})
    before = disk.spec("b <- x").read_text()
    assert disk.apply().code == 0
    assert act(disk, "rollback", "vm", "--to", "b.qcow2", "-y").code == 0
    disk.spec_file.write_text(before)
    outcome = disk.apply()

    assert outcome.code == 0
    assert "x.qcow2: the quarantine has an image of that name" in outcome.out
    assert_quiet(disk)


def test_snapshots_of_domains_of_one_file_at_one_time_are_all_taken(disk: Disk) -> None:
    domains = [f"d{number}" for number in range(4)]
    text = f"version = 1\ndefaults.directory = {str(disk.images)!r}\n"
    for name in domains:
        disk.add(name, B)
        text += f"[domains.{name}.disks.vda]\nchain = ['{name}.qcow2']\n"
    disk.spec_file.write_text(text)
    words = ["--spec", disk.spec_file, "--state-dir", disk.state]
    acts = [
        subprocess.Popen(
            [EXECUTABLE, "snapshot", name, f"{name}-mon", "-y", *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in domains
    ]
    said = [one.communicate(timeout=120)[1] for one in acts]

    assert [one.returncode for one in acts] == [0] * 4, said
    for name in domains:
        assert f"{name}-mon.qcow2" in disk.spec_file.read_text()
        assert disk.stack(f"{name}-mon") == f"{name} <- {name}-mon"
    assert_quiet(disk)


def test_an_act_edits_the_spec_as_it_is_once_the_lock_is_free(vm: Disk) -> None:
    """Without --yes or --no-apply nobody would wait for a person who is asked."""
    words = ["snapshot", "vm", "mon", "-y"]
    with vm.spec_file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        act_ = subprocess.Popen(
            [EXECUTABLE, *words, "--spec", vm.spec_file, "--state-dir", vm.state],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(1.5)
        waited = act_.poll() is None
        text = vm.spec_file.read_text()
        vm.spec_file.write_text(text.replace("# fresh", "# edited meanwhile"))
    said, _ = act_.communicate(timeout=60)

    assert waited
    assert act_.returncode == 0, said
    assert "# edited meanwhile" in vm.spec_file.read_text()
    assert '"mon.qcow2"' in vm.spec_file.read_text()


def test_an_overlay_lies_beside_the_active_image(disk: Disk) -> None:
    disk.add("b", B, folder="vms")
    disk.spec_file.write_text(
        "version = 1\ndomains.vm.disks.vda = { chain = [{ file = 'images/vms/b.qcow2' }] }\n"
    )

    done = act(disk, "snapshot", "vm", "mon", "-y")

    assert done.code == 0, done
    assert (disk.images / "vms" / "mon.qcow2").exists()
    assert disk.spec_file.read_text() == (
        "version = 1\ndomains.vm.disks.vda = { chain = "
        "[{ file = 'images/vms/b.qcow2' }, { file = 'images/vms/mon.qcow2' }] }\n"
    )


def test_the_active_image_is_dropped_into_the_one_below(vm: Disk) -> None:
    done = act(vm, "drop", "vm", "x", "-y")

    assert done.code == 0, done
    assert vm.spec_file.read_text() == SPEC.format(more="")
    assert vm.stack("p") == "b <- p"
    assert vm.read("p") == vm.golden["x"]
    assert_quiet(vm)


def test_a_snapshot_that_is_listed_and_not_created_yet_is_pending(vm: Disk) -> None:
    assert act(vm, "snapshot", "vm", "mon", "--no-apply").code == 0

    again = act(vm, "snapshot", "vm", "mon", "-y")

    assert again.code == 1
    assert "mon.qcow2 is pending: vm:vda lists it, and it is not created yet" in again.err
    assert vm.apply().code == 0
    assert "is taken" in act(vm, "snapshot", "vm", "mon", "-y").err


def test_a_snapshot_that_a_full_filesystem_refuses_takes_its_line_back(vm: Disk) -> None:
    """A line of each failing night would become restore points of one moment."""
    copies = [shutil.copy(path, vm.root) for path in vm.images.glob("*.qcow2")]
    with full(vm.images, copies):
        before = vm.spec_file.read_bytes()
        for name in ("mon", "tue"):
            failed = act(vm, "snapshot", "vm", name, "-y")

            assert failed.code == 1
            assert "No space left on device" in failed.err
            assert f"nothing of this was done to vm:vda; {vm.spec_file} is as it was" in failed.err
            assert vm.spec_file.read_bytes() == before
        (vm.images / "fill").unlink()
        assert act(vm, "snapshot", "vm", "wed", "-y").code == 0
        assert vm.stack("wed") == "b <- p <- x <- wed"
        assert vm.read("wed") == vm.golden["x"]


@contextmanager
def full(folder: Path, files: Iterable[str | Path]) -> Iterator[None]:
    """A filesystem with *files* and no room."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a filesystem cannot be mounted here")
    try:
        for file in files:
            shutil.copy(file, folder)
        with (folder / "fill").open("wb", buffering=0) as fill, suppress(OSError):
            while True:
                fill.write(bytes(4096))
        yield
    finally:
        tool("umount", folder)


@pytest.fixture
def two(vm: Disk) -> Disk:
    """Disks vda (b <- p <- x) and vdb (d), each with the overlays mon and tue on top."""
    vm.add("d", B)
    vm.spec_file.write_text(
        vm.spec_file.read_text() + "\n[domains.vm.disks.vdb]\nchain = ['d.qcow2']\n"
    )
    for name in ("mon", "tue"):
        assert act(vm, "snapshot", "vm", name, "-y").code == 0
    return vm


def creates_none(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """From now on no overlay of the disk *target* can be created."""
    create_on = qemuimg.create_on

    def refusing(image: Path, *rest: Any) -> qemuimg.Argv:
        return ["false"] if target in image.name else create_on(image, *rest)

    monkeypatch.setattr(qemuimg, "create_on", refusing)


ACTS = [["snapshot", "vm", "wed"], ["drop", "vm", "mon"], ["rollback", "vm", "--to", "mon"]]


@pytest.mark.parametrize(
    ("why", "words"),
    [
        pytest.param(why, words, id=f"{words[0]}, {why}")
        for why, acts in (("held", ACTS), ("immutable", ACTS[1:]))  # a snapshot changes no image
        for words in acts
    ],
)
def test_an_act_that_will_be_refused_for_one_disk_is_done_to_none(
    two: Disk, monkeypatch: pytest.MonkeyPatch, why: str, words: list[str]
) -> None:
    """With a rollback of one of two disks a guest would see two moments."""
    if why == "held":
        hold = ("hold", "vm:vdb", "--reason", "a backup", "--state-dir", two.state)
        assert command(*hold).code == 0
    else:
        monkeypatch.setattr(statx, "is_protected", lambda path: path.name.endswith("-vdb.qcow2"))
    text, before = two.spec_file.read_text(), folder_facts(two.images)

    done = act(two, *words, "-y")

    assert done.code == 1
    assert "nothing was done: vm:vdb: " in done.err
    assert ("held by" if why == "held" else "cannot be changed: it is immutable") in done.err
    assert f"{two.spec_file} is as it was" in done.err
    assert two.spec_file.read_text() == text
    assert folder_facts(two.images) == before


@pytest.mark.parametrize("words", [ACTS[0], ACTS[2]], ids=lambda words: words[0])
def test_an_act_that_fails_for_one_disk_keeps_its_edit_and_apply_finishes_it(
    two: Disk, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Taken back for that disk alone, a mixture of two moments would be what the spec asks for."""
    with monkeypatch.context() as patch:
        creates_none(patch, "vdb")
        failed = act(two, *words, "-y")
    said = (
        f"this was done in part (vm:vda is changed, vm:vdb is not); {two.spec_file} keeps the "
        f"edit: finish it with: virt-chain apply {two.spec_file}"
    )

    assert failed.code == 1
    assert said in failed.err
    assert two.apply().code == 0
    for disk in load([two.spec_file]).disks:
        new, below = disk.chain[-1].path.stem, "tue" if words[0] == "snapshot" else "mon"
        assert two.stack(new).endswith(f"{below}-{disk.target} <- {new}")
    assert_quiet(two)


@pytest.mark.parametrize("words", [ACTS[0], ACTS[2]], ids=lambda words: words[0])
def test_an_act_that_fails_for_its_first_disk_is_done_to_no_other(
    two: Disk, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    text = two.spec_file.read_text()
    creates_none(monkeypatch, "vda")
    before = folder_facts(two.images)

    failed = act(two, *words, "-y")

    assert failed.code == 1
    assert "vm:vdb: left as it is, because another disk of the domain" in failed.err
    assert f"nothing of this was done to vm:vda, vm:vdb; {two.spec_file} is as it was" in failed.err
    assert two.spec_file.read_text() == text
    assert folder_facts(two.images) == before


def test_an_act_on_a_disk_that_changed_while_the_user_was_asked_is_done_to_no_other(
    two: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = two.spec_file.read_text()
    elsewhere = two.root / "elsewhere.toml"
    elsewhere.write_text(re.sub(r"(['\"])tue-vdb.qcow2\1", r"\g<0>, 'y.qcow2'", text))

    def changed(*_: object, **__: object) -> bool:
        return command("apply", "-y", elsewhere, "--state-dir", two.state).code == 0

    monkeypatch.setattr(typer, "confirm", changed)
    monkeypatch.setattr(sys, "stdin", Terminal())
    refused = act(two, "rollback", "vm", "--to", "mon")

    assert refused.code == 1
    assert "changed since the plan was made" in refused.err
    assert f"nothing of this was done to vm:vda, vm:vdb; {two.spec_file} is as" in refused.err
    assert two.spec_file.read_text() == text
    assert two.stack("tue-vda") == "b <- p <- x <- mon-vda <- tue-vda"


def test_a_rollback_of_a_disk_that_changed_meanwhile_is_taken_back(
    vm: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `discard` would throw away what the guest has written until a later apply."""
    elsewhere = vm.root / "elsewhere.toml"
    text = vm.spec_file.read_text()
    elsewhere.write_text(text.replace('"x.qcow2",', '"x.qcow2", "y.qcow2",'))
    assert vm.apply().code == 0

    def changed(*_: object, **__: object) -> bool:
        return command("apply", "-y", elsewhere, "--state-dir", vm.state).code == 0

    monkeypatch.setattr(typer, "confirm", changed)
    monkeypatch.setattr(sys, "stdin", Terminal())
    refused = act(vm, "rollback", "vm", "--to", "p")

    assert refused.code == 1
    assert "changed since the plan was made" in refused.err
    assert f"nothing of this was done to vm:vda; {vm.spec_file} is as it was" in refused.err
    assert vm.spec_file.read_text() == text
    assert vm.stack("y") == "b <- p <- x <- y"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_spec_that_was_edited_since_keeps_an_edit_that_cannot_be_taken_back(
    vm: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    [disk] = load([vm.spec_file]).disks
    texts = Texts()
    texts.edit(disk, add_overlay, "mon.qcow2", image_format=None)
    texts.write()
    edited = vm.spec_file.read_text() + "# by hand\n"
    vm.spec_file.write_text(edited)

    texts.take_back()

    assert vm.spec_file.read_text() == edited
    assert f"the edit of {vm.spec_file} stays" in capsys.readouterr().err


def test_two_rollbacks_at_one_time_never_discard_the_active_image(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- p <- x")
    assert disk.apply().code == 0
    words = ["rollback", "vm", "--to", "p", "-y", "--spec", disk.spec_file]
    acts = [
        subprocess.Popen(
            [EXECUTABLE, *words, "--state-dir", disk.state],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=120)[1] for one in acts]

    assert 0 in [one.returncode for one in acts], said
    active = disk.active()
    assert active is not None
    [read] = load([disk.spec_file]).disks
    assert active not in read.discard
    assert read.chain[-1].path == active
    write(active, "0:- 64k:W")
    golden = view(active)
    assert disk.apply().code == 0
    assert view(active) == golden


@pytest.mark.parametrize(
    "words", [["snapshot", "vm", "mon"], ["drop", "vm", "p"], ["rollback", "vm", "--to", "p"]]
)
def test_an_act_waits_for_whoever_works_on_the_disk_and_looks_again(
    vm: Disk, words: list[str]
) -> None:
    assert vm.apply().code == 0
    states = StateFolder(vm.state)
    x, away = vm.path("x"), vm.root / "away"
    with states.locked("vm", "vda", waiting(0)):
        x.rename(away)  # half done: the chain cannot be read
        act_ = subprocess.Popen(
            [EXECUTABLE, *words, "-y", "--spec", vm.spec_file, "--state-dir", vm.state],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(1.5)
        waited = act_.poll() is None
        away.rename(x)
    _, said = act_.communicate(timeout=60)

    assert waited
    assert act_.returncode == 0, said


def test_a_disk_that_another_works_on_for_long_is_told(
    vm: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vm.apply().code == 0
    monkeypatch.setattr(editing, "PATIENCE", 0.2)
    before = vm.spec_file.read_bytes()
    with StateFolder(vm.state).locked("vm", "vda", waiting(0)):
        told = act(vm, "snapshot", "vm", "mon", "-y")

    assert told.code == 1
    assert "vm:vda" in told.err, told
    assert "at work" in told.err or "working" in told.err or "lock" in told.err, told
    assert vm.spec_file.read_bytes() == before


@pytest.mark.parametrize("asked", [False, True], ids=["with -y", "asked"])
def test_an_act_holds_a_disk_that_was_never_applied_from_its_edit_to_its_end(
    vm: Disk, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Another act would edit on top, and what was not done could not be taken back."""
    held: list[tuple[str, bool]] = []

    def look(when: str) -> None:
        held.append((when, StateFolder(vm.state).at_work("vm", "vda") is not None))

    write_, run = Texts.write, Session._run

    def writing(self: Texts) -> None:
        write_(self)
        look("edited")

    def running(self: Session, *words: Any) -> bool:
        good = run(self, *words)
        look("done")
        return good

    def confirmed(*_: object, **__: object) -> bool:
        look("asked")
        return True

    monkeypatch.setattr(Texts, "write", writing)
    monkeypatch.setattr(Session, "_run", running)
    monkeypatch.setattr(typer, "confirm", confirmed)
    monkeypatch.setattr(sys, "stdin", Terminal())
    done = act(vm, "rollback", "vm", "--to", "p", *([] if asked else ["-y"]))

    assert done.code == 0, done
    assert held == [*([("asked", False)] if asked else []), ("edited", True), ("done", True)]
    assert StateFolder(vm.state).at_work("vm", "vda") is None


@pytest.mark.parametrize("words", [["--no-apply"], []], ids=["only an edit", "nobody to ask"])
def test_an_act_that_does_nothing_to_a_disk_leaves_no_lock_file(vm: Disk, words: list[str]) -> None:
    act(vm, "snapshot", "vm", "mon", *words)

    assert not (vm.state / "locks").exists()
