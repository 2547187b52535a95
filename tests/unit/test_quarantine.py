"""The quarantine of a folder: what is moved there and removed from there, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.tools import files, opening, quarantine
from reconciler.tools.quarantine import FOLDER


@pytest.fixture(params=[True, False], ids=["openat2", "without openat2"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has openat2, and one that has not."""
    monkeypatch.setattr(opening, "_have_openat2", request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "x.qcow2"
    path.parent.mkdir()
    path.write_text("x")
    return path


def put(path: Path) -> Path:
    return quarantine.put(path, 60, path.stat().st_ino)


@pytest.mark.parametrize("name", ["x.qcow2", "n" * 249 + ".qcow2"], ids=["short", "long"])
def test_an_image_goes_there_and_is_removed_from_there(image: Path, name: str) -> None:
    path = image.rename(image.with_name(name))
    first = put(path)
    path.write_text("y")
    second = put(path)
    found = list(quarantine.kept([image.parent]))

    assert [(one.path, one.was) for one in found] == [(first, path), (second, path)]
    assert [one.path.read_text() for one in found] == ["x", "y"]
    for one in found:
        quarantine.remove(one)
    assert list((image.parent / FOLDER).iterdir()) == []
    assert not path.exists()


def test_a_folder_that_is_a_link_is_not_followed(image: Path) -> None:
    elsewhere = image.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (image.parent / FOLDER).symlink_to(elsewhere)

    with pytest.raises(OSError, match=FOLDER):
        put(image)

    assert image.exists()
    assert list(elsewhere.iterdir()) == []
    assert list(quarantine.kept([image.parent])) == []


def switched(image: Path) -> Path:
    """Another folder, with files of the same names, is in the place of the images' now."""
    other = image.parent.with_name("other")
    (other / FOLDER).mkdir(parents=True)
    (other / image.name).write_text("theirs")
    for path in (image.parent / FOLDER).glob("*"):
        (other / FOLDER / path.name).write_text("theirs")
    image.parent.rename(image.parent.with_name("away"))
    other.rename(image.parent)
    return image.parent


def test_a_folder_that_is_switched_before_a_move_loses_nothing(image: Path) -> None:
    inode = image.stat().st_ino
    folder = switched(image)

    with pytest.raises(FileNotFoundError, match="another file by now"):
        quarantine.put(image, 60, inode)

    assert image.read_text() == "theirs"
    assert list((folder / FOLDER).iterdir()) == []


def test_a_folder_that_is_switched_before_a_removal_loses_nothing(image: Path) -> None:
    put(image)
    (one,) = quarantine.kept([image.parent])
    switched(image)
    quarantine.remove(one)

    assert one.path.read_text() == "theirs"


def test_a_folder_that_is_switched_in_the_middle_of_a_move_gets_nothing(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = files.rename_new

    def late(source: Path, target: Path, *, folders: tuple[int, int] | None = None) -> None:
        switched(image)
        rename(source, target, folders=folders)

    monkeypatch.setattr(files, "rename_new", late)
    put(image)
    away = image.parent.with_name("away")

    assert image.read_text() == "theirs"
    assert list((image.parent / FOLDER).iterdir()) == []
    assert [path.read_text() for path in (away / FOLDER).iterdir()] == ["x"]


def test_what_is_no_image_of_ours_is_passed_over(image: Path) -> None:
    kept = image.parent / FOLDER
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    (kept / "x~20269999T000000Z").write_text("no time")
    (kept / "x~20260101T000000Z").symlink_to(image)
    (kept / "~20260101T000000Z").write_text("no folder")
    os.mkfifo(kept / "y~20260101T000000Z")

    assert list(quarantine.kept([image.parent, image.parent / "missing"])) == []
