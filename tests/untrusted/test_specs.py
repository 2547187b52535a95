"""Specs that are broken, cut, huge or gone: told quickly, and nothing is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.disks import Disk, command, folder_facts
from tests.untrusted.scene import Scene, bounded, empty

HEAD = "version = 1\n"
HUGE = [
    ("a dotted key of 900 KB", HEAD + "a." * 450_000 + "b = 1"),
    ("a dotted table of 900 KB", HEAD + "[" + "a." * 450_000 + "b]"),
    ("lists in lists", HEAD + "a = " + "[" * 400_000 + "]" * 400_000),
    ("tables in tables", HEAD + "a = " + "{a=" * 200_000 + "1" + "}" * 200_000),
    ("an integer of 900 KB", HEAD + "a = " + "9" * 900_000),
    ("hexadecimal digits", HEAD + "a = 0x" + "f" * 900_000),
    ("a float of 900 KB", HEAD + "a = 1." + "9" * 900_000),
    ("a date of 900 KB", HEAD + "a = 1979-05-27T07:32:00." + "9" * 900_000),
    ("5,000 unknown keys", HEAD + "".join(f"k{n} = 1\n" for n in range(5_000))),
    ("2,000 broken disks", HEAD + "".join(f"[domains.d{n}.disks.v]\n" for n in range(2_000))),
    (
        "3,000 broken entries",
        HEAD + "[domains.d.disks.v]\nchain = [" + "{ fil = 1 }," * 3_000 + "]",
    ),
    ("one image 5,000 times", HEAD + "[domains.d.disks.v]\nchain = [" + '"a",' * 5_000 + "]"),
    ("one image a million times", HEAD + "[domains.d.disks.v]\nchain = [" + '"a",' * 10**6 + "]"),
    ("30,000 broken disks", HEAD + "".join(f"[domains.d{n}.disks.v]\n" for n in range(30_000))),
    ("800,000 unknown keys", HEAD + "".join(f"k{n}=1\n" for n in range(800_000))),
    ("quotes without end", HEAD + 'a = """' + '""\\' * 200_000),
    ("a string of escapes", HEAD + 'a = "' + "\\u001b" * 100_000 + '"'),
    ("a megabyte of one letter", "x" * 2_000_000),
    ("nothing but newlines", "\n" * 1_000_000),
    ("a carriage return in every line", HEAD + "a = 1\r" * 100_000),
]


@pytest.mark.parametrize("text", [pytest.param(one, id=name) for name, one in HUGE])
def test_a_huge_spec_is_told_in_time(tmp_path: Path, text: str) -> None:
    spec = tmp_path / "chain.toml"
    spec.write_text(text, newline="")

    outcome = bounded("validate", spec)

    assert outcome.code == 1
    assert str(spec) in outcome.err


def test_an_empty_or_cut_spec_drops_nothing(disk: Disk) -> None:
    """Cut at many a byte, it is an error, or asks for the same images."""
    disk.chain({"b": "64k:A", "p": "64k:P", "x": "64k:X"})
    disk.spec("b <- p <- x", templates=["b"], active="x.qcow2")
    text = disk.spec_file.read_text()
    before = folder_facts(disk.images)
    fine = 0
    for end in range(0, len(text), 3):
        disk.spec_file.write_text(text[:end])
        outcome = disk.plan()
        if outcome.code == 0:
            fine += 1
            assert outcome.steps == [], text[:end]
        else:
            assert outcome.code == 1

    assert 0 < fine < len(text) // 3
    assert folder_facts(disk.images) == before


def test_a_spec_file_that_became_empty_stops_its_whole_folder(disk: Disk) -> None:
    disk.chain({"b": "64k:A", "p": "64k:P", "x": "64k:X"})
    specs = disk.root / "specs"
    specs.mkdir()
    (specs / "a.toml").write_bytes(disk.spec("b <- x", active="x.qcow2").read_bytes())
    (specs / "b.toml").touch()

    outcome = command("apply", "-y", "--state-dir", disk.state, specs)

    assert (outcome.code, "the file is empty" in outcome.err) == (1, True)
    assert folder_facts(disk.images) == disk.before


def test_a_domain_that_vanished_from_the_spec_is_left_alone(disk: Disk) -> None:
    disk.chain({"b": "64k:A", "p": "64k:P", "x": "64k:X"})
    disk.add("other", "64k:O", folder="two")
    disk.keep()
    second = (
        f'[domains.two.disks.vda]\ndirectory = "{disk.images}/two"\n'
        'chain = ["other.qcow2", "top.qcow2"]'
    )
    disk.spec("b <- p <- x", active="x.qcow2", more=second)
    assert disk.apply().code == 0
    state = (disk.state / "vm.toml").read_bytes()
    before = {name: fact for name, fact in folder_facts(disk.images).items() if "two" not in name}
    disk.spec_file.write_text(f"version = 1\n{second[:-1]}, 'more.qcow2']\n")

    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert (disk.images / "two" / "more.qcow2").exists()
    now = {name: fact for name, fact in folder_facts(disk.images).items() if "two" not in name}
    assert now == before
    assert (disk.state / "vm.toml").read_bytes() == state


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "version = 1\n", HEAD + "[domains]\n"])
def test_a_spec_without_disks_does_nothing(scene: Scene, text: str) -> None:
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x")
    assert scene.run("apply").code == 0
    before = folder_facts(scene.images)
    scene.root.joinpath("chain.toml").write_text(text)

    assert scene.run("apply").code == 1
    assert folder_facts(scene.images) == before


def test_secrets_of_a_file_that_is_no_spec_are_not_told(scene: Scene) -> None:
    """A link in a folder of specs leads to a file that its author could not read."""
    specs = scene.root / "specs"
    specs.mkdir()
    (specs / "a.toml").symlink_to(scene.canary)

    outcome = bounded("plan", specs)

    assert outcome.code == 1


@pytest.mark.parametrize(
    "text",
    [
        "max_drops = " + "9" * 1000,
        "max_drops = 99999999999999999999999",
        'quarantine = "999999w"',
        'limits = { memory = "99999999E" }',
        "limits = { seconds = 999999999999999999999 }",
        "a." * 100_000 + "b = 1",
        "\ufeffmax_drops = 1",
    ],
    ids=lambda text: text[:30],
)
def test_a_strange_config_is_read_or_told(scene: Scene, config: Path, text: str) -> None:
    config.write_text(text + "\n")
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x")

    outcome = scene.run("plan")

    assert outcome.code == 0 or str(config) in outcome.err or str(scene.images) in outcome.out
