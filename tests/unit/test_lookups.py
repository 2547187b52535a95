"""What is remembered holds exactly while the same questions have the same answers."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.tools import lookups as module
from reconciler.tools.lookups import Lookups, Memory, is_settled
from reconciler.tools.opening import open_resolved

SETTLED = 0.05
"""Seconds after which a file counts as settled on a filesystem that keeps nanoseconds."""


def content(_: str, descriptor: int, __: os.stat_result) -> bytes:
    return os.read(descriptor, 100)


def read(memory: Memory, path: Path) -> bytes:
    return Lookups(memory).read(str(path), content)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("mon")
    time.sleep(SETTLED)
    return path


def test_a_file_that_is_as_it_was_is_not_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    assert read(memory, file) == b"mon"

    monkeypatch.setattr(module, "open_resolved", lambda *_: pytest.fail("read again"))
    assert read(memory, file) == b"mon"


def test_a_file_with_its_old_time_put_back_is_read_again(file: Path) -> None:
    memory = Memory()
    read(memory, file)
    before = file.stat()
    file.write_text("tue")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert read(memory, file) == b"tue"


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    """The next write could leave the same time behind."""
    file, memory = tmp_path / "file", Memory()
    file.write_text("mon")
    for word in ("tue", "wed", "thu"):
        read(memory, file)
        file.write_text(word)
        assert read(memory, file) == word.encode()


@pytest.fixture
def whole_seconds(tmp_path: Path) -> Iterator[Path]:
    """A folder on a filesystem that keeps whole seconds: ext4 with inodes of 128 bytes."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a filesystem")
    image, folder = tmp_path / "fs.img", tmp_path / "old"
    folder.mkdir()
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    make = ["mkfs.ext4", "-q", "-I", "128", "-O", "^metadata_csum", image]
    subprocess.run(make, check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no loop devices here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_second_edit_within_a_second_is_seen_where_times_are_whole_seconds(
    whole_seconds: Path,
) -> None:
    file, memory = whole_seconds / "spec.toml", Memory()
    time.sleep(1 - time.time() % 1 + 0.02)
    file.write_text("mon")
    time.sleep(0.3)
    read(memory, file)
    read(memory, file)
    file.write_text("tue")
    time.sleep(0.3)

    assert read(memory, file) == b"tue"


def test_a_switched_link_on_the_way_is_another_answer(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("v1")
    time.sleep(SETTLED)
    memory = Memory()

    def where() -> str:
        look = Lookups(memory)
        return memory.of("where", look, lambda: look.real(str(link / "t")))

    assert where() == str(tmp_path / "v1" / "t")
    (tmp_path / "new").symlink_to("v2")
    os.rename(tmp_path / "new", link)
    assert where() == str(tmp_path / "v2" / "t")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "b").touch(),
        lambda folder: (folder / "a").unlink(),
        lambda folder: (folder / "a").rename(folder / "c"),
    ],
    ids=["made", "removed", "renamed"],
)
def test_a_listing_is_asked_for_again(tmp_path: Path, change) -> None:
    (tmp_path / "a").touch()
    time.sleep(SETTLED)
    memory = Memory()

    def names() -> tuple[str, ...] | None:
        look = Lookups(memory)
        return memory.of("names", look, lambda: look.names(str(tmp_path)))

    before = names()
    change(tmp_path)
    assert names() == tuple(sorted(os.listdir(tmp_path))) != before


def test_a_folder_that_cannot_be_looked_at_is_not_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("link")
    look = Lookups()

    for name in ("none", "none/below", "file/below", "x" * 256):
        assert look.lstat(str(tmp_path / name)) is None
        assert look.hidden(str(tmp_path / name)) is None
        assert look.names(str(tmp_path / name)) == ()
    unknown = str(tmp_path / "link" / "below")
    assert look.lstat(unknown) is None
    assert look.hidden(unknown) == "Too many levels of symbolic links"
    assert look.names(unknown) is None


def test_what_was_absent_and_is_there_now_is_another_answer(tmp_path: Path) -> None:
    memory = Memory()

    def there() -> bool:
        look = Lookups(memory)
        return memory.of("there", look, lambda: look.stat(str(tmp_path / "x")) is not None)

    assert not there()
    (tmp_path / "x").touch()
    assert there()


def test_evidence_of_what_was_recalled_is_evidence_of_what_it_is_part_of(file: Path) -> None:
    memory = Memory()
    read(memory, file)
    look = Lookups(memory)
    with look.recording() as evidence:
        look.read(str(file), content)

    assert ("version", str(file)) in evidence
    assert is_settled(evidence)
    file.write_text("tue")
    assert not Lookups(memory).confirms(evidence)


def test_recordings_within_one_another_end_one_by_one(file: Path) -> None:
    """Two that heard the same are two all the same."""
    look = Lookups()
    with look.recording() as outer:
        with look.recording() as inner:
            look.version(str(file))
        look.version(str(file.parent))

    assert set(inner) == {("version", str(file))}
    assert set(outer) == {("version", str(file)), ("version", str(file.parent))}


def test_nothing_on_a_network_filesystem_is_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCAL", frozenset())
    look = Lookups(Memory())
    with look.recording() as evidence:
        look.read(str(file), content)

    assert not is_settled(evidence)
    assert not look.confirms(evidence)


def test_threads_share_a_memory(file: Path) -> None:
    memory, wrong = Memory(), []

    def work() -> None:
        for number in range(200):
            other = file.with_name(f"f{number % 7}")
            other.touch()
            if read(memory, file) != b"mon" or read(memory, other) != b"":
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


NAMES = ["a/b/c", "a/./b//c", "a/../a/b", "link/c", "link/../x", "loop/x", "gone/x", "a/b/c/.."]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_resolved_as_the_system_does_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "loop").symlink_to("loop")
    path = f"{tmp_path}/{name}"

    assert Lookups().real(path) == os.path.realpath(path)


def test_a_file_is_not_opened_through_a_link_that_was_put_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("secret")
    (tmp_path / "here").symlink_to("there")

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_resolved(str(tmp_path / "here" / "file"))


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()

    with pytest.raises(OSError, match="not a regular file"):
        open_resolved(str(path))


def test_a_link_counts_as_local_by_where_it_lies(tmp_path: Path) -> None:
    """Where it leads to may be a network filesystem, and says nothing of the link's own device."""
    link = tmp_path / "link"
    link.symlink_to("/proc/self")

    assert module._on_local(str(link))
    assert not module._on_local("/proc/self/cwd")
