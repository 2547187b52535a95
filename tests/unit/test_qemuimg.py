"""qemu-img: its command lines as a table, and what its answers mean."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from reconciler.model.errors import ToolFailed
from reconciler.model.extents import Extent
from reconciler.model.image import Image
from reconciler.tools import images, process, qemuimg

MIB = 1024 * 1024
KIB = 1024
TOP = Path("/images/tue.qcow2")


def sh(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def create(path: Path, size: str = "4M", backing: str | None = None) -> Path:
    below = ["-u", "-F", "qcow2", "-b", backing] if backing else []
    sh("qemu-img", "create", "-q", "-f", "qcow2", *below, path, size)
    return path


def write(path: Path, *commands: str) -> None:
    for command in commands:
        sh("qemu-io", "-f", "qcow2", "-c", command, path)


def image(path: str, **facts: object) -> Image:
    return Image(**{"path": Path(path), "format": "qcow2", "virtual_size": MIB, **facts})


ARGV = [
    # id, what is built, the command line
    (
        "create a qcow2 image",
        qemuimg.create(TOP, "qcow2", 10 * MIB),
        "qemu-img create -q -f qcow2 /images/tue.qcow2 10485760",
    ),
    (
        "create a raw image",
        qemuimg.create(Path("/images/tue.img"), "raw", 512),
        "qemu-img create -q -f raw /images/tue.img 512",
    ),
    (
        "create on a backing file, which stays closed",
        qemuimg.create_on(TOP, "mon.qcow2", "qcow2", MIB),
        "qemu-img create -q -u -f qcow2 -F qcow2 -b mon.qcow2 /images/tue.qcow2 1048576",
    ),
    (
        "create on a raw backing file",
        qemuimg.create_on(TOP, "/images/mon.img", "raw", MIB),
        "qemu-img create -q -u -f qcow2 -F raw -b /images/mon.img /images/tue.qcow2 1048576",
    ),
    (
        "commit, and keep the top",
        qemuimg.commit(TOP, "/images/mon.qcow2"),
        "qemu-img commit -p -d -f qcow2 -b /images/mon.qcow2 /images/tue.qcow2",
    ),
    (
        "commit at a limited rate",
        qemuimg.commit(TOP, "/images/mon.qcow2", 1000),
        "qemu-img commit -p -d -r 1000 -f qcow2 -b /images/mon.qcow2 /images/tue.qcow2",
    ),
    (
        "relink",
        qemuimg.relink(TOP, "mon.qcow2", "qcow2"),
        "qemu-img rebase -q -u -f qcow2 -F qcow2 -b mon.qcow2 /images/tue.qcow2",
    ),
    (
        "relink to nothing",
        qemuimg.relink(TOP, "", None),
        "qemu-img rebase -q -u -f qcow2 -b  /images/tue.qcow2",
    ),
    (
        "rebase, write by write",
        qemuimg.rebase(TOP, "/other/c.img", "raw"),
        "qemu-img rebase -p -t writethrough -f qcow2 -F raw -b /other/c.img /images/tue.qcow2",
    ),
    (
        "flatten",
        qemuimg.rebase(TOP, "", None),
        "qemu-img rebase -p -t writethrough -f qcow2 -b  /images/tue.qcow2",
    ),
    (
        "resize",
        qemuimg.resize(TOP, "qcow2", 2 * MIB),
        "qemu-img resize -q -f qcow2 /images/tue.qcow2 2097152",
    ),
    (
        "info of a chain that may be in use",
        qemuimg.info(TOP, "qcow2"),
        "qemu-img info -U --backing-chain --output=json -f qcow2 /images/tue.qcow2",
    ),
]


@pytest.mark.parametrize(("argv", "line"), [pytest.param(*case, id=name) for name, *case in ARGV])
def test_command_line(argv, line):
    assert argv == line.split(" ")


def test_an_odd_file_name_stays_one_word():
    argv = qemuimg.commit(Path("/images/-a b,c:d"), "/images/e;f$(g)")

    assert argv[-2:] == ["/images/e;f$(g)", "/images/-a b,c:d"]


def test_the_graph_names_every_file_and_format():
    chain = [image("/images/base.img", format="raw"), image("/images/mon"), image("/images/tue")]

    assert qemuimg.node(chain) == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "/images/tue"},
        "backing": {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": "/images/mon"},
            "backing": {
                "driver": "raw",
                "file": {"driver": "file", "filename": "/images/base.img"},
            },
        },
    }


def test_a_base_stands_on_nothing_whatever_its_header_says():
    base = image("/images/base", recorded="nbd://host/disk")

    assert qemuimg.node([base]) == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "/images/base"},
        "backing": None,
    }


def test_the_json_name_is_the_graph():
    name = qemuimg.filename([image('/images/ä "b", {c}')])

    assert (name[:5], json.loads(name[5:])) == (
        "json:",
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": '/images/ä "b", {c}'},
            "backing": None,
        },
    )


@pytest.mark.parametrize("name", ["base", "a b", "-x", "a,b=c", 'q"uote', "c:olon", "ä东", "%s\\"])
def test_qemu_opens_an_image_with_an_odd_name_by_its_json_name(tmp_path, name):
    path = tmp_path / name
    create(path)
    write(path, "write -P 7 64k 64k")

    found = qemuimg.map_view([images.read_image(path, "qcow2")])

    assert [(one.start, one.length, one.data) for one in found] == [
        (0, 64 * KIB, False),
        (64 * KIB, 64 * KIB, True),
        (128 * KIB, 4 * MIB - 128 * KIB, False),
    ]


def test_the_map_tells_which_image_provides_which_bytes(tmp_path):
    base = create(tmp_path / "base.qcow2", "1M")
    write(base, "write -P 1 0 128k")
    top = create(tmp_path / "top.qcow2", "1M", str(base))
    write(top, "write -P 2 64k 64k", "write -z 256k 64k", "write -c -P 3 512k 64k")

    chain = [images.read_image(base, "qcow2"), images.read_image(top, "qcow2")]
    found = qemuimg.map_view(chain)
    base_offset, top_offset = found[0].offset, found[1].offset

    assert found == (
        Extent(0, 64 * KIB, 1, offset=base_offset),
        Extent(64 * KIB, 64 * KIB, 0, offset=top_offset),
        Extent(128 * KIB, 128 * KIB, 1, zero=True, present=False),
        Extent(256 * KIB, 64 * KIB, 0, zero=True),
        Extent(320 * KIB, 192 * KIB, 1, zero=True, present=False),
        Extent(512 * KIB, 64 * KIB, 0, offset=None),
        Extent(576 * KIB, 448 * KIB, 1, zero=True, present=False),
    )
    assert (base.read_bytes()[base_offset:][:4], top.read_bytes()[top_offset:][:4]) == (
        b"\1\1\1\1",
        b"\2\2\2\2",
    )


def test_the_map_of_a_compressed_extent_has_no_place_to_read_from(monkeypatch):
    """Newer QEMU tells an offset and says ``compressed``; the bytes there are packed."""
    answer = [
        {"start": 0, "length": 512, "depth": 0, "present": True, "zero": False, "data": True}
        | {"compressed": True, "offset": 65536},
        {"start": 512, "length": 512, "depth": 0, "zero": False, "data": True, "offset": 65536}
        | {"compressed": False},
        {"start": 1024, "length": 512, "depth": 1, "present": False, "zero": True, "data": False},
        {"start": 1536, "length": 512, "depth": 1, "zero": True, "data": False, "offset": 9},
    ]
    said = json.dumps(answer).encode()
    monkeypatch.setattr(process, "run", lambda *_, **__: (0, said))

    assert qemuimg.map_view([image("/images/base")]) == (
        Extent(0, 512, 0, offset=None),
        Extent(512, 512, 0, offset=65536),
        Extent(1024, 512, 1, zero=True, present=False),
        Extent(1536, 512, 1, zero=True),
    )


def test_info_of_a_chain_is_told_base_first(tmp_path):
    create(tmp_path / "base.qcow2", "1M")
    create(tmp_path / "mon.qcow2", "2M", "base.qcow2")
    create(tmp_path / "tue.qcow2", "3M", "mon.qcow2")

    found = qemuimg.chain_info(images.walk(tmp_path / "tue.qcow2", images.Trust()).images)

    assert found == [
        (str(tmp_path / "base.qcow2"), MIB),
        (str(tmp_path / "mon.qcow2"), 2 * MIB),
        (str(tmp_path / "tue.qcow2"), 3 * MIB),
    ]


COMMIT_NAMES = [
    ("a plain name is compared as a file", "base.qcow2", "/images/base.qcow2"),
    ("an absolute name, too", "/images/base.qcow2", "/images/base.qcow2"),
    ("a name with a protocol is compared letter by letter", "file:/images/base.qcow2", None),
    ("a json: name, too", 'json:{"driver": "qcow2"}', None),
    ("a colon after the first slash is no protocol", "./a:b", "/images/base.qcow2"),
    ("an overlay that records nothing", None, "/images/base.qcow2"),
]


@pytest.mark.parametrize(
    ("recorded", "name"), [pytest.param(*case, id=name) for name, *case in COMMIT_NAMES]
)
def test_the_name_by_which_commit_finds_its_base(recorded, name):
    overlay = image("/images/mon.qcow2", recorded=recorded)

    assert qemuimg.commit_name(image("/images/base.qcow2"), overlay) == (name or recorded)


@pytest.mark.parametrize("recorded", ["{}/a:b", "./a:b", "file:{}/a:b", "../x/a:b"])
def test_commit_finds_its_base_under_any_recorded_name(tmp_path, recorded):
    folder = tmp_path / "x"
    folder.mkdir()
    base = create(folder / "a:b")
    mon = create(folder / "mon", backing=recorded.format(folder))
    tue = create(folder / "tue", backing=str(mon))
    write(tue, "write -P 5 0 64k")

    overlay = images.read_image(mon, "qcow2")
    name = qemuimg.commit_name(images.read_image(base, "qcow2"), overlay)
    qemuimg.run(qemuimg.commit(tue, name))

    write(base, "read -P 5 0 64k")
    assert images.read_image(mon, "qcow2").recorded == recorded.format(folder)


def test_progress_is_told_as_a_part_of_one(tmp_path):
    base = create(tmp_path / "base.qcow2")
    top = create(tmp_path / "top.qcow2", backing=str(base))
    write(top, "write -P 5 0 4M")
    parts: list[float] = []

    qemuimg.run(qemuimg.commit(top, str(base)), parts.append)

    assert (parts == sorted(parts), parts[-1]) == (True, 1.0)


PIECES = [
    ("one", b"    (12.50/100%)\r", [0.125]),
    ("the last of several", b"    (1.00/100%)\r    (2.00/100%)\r", [0.02]),
    ("no fraction", b"(100/100%)", [1.0]),
    ("the beginning of one", b"    (12.", []),
    ("the rest of one", b"50/100%)\r", []),
    ("another text", b"Image committed.\n", []),
]


@pytest.mark.parametrize(
    ("piece", "parts"), [pytest.param(*case, id=name) for name, *case in PIECES]
)
def test_progress_in_a_piece_of_output(piece, parts):
    told: list[float] = []

    qemuimg._percents(told.append)(piece)

    assert told == parts


def refcounts(path: Path) -> int:
    """The offset of the first refcount block of a qcow2 image."""
    content = path.read_bytes()
    table = int.from_bytes(content[48:56], "big")
    return int.from_bytes(content[table : table + 8], "big")


def spoil(path: Path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def test_a_clean_image_passes_its_check(tmp_path):
    qemuimg.check(create(tmp_path / "disk.qcow2"))


def test_leaked_clusters_are_no_error(tmp_path):
    path = create(tmp_path / "disk.qcow2")
    write(path, "write 0 64k")
    spoil(path, refcounts(path) + 2 * 20, b"\0\1")
    spoil(path, path.stat().st_size, bytes(65536 * 21))

    assert subprocess.run(["qemu-img", "check", path], capture_output=True).returncode == 3
    qemuimg.check(path)


def test_wrong_reference_counts_are_told_and_mended(tmp_path):
    path = create(tmp_path / "disk.qcow2")
    write(path, "write -P 9 0 64k")
    spoil(path, refcounts(path), bytes(20))
    with pytest.raises(ToolFailed) as raised:
        qemuimg.check(path)

    qemuimg.repair(path)
    qemuimg.check(path)
    write(path, "read -P 9 0 64k")

    assert (raised.value.argv[:2], raised.value.code) == (("qemu-img", "check"), 2)


def test_repair_of_a_clean_image_changes_nothing(tmp_path):
    path = create(tmp_path / "disk.qcow2")
    before = path.read_bytes()

    qemuimg.repair(path)

    assert path.read_bytes() == before


def test_repair_of_what_is_no_image_is_told(tmp_path):
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"no image")

    with pytest.raises(ToolFailed, match=r"^qemu-img check: .*Image is not in qcow2 format"):
        qemuimg.repair(path)


def test_a_failure_says_what_qemu_img_said(tmp_path):
    with pytest.raises(ToolFailed) as raised:
        qemuimg.run(qemuimg.resize(tmp_path / "gone", "qcow2", MIB))

    assert str(raised.value) == (
        f"qemu-img resize: qemu-img: Could not open '{tmp_path}/gone': "
        f"Could not open '{tmp_path}/gone': No such file or directory"
    )


def test_an_overlay_is_made_before_its_backing_file_can_be_reached(tmp_path):
    path = tmp_path / "tue.qcow2"

    qemuimg.run(qemuimg.create_on(path, "mon.qcow2", "raw", MIB))
    found = images.read_image(path, "qcow2")

    assert (found.recorded, found.recorded_format, found.virtual_size, found.mode) == (
        "mon.qcow2",
        "raw",
        MIB,
        0o600,
    )


def test_a_relink_changes_the_recorded_name_alone(tmp_path):
    path = create(tmp_path / "tue.qcow2", backing="mon.qcow2")

    qemuimg.run(qemuimg.relink(path, "sun.img", "raw"))
    first = images.read_image(path, "qcow2")
    qemuimg.run(qemuimg.relink(path, "", None))
    second = images.read_image(path, "qcow2")

    assert [(one.recorded, one.recorded_format) for one in (first, second)] == [
        ("sun.img", "raw"),
        (None, None),
    ]


def test_a_window_of_a_view_is_written_into_an_open_file(tmp_path):
    base = create(tmp_path / "base.qcow2", "1M")
    write(base, "write -c -P 1 0 128k", "write -P 2 128k 64k")
    with (tmp_path / "window").open("w+b") as target:
        target.truncate(128 * KIB)

        chain = [images.read_image(base, "qcow2")]
        qemuimg.convert_window(chain, 64 * KIB, 128 * KIB, target.fileno())

        assert target.read() == b"\1" * 64 * KIB + b"\2" * 64 * KIB


def test_the_version_is_a_number(monkeypatch):
    out = b"qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)\n"
    monkeypatch.setattr(qemuimg.process, "run", lambda *_: (0, out))

    assert qemuimg.version() == "7.2.22"


def test_a_qemu_img_that_says_nothing_has_an_unknown_version(monkeypatch):
    monkeypatch.setattr(qemuimg.process, "run", lambda *_: (0, b"hello"))

    assert qemuimg.version() == "unknown"
