"""
Who may stand on an image, where that is hard to tell.

Files that cannot be read, links, and images that lie in quarantine.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.around import Around
from reconciler.model.domain import Domain, Source
from reconciler.tools import files, hypervisor
from tests.images.cases import B, P, Q, X
from tests.images.disks import (
    NOBODY,
    Disk,
    Outcome,
    command,
    folder_facts,
    process,
    quarantined,
    tool,
    unprivileged,
    view,
)


def of_root(disk: Disk, content: bytes | None = None) -> Path:
    """A file of root beside the images that no other user can read; an overlay on p by default."""
    path = disk.images / "y.qcow2"
    if content is None:
        words = ("-F", "qcow2", "-b", "p.qcow2")
        tool("qemu-img", "create", "-q", "-f", "qcow2", *words, path)
    else:
        path.write_bytes(content)
    path.chmod(0o600)
    return path


# (id, the spec that is wanted, its options, the step that is refused)
HARM = [
    ("a dropped image would be removed", "b <- x", {}, "remove p"),
    ("the active image would be committed", "b <- p", {}, "commit x down into p"),
    ("the active image would be discarded", "b <- p <- n", {"discard": ["x"]}, "remove x"),
]


@pytest.mark.parametrize(
    ("chain", "more", "step"), [pytest.param(*case, id=name) for name, *case in HARM]
)
def test_a_file_that_cannot_be_read_may_stand_on_every_image_beside_it(
    theirs: Disk, chain: str, more: dict[str, list[str]], step: str
) -> None:
    other = of_root(theirs)
    before = view(other)
    theirs.spec(chain, active="x.qcow2", **more)

    planned = unprivileged(theirs, "plan", "--json")
    outcome = unprivileged(theirs, "apply", "-y")

    assert planned.error is not None
    assert planned.error.startswith(f"{step}: {other} cannot be read, so an overlay that stands on")
    assert planned.error.endswith("run virt-chain as root, or move it to another folder")
    assert outcome.code == 1
    assert view(other) == before
    assert theirs.read("x") == theirs.golden["x"]


def test_steps_that_change_no_view_go_on_beside_a_file_that_cannot_be_read(theirs: Disk) -> None:
    """The daily case in /var/lib/libvirt/images: new overlays beside images of root."""
    of_root(theirs)
    theirs.spec("b <- p <- x <- n", active="x.qcow2")
    snapshot = unprivileged(theirs, "apply", "-y")
    theirs.spec("b <- p <- x <- n", sizes={"n": "8M"})
    grown = unprivileged(theirs, "apply", "-y")

    assert (snapshot.code, grown.code) == (0, 0), snapshot.err + grown.err
    assert theirs.stack("n") == "b <- p <- x <- n"


@pytest.mark.parametrize(
    "content", [b"", b"0123456789" * 4], ids=["an empty file", "too small for a header"]
)
def test_what_is_too_small_to_be_an_overlay_may_be_unreadable(theirs: Disk, content: bytes) -> None:
    of_root(theirs, content)
    theirs.spec("b <- x", active="x.qcow2")
    outcome = unprivileged(theirs, "apply", "-y")

    assert outcome.code == 0, outcome.err
    assert theirs.stack("x") == "b <- x"
    assert not theirs.path("p").exists()


def test_a_folder_that_cannot_be_listed_may_hold_overlays(theirs: Disk) -> None:
    """As /var/lib/libvirt/images is on Debian: mode 0711, of root."""
    theirs.images.chmod(0o311)
    theirs.spec("b <- x", active="x.qcow2")
    planned = unprivileged(theirs, "plan", "--json")
    theirs.images.chmod(0o755)

    assert planned.error is not None
    assert planned.error.startswith(f"remove p: the folder {theirs.images} cannot be read")
    assert planned.error.endswith("move the images elsewhere")


def test_once_it_can_be_read_its_backing_file_stays(theirs: Disk) -> None:
    other = of_root(theirs)
    before = view(other)
    other.chmod(0o644)
    theirs.spec("b <- x", active="x.qcow2")
    outcome = unprivileged(theirs, "apply", "-y")

    assert outcome.code == 0, outcome.err
    assert "p stays on disk: y.qcow2 stands on it" in outcome.out
    assert view(other) == before


def test_gc_keeps_an_image_beside_a_file_that_cannot_be_read(theirs: Disk) -> None:
    theirs.spec("b <- p <- n", discard=["x"], active="x.qcow2")
    discarded = unprivileged(theirs, "apply", "-y")
    put = theirs.images / next(iter(quarantined(theirs)))
    other = of_root(theirs).rename(put.with_name("y.qcow2"))
    words = ("gc", "--all", "--state-dir", theirs.state, theirs.spec_file)
    emptied = process(*words, user=NOBODY)
    other.unlink()
    again = process(*words, user=NOBODY)

    assert (discarded.code, emptied.code, again.code) == (0, 0, 0), (emptied.err, again.err)
    assert f"in use  {put}  {other} cannot be read and may stand on it" in emptied.out
    assert again.out.startswith(f"removed  {put}  ")
    assert not put.exists()


class Killed(BaseException):
    """The process ends here."""


def killed(_: Path) -> bool:
    raise Killed


def test_a_leftover_stays_beside_a_file_that_cannot_be_read(
    theirs: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apply that was killed before it removed what it had merged goes on without doing so."""
    theirs.spec("b <- x", active="x.qcow2")
    with monkeypatch.context() as patch:
        (tmp_path / "config.toml").touch(mode=0o600)  # root trusts its own config alone
        patch.setenv("VIRT_CHAIN_CONFIG", str(tmp_path / "config.toml"))
        patch.setattr(files, "opened_by_other", killed)
        with pytest.raises(Killed):
            theirs.apply()
    for path in theirs.state.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    other = of_root(theirs)
    outcome = unprivileged(theirs, "apply", "-y")

    assert outcome.code == 0, outcome.err
    assert theirs.stack("x") == "b <- x"
    assert {path.name for path in theirs.images.iterdir()} >= {"p.qcow2", other.name}


def test_an_overlay_behind_a_link_keeps_what_it_stands_on(disk: Disk) -> None:
    """QEMU takes the link, too: it starts a relative name from the folder of the link."""
    disk.chain({"b": B, "p": P, "x": X})
    store = disk.root / "store"
    store.mkdir()
    words = ("-u", "-F", "qcow2", "-b", "p.qcow2", store / "y.qcow2", "1M")
    tool("qemu-img", "create", "-q", "-f", "qcow2", *words)
    other = disk.images / "y.qcow2"
    other.symlink_to(store / "y.qcow2")
    before = view(other)
    disk.spec("b <- x", active="x.qcow2")
    outcome = disk.apply()

    assert outcome.code == 0, outcome.err
    assert "p stays on disk: y.qcow2 stands on it" in outcome.out
    assert view(other) == before


def test_an_overlay_behind_a_link_keeps_what_lies_far_below_it(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    store = disk.root / "store"
    store.mkdir()
    below = disk.path("p")
    for name in ("v.qcow2", "w.qcow2"):
        words = ("-F", "qcow2", "-b", below, store / name)
        tool("qemu-img", "create", "-q", "-f", "qcow2", *words)
        below = store / name
    other = disk.images / "y.qcow2"
    other.symlink_to(below)
    before = view(other)
    disk.spec("b <- x", active="x.qcow2")
    outcome = disk.apply()

    assert outcome.code == 0, outcome.err
    assert view(other) == before


def test_a_link_that_leads_nowhere_stands_on_nothing(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    (disk.images / "gone.qcow2").symlink_to("/nowhere/y.qcow2")
    (disk.images / "loop.qcow2").symlink_to("loop.qcow2")
    (disk.images / "kernel").symlink_to("/proc/self/environ")
    disk.spec("b <- x", active="x.qcow2")

    assert disk.apply().code == 0
    assert not disk.path("p").exists()
    assert disk.read("x") == disk.golden["x"]


def test_an_overlay_that_only_qemu_can_read_keeps_what_it_stands_on(disk: Disk) -> None:
    """QEMU takes 65,536 internal snapshots; a header with more than 4,096 is refused by us."""
    disk.chain({"b": B, "p": P, "x": X})
    other = disk.images / "y.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.path("p"), other)
    content = bytearray(other.read_bytes())
    content[60:64] = (5000).to_bytes(4, "big")
    other.write_bytes(content)
    disk.spec("b <- x", active="x.qcow2")
    outcome = disk.apply()

    assert outcome.code == 0, outcome.err
    assert "p stays on disk: y.qcow2 stands on it" in outcome.out
    assert disk.path("p").exists()


def rolled_back(disk: Disk) -> Path:
    """A disk ``b <- p <- q <- y`` whose discarded image x, which stands on q, is in quarantine."""
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- p <- q <- y", discard=["x"], active="x.qcow2")
    assert disk.apply().code == 0
    return disk.images / next(iter(quarantined(disk)))


def told_of_quarantine(plan: Outcome) -> list[str]:
    notes: list[str] = plan.data["domains"][0]["disks"][0]["notes"]
    return [re.sub(r"\d{4}-\d\d-\d\d", "DAY", note) for note in notes if "quarantine" in note]


# (id, the chain that is wanted, its options, the image that is used up)
USED_UP = [
    ("it is removed", "b <- p <- y", {}, "q"),
    ("one further down is removed", "b <- q <- y", {}, "p"),
    ("it is committed into", "b <- p <- q", {}, "q"),
]


@pytest.mark.parametrize(
    ("chain", "more", "image"), [pytest.param(*case, id=name) for name, *case in USED_UP]
)
def test_a_plan_tells_which_image_in_quarantine_it_uses_up(
    disk: Disk, chain: str, more: dict[str, bool], image: str
) -> None:
    put = rolled_back(disk)
    disk.spec(chain, **more)
    planned, outcome = disk.plan(), disk.apply()

    assert outcome.code == 0, outcome.err
    assert put.exists()
    (told,) = told_of_quarantine(planned)
    below = f"x.qcow2, in quarantine until DAY, stands on {image}.qcow2"
    assert told == f"{below} and cannot be used any more after this"


def test_an_image_in_quarantine_counts_through_another_one_there(disk: Disk) -> None:
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- p <- y", discard=["q", "x"], active="x.qcow2")
    assert disk.apply().code == 0
    disk.spec("b <- y")

    told = told_of_quarantine(disk.plan())
    assert [note.partition(",")[0] for note in told] == ["q.qcow2", "x.qcow2"]
    assert all("stands on p.qcow2" in note for note in told)


def test_a_plan_that_leaves_what_is_in_quarantine_usable_says_nothing_of_it(disk: Disk) -> None:
    put = rolled_back(disk)
    disk.spec("b <- p <- q <- y <- z")
    planned = disk.plan()
    assert (disk.apply().code, told_of_quarantine(planned)) == (0, [])
    disk.spec("b <- p <- q <- z")
    planned = disk.plan()
    assert (disk.apply().code, told_of_quarantine(planned)) == (0, [])
    put.rename(disk.path("x"))

    assert disk.read("x") == disk.golden["x"]


def test_a_daemon_that_hangs_is_told_and_not_waited_for_for_ever(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections, as the kernel does for it, and says nothing."""
    monkeypatch.setattr(hypervisor, "SLOW", 0.1)
    monkeypatch.setattr(hypervisor, "ANSWER", 0.2)
    disk.chain({"b": B, "x": X})
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen(1)
        uri = f"qemu+unix:///session?socket={tmp_path}/mute"
        disk.spec("b <- x <- y", connection=uri)
        planned = disk.plan()

    told = f"{uri} has not answered for 0 s; is its daemon (libvirtd, virtqemud) stuck?"
    assert (planned.code, planned.error) == (1, told)


SILENT = "qemu+unix:///system?socket=/nowhere"


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_plan_tells_whose_guests_nobody_could_ask_about(disk: Disk, place: str) -> None:
    """libvirt is down: a guest of it that is off may have one of the images as its disk."""
    disk.chain({"b": B, "p": P, "x": X})
    other = (disk.images if place == "beside" else disk.root) / "o.qcow2"
    more = f'[domains.o.disks.vda]\nchain = ["{other}"]\nconnection = "{SILENT}"\n'

    def notes(chain: str, **keys: Any) -> list[str]:
        disk.spec(chain, active="x.qcow2", more=more, **keys)
        found: list[str] = disk.plan().data["domains"][0]["disks"][0]["notes"]
        return [note for note in found if "does not answer" in note]

    told = f"{SILENT} does not answer, so whether one of its guests uses these images in "
    wanted = [f"{told}{disk.images} is unknown"] if place == "beside" else []
    assert notes("b <- x") == wanted
    assert notes("b <- p <- y", discard=["x"]) == wanted
    assert notes("b <- p <- x <- y") == []


def test_an_overlay_on_an_image_that_cannot_be_read_may_stand_on_ours(theirs: Disk) -> None:
    """Between an overlay beside our images and one of them lies an image of root, elsewhere."""
    there = theirs.root / "there"
    there.mkdir()
    middle, top = there / "m.qcow2", theirs.images / "o.qcow2"
    below = theirs.path("p")
    for path in (middle, top):
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, path)
        below = path
    other = there / "other.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", other, "64k")
    for path in (there, top, other):
        os.chown(path, NOBODY, NOBODY)
    middle.chmod(0o600)
    more = f'[domains.o.disks.vda]\nchain = ["{other}"]\n'
    before = view(top)
    theirs.spec("b <- p", active="x.qcow2", more=more)

    outcome = unprivileged(theirs, "apply", "-y")

    assert outcome.code == 1
    assert f"{middle} cannot be read" in outcome.out
    assert view(top) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) * 2 // 3], id="cut"),
        pytest.param(lambda text: text.replace("version = 2", "version = 99"), id="newer"),
    ],
)
def test_where_a_state_file_tells_nothing_its_images_may_stand_on_ours(
    disk: Disk, damage: Callable[[str], str]
) -> None:
    """Folders of images that other specs have are known from the state files alone."""
    disk.chain({"b": B, "p": P, "x": X})
    there = disk.root / "there"
    there.mkdir()
    tool("qemu-img", "create", "-q", "-f", "qcow2", there / "y.qcow2", "64k")
    other = disk.root / "other.toml"
    other.write_text(f'version = 1\n[domains.o.disks.vda]\nchain = ["{there}/y.qcow2"]\n')
    assert command("apply", "-y", "--state-dir", disk.state, other).code == 0
    state = disk.state / "o.toml"
    state.write_text(damage(state.read_text()))
    disk.spec("b <- x", active="x.qcow2")

    planned = disk.plan()

    assert planned.error is not None
    assert planned.error.startswith(f"{state} cannot be used")
    assert disk.apply().code == 1
    assert disk.path("p").exists()


def test_gc_keeps_what_a_disk_of_the_spec_stands_on(disk: Disk) -> None:
    """The disk was never applied, so that no state file names its folder."""
    disk.chain({"b": B, "p": P, "x": X})
    disk.spec("b <- p <- n", discard=["x"], active="x.qcow2")
    assert disk.apply().code == 0
    put = disk.images / next(iter(quarantined(disk)))
    there = disk.root / "there"
    there.mkdir()
    onto = ("-u", "-F", "qcow2", "-b", put)
    tool("qemu-img", "create", "-q", "-f", "qcow2", *onto, there / "r.qcow2", "64k")
    listed = ", ".join(f'"{path}"' for path in (disk.path("b"), disk.path("p"), there / "r.qcow2"))
    disk.spec("b <- p <- n", more=f"[domains.r.disks.vda]\nchain = [{listed}]\n")

    emptied = command("gc", "--all", "--state-dir", disk.state, disk.spec_file)

    assert "r.qcow2 stands on it" in emptied.out
    assert put.exists()


OTHER = "[domains.ot.disks.vda]\nchain = [{}]\n"


@pytest.mark.parametrize("listed", ["x <- y", "b <- x <- y"])
def test_no_overlay_is_put_on_the_image_that_another_disk_of_the_spec_writes(
    disk: Disk, listed: str
) -> None:
    if listed.startswith("b"):
        disk.chain({"b": B, "x": X})
    else:
        disk.chain({"x": B})
    of_ot = ", ".join(f'"{name}.qcow2"' for name in listed.split(" <- ")[:-1])
    disk.spec(listed.removesuffix(" <- y"), target="ot.vda")
    assert disk.apply().code == 0
    disk.spec(listed, more=OTHER.format(of_ot))
    before = folder_facts(disk.images)

    refused = disk.apply()

    assert refused.code == 1
    assert "error: ot:vda writes to x.qcow2, its active image; take x.qcow2 off" in refused.out
    assert folder_facts(disk.images) == before


def test_an_image_is_shared_once_its_disk_goes_on_in_another(disk: Disk) -> None:
    disk.chain({"b": B})
    disk.spec("b <- y", more=OTHER.format('"b.qcow2", "x.qcow2"'), target="vm.vda")
    ot = disk.spec_file.read_text()
    disk.spec("b", target="ot.vda")
    assert disk.apply().code == 0
    disk.spec_file.write_text(ot)

    disk.apply()
    assert disk.apply().code == 0
    assert disk.stack("x") == "b <- x"
    assert disk.stack("y") == "b <- y"


@pytest.mark.parametrize("templates", [["b"], []])
def test_disks_share_lower_images_that_nobody_writes(disk: Disk, templates: list[str]) -> None:
    disk.chain({"b": B})
    entry = '{ file = "b.qcow2", template = true }' if templates else '"b.qcow2"'
    disk.spec("b <- y", templates=templates, more=OTHER.format(f'{entry}, "x.qcow2"'))

    assert disk.apply().code == 0
    assert disk.stack("x") == "b <- x"
    assert disk.stack("y") == "b <- y"
    assert disk.plan().steps == []


def test_no_overlay_is_put_on_the_image_that_a_disk_of_another_spec_writes(disk: Disk) -> None:
    """Its state file tells; both specs are applied with one state directory."""
    disk.chain({"b": B, "x": X})
    disk.spec("b <- x", target="ot.vda")
    assert disk.apply().code == 0
    disk.spec("b <- x <- y")
    before = folder_facts(disk.images)

    refused, adopted = disk.apply(), command(*adopting(disk, "x"))

    past = f"mv {disk.state}/ot.toml {disk.state}/ot.toml.old"
    assert refused.code == 1
    assert "error: ot:vda writes to x.qcow2, its active image; take x.qcow2 off" in refused.out
    assert f"where ot:vda was renamed or is gone: {past}" in refused.out
    assert adopted.code == 1
    assert f"ot:vda has {disk.path('x')} as its image, or lists it" in adopted.err
    assert past in adopted.err
    assert folder_facts(disk.images) == before


def adopting(disk: Disk, name: str) -> tuple[str | Path, ...]:
    spec = ("--spec", disk.spec_file, "--state-dir", disk.state)
    return ("adopt", "-y", "vm:vda", disk.path(name), *spec)


def test_nothing_is_merged_into_the_image_that_a_disk_of_another_spec_writes(disk: Disk) -> None:
    disk.chain({"b": B, "p": P})
    disk.spec("b <- p", target="ot.vda")
    assert disk.apply().code == 0
    disk.add("x", X, on="p")
    disk.spec("b <- x", active="x.qcow2")

    assert "pull" in disk.plan().steps[0]  # p is left as it is
    disk.spec("b <- p", active="x.qcow2")
    refused = disk.apply()

    assert refused.code == 1
    assert "ot:vda" in refused.out
    assert disk.read("p") == disk.golden["p"]


def test_a_disk_whose_domain_got_another_name_goes_on(disk: Disk) -> None:
    """The state file of the old name stays behind."""
    disk.chain({"b": B, "x": X})
    disk.spec("b <- x", target="ot.vda")
    assert disk.apply().code == 0
    disk.spec("b <- x")
    assert disk.apply().code == 0
    disk.spec("b <- x <- y")
    assert disk.apply().code == 0
    disk.spec("b <- y")

    assert disk.apply().code == 0
    assert disk.stack("y") == "b <- y"
    assert (disk.state / "ot.toml").exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_no_overlay_is_put_on_the_image_that_a_domain_in_no_spec_writes(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    disk.chain({"b": B, "x": X})
    source = Source("file", disk.path("x"), read_only=read_only)
    domain = Domain("web", "shut-off", persistent={"sda": source})
    monkeypatch.setattr(Around, "of", lambda _: Around({"qemu:///system": {"web": domain}}))
    disk.spec("b <- x <- y")
    outcome = disk.apply()

    assert outcome.code == (0 if read_only else 1)
    assert ("web:sda writes to x.qcow2, its active image" in outcome.out) is not read_only


def evil(disk: Disk, kind: str) -> Path:
    """A raw disk beside the others whose guest has written the header of an overlay on p to it."""
    path = disk.images / "evil.img"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.path("p"), path)
    if kind == "data file":
        options = f"data_file={disk.path('p')},data_file_raw=off"
        made = path.with_suffix(".made")
        size = "524288"
        shutil.copy(disk.path("p"), disk.root / "p")
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, made, size)
        shutil.copy(disk.root / "p", disk.path("p"))
        made.rename(path)
    with path.open("r+b") as file:
        file.truncate(512 * 1024)
    return path


@pytest.mark.parametrize("kind", ["backing file", "data file"])
@pytest.mark.parametrize("known", ["spec", "domain"])
def test_what_a_guest_writes_to_its_raw_disk_keeps_no_image(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, kind: str, known: str
) -> None:
    disk.chain({"b": B, "p": P, "x": X})
    path = evil(disk, kind)
    more = ""
    if known == "spec":
        more = f'[domains.evil.disks.vda]\nchain = [{{ file = "{path}", format = "raw" }}]\n'
    if known == "domain":
        domain = Domain("evil", "shut-off", persistent={"sda": Source("file", path, "raw")})
        monkeypatch.setattr(Around, "of", lambda _: Around({"qemu:///system": {"evil": domain}}))
    disk.spec("b <- x", active="x.qcow2", more=more)
    outcome = disk.apply()

    assert outcome.code == 0, outcome
    assert disk.stack("x") == "b <- x"
    assert not disk.path("p").exists()
