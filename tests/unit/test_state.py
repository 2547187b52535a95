"""The state file: what is remembered comes back, whatever happens while it is written."""

from __future__ import annotations

import os
import tomllib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.engine import disk_state
from reconciler.engine.disk_state import DiskState, Leftover, OldLink, Unfinished, begun
from reconciler.engine.state import Session, StateFolder, default_folder
from reconciler.model.errors import StateError
from reconciler.model.image import FileId
from reconciler.model.steps import (
    STEPS,
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
)
from reconciler.tools.lookups import Lookups

BASE, MON, TUE = (Path(f"/images/{name}.qcow2") for name in ("base", "mon", "tue"))
FULL = DiskState(
    active=TUE,
    applied="2024-05-06T07:08:09+00:00",
    unfinished=Unfinished(
        steps=(Commit(TUE, MON, relink=False), Rename(MON, TUE)),
        remove=(Leftover(MON, FileId(1, 2, 3, 4, 5)),),
        links=(OldLink(TUE, "mon.qcow2", "qcow2", FileId(1, 0, 3, 4, 5)), OldLink(BASE)),
        begun="2024-05-06T07:08:10+00:00",
    ),
    leftovers=(Leftover(Path("/images/sun.qcow2"), FileId(6, 7, 8, 9, 10), discarded=True),),
)

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
paths = texts.map(lambda text: Path("/images") / text.replace("/", "_"))
numbers = st.integers(0, 2**63 - 1)
file_ids = st.builds(FileId, numbers, numbers, numbers, numbers, numbers)
leftovers = st.builds(Leftover, paths, file_ids, st.booleans())
formats = st.sampled_from(["qcow2", "raw"])
steps = st.one_of(
    st.builds(Create, paths, st.none() | paths, formats, numbers),
    st.builds(Commit, paths, paths, st.booleans()),
    st.builds(Pull, paths, st.none() | paths),
    st.builds(Rebase, paths, paths),
    st.builds(Rename, paths, paths, st.booleans()),
    st.builds(Resize, paths, numbers),
    st.builds(Repair, paths),
    st.builds(Attach, paths),
    st.builds(Forget, texts),
    st.builds(Remove, paths),
)
links = st.builds(OldLink, paths, st.none() | texts, st.none() | formats, st.none() | file_ids)
unfinished = st.builds(
    Unfinished,
    st.lists(steps, min_size=1, max_size=4).map(tuple),
    st.lists(leftovers, max_size=2).map(tuple),
    st.lists(links, max_size=3).map(tuple),
    st.just("2024-05-06T07:08:09+00:00"),
    st.booleans(),
    st.dictionaries(paths, file_ids, max_size=2),
)
disk_states = st.builds(
    DiskState,
    st.none() | paths,
    st.none() | st.just("2024-05-06T07:08:09+00:00"),
    st.none() | unfinished,
    st.lists(leftovers, max_size=2).map(tuple),
    st.dictionaries(paths, paths, max_size=2),
    st.dictionaries(paths, file_ids, max_size=3),
    st.dictionaries(paths, file_ids, max_size=1),
    st.none() | paths,
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def session_of(folder: StateFolder, domain: str, target: str) -> AbstractContextManager[Session]:
    """The session of a disk that nobody else works on."""
    return folder.locked(domain, target, lambda *_: nullcontext())


def write(folder: StateFolder, domain: str, target: str, said: DiskState) -> None:
    with session_of(folder, domain, target) as session:
        session.write(said)


def read_again(folder: StateFolder, domain: str, target: str) -> DiskState:
    """What a new process would read."""
    return StateFolder(folder.folder).disk(domain, target)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(disk_states, texts, texts)
def test_a_state_comes_back_as_it_was_written(folder, said, domain, target):
    write(folder, domain, target, said)

    assert read_again(folder, domain, target) == said


EVERY_STEP = [
    Create(TUE, MON, "qcow2", 512),
    Create(TUE, None, "raw", 512),
    Commit(TUE, MON),
    Commit(TUE, MON, relink=False),
    Pull(TUE, MON),
    Pull(TUE, None),
    Rebase(TUE, MON),
    Rename(MON, TUE),
    Rename(MON, TUE, link=True),
    Resize(TUE, 1024),
    Repair(TUE),
    Attach(TUE),
    Forget("before the upgrade"),
    Remove(MON),
]


@pytest.mark.parametrize("step", EVERY_STEP, ids=str)
def test_an_unfinished_step_of_each_kind_comes_back(folder, step):
    said = DiskState(unfinished=Unfinished((step,), begun="now"))
    write(folder, "web", "vda", said)

    assert read_again(folder, "web", "vda") == said


def test_every_kind_of_step_is_in_that_table():
    assert {type(step) for step in EVERY_STEP} == set(STEPS)


def test_a_disk_that_was_never_applied_has_an_empty_state(folder):
    found = folder.disk("web", "vda")

    assert (found, folder.folder.exists()) == (DiskState(), False)


def test_the_disks_of_a_domain_share_a_file(folder):
    write(folder, "web", "vda", FULL)
    write(folder, "web", "vdb", DiskState(active=BASE))
    write(folder, "db", "vda", DiskState(active=MON))

    assert read_again(folder, "web", "vda") == FULL
    assert read_again(folder, "web", "vdb") == DiskState(active=BASE)
    assert sorted(path.name for path in folder.folder.glob("*")) == [
        ".lock",
        "db.toml",
        "locks",
        "web.toml",
    ]


def test_another_process_loses_nothing_that_this_one_writes(folder):
    folder.disk("web", "vda")
    write(StateFolder(folder.folder), "web", "vdb", DiskState(active=BASE))

    write(folder, "web", "vda", DiskState(active=TUE))

    assert read_again(folder, "web", "vdb") == DiskState(active=BASE)


def test_the_file_reads_as_a_page_for_people(folder):
    write(folder, "web", "vda", DiskState(active=TUE, applied="2024-05-06T07:08:09+00:00"))

    text = folder.path("web").read_text()
    assert text.startswith("# Written by virt-chain: what images cannot tell, down to `# end`.")
    assert tomllib.loads(text) == {
        "version": 2,
        "domain": "web",
        "disks": {"vda": {"active": str(TUE), "applied": "2024-05-06T07:08:09+00:00"}},
    }


def test_only_the_owner_reads_the_state(folder):
    write(folder, "web", "vda", FULL)

    modes = [path.stat().st_mode & 0o777 for path in (folder.folder, folder.path("web"))]
    assert modes == [0o700, 0o600]


def test_the_same_state_is_not_written_again(folder):
    write(folder, "web", "vda", FULL)
    before = folder.path("web").stat().st_ino

    write(folder, "web", "vda", FULL)

    assert folder.path("web").stat().st_ino == before


def test_what_another_process_wrote_is_read(folder):
    write(folder, "web", "vda", FULL)
    write(StateFolder(folder.folder), "web", "vda", DiskState(active=BASE))

    assert folder.disk("web", "vda") == DiskState(active=BASE)


def test_a_guest_that_was_stopped_for_one_disk_is_started_for_any_and_once(folder):
    with session_of(folder, "web", "vda") as session:
        session.write(DiskState(active=TUE, restart=True))

    assert folder.stopped_for("web") == ("vda",)
    assert folder.disk("web", "vdb").restart
    assert not folder.disk("db", "vda").restart

    with session_of(folder, "web", "vdb") as session:
        session.write(replace(session.state, active=MON))
        assert folder.stopped_for("web") == ("vda", "vdb")
        session.write(replace(session.state, restart=False))

    assert folder.stopped_for("web") == ()
    assert folder.disk("web", "vda") == DiskState(active=TUE)
    assert folder.disk("web", "vdb") == DiskState(active=MON)


def test_what_is_written_of_another_disk_forgets_no_guest_that_was_stopped(folder):
    with session_of(folder, "web", "vdb") as other:
        with session_of(folder, "web", "vda") as session:
            session.write(DiskState(active=TUE, restart=True))
        other.write(DiskState(active=MON))

    assert folder.stopped_for("web") == ("vda",)


def test_a_session_has_the_state_of_the_moment_it_began(folder):
    """What was read before the lock may be out of date: another apply has finished since."""
    stale = folder.disk("web", "vda")
    write(folder, "web", "vda", FULL)

    with session_of(folder, "web", "vda") as session:
        assert (session.state, stale) == (FULL, DiskState())


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failure_while_writing_leaves_the_old_file(folder, monkeypatch, call):
    write(folder, "web", "vda", FULL)
    before = folder.path("web").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StateError) as raised:
        write(folder, "web", "vda", DiskState(active=BASE))
    monkeypatch.undo()

    assert str(raised.value) == f"{folder.path('web')} cannot be written: No space left on device"
    assert (folder.path("web").read_bytes(), read_again(folder, "web", "vda")) == (before, FULL)
    write(folder, "web", "vda", DiskState(active=BASE))
    assert read_again(folder, "web", "vda") == DiskState(active=BASE)


def test_a_short_write_never_becomes_the_state(folder, monkeypatch):
    """``write(2)`` may take less than it was given, as on a disk that is nearly full."""
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:10]))
    try:
        write(folder, "web", "vda", FULL)
    except StateError:
        return

    assert read_again(folder, "web", "vda") == FULL


def test_what_an_interrupted_write_left_is_written_over(folder):
    write(folder, "web", "vda", FULL)
    path = folder.path("web")
    path.with_name(f".{path.name}.new").write_text("x" * 100_000)

    write(folder, "web", "vda", DiskState(active=BASE))

    assert read_again(folder, "web", "vda") == DiskState(active=BASE)
    assert sorted(one.name for one in folder.folder.iterdir()) == [
        ".lock",
        "locks",
        "web.toml",
    ]


DAMAGED = [
    ("no TOML", "version = ", "Invalid value (at end of document)"),
    ("cut off", 'version = 2\n[disks.vda]\nactive = "/im', None),
    ("empty", "", "its version is None, this program has 2"),
    ("a newer version", "version = 3\n", "its version is 3, this program has 2"),
    ("an older version", "version = 1\n", "its version is 1, this program has 2"),
    ("disks of another kind", "version = 2\ndisks = 5\n", "5 is not a table at disks"),
    ("a disk of another kind", "version = 2\n[disks]\nvda = 5\n", "5 is not a table at disks"),
    (
        "a path of another kind",
        "version = 2\n[disks.vda]\nactive = 5\n",
        "5 is not an absolute path at disks",
    ),
    (
        "a key that nobody knows",
        "version = 2\n[disks.vda]\nactif = 5\n",
        "unknown key actif at disks",
    ),
    (
        "no such step",
        'version = 2\n[disks.vda.unfinished]\nsteps = [{ action = "explode" }]\n',
        "'explode' is no step",
    ),
    (
        "a step with a key that nobody knows",
        (
            "version = 2\n[disks.vda.unfinished]\n"
            'steps = [{ action = "remove", image = "/a", x = 1 }]\n'
        ),
        "remove has no x",
    ),
    (
        "a step without its images",
        'version = 2\n[disks.vda.unfinished]\nsteps = [{ action = "commit" }]\n',
        None,
    ),
    (
        "a leftover without its path",
        'version = 2\n[[disks.vda.leftovers]]\nfile = "1 2 3 4 5"\n',
        "a missing key",
    ),
    (
        "a leftover that is nobody",
        'version = 2\n[[disks.vda.leftovers]]\npath = "/a"\nfile = "1 2"\n',
        "'1 2' is not inode, born, size, modified, changed of a file",
    ),
    ("deep nesting", "version = 2\na = " + "[" * 5000 + "]" * 5000 + "\n", None),
]


@pytest.mark.parametrize(
    ("text", "why"),
    [pytest.param(*case, id=name) for name, *case in DAMAGED],
)
def test_a_damaged_file_is_told_and_kept(folder, text, why):
    folder.folder.mkdir()
    folder.path("web").write_text(text)

    for act in (
        lambda: folder.disk("web", "vda"),
        lambda: write(folder, "web", "vda", DiskState(active=BASE)),
    ):
        with pytest.raises(StateError) as raised:
            act()

        assert str(raised.value).startswith(f"{folder.path('web')} cannot be used ({why or ''}")
        assert "virt-chain show" in str(raised.value)
    assert folder.path("web").read_text() == text


SPECS = {
    "a spec": 'version = 1\n[domains.web.disks.vda]\nchain = ["a"]\n',
    "inline": 'version = 1\ndomains = { web = { disks = { vda = { chain = ["a"] } } } }\n',
    "defaults alone": 'version = 1\n[defaults]\ndirectory = "/a"\n',
    "being edited": 'version = 1\n  [ domains.web.disks.vda]\nchain = ["a",\n',
}


@pytest.mark.parametrize("text", SPECS.values(), ids=SPECS)
def test_a_spec_in_the_place_of_a_state_file_is_no_damaged_one(
    folder: StateFolder, text: str
) -> None:
    folder.folder.mkdir()
    place = folder.path("web")
    place.write_text(text)

    for act in (
        lambda: folder.disk("web", "vda"),
        lambda: write(folder, "web", "vda", DiskState(active=BASE)),
    ):
        with pytest.raises(StateError) as raised:
            act()

        assert str(raised.value) == (
            f"{place} is a spec, and the state file of a domain would have that name; the state "
            f"directory, {folder.folder}, has to be another folder than that of the specs: name "
            "one with --state-dir or VIRT_CHAIN_STATE_DIR"
        )
    write(folder, "db", "vda", DiskState(active=BASE))
    assert folder.known_images(Lookups()) == {"db:vda": (BASE,)}
    assert place.read_text() == text


def test_a_file_that_is_no_text_is_told(folder):
    folder.folder.mkdir()
    folder.path("web").write_bytes(b"\xff\xfe")

    with pytest.raises(StateError, match=r"web\.toml cannot be used \(.*mv --backup=numbered"):
        folder.disk("web", "vda")


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    folder = StateFolder(tmp_path / "file" / "state")

    for act in (
        lambda: folder.disk_lock_file("web", "vda"),
        lambda: write(folder, "web", "vda", FULL),
    ):
        with pytest.raises(StateError, match=f"{tmp_path}/file/state.*Not a directory"):
            act()


NAMES = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    ".hidden",
    "a/b",
    "a\\b",
    "web 01",
    "naïve",
    "虚拟机",
    "%2E.",
    "web:vda",
    "-rf",
    "con\n",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_no_domain_name_leads_out_of_the_folder(folder, tmp_path, name):
    write(folder, name, "vda", FULL)
    lock = folder.disk_lock_file(name, name[:50])

    assert read_again(folder, name, "vda") == FULL
    assert folder.path(name).parent == folder.folder
    assert lock.parent == folder.folder / "locks"
    assert lock.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_every_domain_has_a_file_of_its_own(folder):
    files = {folder.path(name) for name in [*NAMES, "web", "Web", ".", "%2E", "%252E"]}
    locks = {
        folder.disk_lock_file(domain, target)
        for domain, target in [("a", "b"), ("a:b", ""), ("a", "b:c"), ("a:b", "c"), ("a/b", "c")]
    }

    assert (len(files), len(locks)) == (len({*NAMES, "web", "Web", ".", "%2E", "%252E"}), 5)


@pytest.mark.parametrize("name", ["虚" * 40, "x" * 300], ids=["40 Chinese letters", "300 letters"])
def test_a_long_domain_name_works_or_is_told(folder, name):
    """libvirt takes both; a file name has 255 bytes."""
    try:
        folder.disk(name, "vda")
        folder.disk_lock_file(name, "vda")
        write(folder, name, "vda", FULL)
    except StateError:
        return

    assert read_again(folder, name, "vda") == FULL


def test_a_locks_folder_that_cannot_be_made_is_told(folder):
    folder.folder.mkdir()
    (folder.folder / "locks").touch()

    with pytest.raises(StateError):
        folder.disk_lock_file("web", "vda")


def test_a_name_that_is_no_text_is_told(folder):
    """A backing name of other bytes than UTF-8 comes from a header with surrogates in it."""
    said = DiskState(unfinished=Unfinished((Remove(MON),), links=(OldLink(MON, "\udce9", "raw"),)))
    try:
        write(folder, "web", "vda", said)
    except StateError:
        return

    assert read_again(folder, "web", "vda") == said


FOLDERS = [
    # id, root, environment, folder
    ("root", True, {}, "/var/lib/virt-chain"),
    ("root with a home", True, {"XDG_STATE_HOME": "/x"}, "/var/lib/virt-chain"),
    ("root, named", True, {"VIRT_CHAIN_STATE_DIR": "/named"}, "/named"),
    ("user", False, {}, "/home/user/.local/state/virt-chain"),
    ("user, named empty", False, {"VIRT_CHAIN_STATE_DIR": ""}, None),
    ("user with XDG", False, {"XDG_STATE_HOME": "/x"}, "/x/virt-chain"),
    ("user with an empty XDG", False, {"XDG_STATE_HOME": ""}, None),
    (
        "user, named",
        False,
        {"XDG_STATE_HOME": "/x", "VIRT_CHAIN_STATE_DIR": "/named"},
        "/named",
    ),
]


@pytest.mark.parametrize(
    ("root", "environment", "expected"), [pytest.param(*case, id=name) for name, *case in FOLDERS]
)
def test_the_default_state_directory(monkeypatch, root, environment, expected):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setenv("HOME", "/home/user")

    found = default_folder(environment)

    assert found == Path(expected or "/home/user/.local/state/virt-chain")


def test_what_begins_is_in_flight_with_its_time(monkeypatch):
    monkeypatch.setattr(disk_state, "now", lambda: "2024-05-06T07:08:09+00:00")
    flight = Unfinished((Remove(MON),))

    assert begun(DiskState(active=TUE), flight) == DiskState(
        active=TUE, unfinished=replace(flight, begun="2024-05-06T07:08:09+00:00")
    )
