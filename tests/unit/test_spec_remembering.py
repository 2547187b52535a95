"""Specs that are loaded again and again mean what they would mean to a reader who knows nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from reconciler.model.desired import Spec
from reconciler.model.errors import SpecError
from reconciler.spec import Remembering, load
from reconciler.tools import lookups

ROUNDS = 120


class Folder:
    """Spec files that people edit, and a link among the images that leads somewhere else."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.specs, self.images, self.random = root / "specs", root / "images", chance
        self.saved = 0
        for folder in (self.specs, self.images, self.images / "a", self.images / "b"):
            folder.mkdir()
        (self.images / "x.qcow2").symlink_to("a/one.qcow2")
        (self.images / "here").symlink_to("a")
        for name in ("site", "web", "mail"):
            self.save(name)

    def save(self, name: str) -> None:
        """As editors do: another file takes its name."""
        self.saved += 1
        pick = self.random.choice
        lines = ["version = 1", "#" * (self.saved % 50)]
        lines += [f'defaults.directory = "{pick(["../images", "../images/here", "."])}"'] * (
            name == "site" or self.random.random() < 0.1
        )
        more = ["", 'defaults.bitmaps = "drop"', "defaults.x = 1", 'defaults.format = "raw"']
        lines += self.random.choices(more, [9, 1, 1, 1])
        others = self.random.sample(["web", "mail", "db"], self.random.choice([0, 0, 0, 1]))
        for domain in {"db" if name == "site" else name, *others}:
            if self.random.random() < 0.3:
                lines += [f"[domains.{domain}]", f'on_running = "{pick(["restart", "refuse"])}"']
            lines += [f"[domains.{domain}.disks.{pick(['vda', 'vdb'])}]"]
            (size,) = self.random.choices(["1M", "2M", "1", "much"], [9, 9, 1, 1])
            lines += [f'chain = [{{ file = "{pick("xyz")}.qcow2", size = "{size}" }}, "{domain}"]']
            rest = ["", 'discard = ["a/one.qcow2"]', "remove_base = true", "chian = 1"]
            lines += self.random.choices(rest, [6, 2, 1, 1])
        new = self.specs / f".{name}.new"
        new.write_text("\n".join(lines) + "\n")
        os.rename(new, self.specs / f"{name}.toml")

    def remove(self, name: str) -> None:
        (self.specs / f"{name}.toml").unlink(missing_ok=True)

    def relink(self) -> None:
        for name, targets in (("x.qcow2", ["a/one.qcow2", "y.qcow2"]), ("here", ["a", "b"])):
            (self.images / name).unlink()
            (self.images / name).symlink_to(self.random.choice(targets))


def said(loading: Remembering | None, folder: Path) -> Spec | list[str]:
    try:
        return load([folder]) if loading is None else loading.load([folder])
    except SpecError as error:
        return [str(one) for one in error.problems]


@pytest.mark.parametrize("seed", range(3))
def test_what_was_read_before_never_stands_for_what_is_written_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(
        lookups, "FINE_TICK", -(10**12)
    )  # each file here is another one after an edit
    folder = Folder(tmp_path, random.Random(seed))
    loading = Remembering()
    good = bad = 0
    for number in range(ROUNDS):
        name = folder.random.choice(["site", "web", "mail"])
        kind = folder.random.choice(["save"] * 6 + ["remove", "relink"])
        if kind == "relink":
            folder.relink()  # links count whenever a file is read, and nobody is told of them
            folder.save(name)
        else:
            getattr(folder, kind)(name)
        found = said(loading, folder.specs)
        assert found == said(None, folder.specs), f"seed {seed}, round {number}, {kind} {name}"
        good += isinstance(found, Spec)
        bad += not isinstance(found, Spec)
    assert good > ROUNDS / 20 < bad


def test_a_disk_whose_file_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "FINE_TICK", -(10**12))
    for name in ("web", "mail"):
        text = f'version = 1\n[domains.{name}.disks.vda]\nchain = ["{name}.qcow2"]\n'
        (tmp_path / f"{name}.toml").write_text(text)
    loading = Remembering()
    mail, web = loading.load([tmp_path]).disks
    (tmp_path / "web.toml").write_text((tmp_path / "web.toml").read_text() + "remove_base = true\n")

    again = loading.load([tmp_path]).disks

    assert again[0] is mail
    assert again[1] != web
    assert again[1].remove_base
