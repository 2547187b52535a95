"""The qcow2 header reader, on images that qemu-img made and on bytes that nobody should."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.model.errors import ObserveError
from reconciler.tools.qcow2 import MAGIC, MAX_HEADER, Header, backing_path, read_header

MIB = 1024 * 1024
NAME = Path("disk.qcow2")
PLAIN = Header(
    virtual_size=4 * MIB,
    cluster_size=65536,
    backing=None,
    backing_format=None,
    snapshots=0,
    bitmaps=0,
    encrypted=False,
    data_file=False,
    corrupt=False,
    unknown_features=0,
)
FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
V3 = struct.Struct(">QQQII")


def qemu_img(*words: str | bytes | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def create(path: Path, *options: str | bytes) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", *options, path, "4M")
    return path


def read(path: Path) -> Header | None:
    with path.open("rb") as file:
        return read_header(file.fileno(), NAME)


def read_bytes(content: bytes) -> Header | None:
    descriptor = os.memfd_create("header")
    try:
        os.write(descriptor, content)
        return read_header(descriptor, NAME)
    finally:
        os.close(descriptor)


def header(
    *,
    version: int = 3,
    name_at: int = 0,
    name_length: int = 0,
    bits: int = 16,
    size: int = 4 * MIB,
    crypt: int = 0,
    snapshots: int = 0,
    incompatible: int = 0,
    header_length: int = 104,
    rest: bytes = b"",
) -> bytes:
    """A header as bytes, each field as the caller wants it."""
    fixed = FIXED.pack(
        MAGIC, version, name_at, name_length, bits, size, crypt, 1, 196608, 65536, 1, snapshots, 0
    )
    return fixed + V3.pack(incompatible, 0, 0, 4, header_length) + rest


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


SECRET = ["--object", "secret,id=s,data=x"]
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
ON_BASE = ["-u", "-F", "qcow2", "-b"]

CREATED = [
    # id, options of qemu-img create, what differs from a plain header
    ("version 3", [], {}),
    ("version 2", ["-o", "compat=0.10"], {"version": 2}),
    ("the smallest clusters", ["-o", "cluster_size=512"], {"cluster_size": 512}),
    ("the largest clusters", ["-o", "cluster_size=2M"], {"cluster_size": 2 * MIB}),
    (
        "features that do not matter",
        ["-o", "extended_l2=on,cluster_size=128k,compression_type=zstd,lazy_refcounts=on"],
        {"cluster_size": 131072, "extended_l2": True, "lazy_refcounts": True},
    ),
    (
        "a backing file",
        [*ON_BASE, "base.qcow2"],
        {"backing": "base.qcow2", "backing_format": "qcow2"},
    ),
    (
        "a backing file of version 2",
        ["-o", "compat=0.10", *ON_BASE, "base.qcow2"],
        {"backing": "base.qcow2", "backing_format": "qcow2", "version": 2},
    ),
    (
        "a raw backing file",
        ["-u", "-F", "raw", "-b", "/images/base.img"],
        {"backing": "/images/base.img", "backing_format": "raw"},
    ),
    (
        "a backing file and the smallest clusters",
        ["-o", "cluster_size=512", *ON_BASE, "base.qcow2"],
        {"cluster_size": 512, "backing": "base.qcow2", "backing_format": "qcow2"},
    ),
    (
        "the longest backing name",
        [*ON_BASE, "/" + "a" * 1022],
        {"backing": "/" + "a" * 1022, "backing_format": "qcow2"},
    ),
    (
        "a backing name in another script",
        [*ON_BASE, "ä 东.qcow2"],
        {"backing": "ä 东.qcow2", "backing_format": "qcow2"},
    ),
    (
        "a backing name that is no UTF-8",
        [*ON_BASE, b"caf\xe9.qcow2"],
        {"backing": "caf\udce9.qcow2", "backing_format": "qcow2"},
    ),
    ("encryption", [*SECRET, "-o", LUKS], {"encrypted": True}),
]


@pytest.mark.parametrize(
    ("options", "differs"), [pytest.param(*case, id=name) for name, *case in CREATED]
)
def test_an_image_that_qemu_img_made_is_read(tmp_path, options, differs):
    path = create(tmp_path / "disk.qcow2", *options)

    assert read(path) == replace(PLAIN, **differs)


def test_a_data_file_is_seen(tmp_path):
    name = f"{tmp_path}/data.raw"
    path = create(tmp_path / "disk.qcow2", "-o", f"data_file={name}")

    assert read(path) == replace(PLAIN, data_file=True, data_file_name=name)


def test_snapshots_and_bitmaps_are_counted(tmp_path):
    path = create(tmp_path / "disk.qcow2")
    for name in "abc":
        qemu_img("snapshot", "-c", name, path)
    for name in "de":
        qemu_img("bitmap", "--add", "-f", "qcow2", path, name)

    assert read(path) == replace(PLAIN, snapshots=3, bitmaps=2)


FEATURES = [
    ("dirty", 0, {"dirty": True}),
    ("corrupt", 1, {"corrupt": True}),
    ("external data file", 2, {"data_file": True}),
    ("the next feature of QEMU", 5, {"unknown_features": 1 << 5}),
    ("the last feature", 63, {"unknown_features": 1 << 63}),
]


@pytest.mark.parametrize(
    ("bit", "differs"), [pytest.param(*case, id=name) for name, *case in FEATURES]
)
def test_a_feature_bit_set_by_hand_is_seen(tmp_path, bit, differs):
    path = create(tmp_path / "disk.qcow2")
    with path.open("r+b") as file:
        file.seek(72)
        file.write((1 << bit).to_bytes(8, "big"))

    assert read(path) == replace(PLAIN, **differs)


def test_features_of_a_version_2_image_are_other_fields():
    content = header(version=2)[:72] + extension(0xE2792ACA, b"raw")

    assert read_bytes(content) == replace(PLAIN, backing_format="raw", version=2)


@pytest.mark.parametrize("content", [b"", b"QFI", b"\0" * 4096, b"QFI\xfa" + bytes(100)])
def test_a_file_with_another_magic_is_no_qcow2(content):
    assert read_bytes(content) is None


def test_a_raw_file_is_no_qcow2(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))

    assert read(path) is None


BROKEN = [
    # id, header, what is said about it
    ("version 1", header(version=1), "version 1 is neither 2 nor 3"),
    ("version 4", header(version=4), "version 4 is neither 2 nor 3"),
    ("too many snapshots", header(snapshots=4097), "its tables are too large"),
    ("too small clusters", header(bits=8), "8 cluster bits are outside 9 to 21"),
    ("too large clusters", header(bits=22), "22 cluster bits are outside 9 to 21"),
    (
        "more cluster bits than a number has",
        header(bits=2**32 - 1),
        "4294967295 cluster bits are outside 9 to 21",
    ),
    (
        "a negative size",
        header(size=2**63),
        "a virtual size of 9223372036854775808 bytes is beyond 8 EiB",
    ),
    (
        "an empty backing name",
        header(name_at=112, rest=bytes(100)),
        "the backing name lies outside the first cluster",
    ),
    (
        "a backing name that is too long",
        header(name_at=112, name_length=1024, rest=bytes(2000)),
        "the backing name lies outside the first cluster",
    ),
    (
        "a backing name beyond the first cluster",
        header(bits=9, name_at=510, name_length=8, rest=bytes(2000)),
        "the backing name lies outside the first cluster",
    ),
    (
        "a backing name beyond every file",
        header(name_at=2**64 - 1, name_length=1023),
        "the backing name lies outside the first cluster",
    ),
    (
        "an extension without an end",
        header(rest=struct.pack(">II", 1, 2**32 - 1) + bytes(100)),
        "a header extension lies outside the first cluster",
    ),
]


@pytest.mark.parametrize(
    ("content", "what"), [pytest.param(*case, id=name) for name, *case in BROKEN]
)
def test_a_broken_header_is_told(content, what):
    with pytest.raises(ObserveError) as raised:
        read_bytes(content)

    assert str(raised.value) == f"disk.qcow2: the qcow2 header is broken: {what}"


LARGEST = [
    ("the largest size", header(size=2**63 - 1), {"virtual_size": 2**63 - 1}),
    ("a size of nothing", header(size=0), {"virtual_size": 0}),
    ("all the snapshots there can be", header(snapshots=4096), {"snapshots": 4096}),
    (
        "all the bitmaps there can be",
        header(rest=extension(0x23852875, b"\xff" * 24)),
        {"bitmaps": 2**32 - 1},
    ),
    ("an empty bitmap extension", header(rest=extension(0x23852875, b"")), {}),
    ("an unknown encryption", header(crypt=2**32 - 1), {"encrypted": True}),
    ("a header longer than the file", header(header_length=2**32 - 1), {}),
]


@pytest.mark.parametrize(
    ("content", "differs"), [pytest.param(*case, id=name) for name, *case in LARGEST]
)
def test_the_largest_numbers_are_read_as_they_are(content, differs):
    assert read_bytes(content) == replace(PLAIN, **differs)


def test_a_header_that_was_cut_anywhere_is_told(tmp_path):
    path = create(tmp_path / "disk.qcow2", *ON_BASE, "base.qcow2")
    whole = path.read_bytes()
    end = whole.index(b"base.qcow2") + len("base.qcow2")
    told = []
    for length in range(4, end):
        with pytest.raises(ObserveError):
            read_bytes(whole[:length])
        told.append(length)

    assert (told, read_bytes(whole[:end])) == ([*range(4, end)], read(path))


def test_extensions_that_fill_the_largest_cluster_are_read_at_once():
    content = header(bits=21, rest=struct.pack(">II", 1, 0) * (MAX_HEADER // 8))
    began = time.process_time()

    found = read_bytes(content)

    assert (found, time.process_time() - began < 3) == (replace(PLAIN, cluster_size=2 * MIB), True)


numbers = st.sampled_from([0, 1, 8, 72, 104, 511, 512, 1023, 65535, 65536, 2**31, 2**32 - 1])
fields = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from([0, 2, 3, 4]),
        "name_at": numbers | st.integers(0, 2**64 - 1),
        "name_length": numbers,
        "bits": st.integers(7, 23),
        "size": st.integers(0, 2**64 - 1),
        "crypt": numbers,
        "snapshots": numbers,
        "incompatible": st.integers(0, 2**64 - 1),
        "header_length": numbers,
        "rest": st.binary(max_size=3000)
        | st.lists(
            st.builds(
                extension,
                st.sampled_from([0, 1, 0xE2792ACA, 0x23852875, 0x0537BE77]),
                st.binary(max_size=40),
            ),
            max_size=20,
        ).map(b"".join),
    },
)


@settings(max_examples=400, deadline=1000)
@given(fields.map(lambda chosen: header(**chosen)), st.integers(0, 4096))
def test_no_header_does_more_than_be_read_or_told(content, cut):
    for piece in (content, content[:cut]):
        try:
            found = read_bytes(piece)
        except ObserveError:
            continue

        assert found is None or isinstance(found, Header)


@settings(max_examples=200, deadline=1000)
@given(st.binary(max_size=4096))
def test_random_bytes_after_the_magic_do_no_more_than_be_told(content):
    try:
        found = read_bytes(MAGIC + content)
    except ObserveError:
        return

    assert isinstance(found, Header)


OVERLAY = Path("/images/tue.qcow2")


def nested(filename: str, driver: str = "qcow2", protocol: str = "file") -> str:
    file = f'{{"driver": "{protocol}", "filename": "{filename}"}}'
    return f'json:{{"driver": "{driver}", "file": {file}}}'


PATHS = [
    # id, recorded name, the file it means
    ("beside the overlay", "mon.qcow2", "/images/mon.qcow2"),
    ("in a folder below", "old/mon.qcow2", "/images/old/mon.qcow2"),
    ("in a folder beside", "../old/mon.qcow2", "/images/../old/mon.qcow2"),
    ("absolute", "/other/mon.qcow2", "/other/mon.qcow2"),
    ("absolute with file:", "file:/other/mon.qcow2", "/other/mon.qcow2"),
    ("absolute with file: and a colon", "file:/other/a:b", "/other/a:b"),
    ("a colon after the first slash", "/other/a:b", "/other/a:b"),
    ("a colon in a relative name", "./a:b", "/images/a:b"),
    ("a colon in a folder below", "old/a:b", "/images/old/a:b"),
    ("a name that looks like an option", "-b", "/images/-b"),
    ("a name with a comma", "a,b=c", "/images/a,b=c"),
    ("json: nested", nested("/other/mon.qcow2"), "/other/mon.qcow2"),
    ("json: nested, raw", nested("/other/mon.img", "raw"), "/other/mon.img"),
    (
        "json: nested without a protocol",
        'json:{"driver": "qcow2", "file": {"filename": "/other/mon"}}',
        "/other/mon",
    ),
    (
        "json: dotted",
        'json:{"driver": "qcow2", "file.driver": "file", "file.filename": "/other/mon"}',
        "/other/mon",
    ),
    (
        "json: a file alone",
        'json:{"driver": "file", "filename": "/other/mon"}',
        "/other/mon",
    ),
    ("json: a colon in the file name", nested("/other/a:b"), "/other/a:b"),
    ("json: an escape in the file name", nested("/other/\\u00e4"), "/other/ä"),
]


@pytest.mark.parametrize(
    ("recorded", "path"), [pytest.param(*case, id=name) for name, *case in PATHS]
)
def test_a_backing_name_means_a_local_file(recorded, path):
    assert backing_path(recorded, OVERLAY) == Path(path)


NOT_LOCAL = [
    ("file: relative", "file:mon.qcow2"),
    ("file: alone", "file:"),
    ("nothing", ""),
    ("nbd", "nbd://host:10809/disk"),
    ("nbd on a socket", "nbd:unix:/run/nbd.sock"),
    ("http", "https://host/mon.qcow2"),
    ("ssh", "ssh://host/mon.qcow2"),
    ("rbd", "rbd:pool/image"),
    ("a colon that QEMU takes for a protocol", "a:b"),
    ("a drive letter", "C:mon.qcow2"),
    ("a NUL", "mon\0.qcow2"),
    ("a NUL after file:", "file:/mon\0"),
    ("json: a NUL", nested("/mon\\u0000")),
    ("json: half a character", nested("/mon\\ud800")),
    ("json: nothing", nested("")),
    ("json: no JSON", "json:{"),
    ("json: a list", "json:[]"),
    ("json: a text", 'json:"/mon"'),
    ("json: empty", "json:{}"),
    ("json: nbd", 'json:{"driver": "nbd", "host": "h", "port": "1"}'),
    ("json: nbd under qcow2", nested("/mon", protocol="nbd")),
    ("json: another format", nested("/mon", driver="vmdk")),
    ("json: no format", 'json:{"file": {"driver": "file", "filename": "/mon"}}'),
    ("json: a number for a name", 'json:{"driver": "qcow2", "file": {"filename": 1}}'),
    ("json: an offset", 'json:{"driver": "raw", "offset": 512, "file": {"filename": "/mon"}}'),
    (
        "json: a backing file of its own",
        'json:{"driver": "qcow2", "backing": null, "file": {"filename": "/mon"}}',
    ),
    ("json: a data file", 'json:{"driver": "qcow2", "data-file": "x", "file.filename": "/mon"}'),
    ("json: a format on a format", 'json:{"driver": "qcow2", "file": {"driver": "qcow2"}}'),
    ("json: deep nesting", "json:" + '{"file":' * 120 + "1" + "}" * 120),
    ("json: very deep nesting", "json:" + '{"a":' * 5000 + "1" + "}" * 5000),
    ("json: a number without end", 'json:{"driver": "raw", "size": ' + "9" * 5000 + "}"),
]


@pytest.mark.parametrize("recorded", [pytest.param(case, id=name) for name, case in NOT_LOCAL])
def test_a_backing_name_that_is_no_local_file_is_refused(recorded):
    with pytest.raises(ObserveError, match=r"^/images/tue\.qcow2: the backing name "):
        backing_path(recorded, OVERLAY)


def test_a_name_that_depends_on_the_folder_of_qemu_says_what_to_do():
    with pytest.raises(ObserveError) as raised:
        backing_path("file:mon.qcow2", OVERLAY)

    assert str(raised.value) == (
        "/images/tue.qcow2: the backing name 'file:mon.qcow2' depends on the folder that QEMU is "
        "started in; record an absolute name with qemu-img rebase -u"
    )


@pytest.mark.parametrize(
    "recorded",
    [
        nested("mon.qcow2"),
        'json:{"driver": "qcow2", "file.filename": "mon.qcow2"}',
        'json:{"driver": "file", "filename": "mon.qcow2"}',
    ],
)
def test_a_relative_json_name_depends_on_the_folder_of_qemu_too(recorded):
    """QEMU 7.2: ``Could not open 'mon.qcow2'`` unless it runs in the folder of the image."""
    with pytest.raises(ObserveError):
        backing_path(recorded, OVERLAY)


wrappers = st.sampled_from([b"", b"json:", b"file:", b"file:/", b"./", b"/", b"nbd:"])


@settings(max_examples=300, deadline=1000)
@given(wrappers, st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_any_backing_name_is_a_path_or_is_told(wrapper, rest):
    try:
        path = backing_path(os.fsdecode(wrapper + rest), OVERLAY)
    except ObserveError:
        return

    assert b"\0" not in os.fsencode(path)
