"""Birth time and mount of a file, as the kernel tells them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.tools import statx
from reconciler.tools.statx import identity_of, mount_of


def test_size_times_inode_and_device_are_those_of_stat(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    found, known = identity_of(path), os.stat(path)

    assert found == statx.FileIdentity(
        inode=known.st_ino,
        btime_ns=found.btime_ns,
        size=3,
        ctime_ns=known.st_ctime_ns,
        mtime_ns=known.st_mtime_ns,
        mount_id=found.mount_id,
        device=known.st_dev,
    )


def test_path_and_descriptor_give_one_answer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    with path.open() as opened:
        by_descriptor = identity_of(opened.fileno())

    assert by_descriptor == identity_of(path)


def test_a_link_is_itself_unless_it_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.touch()
    link.symlink_to(path)

    assert identity_of(link).inode == os.lstat(link).st_ino
    assert identity_of(link, follow=True) == identity_of(path)


def test_the_birth_time_stays_when_the_file_is_written_and_renamed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    born = identity_of(path).btime_ns
    os.utime(path, ns=(0, 0))
    path.write_bytes(b"abc")
    path.rename(tmp_path / "b")

    assert identity_of(tmp_path / "b").btime_ns == born


def test_what_is_missing_is_an_error_of_stat(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        identity_of(tmp_path / "gone")
    with pytest.raises(NotADirectoryError):
        identity_of(Path(__file__) / "below")
    with pytest.raises(ValueError, match="null byte"):
        identity_of("/etc/passwd\0")


def test_without_statx_the_device_stands_for_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statx, "_statx", None)
    device = tmp_path.stat().st_dev

    assert identity_of(tmp_path)[-2:] == (device, device)
    assert identity_of(tmp_path).btime_ns == 0


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One folder under two names: its own, and a bind mount."""
    there, mounted = tmp_path / "there", tmp_path / "mounted"
    there.mkdir()
    mounted.mkdir()
    if subprocess.run(["mount", "--bind", there, mounted], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield there, mounted
    subprocess.run(["umount", mounted], check=True)


def test_a_bind_mount_has_the_device_and_another_mount(bound: tuple[Path, Path]) -> None:
    there, mounted = map(identity_of, bound)

    assert there.device == mounted.device
    assert there.inode == mounted.inode
    assert mount_of(bound[0]) != mount_of(bound[1])
