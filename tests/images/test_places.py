"""Where images lie: mounts, full filesystems, files that nobody may change, and long names."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.apply import options
from reconciler.engine.around import Around
from reconciler.engine.state import StateFolder, waiting
from reconciler.tools import files, images, process, qemuimg, quarantine, views
from reconciler.tools.quarantine import FOLDER
from tests.images.cases import BIG_P, B, P, X
from tests.images.disks import (
    Disk,
    Outcome,
    assert_done,
    assert_quiet,
    command,
    folder_facts,
    tool,
)


@contextmanager
def mounted(*argv: str | Path) -> Iterator[None]:
    """``mount ARGV``, whose last word is the folder, for a while."""
    if subprocess.run(["mount", *argv], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", argv[-1]], check=True)


def test_nothing_is_renamed_across_a_bind_mount_of_one_filesystem(disk: Disk) -> None:
    there, folder = disk.root / "there", disk.images / "fast"
    there.mkdir()
    folder.mkdir()
    with mounted("--bind", there, folder):
        disk.add("b", B)
        disk.add("p", BIG_P, on="b")
        disk.add("x", X, on="p", style="absolute", folder="fast")
        disk.keep()
        disk.spec("b <- x", active="fast/x.qcow2")
        outcome = disk.apply()

        # x into p is the cheaper way, and ends in a rename from one mount to the other
        assert outcome.code == 0, outcome.err
        assert "pull" in outcome.err
        assert_done(disk, "b <- x", current="x", gone=["p"])
        assert_quiet(disk)


@pytest.fixture
def small(disk: Disk) -> Iterator[Disk]:
    """A disk whose images lie on a filesystem of 40 MiB."""
    with mounted("-t", "tmpfs", "-o", "size=40M", "tmpfs", disk.images):
        disk.chain({"b": "4M:A 12M:-", "p": "10M:P 6M:-", "x": "8M:X 8M:-"})
        yield disk


def fill(disk: Disk) -> None:
    """Leave no byte free."""
    free = os.statvfs(disk.images)
    with (disk.images / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
    disk.keep()

    assert os.statvfs(disk.images).f_bavail == 0


@pytest.mark.parametrize(
    ("desired", "steps", "gone"),
    [
        ("b <- p", ["commit x into p, 8192k", "remove x"], ["x"]),
        ("b <- x", ["commit x into p, 8192k", "rename p to x"], ["p"]),
    ],
)
def test_on_a_full_filesystem_the_merge_that_needs_no_room_is_taken(
    small: Disk, desired: str, steps: list[str], gone: list[str]
) -> None:
    small.spec(desired, active="x.qcow2")
    before = small.plan().steps
    fill(small)
    planned = small.plan().steps
    outcome = small.apply()

    assert "pull into x down to b, 2048k" in before
    assert planned == steps
    assert outcome.code == 0, outcome.err
    assert "for which there is no room" in outcome.out
    assert_done(small, desired, current="x", gone=gone)


def test_compressed_clusters_are_not_written_in_place(small: Disk) -> None:
    small.path("p").unlink()
    small.path("x").unlink()
    small.add("p", "10M:P 6M:-", on="b", compression="zlib")
    small.add("x", "8M:X 8M:-", on="p")
    small.spec("b <- p", active="x.qcow2")
    fill(small)
    outcome = small.plan()

    assert outcome.error is not None
    assert "free some room" in outcome.error


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody may change the file *path* meanwhile."""
    if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("nothing can be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize(("below", "above"), [(P, X), ("64k:P 448k:-", BIG_P)])
def test_an_immutable_image_is_told_before_the_first_change(
    disk: Disk, below: str, above: str
) -> None:
    disk.chain({"b": B, "p": below, "x": above})
    disk.spec("b <- x", active="x.qcow2")
    with immutable(disk.path("p")):
        outcome = disk.apply()
    unchanged = folder_facts(disk.images) == disk.before
    again = disk.apply()

    assert outcome.code == 1
    assert f"{disk.path('p')} cannot be changed: it is immutable (lsattr shows an i)" in outcome.err
    assert f"chattr -i -a '{disk.path('p')}'" in outcome.err
    assert unchanged
    assert again.code == 0, again.err
    assert_done(disk, "b <- x", current="x", gone=["p"])


@contextmanager
def broken_quarantine(folder: Path, kind: str) -> Iterator[Path]:
    """What lies where the quarantine of *folder* would be; nothing can be moved there."""
    place = folder / FOLDER
    with ExitStack() as held:
        if kind == "file":
            place.touch()
        elif kind == "link":
            elsewhere = folder.parent / "elsewhere"
            elsewhere.mkdir()
            place.symlink_to(elsewhere)
        else:
            place.mkdir()
            held.enter_context(mounted("-t", "tmpfs", "tmpfs", place))
        yield place
    if kind == "mount":
        place.rmdir()
    else:
        place.unlink()


QUARANTINES = {
    "file": "is not a folder",
    "link": "is a symbolic link",
    "mount": "is a mount or a subvolume of its own",
}


@pytest.mark.parametrize("kind", QUARANTINES)
def test_a_quarantine_that_cannot_be_used_is_told_before_the_first_change(
    disk: Disk, kind: str
) -> None:
    disk.chain({"b": B, "x": X})
    disk.spec("b <- y", active="x.qcow2", discard=["x"])
    with broken_quarantine(disk.images, kind) as place:
        before = folder_facts(disk.images)
        planned, applied = disk.plan(), disk.apply()

        told = f"{place} {QUARANTINES[kind]}"
        notes = planned.data["domains"][0]["disks"][0]["notes"]
        assert any(note.startswith(f"apply will be refused: {told}") for note in notes)
        assert (applied.code, told in applied.err) == (1, True), applied
        assert folder_facts(disk.images) == before
    assert disk.apply().code == 0
    assert_done(disk, "b <- y", current="b", gone=["x"])


def left_behind(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback whose last step failed: x was discarded, and has not gone."""
    disk.chain({"b": B, "x": X})
    disk.spec("b <- y", active="x.qcow2", discard=["x"])

    def put(path: Path, *_: object) -> Path:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(quarantine, "put", put)
        assert disk.apply().code == 1
    disk.spec("b <- y <- z", discard=["x"])
    assert disk.stack("y") == "b <- y"
    assert disk.path("x").exists()


@pytest.mark.parametrize("kind", [*QUARANTINES, "immutable"])
def test_a_leftover_that_cannot_go_stays_and_keeps_nothing_else_from_being_done(
    disk: Disk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(disk, monkeypatch)
    there = immutable(disk.path("x")) if kind == "immutable" else None
    with there or broken_quarantine(disk.images, kind):
        planned, applied = disk.plan(), disk.apply()
        again = disk.apply()

        assert (planned.steps, applied.code) == (["create z on y"], 0), applied
        why = QUARANTINES.get(kind, "it is immutable")
        for outcome in (planned, applied, again):
            assert "x.qcow2 was merged or discarded, and stays on disk" in outcome.out
            assert why in " ".join(outcome.out.split())
        assert again.code == 0
        assert disk.path("x").exists()
    assert disk.plan().steps == ["remove x"]
    assert disk.apply().code == 0
    assert_done(disk, "b <- y <- z", current="b", gone=["x"])


def test_a_leftover_that_nobody_could_tell_cannot_go_stays_for_the_next_apply(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(disk, monkeypatch)

    def put(path: Path, *_: object) -> Path:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(quarantine, "put", put)
        applied = disk.apply()

    assert "x.qcow2 stays on disk: " in applied.out + applied.err
    assert disk.stack("z") == "b <- y <- z"
    assert disk.apply().code == 0
    assert_done(disk, "b <- y <- z", current="b", gone=["x"])


def test_leftovers_below_one_that_cannot_go_stay_with_it_for_the_next_apply(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten, they would be foreign overlays on the active image, and nothing would go on."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b", discard=["p", "x"], active="x.qcow2")
    put = quarantine.put

    def moved_and_failed(path: Path, *rest: object) -> Path:
        put(path, *rest)  # type: ignore[arg-type]
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def failed(path: Path, *_: object) -> Path:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    for broken in (failed, moved_and_failed):
        with monkeypatch.context() as patch:
            patch.setattr(quarantine, "put", broken)
            disk.apply()

    assert disk.apply().code == 0
    assert_done(disk, "b", current="b", gone=["p", "x"])


@pytest.mark.parametrize("length", [238, 255])
def test_a_new_image_may_have_the_longest_name(disk: Disk, length: int) -> None:
    name = "n" * (length - 6) + ".qcow2"
    disk.chain({"b": B})
    disk.spec(f"b <- {name}")
    outcome = disk.apply()

    assert outcome.code == 0, outcome.err
    assert disk.path(name).exists()
    assert_quiet(disk)


@pytest.mark.parametrize("length", [238, 250, 255])
def test_a_long_name_goes_to_quarantine_and_comes_back_from_it(disk: Disk, length: int) -> None:
    name = "n" * (length - 6) + ".qcow2"
    disk.chain({"b": B, name: X})
    disk.spec("b <- y", active=name, discard=[name])
    outcome = disk.apply()
    kept = command("gc", "--json", "--state-dir", disk.state, disk.spec_file).data["kept"]
    emptied = command("gc", "--all", "--state-dir", disk.state, disk.spec_file)

    assert outcome.code == 0, outcome.err
    assert [Path(one["was"]) for one in kept] == [disk.path(name)]
    assert emptied.code == 0
    assert list((disk.images / FOLDER).iterdir()) == []


@pytest.mark.parametrize("length", [127, 128, 143])
def test_where_names_are_shorter_those_that_are_made_up_fit_too(
    disk: Disk, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on eCryptfs, which takes 143 bytes; no filesystem of this kernel takes fewer than 255."""
    named: list[str] = []
    for home, name in ((files, "rename_new"), (files, "rename_over")):
        original = getattr(home, name)

        def watched(
            source: Path, target: Path, *, original: Any = original, **options: Any
        ) -> None:
            named.extend([source.name, target.name])
            original(source, target, **options)

        monkeypatch.setattr(home, name, watched)
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    name = "n" * (length - 6) + ".qcow2"
    disk.chain({"b": B, "x": X})
    disk.spec(f"b <- {name}", active="x.qcow2", discard=["x"])
    created = disk.apply()
    disk.spec("b <- y", discard=[name])
    discarded = disk.apply()

    assert (created.code, discarded.code) == (0, 0), created.err + discarded.err
    assert name in named
    assert max(len(os.fsencode(one)) for one in named) <= 143


def test_a_name_that_the_filesystem_does_not_take_is_refused(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    name = "n" * 138 + ".qcow2"
    disk.chain({"b": B})
    disk.spec(f"b <- {name}")
    planned = disk.plan()

    assert planned.error == (
        f"{name} has 144 bytes, and a file name in {disk.images} has at most 143; "
        "give it a shorter name"
    )


def deep(disk: Disk, size: int) -> Path:
    """A folder whose path has *size* bytes; it is made step by step, as no longer path is taken."""
    folder = disk.images
    while (left := size - len(os.fsencode(folder))) > 0:
        folder /= "d" * (left - 1 if left <= 200 else 100)
        folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("size", "relative", "error"),
    [
        (1000, False, None),
        (
            1017,
            False,
            "create x on p: the path of the backing file has 1025 bytes, and a qcow2 header",
        ),
        (1017, True, None),
        (4087, True, "the path of x.qcow2 has 4111 bytes with its folders (while it is created)"),
    ],
    ids=["a long path", "no room in a header", "a short relative name", "no room in the kernel"],
)
def test_a_path_that_never_fits_is_refused(
    disk: Disk, size: int, relative: bool, error: str | None
) -> None:
    folder = deep(disk, size)
    spec = disk.spec_file
    tool("qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M", cwd=folder)
    words = ("-F", "qcow2", "-b", "a.qcow2" if relative else disk.add("b", B))
    tool("qemu-img", "create", "-q", "-f", "qcow2", *words, "p.qcow2", cwd=folder)
    below = "a.qcow2" if relative else str(disk.path("b"))
    spec.write_text(
        f'version = 1\n[defaults]\ndirectory = "{folder}"\n[domains.vm.disks.vda]\n'
        f'chain = ["{below}", "p.qcow2", "x.qcow2"]\n'
    )
    planned = disk.plan()

    assert (planned.error or "").startswith(error or "")
    assert (planned.error is None) == (error is None)
    assert disk.apply().code == (0 if error is None else 1)


def discarded(disk: Disk) -> Path:
    """A disk whose image x lies in quarantine; its place there."""
    disk.chain({"b": B, "x": X}, style="absolute")
    disk.spec("b <- y", active="x.qcow2", discard=["x"])
    assert disk.apply().code == 0
    return next((disk.images / FOLDER).iterdir())


def test_gc_keeps_an_image_that_an_overlay_stands_on(disk: Disk) -> None:
    place = discarded(disk)
    over = ["-F", "qcow2", "-b", place]
    tool("qemu-img", "create", "-q", "-f", "qcow2", *over, disk.images / "look.qcow2")
    outcome = command("gc", "--all", "--state-dir", disk.state, disk.spec_file)

    assert outcome.out == f"in use  {place}  {disk.images / 'look.qcow2'} stands on it\n"
    assert place.exists()


@pytest.mark.parametrize("words", [[], ["-r"]])
def test_gc_keeps_an_image_that_a_qemu_has_open(disk: Disk, words: list[str]) -> None:
    place = discarded(disk)
    guest = subprocess.Popen(
        ["qemu-io", *words, "-f", "qcow2", place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert guest.stdin
    assert guest.stdout
    guest.stdin.write(b"length\n")
    guest.stdin.flush()
    guest.stdout.readline()
    outcome = command("gc", "--all", "--state-dir", disk.state, disk.spec_file)
    guest.communicate(b"quit\n")
    after = command("gc", "--all", "--state-dir", disk.state, disk.spec_file)

    assert outcome.out == f"in use  {place}  a QEMU has it open\n"
    assert after.out.startswith("removed")
    assert not place.exists()


def collect(disk: Disk) -> Outcome:
    return command("gc", "--all", "--state-dir", disk.state, disk.spec_file)


def test_gc_keeps_an_image_that_a_domain_has(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    place = discarded(disk)
    monkeypatch.setattr(Around, "sources", lambda _: iter([(place, "web:vda")]))

    assert collect(disk).out == f"in use  {place}  web:vda has it as its disk\n"
    assert place.exists()


def test_gc_removes_nothing_where_nobody_can_tell_what_domains_have(disk: Disk) -> None:
    place = discarded(disk)
    uri = f"qemu+unix:///system?socket={disk.root}/none"
    disk.spec("b <- y", connection=uri)
    outcome = collect(disk)

    assert outcome.out.startswith(f"in use  {place}  a domain may use it: {uri}"), outcome
    assert place.exists()


def test_gc_keeps_an_image_that_an_overlay_of_another_spec_stands_on(disk: Disk) -> None:
    place = discarded(disk)
    other = disk.root / "other" / "z.qcow2"
    other.parent.mkdir()
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", place, other)
    spec = disk.root / "other.toml"
    spec.write_text(
        f"version = 1\n[domains.z.disks.vda]\nchain = ['{place}', '{other}']\nactive = '{other}'"
    )
    assert command("apply", "-y", "--state-dir", disk.state, spec).code == 0

    assert collect(disk).out == f"in use  {place}  {other} stands on it\n"
    assert place.exists()


def of_another_disk(disk: Disk, place: Path) -> Path:
    """The spec of a disk whose active image is *place*."""
    spec = disk.root / "other.toml"
    spec.write_text(
        f"version = 1\n[domains.z.disks.vda]\nchain = ['{disk.path('b')}', '{place}']\n"
    )
    return spec


def test_gc_keeps_the_active_image_of_a_disk_of_another_spec(disk: Disk) -> None:
    place = discarded(disk)
    spec = of_another_disk(disk, place)
    assert command("apply", "-y", "--state-dir", disk.state, spec).code == 0

    assert collect(disk).out == f"in use  {place}  it is in the chain of z:vda\n"
    assert place.exists()


def test_gc_keeps_an_image_that_the_spec_lists(disk: Disk) -> None:
    place = discarded(disk)
    spec = of_another_disk(disk, place)
    outcome = command("gc", "--all", "--state-dir", disk.state, spec)

    assert outcome.out == f"in use  {place}  the spec of z:vda lists it\n"
    assert place.exists()


def test_gc_names_the_file_in_quarantine_and_not_the_one_that_was_put_in_its_place(
    disk: Disk,
) -> None:
    place = discarded(disk)
    shutil.copy(place, disk.path("x"))
    words = ("gc", "--all", "--state-dir", disk.state, disk.spec_file)
    told, done = command(*words, "--dry-run"), command(*words)

    for outcome, word in ((told, "would remove"), (done, "removed")):
        assert outcome.out.startswith(f"{word}  {place}  "), outcome
        assert outcome.out.endswith(f"  (was {disk.path('x')})\n")
    assert not place.exists()
    assert disk.read("x") == disk.golden["x"]


def test_gc_waits_for_who_works_in_the_folder(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    place = discarded(disk)
    monkeypatch.setattr(options, "PATIENCE", 0.1)
    states = StateFolder(disk.state)
    with states.folders_locked([disk.images], waiting(0)):
        outcome = collect(disk)

    assert outcome.code == 1
    assert f"is working on {disk.images}" in outcome.err
    assert place.exists()
    assert collect(disk).code == 0
    assert not place.exists()


def test_gc_finds_the_quarantine_beside_images_that_the_spec_no_longer_lists(disk: Disk) -> None:
    place = discarded(disk)
    disk.spec("b <- y")
    text = disk.spec_file.read_text().replace("/images", "/elsewhere")
    disk.spec_file.write_text(text)

    assert collect(disk).out.startswith("removed")
    assert not place.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs tools as somebody else")
def test_every_tool_that_reads_an_image_runs_as_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = process.run
    users: dict[str, object] = {}

    def watched(argv: Sequence[str | Path], **options: Any) -> tuple[int, bytes]:
        users[str(argv[1])] = options.get("user")
        return run(argv, **options)

    with tempfile.TemporaryDirectory() as name:  # not below a folder that others may not enter
        folder = Path(name)
        folder.chmod(0o755)
        disk = Disk(folder)
        disk.add("b", B, compression="zlib")
        disk.add("x", X, on="b")
        for path in disk.paths.values():
            os.chown(path, 1234, 1234)
        monkeypatch.setattr(process, "run", watched)
        chain = images.walk(disk.path("x"), images.Trust()).images
        digest = views.digest(chain)
        qemuimg.check(disk.path("x"))
        images.confirm(images.walk(disk.path("x"), images.Trust()))
        raw = hashlib.sha256(f"{512 * 1024}\n".encode())
        whole = disk.read("x")
        for at in range(0, len(whole), views.BLOCK):
            raw.update(f"{at}:".encode() + whole[at : at + views.BLOCK])

    assert users == dict.fromkeys(["map", "convert", "check", "info"], (1234, 1234))
    assert digest == raw.hexdigest()


def test_gc_keeps_what_a_domain_outside_of_the_allowed_folders_stands_on(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = discarded(disk)
    rescue = disk.root / "else" / "rescue.qcow2"
    rescue.parent.mkdir()
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", place, rescue)
    monkeypatch.setattr(Around, "sources", lambda _: iter([(rescue, "web:vda")]))
    config = disk.root / "config.toml"
    config.write_text(f'allowed_roots = ["{disk.images}"]\n')
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(config))

    assert collect(disk).out == f"in use  {place}  {rescue} stands on it\n"
    assert place.exists()
