"""What the host's own config allows, and what is kept of what was done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.cases import BIG_Q, B, P, Q, X
from tests.images.disks import (
    EXECUTABLE,
    Disk,
    assert_done,
    assert_quiet,
    command,
    folder_facts,
    process,
    quarantined,
    tool,
)


@pytest.fixture
def drop(disk: Disk) -> Disk:
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- x", active="x.qcow2")
    return disk


# Folders


def elsewhere(disk: Disk) -> Path:
    """A dropped image in a folder that the spec does not name."""
    disk.add("b", B)
    folder = disk.root / "elsewhere"
    folder.mkdir()
    shutil.copy(disk.path("b"), folder / "p.qcow2")
    far = folder / "p.qcow2"
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", disk.path("b"), far)
    disk.add("x", X, on="b")
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", far, disk.path("x"))
    disk.keep()
    disk.spec("b <- x", active="x.qcow2")
    return far


def test_an_image_in_a_folder_that_nobody_allows_is_never_opened(disk: Disk) -> None:
    far = elsewhere(disk)

    done = disk.apply()

    assert done.code == 1
    assert f"{far} is never opened: images may lie in {disk.images}" in done.out
    assert "names it as its backing file" in done.out
    assert "allowed_roots" in done.out
    assert folder_facts(disk.images) == disk.before


def test_the_host_allows_more_folders(disk: Disk, config: Path) -> None:
    elsewhere(disk)
    config.write_text(f"allowed_roots = [{json.dumps(str(disk.root))}]\n")

    done = disk.apply()

    assert done.code == 0, done
    assert disk.read("x") == disk.golden["x"]
    assert disk.stack("x") == "b <- x"


def test_the_host_allows_fewer_folders_than_the_spec_names(drop: Disk, config: Path) -> None:
    config.write_text('allowed_roots = ["/var/lib/libvirt/images"]\n')

    done = drop.apply()

    assert (done.code, "/var/lib/libvirt/images" in done.out) == (1, True)
    assert folder_facts(drop.images) == drop.before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('allowed_root = ["/a"]', 'unknown key "allowed_root"; did you mean "allowed_roots"?'),
        ('allowed_roots = ["images"]', "entry 1 of allowed_roots"),
        ("allowed_roots = []", "allowed_roots is empty"),
        ('max_drops = "many"', "write a number, such as max_drops = 10"),
        ("max_drops = -1", "write a number, such as max_drops = 10"),
        ('quarantine = "soon"', 'write how long, such as quarantine = "7d"'),
        ('[limits]\nmemory = "much"', "is no size"),
        ("[limits]\nseconds = 0", "whole seconds"),
        ("[limits]\nseconds = 99999999999999999999", "whole seconds"),
        ("[limits]\nmemory = nan", "write bytes or a string such as"),
        ('quarantine = "999999w"', "is more than ten years; write a shorter time, such as 520w"),
        (f'quarantine = "{"9" * 900}w"', "is more than ten years"),
        ("=", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_config_is_told_and_nothing_is_done(
    drop: Disk, config: Path, text: str, said: str
) -> None:
    config.write_text(text + "\n")

    done = drop.apply()

    assert (done.code, said in done.err) == (1, True), done
    assert done.err.startswith(f"{config}:")
    assert folder_facts(drop.images) == drop.before


def test_a_config_that_others_may_write_is_refused(drop: Disk, config: Path) -> None:
    config.chmod(0o666)

    done = drop.apply()

    assert (done.code, "others may write to this file" in done.err) == (1, True)


@pytest.mark.parametrize("act", ["write to the folder", "own the folder", "own the link"])
def test_a_config_that_others_may_swap_is_refused(
    drop: Disk, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: str
) -> None:
    """Whoever may rename in a folder above it may put a config of his own there."""
    folder = tmp_path / "etc"
    folder.joinpath("deep").mkdir(parents=True)
    named = folder / "deep" / "c.toml"
    named.write_text("max_drops = 3\n")
    link = tmp_path / "link"
    link.symlink_to(folder)
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(link / "deep" / "c.toml"))
    assert drop.plan().code == 0
    told = folder
    if act == "write to the folder":
        folder.chmod(0o777)
    elif os.geteuid():
        pytest.skip("only root gives files away")
    elif act == "own the folder":
        os.chown(folder, 1234, 0)
    else:
        told = link
        os.lchown(link, 1234, 0)

    done = drop.apply()

    kind = "link" if told == link else "folder"
    said = f"others may write to the {kind} {told}, which leads to it; chown it to root"
    assert (done.code, said in done.err) == (1, True), done.err


def test_a_config_in_a_sticky_folder_is_read(
    drop: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In /tmp nobody renames what is not his."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    folder.joinpath("c.toml").write_text("max_drops = 3\n")
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(folder / "c.toml"))

    assert drop.plan().code == 0


# How many restore points


def test_many_restore_points_do_not_go_without_a_person(drop: Disk, config: Path) -> None:
    config.write_text("max_drops = 1\n")

    done = drop.apply()

    assert done.code == 1
    assert "2 restore points would go, and -y alone takes away at most 1" in done.err
    assert "--max-drops 2" in done.err
    assert folder_facts(drop.images) == drop.before
    assert drop.apply("--max-drops", "2").code == 0
    assert_done(drop, "b <- x", current="x", gone=["p", "q"])


def test_names_that_look_mistyped_need_a_person(disk: Disk) -> None:
    disk.chain({"b": B, "monday": P, "tuesday": Q, "live": X})
    disk.spec("b <- mondya <- tusday <- liev", templates=["b"], active="live.qcow2")
    asked = "ARE THESE NAMES RIGHT? mondya.qcow2, tusday.qcow2, liev.qcow2 do not exist"

    shown = command("plan", "--state-dir", disk.state, disk.spec_file)
    markdown = command("plan", "--format=markdown", "--state-dir", disk.state, disk.spec_file)
    data = json.loads(command("plan", "--json", "--state-dir", disk.state, disk.spec_file).out)
    done = disk.apply()

    top = " ".join(shown.out.split(" 1 ")[0].split())
    assert asked in top
    assert asked in markdown.out.partition("| step |")[0].replace("\\", "")
    assert data["domains"][0]["disks"][0]["notes"][0].startswith(asked)
    assert (done.code, asked in done.err, "--max-drops 2" in done.err) == (1, True, True), done.err
    assert folder_facts(disk.images) == disk.before
    assert disk.apply("--max-drops", "2").code == 0


def test_a_saved_plan_was_looked_at_by_a_person(drop: Disk, config: Path) -> None:
    config.write_text("max_drops = 0\n")
    saved = drop.root / "plan.json"
    assert drop.plan("-o", saved).code == 0

    assert command("apply", "--state-dir", drop.state, saved, drop.spec_file).code == 0
    assert_done(drop, "b <- x", current="x", gone=["p", "q"])


# Quarantine


def rolled_back(disk: Disk) -> Disk:
    disk.chain({"b": B, "p": BIG_Q, "x": X})
    disk.spec("b <- p <- y", discard=["x"], active="x.qcow2")
    assert disk.apply().code == 0
    return disk


def test_a_discarded_image_is_kept_for_a_week(disk: Disk) -> None:
    rolled_back(disk)

    kept = quarantined(disk)
    assert list(kept.values()) == ["x.qcow2"]
    put = disk.images / next(iter(kept))
    assert stat.S_IMODE(put.parent.stat().st_mode) == 0o700
    assert not disk.path("x").exists()
    tool("mv", put, disk.path("x"))
    assert disk.read("x") == disk.golden["x"]


def test_gc_removes_what_was_kept_long_enough(disk: Disk) -> None:
    rolled_back(disk)
    put = disk.images / next(iter(quarantined(disk)))

    early = command("gc", "--state-dir", disk.state, disk.spec_file)
    assert (early.code, put.exists()) == (0, True)
    assert early.out.startswith("kept until ")
    old = put.with_name("x.qcow2~20200101T000000Z")
    put.rename(old)
    (old.parent / "notes.txt").write_text("mine")

    dry = command("gc", "--dry-run", "--state-dir", disk.state, disk.spec_file)
    assert (dry.out.startswith("would remove "), old.exists()) == (True, True)
    done = command("gc", "--json", "--state-dir", disk.state, disk.spec_file)
    assert [one["path"] for one in done.data["removed"]] == [str(old)]
    assert not old.exists()
    assert (old.parent / "notes.txt").exists()
    assert (
        command("gc", "--state-dir", disk.state, disk.spec_file).out == "The quarantine is empty.\n"
    )


@pytest.mark.parametrize(("keep", "count"), [("0", 0), ("12h", 2)])
def test_the_host_says_what_is_kept(disk: Disk, config: Path, keep: str, count: int) -> None:
    config.write_text(f'quarantine = "{keep}"\n')
    disk.chain({"b": B, "p": P, "q": BIG_Q, "x": X})
    disk.spec("b <- q <- y", discard=["x"], active="x.qcow2")

    assert disk.apply().code == 0

    assert len(quarantined(disk)) == count
    assert_done(disk, "b <- q <- y", current="q", gone=["p", "x"])
    assert_quiet(disk)


# History


def test_the_history_tells_what_was_applied_and_what_failed(drop: Disk) -> None:
    assert command("history", "--state-dir", drop.state).out == "Nothing was applied yet.\n"
    assert drop.apply().code == 0
    drop.spec("b <- x <- y")
    with open(drop.path("x"), "rb"):
        drop.images.chmod(0o700)
    assert drop.apply().code == 0

    told = command("history", "--state-dir", drop.state, "vm").out
    data = command("history", "--json", "--state-dir", drop.state).data["history"]

    assert [one["status"] for one in data] == ["applied", "applied"]
    assert data[0]["spec"] != data[1]["spec"]
    assert data[1]["steps"] == ["create y on x"]
    assert told.count("vm:vda  applied") == 2
    assert command("history", "--state-dir", drop.state, "other").out != told
    assert stat.S_IMODE((drop.state / "history.jsonl").stat().st_mode) == 0o600


# Signals and locks


@pytest.fixture
def slow(disk: Disk) -> Iterator[subprocess.Popen[str]]:
    """An apply whose first copy takes some seconds, and more steps come after it."""
    texts = {"b": "2M:A", "p": "2M:-", "q": "512k:Q 1536k:-", "r": "512k:- 1M:R 512k:-"}
    disk.chain({**texts, "x": "1536k:- 512k:X"})
    disk.spec("b <- p <- x", active="x.qcow2")
    apply = subprocess.Popen(
        [
            EXECUTABLE,
            "apply",
            "-y",
            "--bandwidth",
            "256K",
            "--state-dir",
            disk.state,
            disk.spec_file,
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    until = time.monotonic() + 30
    while not list(disk.state.glob("*.toml")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    yield apply
    apply.kill()
    apply.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_two_steps(
    disk: Disk, slow: subprocess.Popen[str], number: signal.Signals
) -> None:
    slow.send_signal(number)
    _, err = slow.communicate(timeout=60)

    assert slow.returncode == 128 + number
    assert "stopping after this step; once more: at once" in err
    assert "1/4  commit" in err  # the step that ran was finished
    assert "2/4" not in err
    assert "stopped as asked; nothing is lost" in err
    assert disk.read("x") == disk.golden["x"]
    assert disk.apply().code == 0
    assert_done(disk, "b <- p <- x", current="x", gone=["q", "r"])


def test_a_second_signal_stops_at_once(disk: Disk, slow: subprocess.Popen[str]) -> None:
    slow.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    slow.send_signal(signal.SIGTERM)
    _, err = slow.communicate(timeout=60)

    assert slow.returncode == 128 + signal.SIGTERM
    assert "1/4" not in err
    assert disk.read("x") == disk.golden["x"]
    assert disk.apply().code == 0
    assert_done(disk, "b <- p <- x", current="x", gone=["q", "r"])


def test_who_holds_the_lock_is_told(disk: Disk, slow: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    other = process("apply", "-y", "--lock-timeout", "0", "--state-dir", disk.state, disk.spec_file)

    assert other.code == 1
    assert f"pid {slow.pid} of uid {os.geteuid()} on this host) is working on vm:vda" in other.err
    assert "--lock-timeout" in other.err
    assert time.monotonic() - began < 60


def test_what_another_apply_is_doing_was_not_interrupted(
    disk: Disk, slow: subprocess.Popen[str]
) -> None:
    words: list[str | Path] = ["--state-dir", disk.state, disk.spec_file]
    plan = process("plan", *words)
    adopt = process("adopt", "vm:vda", "x.qcow2", "-y", "--spec", disk.spec_file, *words[:2])
    second = process("apply", "-y", "--lock-timeout", "60", *words)
    first = slow.wait(60)

    who = f"pid {slow.pid} of uid {os.geteuid()} on this host) is working on"
    assert (plan.code, plan.out.count("another virt-chain is doing this")) == (0, 3), plan
    assert f"{who} this disk now" in plan.out
    assert "interrupted" not in plan.out + adopt.err + second.out + second.err
    assert (adopt.code, adopt.err.count(f"{who} vm:vda; wait for it")) == (1, 1)
    assert (first, second.code) == (0, 0), second
    assert second.out.endswith("Nothing to do: 1 disk is as the spec says.\n")
    assert_done(disk, "b <- p <- x", current="x", gone=["q", "r"])


def test_a_disk_that_waits_for_the_images_of_another_apply_is_told_who_that_is(
    disk: Disk, slow: subprocess.Popen[str]
) -> None:
    other = disk.root / "other.toml"
    other.write_text(disk.spec_file.read_text().replace('"vm"', "twin"))
    plan = process("plan", "--state-dir", disk.state, other)

    assert plan.code == 1
    assert f"pid {slow.pid}" in plan.out
    assert "interrupted" not in plan.out


# Privileges


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user can enter."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


SPY = """#!/bin/sh
echo "$(id -u) $1" >> {log}
exec {real} "$@"
"""


def test_tools_run_as_the_owner_of_the_image(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.geteuid() == 0, "only root can give rights up; run the tests as root"
    disk = Disk(shared_folder)
    disk.chain({"b": B, "p": P, "q": Q, "x": X})
    disk.spec("b <- x", active="x.qcow2")
    for name in ("p", "q", "x"):
        os.chown(disk.path(name), 65534, 65534)
        disk.path(name).chmod(0o600)
    disk.path("b").chmod(0o644)
    disk.images.chmod(0o755)
    log, spies = shared_folder / "log", shared_folder / "bin"
    log.touch()
    log.chmod(0o666)
    spies.mkdir()
    for program in ("qemu-img", "qemu-storage-daemon"):
        spy = spies / program
        spy.write_text(SPY.format(log=log, real=shutil.which(program)))
        spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spies}:{os.environ['PATH']}")

    assert disk.apply().code == 0

    ran = log.read_text().splitlines()
    assert {line.split()[0] for line in ran} == {"65534"}, ran
    assert any(line.endswith(" commit") for line in ran) or any("--chardev" in one for one in ran)
    assert disk.path("x").stat().st_uid == 65534
    assert_done(disk, "b <- x", current="x", gone=["p", "q"])


# The guest that wants to start, and files that are swapped


GUEST = """#!/bin/sh
if [ "$1" = commit ]; then
    {qemu_io} -f qcow2 -c 'write 0 4k' {active} > {said} 2>&1
fi
exec {real} "$@"
"""


def test_a_guest_does_not_start_while_images_below_it_are_merged(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.chain({"b": B, "p": BIG_Q, "q": P, "x": X})
    disk.spec("b <- q <- x")
    said, spies = disk.root / "said", disk.root / "bin"
    spies.mkdir()
    spy = spies / "qemu-img"
    real, qemu_io = shutil.which("qemu-img"), shutil.which("qemu-io")
    spy.write_text(GUEST.format(qemu_io=qemu_io, active=disk.path("x"), said=said, real=real))
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spies}:{os.environ['PATH']}")

    assert disk.apply().code == 0

    assert 'Failed to get "write" lock' in said.read_text()
    assert_done(disk, "b <- q <- x", current="x", gone=["p"])


SWAP = """#!/bin/sh
if [ "$1" = commit ]; then
    touch {done}
    cp {image} {image}.copy && mv {image}.copy {image}
fi
exec {real} "$@"
"""


def test_a_file_that_was_swapped_since_the_plan_is_left_alone(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"b": "2M:A", "p": "2M:-", "q": "512k:Q 1536k:-", "r": "512k:- 1M:R 512k:-"}
    drop = disk.chain({**texts, "x": "1536k:- 512k:X"})
    disk.spec("b <- p <- x", active="x.qcow2")
    spies = drop.root / "bin"
    spies.mkdir()
    spy, marker = spies / "qemu-img", drop.root / "swapped"
    text = SWAP.format(done=marker, image=drop.path("q"), real=shutil.which("qemu-img"))
    spy.write_text(text)
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spies}:{os.environ['PATH']}")

    done = drop.apply()

    assert marker.exists()
    assert done.code == 1
    assert "q.qcow2 is another file now than when the plan was made" in done.err
    assert {name: drop.read(name) for name in "bpx"} == {name: drop.golden[name] for name in "bpx"}
