"""Reading views: the same bytes as qemu-img convert, whatever the images are made of."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.model.image import Image
from reconciler.tools import images, views

MIB = 1024 * 1024
KIB = 1024


def sh(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def create(path: Path, size: str, backing: Path | None = None, *options: str) -> Path:
    below = []
    if backing:
        below = ["-F", "raw" if backing.suffix == ".img" else "qcow2", "-b", str(backing)]
    sh("qemu-img", "create", "-q", "-f", "qcow2", *options, *below, path, size)
    return path


def write(path: Path, *commands: str) -> Path:
    words = [word for command in commands for word in ("-c", command)]
    sh("qemu-io", "-f", "raw" if path.suffix == ".img" else "qcow2", *words, path)
    return path


def chain(active: Path) -> tuple[Image, ...]:
    image_format = "raw" if active.suffix == ".img" else "qcow2"
    return images.walk(active, images.Trust(default=image_format)).images  # type: ignore[arg-type]


def truth(active: Path) -> bytes:
    """The view of *active* as qemu-img converts it."""
    raw = active.with_name(f"{active.name}.truth")
    image_format = "raw" if active.suffix == ".img" else "qcow2"
    sh("qemu-img", "convert", "-f", image_format, "-O", "raw", active, raw)
    return raw.read_bytes()


def plain(folder: Path) -> Path:
    base = write(create(folder / "base", "4M"), "write -P 1 0 1M", "write -P 2 2500k 300k")
    return write(create(folder / "top", "4M", base), "write -P 3 100k 3k", "write -P 4 3M 70k")


def compressed(folder: Path) -> Path:
    base = write(create(folder / "base", "20M"), "write -c -P 1 0 2M", "write -c -P 2 15M 2M")
    return write(create(folder / "top", "20M", base), "write -c -P 3 64k 64k", "write -P 4 16M 64k")


def zeroes(folder: Path) -> Path:
    base = write(create(folder / "base", "4M"), "write -P 1 0 4M")
    return write(create(folder / "top", "4M", base), "write -z 64k 1M", "write -z -u 3M 64k")


def empty(folder: Path) -> Path:
    return create(folder / "top", "4M", create(folder / "base", "4M"))


def raw_alone(folder: Path) -> Path:
    path = folder / "disk.img"
    path.write_bytes(b"\1" * 100_000 + bytes(2 * MIB) + b"\2" * 100_000)
    return path


def raw_of_odd_size(folder: Path) -> Path:
    path = folder / "disk.img"
    path.write_bytes(b"\1" * 1000)
    return path


def on_raw(folder: Path) -> Path:
    base = folder / "base.img"
    base.write_bytes(b"\1" * 1_000_000)
    return write(create(folder / "top", "4M", base), "write -P 2 64k 64k")


def shorter_in_the_middle(folder: Path) -> Path:
    base = write(create(folder / "base", "4M"), "write -P 1 0 4M")
    middle = write(create(folder / "middle", "1M", base), "write -P 2 64k 64k")
    return write(create(folder / "top", "4M", middle), "write -P 3 2M 64k")


def shorter_than_its_base(folder: Path) -> Path:
    base = write(create(folder / "base", "4M"), "write -P 1 0 4M")
    return write(create(folder / "top", "1M", base), "write -P 2 64k 64k")


def of_odd_clusters(folder: Path) -> Path:
    base = write(
        create(folder / "base", "3585K", None, "-o", "cluster_size=2M"), "write -P 1 1M 2M"
    )
    small = create(folder / "small", "3585K", base, "-o", "cluster_size=512")
    write(small, "write -P 2 512 512", "write -P 3 2047k 3k")
    parts = create(folder / "top", "3585K", small, "-o", "cluster_size=128k,extended_l2=on")
    return write(parts, "write -P 4 8k 4k", "write -z 12k 4k")


KINDS = [
    plain,
    compressed,
    zeroes,
    empty,
    raw_alone,
    raw_of_odd_size,
    on_raw,
    shorter_in_the_middle,
    shorter_than_its_base,
    of_odd_clusters,
]
BY_NAME = pytest.mark.parametrize("make", KINDS, ids=[kind.__name__ for kind in KINDS])


@BY_NAME
def test_a_view_reads_as_qemu_img_converts_it(tmp_path, make):
    active = make(tmp_path)
    expected = truth(active)
    with views.Reader(chain(active)) as reader:
        whole = reader.read(0, reader.size)

    assert (len(whole), whole.rstrip(b"\0")) == (reader.size, expected.rstrip(b"\0"))


@BY_NAME
def test_any_part_of_a_view_is_the_same_part(tmp_path, make):
    active = make(tmp_path)
    expected = truth(active)
    chance = random.Random(7)
    with views.Reader(chain(active)) as reader:
        for _ in range(40):
            start = chance.randrange(reader.size) // 512 * 512
            length = chance.randrange(2 * MIB) // 512 * 512
            part = expected[start : start + length]

            assert reader.read(start, length) == part + bytes(length - len(part))


def test_beyond_the_end_of_the_disk_there_are_zeroes(tmp_path):
    active = plain(tmp_path)
    with views.Reader(chain(active)) as reader:
        around, beyond = reader.read(4 * MIB - 512, 1024), reader.read(9 * MIB, 512)
        nothing = reader.read(512, 0)

    assert (around, beyond, nothing) == (bytes(1024), bytes(512), b"")


def test_odd_bytes_of_compressed_data_are_read_across_windows(tmp_path):
    """A window of QEMU's raw driver has to end at a multiple of 512 bytes."""
    compressed(tmp_path)
    base = tmp_path / "base"
    expected = truth(base)
    with views.Reader(chain(base)) as reader:
        start = views.WINDOW - 100

        assert reader.read(start, 300) == expected[start : start + 300]
        assert reader.read(65_000, 1_001) == expected[65_000:66_001]


def test_reading_opens_no_file_for_good(tmp_path):
    active = plain(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with views.Reader(chain(active)) as reader:
        reader.read(0, MIB)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


@BY_NAME
def test_a_view_has_no_difference_from_its_flat_copy(tmp_path, make):
    active = make(tmp_path)
    flat = tmp_path / "flat.img"
    flat.write_bytes(truth(active))
    one, other = chain(active), chain(flat)

    assert views.first_difference(one, other, [(0, one[-1].virtual_size)]) is None
    assert views.digest(one) == views.digest(other)


@pytest.mark.parametrize(
    ("at", "near"),
    [
        (0, 0),
        (MIB - 1, MIB - views.CHUNK),
        (MIB, MIB),
        (3 * MIB + 5, 3 * MIB),
        (4 * MIB - 1, 4 * MIB - views.CHUNK),
    ],
)
def test_a_planted_difference_is_found(tmp_path, at, near):
    active = plain(tmp_path)
    content = bytearray(truth(active))
    content[at] ^= 0xFF
    flat = tmp_path / "flat.img"
    flat.write_bytes(content)
    one, other = chain(active), chain(flat)

    assert views.first_difference(one, other, [(0, 4 * MIB)]) == near
    assert views.first_difference(other, one, [(0, 4 * MIB)]) == near
    assert views.first_difference(one, other, [(0, at), (at + 1, 4 * MIB)]) is None
    assert views.first_difference(one, other, [(at, at + 1)]) == at
    assert views.digest(one) != views.digest(other)


def test_a_shorter_view_ends_in_zeroes(tmp_path):
    short = write(create(tmp_path / "short", "1M"), "write -P 1 0 1M")
    long = write(create(tmp_path / "long", "4M"), "write -P 1 0 1M")
    different = write(create(tmp_path / "different", "4M"), "write -P 1 0 1M", "write -P 2 3M 1k")
    runs = [(0, 4 * MIB)]

    assert views.first_difference(chain(short), chain(long), runs) is None
    assert views.first_difference(chain(short), chain(different), runs) == 3 * MIB


def test_no_runs_have_no_difference(tmp_path):
    active = plain(tmp_path)

    assert views.first_difference(chain(active), chain(tmp_path / "base"), []) is None


def layouts(folder: Path) -> Sequence[Path]:
    """The same content in seven layouts."""
    one = write(create(folder / "one", "4M"), "write -P 1 1M 100k", "write -P 2 2000k 512")
    late = write(create(folder / "late", "4M"), "write -P 2 2000k 512", "write -P 1 1M 100k")
    written = write(create(folder / "written", "4M"), "write -P 0 0 4M", "write -P 1 1M 100k")
    write(written, "write -P 2 2000k 512")
    hidden = write(create(folder / "hidden", "4M", one), "write -z 0 1M", "write -P 1 1M 100k")
    small = create(folder / "small", "4M", None, "-o", "cluster_size=512")
    write(small, "write -P 1 1M 100k", "write -P 2 2000k 512")
    packed = folder / "packed"
    sh("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", one, packed)
    raw = folder / "raw.img"
    raw.write_bytes(truth(one))
    return one, late, written, hidden, small, packed, raw


def test_equal_views_have_one_digest_however_they_are_laid_out(tmp_path):
    paths = layouts(tmp_path)

    assert len({views.digest(chain(path)) for path in paths}) == 1


def test_different_views_have_different_digests(tmp_path):
    made = [
        create(tmp_path / "empty", "4M"),
        create(tmp_path / "longer", "5M"),
        write(create(tmp_path / "a", "4M"), "write -P 1 0 64k"),
        write(create(tmp_path / "b", "4M"), "write -P 1 64k 64k"),
        write(create(tmp_path / "c", "4M"), "write -P 2 0 64k"),
        write(create(tmp_path / "d", "4M"), "write -P 1 0 128k"),
        write(create(tmp_path / "e", "5M"), "write -P 1 0 64k"),
    ]

    assert len({views.digest(chain(path)) for path in made}) == len(made)


def test_a_digest_with_a_limit_is_that_of_a_view_of_that_size(tmp_path):
    short = write(create(tmp_path / "short", "1M"), "write -P 1 900k 124k")
    same = write(create(tmp_path / "same", "4M"), "write -P 1 900k 224k")
    grown = write(create(tmp_path / "grown", "4M"), "write -P 1 900k 124k", "write -P 2 3M 64k")
    other = write(create(tmp_path / "other", "4M"), "write -P 1 899k 125k")
    expected = views.digest(chain(short))

    found = [views.digest(chain(path), MIB) == expected for path in (short, same, grown, other)]

    assert found == [True, True, True, False]


def test_a_limit_inside_a_block_cuts_it(tmp_path):
    short = write(create(tmp_path / "short", "1000K"), "write -P 1 900k 100k")
    grown = write(create(tmp_path / "grown", "4M"), "write -P 1 900k 500k")

    assert views.digest(chain(grown), 1000 * KIB) == views.digest(chain(short))


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 16), st.integers(0, 3)), max_size=6),
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 16), st.integers(0, 3)), max_size=6),
)
def test_random_writes_read_as_a_list_of_bytes_says(tmp_path_factory, lower, upper):
    folder = tmp_path_factory.mktemp("views")
    expected = bytearray(MIB)
    active = None
    for number, writes in enumerate((lower, upper)):
        active = create(folder / f"{number}", "1M", active)
        commands = []
        for start, count, value in writes:
            at, length = start * 16 * KIB, min(count, 64 - start) * 16 * KIB
            commands.append(f"write -P {value} {at} {length}")
            expected[at : at + length] = bytes([value]) * length
        if commands:
            write(active, *commands)
    assert active is not None
    with views.Reader(chain(active)) as reader:
        assert reader.read(0, MIB) == bytes(expected)


FORGED = [
    ("qcow2", b"QFI\xfb", True),
    ("VMDK", b"KDMV", True),
    ("old VMDK", b"COWD", True),
    ("VPC", b"conectix", True),
    ("VHDX", b"vhdxfile", True),
    ("QED", b"QED\0", True),
    ("LUKS", b"LUKS\xba\xbe", True),
    ("VDI", bytes(64) + b"\x7f\x10\xda\xbe", True),
    ("a boot sector", b"\xebc\x90" + bytes(507) + b"\x55\xaa", False),
    ("half a magic", b"QFI", False),
    ("a magic later on", bytes(4) + b"QFI\xfb", False),
    ("nothing", b"", False),
]


@pytest.mark.parametrize(
    ("start", "forged"), [pytest.param(*case, id=name) for name, *case in FORGED]
)
def test_a_view_that_begins_as_an_image_is_known(tmp_path, start, forged):
    base = tmp_path / "base.img"
    base.write_bytes(start + bytes(MIB - len(start)))

    assert views.first_bytes_forged(chain(base)) is forged


def test_a_magic_that_an_overlay_wrote_is_known(tmp_path):
    base = tmp_path / "base.img"
    base.write_bytes(bytes(MIB))
    (tmp_path / "pattern").write_bytes(b"QFI\xfb")
    top = create(tmp_path / "top", "1M", base)
    write(top, f"write -s {tmp_path}/pattern 0 512")

    assert (views.first_bytes_forged(chain(top)), views.first_bytes_forged(chain(base))) == (
        True,
        False,
    )
