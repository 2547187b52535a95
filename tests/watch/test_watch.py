"""What leads to a pass, what a pass does alone, and what it leaves to a person."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest

from tests.images.disks import Disk, tool, view, write
from tests.watch.watcher import Watcher, until


def git(folder: Path, *words: str | Path) -> None:
    names = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    tool("git", *names, "-C", folder, *words)


def saved_by_rename(disk: Disk, chain: str, **keys: object) -> None:
    """Change the spec as editors do: a new file, renamed over the old one."""
    before = disk.spec_file.read_text()
    disk.spec(chain, **keys)  # type: ignore[arg-type]
    new = disk.spec_file.with_suffix(".toml~")
    new.write_text(disk.spec_file.read_text())
    disk.spec_file.write_text(before)
    os.rename(new, disk.spec_file)


# What leads to a pass


@pytest.mark.parametrize("poll", [(), ("--poll",)], ids=["events", "poll"])
def test_a_changed_spec_is_applied(watcher: Watcher, poll: tuple[str, ...]) -> None:
    watcher.start(*poll)
    watcher.disk.spec("b <- p <- x")
    watcher.wait_chain("b", "p", "x")
    saved_by_rename(watcher.disk, "b <- p <- x <- y")
    watcher.wait_chain("b", "p", "x", "y")

    assert view(watcher.disk.path("p")) == watcher.disk.golden["p"]
    assert view(watcher.disk.path("y")) == watcher.disk.golden["x"]


def test_nothing_is_said_when_nothing_happens(watcher: Watcher) -> None:
    watcher.start(interval="1s")
    first = watcher.status()["last_pass"]
    until(lambda: watcher.told()["last_pass"] > first, "another pass")

    assert [one["event"] for one in watcher.lines()] == ["start"]


def test_reading_a_spec_leads_to_no_pass(watcher: Watcher) -> None:
    watcher.start("-j", "2")
    for _ in range(20):
        watcher.disk.spec_file.read_text()
    watcher.disk.spec("b <- p <- q <- x <- y")
    watcher.wait_chain("b", "p", "q", "x", "y")

    assert len(watcher.said("done")) == 1


def test_drift_made_by_hand_is_found_on_the_clock(watcher: Watcher) -> None:
    watcher.start(interval="1s")
    disk = watcher.disk
    disk.spec("b <- p <- q <- x", active="x.qcow2")
    # somebody merges p and q into x by hand
    tool("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", disk.path("b"), disk.path("x"))
    until(lambda: watcher.said("done"), "the drift is found and mended")

    watcher.wait_chain("b", "p", "q", "x")
    assert {name: view(disk.path(name)) for name in "bpqx"} == disk.golden


def test_an_image_that_somebody_puts_below_the_active_one_is_merged(watcher: Watcher) -> None:
    watcher.start(interval="1s")
    disk = watcher.disk
    disk.spec("b <- p <- q <- x <- y")
    watcher.wait_chain("b", "p", "q", "x", "y")
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2"]
    extra = disk.add("z", "64k:- 64k:Z 64k:-", on="x")
    tool(*rebase, "-b", extra, disk.path("y"))  # another image got below the active one
    watcher.wait_chain("b", "p", "q", "x", "y")

    until(lambda: len(watcher.said("done")) == 2, "z is merged away")
    assert view(disk.path("y"))[64 * 1024 :][:1] == b"Z"
    assert {name: view(disk.path(name)) for name in "bpqx"} == disk.golden


def test_a_git_checkout_that_is_pulled(watcher: Watcher, tmp_path: Path) -> None:
    disk = watcher.disk
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "-q")
    text = disk.spec_file.read_text()
    (origin / "vm.toml").write_text(text)
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "one")
    tool("git", "clone", "-q", origin, clone)
    watcher.start(spec=clone)
    disk.spec("b <- p <- x")
    (origin / "vm.toml").write_text(disk.spec_file.read_text())
    git(origin, "commit", "-qam", "two")
    git(clone, "pull", "-q")

    watcher.wait_chain("b", "p", "x")


def test_a_folder_that_is_replaced_by_a_symlink_switch(watcher: Watcher, tmp_path: Path) -> None:
    disk = watcher.disk
    for number, chain in enumerate(["b <- p <- q <- x", "b <- p <- x", "b <- p <- x <- y"]):
        release = tmp_path / f"release{number}" / "specs"
        release.mkdir(parents=True)
        (release / "vm.toml").write_text(disk.spec(chain).read_text())
    current = tmp_path / "current"

    def switch(number: int) -> None:
        new = tmp_path / "current.new"
        new.symlink_to(f"release{number}")
        os.rename(new, current)

    switch(0)
    watcher.start(spec=current / "specs")
    switch(1)
    watcher.wait_chain("b", "p", "x")
    switch(2)
    watcher.wait_chain("b", "p", "x", "y")


def test_a_kubernetes_volume_switches_its_data_link(watcher: Watcher, tmp_path: Path) -> None:
    disk, volume = watcher.disk, tmp_path / "volume"
    for number, chain in enumerate(["b <- p <- q <- x", "b <- p <- x"]):
        (volume / f"..{number}").mkdir(parents=True)
        (volume / f"..{number}" / "vm.toml").write_text(disk.spec(chain).read_text())
    (volume / "..data").symlink_to("..0")
    (volume / "vm.toml").symlink_to("..data/vm.toml")
    watcher.start(spec=volume)
    (volume / "..new").symlink_to("..1")
    os.rename(volume / "..new", volume / "..data")

    watcher.wait_chain("b", "p", "x")


def test_a_folder_that_appears_later(watcher: Watcher, tmp_path: Path) -> None:
    disk, late = watcher.disk, tmp_path / "not" / "yet"
    text = disk.spec("b <- p <- x").read_text()
    watcher.start(spec=late)
    assert "no such file or folder" in watcher.status()["problem"]
    late.mkdir(parents=True)
    (late / "vm.toml").write_text(text)

    watcher.wait_chain("b", "p", "x")


def test_sighup_is_a_pass_now(watcher: Watcher) -> None:
    process = watcher.start("--dry-run")
    disk = watcher.disk
    tool("qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", disk.path("x"))
    assert watcher.kind() == "in force"
    process.send_signal(signal.SIGHUP)

    assert watcher.wait_for("drift")["steps"] == ["rebase x onto q"]


def test_a_burst_is_one_pass(watcher: Watcher) -> None:
    watcher.start()
    for number in range(30):
        watcher.disk.spec("b <- p <- q <- x", more=f"# {number}")
    watcher.disk.spec("b <- p <- q <- x <- y")
    watcher.wait_chain("b", "p", "q", "x", "y")

    assert len(watcher.said("pass")) == 1


# A bad spec, and disks that vanish


def test_a_bad_spec_leaves_everything_and_is_said_once(watcher: Watcher) -> None:
    watcher.start(interval="1s")
    disk = watcher.disk
    good = disk.spec_file.read_text()
    disk.spec_file.write_text(good.replace("version = 1", "version = 1\nchian = 2"))
    until(lambda: watcher.told().get("problem"), "the bad spec")
    seen = watcher.status()["last_pass"]
    until(lambda: watcher.told()["last_pass"] > seen, "one more pass")
    spec = watcher.said("spec")
    assert len(spec) == 2, spec
    assert f"{disk.spec_file}:2:1" in spec[0]
    assert watcher.command("status", "--check").code == 2

    disk.spec("b <- p <- x")

    watcher.wait_chain("b", "p", "x")
    assert watcher.status()["problem"] is None


def test_a_domain_that_vanished_from_the_spec_is_left_alone(watcher: Watcher) -> None:
    watcher.start()
    disk = watcher.disk
    other = disk.add("other", "64k:O")
    before = {name: disk.path(name).stat().st_mtime_ns for name in "bpqx"}
    disk.spec("other", target="else.vda")
    watcher.wait_for("vanished")

    assert {name: disk.path(name).stat().st_mtime_ns for name in "bpqx"} == before
    assert watcher.said("vanished") == ["is no longer in the spec; its images are left as they are"]
    assert other.exists()


# What waits for a person


def test_a_rollback_waits_with_the_command_that_applies_it(watcher: Watcher) -> None:
    watcher.start()
    disk = watcher.disk
    disk.spec("b <- p <- y", discard=["q", "x"])
    found = watcher.wait_for("waiting")
    assert "needs discard" in found["why"]
    assert {name: view(disk.path(name)) for name in "bpqx"} == disk.golden
    assert watcher.command("status", "--check").code == 1

    words = found["command"].split()
    assert words[:2] == ["virt-chain", "apply"]
    done = watcher.command(*words[1:])

    assert done.code == 0, done
    watcher.processes[-1].send_signal(signal.SIGHUP)
    watcher.wait_chain("b", "p", "y")
    assert view(disk.path("y")) == disk.golden["p"]
    assert list((disk.state / "waiting").iterdir()) == []


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ('allow = ["create"]', "waiting"),
        ("allow = []", "waiting"),
        ("max_drops = 1", "waiting"),
        ("max_drops = 2", "in force"),
        ('allow = ["merge"]', "in force"),
    ],
)
def test_the_host_says_what_happens_alone(watcher: Watcher, config: str, kind: str) -> None:
    path = watcher.disk.root / "config.toml"
    path.write_text(config)
    path.chmod(0o600)
    watcher.environment = {"VIRT_CHAIN_CONFIG": str(path)}
    watcher.start()
    watcher.disk.spec("b <- x")
    if kind == "in force":
        watcher.wait_chain("b", "x")
    watcher.wait_for(kind)

    there = watcher.disk.path("p").exists() and watcher.disk.path("q").exists()
    assert there == (kind == "waiting")


def test_names_that_look_mistyped_wait_for_a_person(watcher: Watcher) -> None:
    watcher.start()
    watcher.disk.spec("b <- one <- two", templates=["b"])
    found = watcher.wait_for("waiting")

    assert "ARE THESE NAMES RIGHT? one.qcow2, two.qcow2 do not exist" in found["why"]
    assert {name: view(watcher.disk.path(name)) for name in "bpqx"} == watcher.disk.golden


def test_discard_is_done_where_the_host_allows_it(watcher: Watcher) -> None:
    path = watcher.disk.root / "config.toml"
    path.write_text('allow = ["create", "merge", "discard"]')
    path.chmod(0o600)
    watcher.environment = {"VIRT_CHAIN_CONFIG": str(path)}
    watcher.start()
    watcher.disk.spec("b <- p <- y", discard=["q", "x"])

    watcher.wait_chain("b", "p", "y")


def test_a_dry_run_plans_and_changes_nothing(watcher: Watcher) -> None:
    watcher.start("--dry-run")
    watcher.disk.spec("b <- x")
    found = watcher.wait_for("drift")

    assert found["steps"]
    assert {name: view(watcher.disk.path(name)) for name in "bpqx"} == watcher.disk.golden


# Holds


def test_a_held_disk_is_planned_and_left_alone_by_watch_and_apply(watcher: Watcher) -> None:
    disk = watcher.disk
    watcher.start()
    held = watcher.command("hold", "vm:vda", "--reason", "migration", "--until", "2h")
    assert (held.code, held.err) == (0, ""), held
    other = watcher.command("hold", "vmm", "--reason", "a slip of the pen")
    assert (other.code, other.err) == (
        0,
        "virt-chain: no watched domain or disk is called vmm; it is held all the same\n",
    )
    disk.spec("b <- x")
    found = watcher.wait_for("held")
    assert "migration" in found["why"]
    assert found["command"] == "virt-chain release vm:vda"
    applied = disk.apply()
    assert applied.code == 1
    for word in ("held by", "until", "migration", "virt-chain release vm:vda"):
        assert word in applied.err
    assert watcher.command("status", "--check").code == 1
    assert {name: view(disk.path(name)) for name in "bpqx"} == disk.golden

    assert watcher.command("release", "vm").code == 0

    watcher.wait_chain("b", "x")


def test_a_hold_of_a_domain_that_runs_out(watcher: Watcher) -> None:
    watcher.command("hold", "vm", "--reason", "soon over", "--until", "4s")
    watcher.disk.spec("b <- x")
    watcher.start()
    assert watcher.kind() in ("held", "in force")

    watcher.wait_chain("b", "x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hold", "vm", "--reason", " "), "say why"),
        (("hold", "vm", "--reason", "x", "--until", "soon"), "how long"),
        (("hold", "vm", "--reason", "x", "--until", "2001-01-01"), "that is over"),
        (("release", "vm"), "neither held nor suspended"),
    ],
)
def test_holds_that_cannot_be_meant(watcher: Watcher, words: tuple[str, ...], said: str) -> None:
    done = watcher.command(*words)

    assert (done.code, said in done.err) == (1, True), done


# Failures


def test_a_disk_that_fails_is_suspended_and_the_others_go_on(watcher: Watcher) -> None:
    disk = watcher.disk
    disk.add("o", "64k:O")
    (disk.images / "sub").mkdir()
    # an immutable folder: every new file there fails, for root too
    tool("chattr", "+i", disk.images / "sub")
    try:
        more = '[domains.other.disks.vda]\nchain = ["o.qcow2", "sub/o2.qcow2"]'
        disk.spec("b <- p <- x", more=more)
        watcher.start()
        found = watcher.wait_for("suspended", "other:vda")
        watcher.wait_chain("b", "p", "x")
        first = until(lambda: watcher.told()["disks"]["other:vda"]["why"], "why")
        assert "failed once" in first
        assert found["command"] == "virt-chain release other:vda"
        assert watcher.command("status", "--check").code == 1
    finally:
        tool("chattr", "-i", disk.images / "sub")
    watcher.command("release", "other:vda")

    watcher.wait_for("in force", "other:vda")


def test_pauses_grow_from_a_minute_to_an_hour(tmp_path: Path) -> None:
    from reconciler.model.errors import Busy, StepFailed
    from reconciler.watch.holds import Suspensions

    kept = Suspensions(tmp_path)
    step = StepFailed("create x", 0, "no space")

    def pause(error: Exception, spec: str) -> int:
        assert isinstance(error, StepFailed | Busy)
        before = datetime.now().astimezone()
        made = Suspensions(tmp_path).failed("vm:vda", error, "no space", spec)
        return round((made.end - before).total_seconds() / 5) * 5

    assert [pause(step, "a") for _ in range(8)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert kept.active("vm:vda", "a") is not None
    assert kept.active("vm:vda", "b") is None
    assert [pause(step, "b"), pause(step, "b")] == [60, 120]
    kept.over(["vm:vda"])
    assert [pause(Busy("open"), "a") for _ in range(3)] == [5, 10, 20]
    assert oct((tmp_path / "suspended.json").stat().st_mode)[-3:] == "600"


# Stopping, and two at once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly(watcher: Watcher, number: signal.Signals) -> None:
    watcher.start()

    assert watcher.stop(number) == 0
    assert watcher.said("stop") == ["stopped as asked"]
    assert watcher.command("status", "--check").out.startswith("CRITICAL: no watch is running")


def test_a_killed_watch_goes_on_at_its_next_start(watcher: Watcher) -> None:
    watcher.start()
    assert watcher.stop(signal.SIGKILL) == -signal.SIGKILL
    watcher.disk.spec("b <- p <- x")
    watcher.start()

    watcher.wait_chain("b", "p", "x")


def test_the_second_watch_says_who_runs(watcher: Watcher) -> None:
    first = watcher.start()
    second = watcher.command("watch", watcher.disk.spec_file)

    assert second.code == 1
    assert f"pid {first.pid}" in second.err
    assert "watches with the state directory" in second.err


# What monitors see


def test_the_status_tells_when_the_next_pass_is(watcher: Watcher) -> None:
    watcher.start(interval="1h")
    told = watcher.status()

    pause = datetime.fromisoformat(told["next_pass"]) - datetime.fromisoformat(told["last_pass"])
    assert pause.total_seconds() > 3000


def test_systemd_hears_of_readiness_and_status(watcher: Watcher, tmp_path: Path) -> None:
    name = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(name))
        bound.settimeout(30)
        watcher.environment = {"NOTIFY_SOCKET": str(name), "WATCHDOG_USEC": "400000"}
        process = watcher.start()
        heard = b""
        while heard.count(b"WATCHDOG=1") < 3:
            heard += bound.recv(4096) + b"\n"
        process.terminate()
        while b"STOPPING=1" not in heard:
            heard += bound.recv(4096) + b"\n"

    assert heard.startswith(b"READY=1\n")
    assert b"STATUS=1 in force" in heard


def test_lines_for_the_journal_have_priorities(watcher: Watcher) -> None:
    watcher.environment = {"JOURNAL_STREAM": "8:1"}
    watcher.start()
    watcher.disk.spec_file.write_text("version = 2")
    until(lambda: watcher.told().get("problem"), "the bad spec")

    lines = watcher.log.read_text().splitlines()
    assert lines[0].startswith("<6>watches ")
    assert lines[1].startswith("<3>")


def test_metrics_are_what_prometheus_reads(watcher: Watcher, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    file = tmp_path / "virt-chain.prom"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watcher.start("--metrics-textfile", file, "--metrics-port", str(port))
    watcher.disk.spec("b <- p <- x")
    watcher.wait_chain("b", "p", "x")

    def values() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(file.read_text())
        samples = [sample for family in families for sample in family.samples]
        return {(one.name, *one.labels.values()): one.value for one in samples}

    until(lambda: values().get(("virt_chain_steps_total", "remove")) == 1, "the step is counted")
    found = values()
    assert found["virt_chain_disks", "in force"] == 1
    assert found["virt_chain_drift", "vm:vda"] == 0
    assert found["virt_chain_chain_images", "vm:vda"] == 3
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        served = answer.read().decode()
    assert "virt_chain_passes_total" in served


def test_metrics_without_the_library_say_what_to_install(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    from tests.images.disks import EXECUTABLE

    argv = [EXECUTABLE, "watch", "--metrics-port", "1", "--state-dir", watcher.disk.state]
    done = subprocess.run(
        [*argv, watcher.disk.spec_file], env=env, capture_output=True, text=True, check=False
    )

    assert (done.returncode, "virt-chain[metrics]" in done.stderr) == (1, True), done


def test_a_change_from_outside_is_said_once_and_kept_in_the_status(watcher: Watcher) -> None:
    disk = watcher.disk
    watcher.start(interval="1s")
    watcher.wait_for("in force")
    until((disk.state / "vm.toml").exists, "the images are remembered")
    write(disk.path("p"), "64k:W")
    (told, *_) = until(lambda: watcher.said("warning"), "the change is told")
    until(lambda: watcher.status()["disks"]["vm:vda"]["why"], "the status has it")

    assert "p.qcow2 was written to" in told
    assert "virt-chain adopt vm:vda" in told
    assert "p.qcow2 was written to" in watcher.command("status").out
    time.sleep(2.5)
    assert len(watcher.said("warning")) == 1
