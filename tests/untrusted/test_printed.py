"""Names that act on a terminal or in a shell: written by others, and never printed raw."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.images.disks import Disk, folder_facts
from tests.untrusted.scene import Scene, assert_clean, assert_refused, bounded, empty, header

EVIL = "e\x1b[2J\x1b]0;owned\x07\nname\r\x08\x9b31m\u202egpj%s%n$(touch owned)`touch owned`'\";&|"
"""Escape sequences, a newline, a bell, an override of the direction, and words for a shell."""
VERBS = ["plan", "show", "apply"]


def no_shell(scene: Scene) -> None:
    assert not list(scene.root.rglob("owned")) + list(Path.cwd().glob("owned"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_backing_name_of_escapes_is_told_without_them(scene: Scene, verb: str) -> None:
    empty(scene.images / "x.qcow2", EVIL.replace("/", ""))
    scene.spec("x")

    outcome = scene.run(verb)

    assert_refused(outcome, "does not exist")
    no_shell(scene)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("loud", [0, 1, 2])
def test_a_merge_of_such_a_name_is_told_without_it(scene: Scene, verb: str, loud: int) -> None:
    """Even with every command line logged."""
    empty(scene.images / "b.qcow2")
    empty(scene.images / EVIL, "b.qcow2")
    empty(scene.images / "x.qcow2", EVIL)
    scene.spec("b <- x")

    words = scene.words(verb)
    outcome = bounded(*["-v"] * loud, *words)

    assert outcome.code == 0, outcome
    no_shell(scene)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("content", [b"QFI\xfb", header(backing=b"\x1b[31mred\n"), header(bits=40)])
def test_a_bystander_of_such_a_name_is_told_without_it(
    scene: Scene, verb: str, content: bytes
) -> None:
    (scene.images / EVIL).write_bytes(content)
    empty(scene.images / "x.qcow2")
    scene.spec("x")

    assert scene.run(verb).code == 0


NAMES = {
    "recorded format": header(backing=b"b.qcow2", backing_format=b"\x1b[31m\nraw"),
    "json: name": header(backing=b'json:{"driver":"\x1b[31m\n"}', backing_format=b"qcow2"),
    "protocol": header(backing=b"nbd\x1b[31m\n:x", backing_format=b"qcow2"),
    "no text": header(backing=b"\xff\xfe\x1b", backing_format=b"qcow2"),
    "file: name": header(backing=b"file:\x1b[31m", backing_format=b"qcow2"),
}


@pytest.mark.parametrize("content", [pytest.param(one, id=name) for name, one in NAMES.items()])
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_every_field_of_a_header_is_told_without_escapes(
    scene: Scene, content: bytes, words: tuple[str, ...]
) -> None:
    (scene.images / "x.qcow2").write_bytes(content)
    empty(scene.images / "b.qcow2")
    scene.spec("x")

    assert scene.run("plan", *words).code == 1


DOMAINS = ["../../outside/owned", ".", "..", "a/b", "x" * 5000, "%2e%2e%2fa", "-rf", "~", "$(id)"]


@pytest.mark.parametrize("domain", DOMAINS, ids=[one[:20] for one in DOMAINS])
def test_a_domain_name_stays_in_the_state_directory(scene: Scene, domain: str) -> None:
    empty(scene.images / "b.qcow2")
    for target in ("vda", "../../../owned"):
        scene.root.joinpath("chain.toml").write_text(
            f"version = 1\n[domains.{json.dumps(domain)}.disks.{json.dumps(target)}]\n"
            f'directory = "{scene.images}"\nchain = ["b.qcow2", "x.qcow2"]\n'
        )
        before = set(scene.root.rglob("*"))

        outcome = scene.run("apply")

        made = {
            path.relative_to(scene.root).parts[0] for path in set(scene.root.rglob("*")) - before
        }
        assert outcome.code == 0, outcome
        assert made <= {"state", "images"}
        assert {path.name for path in scene.images.iterdir()} == {"b.qcow2", "x.qcow2"}


SPECS = {
    "a key": '"\\u001b[31m\\n" = 1',
    "a domain": '[domains."\\u001b[31m\\n".disks.vda]\nchain = []',
    "a disk": '[domains.a.disks."\\u009b31m"]\nchain = ["\\u001b"]',
    "a value": '[domains.a.disks.vda]\nchain = ["a"]\nformat = "\\u001b[31m\\n"',
    "a file": '[domains.a.disks.vda]\nchain = ["\\u001b[31m\\n"]',
    "an override": '[domains.a.disks.vda]\nchain = ["\\u202egpj.exe"]\nactive="\\u2066"',
    "a size": '[domains.a.disks.vda]\nchain = [{ file = "a", size = "\\u001b[1G" }]',
    "no TOML": "\x1b[31m = \x07",
    "a string that stays open": 'a = "\x1b[31m\n',
}


@pytest.mark.parametrize("text", [pytest.param(one, id=name) for name, one in SPECS.items()])
@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_a_spec_of_escapes_is_told_without_them(tmp_path: Path, text: str, verb: str) -> None:
    spec = tmp_path / "\x1b[31mspec\n.toml"
    spec.write_text(f"version = 1\n{text}\n")

    outcome = bounded(verb, spec)

    assert outcome.out + outcome.err != ""


def test_words_of_the_command_line_are_told_without_escapes(tmp_path: Path) -> None:
    evil = "\x1b[31m\n"
    spec = tmp_path / "s.toml"
    spec.write_text('version = 1\n[domains.a.disks.vda]\nchain = [{ file = "a", size = 512 }]\n')
    for words in (
        ["plan", "--target", evil, spec],
        ["apply", "--bandwidth", evil, spec],
        [evil],
        ["plan", f"--{evil}"],
        ["plan", tmp_path / evil],
        ["plan", "-o", tmp_path / evil / "x", spec],
        ["apply", "--verify", evil, spec],
    ):
        assert bounded(*words).code == 1


def test_a_history_that_others_wrote_is_told_without_escapes(tmp_path: Path) -> None:
    evil = "\x1b[31m\n"
    good = dict.fromkeys(("time", "domain", "target", "spec", "status", "message"), evil)
    lines = [
        {**good, "steps": [evil]},
        {},
        {"steps": [1]},
        {**good, "domain": 1, "target": None, "spec": 2, "steps": [3]},
        {**good, "steps": None},
        {**good, "steps": [], "more": 1},
        [],
        1,
        None,
    ]
    text = "\n".join([*map(json.dumps, lines), "{", "[" * 100_000, '{"steps":' * 100_000])
    (tmp_path / "history.jsonl").write_text(text)

    for words in ([], ["--json"], ["a*"]):
        assert bounded("history", "--state-dir", tmp_path, *words).code == 0


def test_a_quarantine_with_names_of_others_is_told_without_escapes(scene: Scene) -> None:
    empty(scene.images / "x.qcow2")
    kept = scene.images / ".virt-chain-quarantine"
    kept.mkdir()
    names = [
        "\x1b[31m\n~20200101T000000Z",
        "x~99999999T999999Z",
        "x~20200230T000000Z",
        "x~00000000T000000Z",
        "x~" + "\u0662\u0660\u0662\u0660\u0660\u0661\u0660\u0661" + "T000000Z",
    ]
    for name in names:
        (kept / name).write_bytes(b"theirs")
    (kept / "y~20200101T000000Z").symlink_to(scene.canary)
    os.mkfifo(kept / "z~20200101T000000Z")
    scene.spec("x")
    before = folder_facts(scene.outside)

    for words in (["--dry-run"], ["--json", "--dry-run"], []):
        outcome = bounded(
            "gc", *words, "--state-dir", scene.root / "state", scene.root / "chain.toml"
        )
        assert outcome.code == 0, outcome

    assert folder_facts(scene.outside) == before
    assert not (kept / names[0]).exists()
    assert {path.name for path in kept.iterdir()} >= set(names[1:4])


def test_progress_of_such_names_is_clean(disk: Disk) -> None:
    """The names of kept images, too, on their way through every step."""
    evil = "\u202e\u2066x"
    disk.chain({"b": "64k:A", evil: "64k:P 64k:P", "x": "64k:- 64k:X"})
    disk.spec(f"b <- {evil} <- x <- y")

    assert_clean(disk.apply())
