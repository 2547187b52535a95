"""Copying data up with qemu-storage-daemon, on real images."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reconciler.model.errors import ToolFailed
from reconciler.model.extents import Range, ranges
from reconciler.model.image import Image
from reconciler.tools import images, qemuimg, storage_daemon, views

MIB = 1024 * 1024
HEADER = 65536
"""Bytes of the first cluster, which holds the whole header."""


def sh(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def create(path: Path, backing: str | None = None, *writes: str, size: str = "4M") -> Path:
    below = ["-F", "qcow2", "-b", backing] if backing else []
    sh("qemu-img", "create", "-q", "-f", "qcow2", *below, path, size)
    for command in writes:
        sh("qemu-io", "-f", "qcow2", "-c", command, path)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Image, ...]:
    """base <- mon <- tue <- wed*, each with some data of its own."""
    create(tmp_path / "base.qcow2", None, "write -P 1 0 1M")
    create(tmp_path / "mon.qcow2", "base.qcow2", "write -P 2 512k 1M", "write -c -P 3 2M 128k")
    create(tmp_path / "tue.qcow2", "mon.qcow2", "write -P 4 1M 64k", "write -z 3M 64k")
    create(tmp_path / "wed.qcow2", "tue.qcow2", "write -P 5 1088k 64k")
    return images.walk(tmp_path / "wed.qcow2", images.Trust()).images


def own(image: Image) -> tuple[Range, ...]:
    """What *image* allocates itself."""
    return ranges(one for one in qemuimg.map_view([image]) if one.present)


def differs(one: tuple[Image, ...], other: tuple[Image, ...]) -> int | None:
    return views.first_difference(one, other, [(0, 4 * MIB)])


BASES = [
    # id, index of the base, what the top holds afterwards
    ("down to the base", 0, ((524288, 1572864), (2097152, 2228224), (3145728, 3211264))),
    ("down to the image below", 1, ((1048576, 1179648), (3145728, 3211264))),
    ("all of it", None, ((0, 1572864), (2097152, 2228224), (3145728, 3211264))),
]


@pytest.mark.parametrize(("base", "held"), [pytest.param(*case, id=name) for name, *case in BASES])
def test_data_from_above_the_base_is_copied_up(chain, base, held):
    before = [image.path.read_bytes() for image in chain]
    digests = [views.digest(chain[: index + 1]) for index in range(len(chain))]

    storage_daemon.copy_up(chain, base)

    after = [image.path.read_bytes() for image in chain]
    below = () if base is None else chain[: base + 1]
    assert [views.digest(chain[: index + 1]) for index in range(len(chain))] == digests
    assert differs(chain, (*below, chain[-1])) is None
    assert after[:-1] == before[:-1]
    assert images.read_image(chain[-1].path, "qcow2").recorded == "tue.qcow2"
    assert own(chain[-1]) == held


def test_the_header_stays_as_it_is(chain):
    """L1 and refcount tables may move; name, format and size of the header may not."""
    path = chain[-1].path
    before = path.read_bytes()[:HEADER]

    storage_daemon.copy_up(chain, 0)

    assert path.read_bytes()[:HEADER] == before


def test_an_image_in_the_middle_gets_the_data_of_what_is_below_it(chain):
    views_before = [views.digest(chain[: index + 1]) for index in range(len(chain))]

    storage_daemon.copy_up(chain[:3], 0)

    assert [views.digest(chain[: index + 1]) for index in range(len(chain))] == views_before
    assert differs(chain[:3], (chain[0], chain[2])) is None


def test_doing_it_again_changes_no_view(chain):
    storage_daemon.copy_up(chain, 0)
    storage_daemon.copy_up(chain, 0)

    assert differs(chain, (chain[0], chain[-1])) is None


def test_a_raw_base_is_copied_up(tmp_path):
    base = tmp_path / "base.img"
    base.write_bytes(b"\7" * 100_000 + bytes(4 * MIB - 100_000))
    top = tmp_path / "top.qcow2"
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top, "4M")
    chain = images.walk(top, images.Trust()).images

    storage_daemon.copy_up(chain, None)

    assert differs(chain, (chain[-1],)) is None


def test_progress_is_told_while_it_copies(chain):
    told: list[float] = []

    storage_daemon.copy_up(chain, 0, bandwidth=MIB // 2, progress=told.append)

    assert (len(told) > 0, told == sorted(told)) == (True, True)
    assert all(0 <= part <= 1 for part in told)
    assert differs(chain, (chain[0], chain[-1])) is None


def test_an_error_of_who_follows_it_ends_the_daemon(chain):
    def fail(_: float) -> None:
        raise KeyboardInterrupt

    before = views.digest(chain)
    with pytest.raises(KeyboardInterrupt):
        storage_daemon.copy_up(chain, 0, bandwidth=MIB // 2, progress=fail)

    sh("qemu-io", "-f", "qcow2", "-c", "flush", chain[-1].path)
    assert (views.digest(chain), images.read_image(chain[-1].path, "qcow2").recorded) == (
        before,
        "tue.qcow2",
    )


def test_a_missing_file_is_told(chain):
    before = chain[-1].path.read_bytes()
    chain[1].path.unlink()

    with pytest.raises(ToolFailed) as raised:
        storage_daemon.copy_up(chain, 0)

    assert str(raised.value) == (
        f"qemu-storage-daemon blockdev-add: Could not open '{chain[1].path}': "
        "No such file or directory"
    )
    assert chain[-1].path.read_bytes() == before


def test_an_image_that_a_guest_writes_is_told(chain):
    pipe = subprocess.PIPE
    guest = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", chain[-1].path], stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write(b"write -P 6 0 64k\n")
        guest.stdin.flush()
        guest.stdout.read(1)
        with pytest.raises(ToolFailed) as raised:
            storage_daemon.copy_up(chain, 0)
    finally:
        guest.communicate(b"quit\n")

    assert str(raised.value).startswith("qemu-storage-daemon blockdev-add: Failed to get ")
    assert '" lock' in str(raised.value)


def test_an_image_that_is_none_is_told(chain):
    chain[1].path.write_bytes(b"no image")

    with pytest.raises(ToolFailed, match=r"^qemu-storage-daemon blockdev-add: Image is not in qc"):
        storage_daemon.copy_up(chain, 0)


def test_a_disk_that_cannot_be_read_fails_the_job(chain):
    """The data of mon lies beyond the end of its file now: the read fails in the middle."""
    path = chain[1].path
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[40:48], "big")
    level2 = int.from_bytes(content[table : table + 8], "big") & 0x00FFFFFFFFFFFE00
    entry = level2 + 8 * 9
    content[entry : entry + 8] = (0x8000000000000000 | 0x1001).to_bytes(8, "big")
    path.write_bytes(content)

    with pytest.raises(ToolFailed) as raised:
        storage_daemon.copy_up(chain, 0)

    assert str(raised.value) == "qemu-storage-daemon block-stream: Input/output error"


def test_a_missing_daemon_says_where_it_is_found(chain, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    installed = storage_daemon.available()

    with pytest.raises(ToolFailed) as raised:
        storage_daemon.copy_up(chain, 0)

    assert (installed, raised.value.output) == (
        False,
        "qemu-storage-daemon is not installed; on Debian it is in qemu-system-common",
    )


ENDS = [
    ("before it says hello", "exit 3", "it ended early"),
    ("with words", "echo broken >&2; exit 3", "broken"),
    ("after it said hello", "echo '{\"QMP\": {}}'; read line; exit 3", "it ended early"),
]


@pytest.mark.parametrize(("script", "said"), [pytest.param(*case, id=name) for name, *case in ENDS])
def test_a_daemon_that_ends_early_is_told(chain, monkeypatch, tmp_path, script, said):
    program = tmp_path / "qemu-storage-daemon"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolFailed) as raised:
        storage_daemon.copy_up(chain, 0)

    assert (raised.value.code, raised.value.output) == (3, said)


def test_a_daemon_that_ends_between_two_commands_is_told(chain, monkeypatch, tmp_path):
    program = tmp_path / "qemu-storage-daemon"
    answer = '{"return": {}}'
    program.write_text(
        f"#!/bin/sh\necho '{{\"QMP\": {{}}}}'; read line; exec 0<&-; echo '{answer}'; sleep 0.3\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    with pytest.raises(ToolFailed):
        storage_daemon.copy_up(chain, 0)
