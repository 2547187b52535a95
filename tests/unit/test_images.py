"""Walking chains and scanning folders, on real images and on what is none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from reconciler.model.errors import ObserveError, ToolFailed
from reconciler.model.image import Chain, Identity, Image
from reconciler.tools import images
from reconciler.tools.lookups import Lookups
from reconciler.tools.overlays import scan

MIB = 1024 * 1024


def sh(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def create(path: Path, backing: str | None = None, form: str | None = "qcow2") -> Path:
    below: list[str] = ["-u", "-F", form or "raw", "-b", backing] if backing else []
    sh("qemu-img", "create", "-q", "-f", "qcow2", *below, path, "4M")
    if backing and form is None:
        forget_format(path)
    return path


def forget_format(path: Path) -> None:
    """Take the recorded format out of a header, as QEMU before 6.1 wrote it."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\xe2\x79\x2a\xca")
    content[at : at + 4] = b"\x12\x34\x56\x78"
    path.write_bytes(content)


def raw(path: Path, size: int = 4 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def walk(path: Path, **formats: str) -> Chain:
    """The chain of *path*; formats by file name without its suffix."""
    said = {images.identity(path.with_name(f"{name}.img")): f for name, f in formats.items()}
    return images.walk(path, images.Trust(said))  # type: ignore[arg-type]


def refusal(path: Path, **formats: str) -> str:
    with pytest.raises(ObserveError) as raised:
        walk(path, **formats)
    return str(raised.value)


def test_an_image_is_read_with_all_its_facts(tmp_path):
    path = create(tmp_path / "tue.qcow2", "mon.qcow2")
    os.link(path, tmp_path / "second")
    path.chmod(0o640)
    found = path.stat()

    assert images.read_image(path, "qcow2") == Image(
        path=path,
        format="qcow2",
        virtual_size=4 * MIB,
        cluster_size=65536,
        actual_size=found.st_blocks * 512,
        identity=Identity(found.st_dev, found.st_ino),
        links=2,
        owner=(found.st_uid, found.st_gid),
        mode=0o640,
        recorded="mon.qcow2",
        recorded_format="qcow2",
    )


@pytest.mark.parametrize(("size", "seen"), [(0, 0), (1, 512), (512, 512), (1000, 1024)])
def test_a_raw_image_has_whole_sectors(tmp_path, size, seen):
    path = raw(tmp_path / "disk.img", size)

    found = images.read_image(path, "raw")
    assert (found.format, found.virtual_size, found.cluster_size) == ("raw", seen, 1)


def test_a_chain_is_walked_down_to_its_base(tmp_path):
    raw(tmp_path / "base.img")
    create(tmp_path / "mon.img", "base.img", "raw")
    create(tmp_path / "tue.img", str(tmp_path / "mon.img"))
    wed = create(tmp_path / "wed.img", f"file:{tmp_path}/tue.img")

    found = walk(wed)
    assert [(image.name, image.format) for image in found] == [
        ("base", "raw"),
        ("mon", "qcow2"),
        ("tue", "qcow2"),
        ("wed", "qcow2"),
    ]


def test_a_long_chain_is_walked(tmp_path):
    create(tmp_path / "0000")
    overlay = create(tmp_path / "0001", "0000").read_bytes()
    for number in range(1, 300):
        content = overlay.replace(b"0000", f"{number - 1:04}".encode())
        (tmp_path / f"{number:04}").write_bytes(content)

    found = walk(tmp_path / "0299")
    assert [image.name for image in found] == [f"{number:04}" for number in range(300)]


def test_too_long_a_chain_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_DEPTH", 2)
    create(tmp_path / "base")
    create(tmp_path / "mon", "base")
    tue = create(tmp_path / "tue", "mon")

    assert len(walk(tmp_path / "mon")) == 2
    assert refusal(tue) == f"{tue} stands on more than 2 images"


def test_a_chain_that_loops_is_refused(tmp_path):
    create(tmp_path / "mon.qcow2", "wed.qcow2")
    create(tmp_path / "tue.qcow2", "mon.qcow2")
    wed = create(tmp_path / "wed.qcow2", "tue.qcow2")

    assert refusal(wed) == "the chain loops: wed <- mon <- tue <- wed"


def test_an_image_on_itself_is_refused(tmp_path):
    mon = create(tmp_path / "mon", "mon")

    assert refusal(mon) == "the chain loops: mon <- mon"


def test_a_loop_over_another_name_is_refused(tmp_path):
    mon = create(tmp_path / "mon", "second")
    os.link(mon, tmp_path / "second")

    assert refusal(mon) == "the chain loops: second <- mon"


def test_a_missing_image_is_told_with_who_names_it(tmp_path):
    create(tmp_path / "mon.qcow2", "../gone.qcow2")
    tue = create(tmp_path / "tue.qcow2", "mon.qcow2")

    assert refusal(tue) == (
        f"{tmp_path.parent}/gone.qcow2 does not exist; {tmp_path}/mon.qcow2 names it as its "
        "backing file ('../gone.qcow2'); if it was moved, relink it: qemu-img rebase -u "
        f"-F qcow2 -b NEW-PLACE {tmp_path}/mon.qcow2"
    )


def test_a_missing_active_image_is_told(tmp_path):
    assert refusal(tmp_path / "gone") == f"{tmp_path}/gone does not exist"


def test_a_broken_image_is_told_with_who_names_it(tmp_path):
    (tmp_path / "mon").write_bytes(b"QFI\xfb\0\0\0\3")
    tue = create(tmp_path / "tue", "mon")

    assert refusal(tue) == (
        f"{tmp_path}/mon: the qcow2 header is broken: unpack_from requires a buffer of at least "
        f"72 bytes for unpacking 72 bytes at offset 0 (actual buffer size is 8); {tmp_path}/tue "
        "names it as its backing file ('mon')"
    )


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "socket"])
@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_a_backing_file_that_is_no_file_is_refused_at_once(tmp_path, kind, form):
    odd = tmp_path / "odd"
    match kind:
        case "FIFO":
            os.mkfifo(odd)
        case "folder":
            odd.mkdir()
        case "device":
            odd = Path("/dev/null")
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.relpath(odd))
    tue = create(tmp_path / "tue", str(odd), form)

    assert refusal(tue) == (
        f"{odd} is no regular file; only images in files are handled; "
        f"{tue} names it as its backing file ('{odd}')"
    )


def test_a_link_to_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")

    assert refusal(tmp_path / "link") == (
        f"{tmp_path}/fifo is no regular file; only images in files are handled"
    )


def test_links_that_loop_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    assert "Too many levels of symbolic links" in refusal(tmp_path / "a")


NAMED = "; {top} names it as its backing file ('base.img')"
FORMATS = [
    # id, recorded in the overlay, said by the spec, magic of the base, what comes of it
    ("recorded qcow2", "qcow2", None, "qcow2", "qcow2"),
    ("recorded raw", "raw", None, "raw", "raw"),
    ("recorded raw, forged by the guest", "raw", None, "qcow2", "raw"),
    ("not recorded, said", None, "raw", "raw", "raw"),
    ("not recorded, said raw of a forged one", None, "raw", "qcow2", "raw"),
    ("not recorded, the default fits", None, None, "qcow2", "qcow2"),
    ("both the same", "raw", "raw", "raw", "raw"),
    (
        "recorded qcow2, said raw",
        "qcow2",
        "raw",
        "qcow2",
        "{base}: the spec says format raw, and the overlay above records qcow2" + NAMED,
    ),
    (
        "recorded qcow2, and it is none",
        "qcow2",
        None,
        "raw",
        '{base} is no qcow2 image; if it is raw, write format = "raw" for it in the spec' + NAMED,
    ),
    (
        "not recorded, and the default does not fit",
        None,
        None,
        "raw",
        '{base} is no qcow2 image; if it is raw, write format = "raw" for it in the spec' + NAMED,
    ),
    (
        "recorded vmdk",
        "vmdk",
        None,
        "raw",
        "{base} has the format vmdk; only qcow2 and raw are handled" + NAMED,
    ),
]


@pytest.mark.parametrize(
    ("recorded", "said", "magic", "outcome"),
    [pytest.param(*case, id=name) for name, *case in FORMATS],
)
def test_the_format_of_a_backing_file(tmp_path, recorded, said, magic, outcome):
    base = tmp_path / "base.img"
    create(base) if magic == "qcow2" else raw(base)
    top = create(tmp_path / "top.img", "base.img", recorded)
    formats = {"base": said} if said else {}
    if outcome in ("qcow2", "raw"):
        assert [image.format for image in walk(top, **formats)] == [outcome, "qcow2"]
    else:
        assert refusal(top, **formats) == outcome.format(base=base, top=top)


def test_a_forged_header_in_a_raw_image_is_not_followed(tmp_path):
    base = create(tmp_path / "base.img", "/etc/passwd", "raw")
    top = create(tmp_path / "top.img", "base.img", "raw")

    assert walk(top).paths == (base, top)


def test_a_link_in_the_same_folder_is_followed(tmp_path):
    base, mon = create(tmp_path / "base"), create(tmp_path / "mon", "base")
    (tmp_path / "current").symlink_to("mon")

    assert walk(tmp_path / "current").paths == (base, mon)


def test_a_link_from_another_folder_means_another_backing_file(tmp_path):
    """QEMU starts a relative backing name from the folder of the link."""
    (tmp_path / "images").mkdir()
    create(tmp_path / "images" / "base")
    mon = create(tmp_path / "images" / "mon", "base")
    (tmp_path / "current").symlink_to("images/mon")

    assert refusal(tmp_path / "current") == (
        f"{tmp_path}/current is a symbolic link to {mon}, and its backing name 'base' means "
        f"another file from there; list {mon} instead"
    )


def test_a_link_from_another_folder_is_fine_where_names_are_absolute(tmp_path):
    (tmp_path / "images").mkdir()
    base = create(tmp_path / "images" / "base")
    mon = create(tmp_path / "images" / "mon", str(base))
    (tmp_path / "current").symlink_to("images/mon")

    assert walk(tmp_path / "current").paths == (base, mon)


def test_a_link_as_backing_file_is_resolved(tmp_path):
    base = create(tmp_path / "base-1.0")
    (tmp_path / "base").symlink_to("base-1.0")
    mon = create(tmp_path / "mon", "base")

    assert walk(mon).paths == (base, mon)


def test_a_file_name_that_is_no_text_is_told(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9")
    create(tmp_path / "plain").rename(path)

    assert refusal(path) == (f"{str(path)!r}: the file name is no UTF-8; rename the file")


def test_a_backing_name_with_half_a_character_is_told(tmp_path):
    name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "/x"}})
    tue = create(tmp_path / "tue", "json:" + name.replace("/x", "/\\ud800"))

    assert str(tue) in refusal(tue)


def test_qemu_confirms_an_honest_chain(tmp_path):
    raw(tmp_path / "base", 3 * MIB)
    create(tmp_path / "mon", "base", "raw")
    create(tmp_path / "tue", f"file:{tmp_path}/mon")

    images.confirm(walk(tmp_path / "tue"))
    images.confirm(Chain())


def test_qemu_is_not_asked_where_it_would_guess(tmp_path, monkeypatch):
    create(tmp_path / "base")
    chain = walk(create(tmp_path / "mon", "base", None))
    monkeypatch.setenv("PATH", "")

    images.confirm(chain)

    assert [image.recorded_format for image in chain] == [None, None]


def test_another_chain_than_qemu_reads_is_told(tmp_path):
    base = create(tmp_path / "base")
    mon = create(tmp_path / "mon", "base")
    tue = create(tmp_path / "tue", "mon")
    chain = Chain((walk(base)[0], walk(tue)[2]))

    with pytest.raises(ObserveError) as raised:
        images.confirm(chain)

    assert str(raised.value) == (
        f"QEMU reads the chain of {tue} as {base} <- {mon} <- {tue}, its headers say base <- tue*"
    )


def test_an_image_that_qemu_cannot_open_is_told(tmp_path):
    path = create(tmp_path / "disk")
    content = bytearray(path.read_bytes())
    content[40:48] = (1 << 63).to_bytes(8, "big")
    path.write_bytes(content)

    with pytest.raises(ToolFailed, match=r"^qemu-img info: "):
        images.confirm(walk(path))


def test_a_scan_finds_overlays_of_any_name_and_passes_over_the_rest(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    base = create(one / "base.qcow2")
    other = raw(one / "other.img")
    overlays = [
        create(one / "a.qcow2", "base.qcow2"),
        create(one / "b.bak", str(base)),
        create(one / ".hidden", "./base.qcow2"),
        create(two / "d", "../one/base.qcow2"),
        create(two / "e.iso", f"file:{base}"),
        create(two / "f", 'json:{"driver":"qcow2","file.filename":"' + str(base) + '"}'),
    ]
    on_raw = create(two / "g", str(other), "raw")
    (one / "broken").write_bytes(b"QFI\xfb" + b"\xff" * 100)
    (one / "cut").write_bytes(overlays[0].read_bytes()[:80])
    (one / "empty").touch()
    create(one / "dangling", "gone")
    create(one / "network", "nbd://127.0.0.1:1/x", "raw")
    os.mkfifo(one / "fifo")
    (one / "nowhere").symlink_to("gone")
    (one / "folder.qcow2").mkdir()
    (two / "link").symlink_to(overlays[0])

    found = scan([one, two, tmp_path / "missing"], images.Trust(), Lookups())

    assert found.ordered(images.identity(base)) == tuple(sorted(overlays))
    assert found.ordered(images.identity(other)) == (on_raw,)
    assert all(found.ordered(images.identity(one)) == () for one in overlays)


def test_a_scan_reads_every_file_in_its_folders_wherever_images_may_be_opened(tmp_path):
    """A domain that the spec does not name may have its overlays in a folder of its own."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    base = create(ours / "base.qcow2")
    other = create(theirs / "w.qcow2", str(base))

    found = scan([ours, theirs], images.Trust(roots=images.Roots([str(ours)])), Lookups())

    assert found.ordered(images.identity(base)) == (other,)


def test_a_scan_passes_over_a_hostile_name(tmp_path):
    base = create(tmp_path / "base")
    mon = create(tmp_path / "mon", "base")
    create(tmp_path / "long", "/" + "x" * 1000, "raw")
    create(tmp_path / "half", 'json:{"driver":"qcow2","file.filename":"/\\ud800"}')

    found = scan([tmp_path], images.Trust(), Lookups())

    assert found.ordered(images.identity(base)) == (mon,)


def test_a_file_has_an_identity_under_every_name(tmp_path):
    path = create(tmp_path / "a")
    os.link(path, tmp_path / "b")
    (tmp_path / "c").symlink_to("a")

    found = {images.identity(tmp_path / name) for name in "abc"}

    assert (len(found), images.identity(tmp_path / "d")) == (1, None)


def test_a_link_that_is_changed_between_two_looks_at_it_leads_nowhere(tmp_path, monkeypatch):
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed, secret):
        folder.mkdir()
        subprocess.run(["qemu-img", "create", "-qfqcow2", folder / "a", "1M"], check=True)
    require_allowed = images.Trust.require_allowed

    def switched(trust, where):
        require_allowed(trust, where)
        allowed.rename(tmp_path / "away")
        allowed.symlink_to(secret)

    monkeypatch.setattr(images.Trust, "require_allowed", switched)
    trust = images.Trust(roots=images.Roots([str(allowed)]))
    with pytest.raises(ObserveError) as refused:
        trust.image(allowed / "a", None, Lookups())

    assert str(refused.value).endswith("cannot be read: Too many levels of symbolic links")


def test_an_empty_file_is_not_taken_for_raw(tmp_path):
    """As a full disk or a lost file leaves it."""
    path = tmp_path / "x.qcow2"
    path.touch()
    with pytest.raises(ObserveError, match=r"x.qcow2 is empty \(0 bytes\).*restore the file"):
        images.read_image(path, "qcow2")
