"""`import` of images and folders: the spec it writes, and that a plan of it has no steps."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.images.cases import B, P, Q, X
from tests.images.disks import Disk, Outcome, command, folder_facts, tool

SIZE = re.compile(r"[0-9.]+ [KM]iB")


def adopt(disk: Disk, *words: str | Path) -> Outcome:
    return command("import", *words, "--state-dir", disk.state)


def without_sizes(text: str) -> str:
    """*text* with the sizes of files, which depend on the filesystem, as ``SIZE``."""
    return SIZE.sub("SIZE", text)


def assert_no_steps(disk: Disk, *specs: Path) -> None:
    """A plan of the imported *specs* is empty, and their layout is that of fmt."""
    planned = command("plan", "--detailed-exitcode", "--state-dir", disk.state, *specs)
    assert planned.code == 0, planned
    assert planned.out.startswith("Nothing to do: ")
    assert command("fmt", "--check", *specs) == Outcome(0, "", "")


@pytest.fixture
def forest(disk: Disk) -> Disk:
    """Two chains on a template, and one that stands alone."""
    disk.chain({"t": B, "one": P, "two": X})
    disk.add("other", Q, on="t")
    disk.add("alone", B)
    return disk


FOREST = """\
# Written by virt-chain import {images}

version = 1

[defaults]
directory = "{images}"

[domains.alone.disks.vda]  # SIZE
chain = ["alone.qcow2"]  # SIZE, active

[domains.other.disks.vda]  # SIZE
chain = [
  {{ file = "t.qcow2", template = true }},  # SIZE, template of 2 disks
  "other.qcow2",  # SIZE, active
]

[domains.two.disks.vda]  # SIZE
chain = [
  {{ file = "t.qcow2", template = true }},  # SIZE, template of 2 disks
  "one.qcow2",  # SIZE, restore point
  "two.qcow2",  # SIZE, active
]
"""


def test_a_folder_becomes_a_spec(forest: Disk) -> None:
    before = folder_facts(forest.images)

    done = adopt(forest, forest.images)

    assert (done.code, done.err) == (0, "")
    assert without_sizes(done.out) == FOREST.format(images=forest.images)
    assert folder_facts(forest.images) == before
    forest.spec_file.write_text(done.out)
    assert_no_steps(forest, forest.spec_file)


def test_images_become_a_spec_with_what_others_share(forest: Disk) -> None:
    done = adopt(forest, forest.path("other"))

    assert done.code == 0, done
    assert '{ file = "t.qcow2", template = true },' in done.out
    assert "template of 2 disks" in done.out
    assert done.out.count("[domains.") == 1
    forest.spec_file.write_text(done.out)
    assert_no_steps(forest, forest.spec_file)


def test_an_image_below_others_is_left_out_with_the_reason(forest: Disk) -> None:
    done = adopt(forest, forest.path("one"), forest.path("alone"))

    assert done.code == 0, done
    comment = " ".join(line[2:] for line in done.out.splitlines() if line.startswith("# "))
    assert "one:vda is left out: " in comment
    assert "two.qcow2 stands on" in done.err
    assert "[domains.alone.disks.vda]" in done.out


def test_a_file_for_each_domain(forest: Disk) -> None:
    folder = forest.root / "specs"

    done = adopt(forest, "-d", folder, forest.images)

    assert done == Outcome(
        0, "".join(f"{folder}/{n}.toml\n" for n in ("alone", "other", "two")), ""
    )
    assert_no_steps(forest, folder)
    again = adopt(forest, "-d", folder, forest.images)
    assert (again.code, again.out) == (0, "")
    assert again.err.splitlines()[0] == "virt-chain: alone:vda is in the spec already"


def test_no_file_is_overwritten(forest: Disk) -> None:
    folder = forest.root / "specs"
    folder.mkdir()
    (folder / "two.toml").write_text(
        'version = 1\n[domains.mine.disks.vda]\nchain = ["/images/mine"]\n'
    )
    before = folder_facts(folder)

    done = adopt(forest, "-d", folder, forest.images)

    assert (done.code, done.out) == (1, "")
    assert f"{folder}/two.toml exists already, and nothing was written" in done.err
    assert folder_facts(folder) == before


def test_a_folder_of_specs_gets_more_without_new_defaults(forest: Disk) -> None:
    folder = forest.root / "specs"
    assert adopt(forest, "-d", folder, forest.path("other")).code == 0
    shared = folder_facts(folder)

    done = adopt(forest, "-d", folder, forest.images)

    assert done.code == 0, done
    assert {name: fact for name, fact in folder_facts(folder).items() if name in shared} == shared
    assert "[defaults]" not in (folder / "two.toml").read_text()
    assert_no_steps(forest, folder)


def test_a_spec_grows_and_keeps_what_it_has(forest: Disk) -> None:
    spec = forest.spec_file
    old = (
        "# Mine.\nversion = 1  # one\n\n"
        'defaults = { directory = "images" }\n'
        '[domains.other.disks.vda]\n# see the wiki\nchain = ["t.qcow2", "other.qcow2"]'
    )
    spec.write_text(old)
    spec.chmod(0o600)

    done = adopt(forest, "--into", spec, forest.images)

    assert done == Outcome(
        0, f"{spec}: 2 disks added\n", "virt-chain: other:vda is in the spec already\n"
    )
    added = without_sizes(spec.read_text().removeprefix(f"{old}\n\n"))
    assert added == (
        '[domains.alone.disks.vda]  # SIZE\nchain = ["alone.qcow2"]  # SIZE, active\n'
        "\n"
        "[domains.two.disks.vda]  # SIZE\n"
        "chain = [\n"
        '  { file = "t.qcow2", template = true },  # SIZE, template of 2 disks\n'
        '  "one.qcow2",  # SIZE, restore point\n'
        '  "two.qcow2",  # SIZE, active\n'
        "]\n"
    )
    assert spec.stat().st_mode & 0o777 == 0o600
    planned = command("plan", "--detailed-exitcode", "--state-dir", forest.state, spec)
    assert planned.out == "Nothing to do: 3 disks are as the spec says.\n"


def test_formats_are_written_where_nobody_else_says_them(disk: Disk) -> None:
    disk.add("r.img", B, raw=True)
    disk.add("x", X, on="r.img")
    disk.add("q", B)
    disk.add("y", X, on="q", record_format=False)
    disk.add("lone.raw", B, raw=True)

    done = adopt(disk, disk.images)

    assert done.code == 0, done
    assert re.findall(r"\{.*\}|\".*2\"", done.out.split("\n\n", 3)[3]) == [
        '{ file = "lone.raw", format = "raw" }',
        '{ file = "r.img", format = "raw" }',
        '"x.qcow2"',
        '{ file = "q.qcow2", format = "qcow2" }',
        '"y.qcow2"',
    ]
    disk.spec_file.write_text(done.out)
    assert_no_steps(disk, disk.spec_file)


def test_odd_names_are_quoted(disk: Disk) -> None:
    names = ['it\'s a "disk".qcow2', "тест.qcow2", "a.b c.qcow2", "#1.qcow2", "-x.qcow2"]
    for number, name in enumerate(names):
        disk.add(f"n{number}", B)
        disk.path(f"n{number}").rename(disk.images / name)

    done = adopt(disk, disk.images)

    assert done.code == 0, done
    assert done.out.count("[domains.") == len(names)
    disk.spec_file.write_text(done.out)
    assert_no_steps(disk, disk.spec_file)
    each = adopt(disk, "-d", disk.root / "specs", disk.images)
    assert each.code == 0, each
    assert_no_steps(disk, disk.root / "specs")


def test_what_cannot_be_described_is_left_out_with_the_reason(disk: Disk) -> None:
    disk.add("good", B)
    disk.add("gone", B)
    disk.add("broken", X, on="gone")
    disk.path("gone").unlink()
    (disk.images / "damaged.qcow2").write_bytes(b"QFI\xfb" + bytes(8))
    (disk.images / "notes.txt").write_text("no image")
    os.mkfifo(disk.images / "pipe.img")
    bad = disk.images / "new\nline.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", bad, "1M")

    done = adopt(disk, disk.images)

    assert done.code == 0, done
    lines = [line for line in done.err.splitlines() if " is left out: " in line]
    left = [line.split(" is left out: ") for line in lines]
    assert [name for name, _ in left] == [
        "virt-chain: broken:vda",
        "virt-chain: damaged:vda",
        r"virt-chain: new\nline:vda",
    ]
    assert f"{disk.path('gone')} does not exist" in left[0][1]
    assert "control character" in left[2][1]
    comments = " ".join(line[2:] for line in done.out.splitlines() if line.startswith("# "))
    assert "broken:vda is left out: " in comments
    disk.spec_file.write_text(done.out)
    assert_no_steps(disk, disk.spec_file)


def test_a_folder_with_broken_chains_only_gives_no_spec(disk: Disk) -> None:
    disk.add("gone", B)
    disk.add("broken", X, on="gone")
    disk.path("gone").unlink()

    done = adopt(disk, disk.images)

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("virt-chain: broken:vda is left out: ")


def test_images_in_other_folders_have_the_shorter_name(disk: Disk) -> None:
    disk.add("t", B, folder="templates")
    disk.add("a", X, on="t", folder="vms/deep/er")
    disk.add("b", X, on="t", folder="vms/deep/er")

    done = adopt(disk, disk.images / "vms/deep/er")

    assert done.code == 0, done
    assert done.out.count('file = "../../../templates/t.qcow2", template = true') == 2
    disk.spec_file.write_text(done.out)
    assert_no_steps(disk, disk.spec_file)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing is named; name images, a folder, or domains with --connect URI"),
        (["web"], "web does not exist; name images, a folder, or domains with --connect URI"),
        (["images", "chain.toml"], "name images, or one folder"),
        (["empty"], "nothing was found: no disk, and no image"),
        (
            ["images", "-d", "x", "--into", "y"],
            "-d and --into exclude each other; say one of them",
        ),
        (["images", "--into", "images"], "images is a folder; name one of its files, or use -d"),
    ],
)
def test_a_mistake_is_told(
    forest: Disk, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(forest.root)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    forest.spec("t <- one")
    (forest.root / "empty").mkdir()

    done = adopt(forest, *words)

    assert done == Outcome(1, "", f"virt-chain: {said}\n")
