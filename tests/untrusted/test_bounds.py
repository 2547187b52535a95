"""Loops, endless chains and huge tables: a clear error within 1 GiB and 30 seconds."""

from __future__ import annotations

import os
import struct

import pytest

from tests.images.disks import folder_facts
from tests.untrusted.scene import Scene, assert_refused, empty, header

HUGE = 2**63 - 512


def test_a_loop_of_three_images_is_told(scene: Scene) -> None:
    for name, below in (("a", "c"), ("b", "a"), ("c", "b")):
        empty(scene.images / f"{name}.qcow2", f"{below}.qcow2")
    scene.spec("c")

    assert_refused(scene.run("plan"), "loop")
    assert_refused(scene.run("show"), "loop")


def test_a_loop_beside_the_chain_does_no_harm(scene: Scene) -> None:
    """The search for overlays passes through bystanders that stand on one another."""
    for name, below in (("a", "c"), ("b", "a"), ("c", "b"), ("self", "self")):
        empty(scene.images / f"{name}.qcow2", f"{below}.qcow2")
    empty(scene.images / "x.qcow2")
    scene.spec("x")

    assert scene.run("plan").code == 0


def small_chain(scene: Scene, count: int) -> None:
    """Images of one header each, standing on one another."""
    for number in range(count):
        below = f"{number - 1:05}.qcow2".encode() if number else b""
        content = header(bits=9, backing=below, backing_format=b"qcow2" if below else b"")
        (scene.images / f"{number:05}.qcow2").write_bytes(content)


def test_a_chain_beyond_the_limit_is_told(scene: Scene) -> None:
    small_chain(scene, 1001)
    scene.spec("01000")

    assert_refused(scene.run("plan"), "stands on more than 1000 images")


BROKEN = [
    # id, header
    ("an L1 table of 2 GiB", header(l1_size=2**28)),
    ("an L1 table of 32 GiB", header(l1_size=2**32 - 1)),
    ("a refcount table of 256 TiB", header(refcounts=2**32 - 1)),
    ("4294967295 snapshots", header(snapshots=2**32 - 1)),
    ("a size of 8 EiB", header(size=HUGE)),
    ("a size of 2 to the 63rd", header(size=2**63)),
    ("a size of 2 to the 64th less one", header(size=2**64 - 1)),
    ("half a header", header()[:50]),
    ("the magic alone", b"QFI\xfb"),
    ("nothing", b""),
    ("a backing name beyond the file", header(name_at=2**64 - 8, name_length=1023)),
    ("a backing name of 4 GiB", header(name_at=112, name_length=2**32 - 1)),
    ("a header of 4 GiB", header(header_length=104)[:100] + struct.pack(">I", 2**32 - 1)),
    ("clusters of 2 GiB", header(bits=31)),
]


@pytest.mark.parametrize("content", [pytest.param(one, id=name) for name, one in BROKEN])
def test_a_header_that_promises_too_much_is_told(scene: Scene, content: bytes) -> None:
    (scene.images / "b.qcow2").write_bytes(content)
    empty(scene.images / "p.qcow2", "b.qcow2")
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("b <- x")
    before = folder_facts(scene.images)

    outcome = scene.run("apply")

    assert outcome.code == 1, outcome
    assert "b.qcow2" in outcome.out + outcome.err
    assert folder_facts(scene.images) == before


LENIENT = [
    # id, header of an image that QEMU reads as one without data, or refuses
    ("an L1 table of the most bytes that QEMU takes", header(l1_size=2**22)),
    ("an L1 table far beyond the end", header(l1_at=2**62)),
    ("a refcount table far beyond the end", header(refcounts_at=2**62)),
    ("snapshots far beyond the end", header(snapshots=1, snapshots_at=2**62)),
    ("a header without clusters", header()[:512]),
]


@pytest.mark.parametrize("content", [pytest.param(one, id=name) for name, one in LENIENT])
def test_a_table_that_is_not_there_holds_nothing_up(scene: Scene, content: bytes) -> None:
    """The kept image is as it was, whether QEMU reads it or not."""
    (scene.images / "b.qcow2").write_bytes(content)
    empty(scene.images / "p.qcow2", "b.qcow2")
    empty(scene.images / "x.qcow2", "p.qcow2")
    scene.spec("b <- x")

    outcome = scene.run("apply")

    assert outcome.code in (0, 1)
    assert (scene.images / "b.qcow2").read_bytes() == content


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_after_the_magic_are_told(scene: Scene, seed: int) -> None:
    import random

    noise = random.Random(seed).randbytes(200_000)
    (scene.images / "b.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + noise)
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x")

    assert_refused(scene.run("plan"), "b.qcow2", "header is broken")


def test_a_raw_image_of_8_exbibytes_less_a_bit(scene: Scene) -> None:
    """As large as the filesystem takes; nothing reads it through."""
    raw = scene.images / "b.raw"
    raw.touch()
    os.truncate(raw, 15 * 2**40)
    empty(scene.images / "x.qcow2", "b.raw", "raw")
    scene.spec("b.raw <- x <- y", formats={"b.raw": "raw"})

    outcome = scene.run("plan")

    assert outcome.code == 0, outcome


@pytest.mark.parametrize("size", ["8E", str(HUGE), "9223372036854775807", "1" + "0" * 30, "2E"])
def test_a_size_near_the_end_of_numbers_is_made_or_told(scene: Scene, size: str) -> None:
    scene.spec("x", sizes={"x": size})

    outcome = scene.run("apply")

    made = {path.name for path in scene.images.iterdir()}
    assert (outcome.code, made) in ((0, {"x.qcow2"}), (1, set())), outcome


def test_a_folder_of_three_thousand_strangers_is_searched_in_time(scene: Scene) -> None:
    for number in range(3_000):
        (scene.images / f"{number:05}.qcow2").write_bytes(header(bits=9))
    empty(scene.images / "x.qcow2")
    scene.spec("x")

    assert scene.run("plan").code == 0
