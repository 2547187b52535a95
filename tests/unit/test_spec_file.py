"""Edits of a spec file: each is whole, none is lost, and what is said of it is true."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.editing import Texts
from reconciler.engine import specfile
from reconciler.model.errors import Mistake
from reconciler.tools import files

EDITS = 60


def _edit(file: Path, name: str, told: Any) -> None:
    for number in range(EDITS):
        before, line = file.read_text(), f"{name}{number}\n"
        try:
            specfile.replace_text(file, before, before + line)
            told.put((line, True))
        except Mistake:
            told.put((line, False))


def test_of_several_edits_at_one_time_none_is_lost_that_was_said_to_be_done(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.touch()
    told: Any = multiprocessing.Queue()
    writers = [multiprocessing.Process(target=_edit, args=(file, name, told)) for name in "ABC"]
    for writer in writers:
        writer.start()
    results = [told.get(timeout=60) for _ in range(EDITS * len(writers))]
    for writer in writers:
        writer.join()

    assert file.read_text().splitlines(keepends=True)
    assert {line for line, done in results if done} == set(file.read_text().splitlines(True))
    assert os.listdir(tmp_path) == ["spec.toml"]


def test_an_edit_of_a_text_that_is_there_no_longer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text("by hand")

    with pytest.raises(Mistake, match="was edited by somebody else meanwhile; nothing was done"):
        specfile.replace_text(file, "before", "after")

    assert (file.read_text(), os.listdir(tmp_path)) == ("by hand", ["spec.toml"])


def test_whoever_holds_the_lock_of_a_spec_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specfile, "PATIENCE", 0.05)
    file = tmp_path / "spec.toml"
    file.write_text("before")
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Mistake, match=rf"is being edited: .*pid {os.getpid()} .*nothing was"):
            specfile.replace_text(file, "before", "after")

    assert file.read_text() == "before"


def test_a_link_and_the_mode_of_a_spec_stay(tmp_path: Path) -> None:
    """A spec that nobody may write to is replaced where its folder may be written to."""
    file, link = tmp_path / "spec.toml", tmp_path / "link.toml"
    file.write_text("before")
    file.chmod(0o440)
    link.symlink_to(file.name)

    specfile.replace_text(link, "before", "after")

    assert link.is_symlink()
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("after", 0o440)


def _no_sync_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.sync

    def sync(path: Path) -> None:
        if path == folder:
            raise OSError(errno.EIO, "Input/output error")
        real(path)

    monkeypatch.setattr(files, "sync", sync)


def test_an_edit_that_is_there_is_not_said_to_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, new = tmp_path / "spec.toml", tmp_path / "new.toml"
    file.write_text("before")
    _no_sync_of(tmp_path, monkeypatch)

    with pytest.raises(Mistake, match="was written, and may be lost if the power fails now"):
        specfile.replace_text(file, "before", "after")
    with pytest.raises(Mistake, match="was written, and may be lost if the power fails now"):
        specfile.create(new, "new")

    assert (file.read_text(), new.read_text()) == ("after", "new")


def test_an_act_on_two_files_edits_both_or_none(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("1")
    two.write_text("by hand")
    texts = Texts({}, {one: "1", two: "2"}, {one: "1 new", two: "2 new"})

    with pytest.raises(Mistake, match=r"two\.toml was edited by somebody else meanwhile"):
        texts.write()

    assert (one.read_text(), two.read_text()) == ("1", "by hand")
