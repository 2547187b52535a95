"""Ways to lose data that a review found by trying; each is closed for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import run

KILL = """
import os, sys
from importlib import import_module
module, function, when = os.environ["WHERE"].split(":")
module = import_module("reconciler.tools." + module)
original = getattr(module, function)
def killed(*args, **options):
    if when == "after":
        original(*args, **options)
    os._exit(137)
setattr(module, function, killed)
from reconciler.cli.main import run
sys.exit(run(["apply", "-y", "s.toml", "--state-dir", "state"]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIRT_CHAIN_STATE_DIR", raising=False)
    return tmp_path


def tool(*words):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True).stdout


def image(path: Path, backing: Path | str | None, byte: int, at: str, length: str) -> None:
    below = ["-F", "qcow2", "-b", backing] if backing else []
    tool("qemu-img", "create", "-q", "-f", "qcow2", *below, path, "8M")
    tool("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {at} {length}", path)


def chain(folder: Path, p: str, x: str, listed: str) -> bytes:
    """``base <- p <- x`` with *p* and *x* long writes; the view of x is returned."""
    image(folder / "base.qcow2", None, 1, "0", "1M")
    image(folder / "p.qcow2", folder / "base.qcow2", 2, "1M", p)
    image(folder / "x.qcow2", folder / "p.qcow2", 3, "5M", x)
    spec(folder, f"[domains.a.disks.vda]\nactive = 'x.qcow2'\nchain = [{listed}]")
    return view(folder / "x.qcow2")


def spec(folder: Path, text: str) -> None:
    (folder / "s.toml").write_text(f"version = 1\n{text}\n")


def view(path: Path) -> bytes:
    flat = path.with_suffix(".raw")
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, flat)
    return flat.read_bytes()


def apply(state: str = "state") -> int:
    return run(["apply", "-y", "s.toml", "--state-dir", state])


def killed(where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL], env={**os.environ, "WHERE": where}, capture_output=True
    )
    assert done.returncode == 137, done.stderr


def test_a_rename_into_another_folder_keeps_the_backing_file(folder):
    """B/base.qcow2 has the name that p's relative backing name means from B."""
    (folder / "A").mkdir()
    (folder / "B").mkdir()
    image(folder / "A/base.qcow2", None, 1, "0", "1M")
    image(folder / "A/p.qcow2", folder / "A/base.qcow2", 2, "1M", "4M")
    image(folder / "B/x.qcow2", folder / "A/p.qcow2", 3, "5M", "64k")
    image(folder / "B/base.qcow2", None, 9, "0", "1M")
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "base.qcow2", "A/p.qcow2")
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "../A/p.qcow2", "B/x.qcow2")
    spec(folder, "[domains.a.disks.vda]\nchain = ['A/base.qcow2', 'B/x.qcow2']")
    golden = view(folder / "B/x.qcow2")

    assert apply() == 0
    assert view(folder / "B/x.qcow2") == golden


def test_a_header_that_was_durable_before_its_data_goes_back_and_the_pull_is_done_again(folder):
    golden = chain(folder, "64k", "2M", "'base.qcow2', 'x.qcow2'")
    killed("storage_daemon:copy_up:before")
    # what a power cut leaves: the new backing name, and none of the data
    tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", folder / "base.qcow2", "x.qcow2")

    assert apply() == 0
    assert view(folder / "x.qcow2") == golden


def test_a_guest_that_writes_during_a_merge_keeps_its_write(folder, monkeypatch):
    chain(folder, "4M", "64k", "'base.qcow2', 'x.qcow2'")
    real = tool("sh", "-c", "command -v qemu-img").decode().strip()
    (folder / "bin").mkdir()
    wrapper = folder / "bin/qemu-img"
    wrapper.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "commit*) touch committed;;\n"
        "check*p.qcow2) if [ -e committed ] && [ ! -e written ]; then\n"
        'qemu-io -f qcow2 -c "write -P 7 7M 64k" x.qcow2 >/dev/null; touch written; fi;;\n'
        "esac\n"
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        first = apply()

    assert first == 1
    assert (folder / "written").exists()
    assert apply() == 0
    assert view(folder / "x.qcow2")[7 << 20 : (7 << 20) + 65536] == b"\7" * 65536


def clone_names(folder: Path) -> dict[str, str]:
    plain = {"driver": "file", "filename": str(folder / "p.qcow2")}
    return {
        "through an image in another folder": str(folder / "C/m.qcow2"),
        "json with an option": "json:"
        + json.dumps({"driver": "qcow2", "discard": "unmap", "file": plain}),
        "json without locks": "json:"
        + json.dumps({"driver": "qcow2", "file": {**plain, "locking": "off"}}),
        "a name that depends on the folder": "file:p.qcow2",
    }


@pytest.mark.parametrize("way", list(clone_names(Path("/"))))
def test_a_clone_of_a_dropped_image_is_seen(folder, way):
    golden = chain(folder, "4M", "64k", "'base.qcow2', 'x.qcow2'")
    (folder / "C").mkdir()
    image(folder / "C/m.qcow2", folder / "p.qcow2", 5, "6M", "64k")
    if way != "through an image in another folder":
        (folder / "C/m.qcow2").unlink()
    name = clone_names(folder)[way]
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, "z.qcow2")
    clone = view(folder / "z.qcow2")

    assert apply() == 0
    assert view(folder / "x.qcow2") == golden
    assert view(folder / "z.qcow2") == clone


def test_steps_that_never_began_are_planned_anew(folder):
    golden = chain(folder, "4M", "64k", "'base.qcow2', 'x.qcow2'")
    killed("files:touch:before")
    image(folder / "clone.qcow2", folder / "p.qcow2", 5, "6M", "64k")
    clone = view(folder / "clone.qcow2")

    assert apply() == 0
    assert view(folder / "x.qcow2") == golden
    assert view(folder / "clone.qcow2") == clone


def test_steps_that_may_have_begun_are_not_done_to_an_image_with_a_new_clone(folder, capsys):
    """After a power loss nobody could tell whether the commit had begun."""
    golden = chain(folder, "4M", "64k", "'base.qcow2', 'x.qcow2'")
    killed("qemuimg:commit:before")
    image(folder / "clone.qcow2", folder / "p.qcow2", 5, "6M", "64k")
    clone = view(folder / "clone.qcow2")

    assert apply() == 1
    out = capsys.readouterr().out
    assert "clone.qcow2 stands on it now; remove or rebase that overlay" in out
    assert view(folder / "clone.qcow2") == clone
    (folder / "clone.qcow2").unlink()
    assert apply() == 0
    assert view(folder / "x.qcow2") == golden


def test_a_leftover_that_the_spec_calls_a_template_stays(folder):
    chain(folder, "64k", "2M", "'base.qcow2', 'x.qcow2'")
    killed("files:remove:before")
    with (folder / "s.toml").open("a") as file:
        file.write(
            "[domains.b.disks.vda]\n"
            "chain = ['base.qcow2', { file = 'p.qcow2', template = true }, 'y.qcow2']\n"
        )
    before = (folder / "p.qcow2").read_bytes()

    apply()

    assert (folder / "p.qcow2").read_bytes() == before


def test_a_leftover_that_somebody_stands_on_by_now_stays_and_is_not_removed_by_anyone(folder):
    chain(folder, "64k", "2M", "'base.qcow2', 'x.qcow2'")
    killed("files:remove:before")
    image(folder / "clone.qcow2", folder / "p.qcow2", 5, "6M", "64k")
    clone = view(folder / "clone.qcow2")

    assert apply() == 0
    assert (folder / "p.qcow2").exists()
    assert view(folder / "clone.qcow2") == clone


def test_steps_in_flight_are_seen_under_another_domain_name(folder, capsys):
    chain(folder, "4M", "64k", "'base.qcow2', 'x.qcow2'")
    killed("views:first_difference:before")
    spec(folder, "[domains.other.disks.vda]\nchain = ['base.qcow2', 'p.qcow2', 'x.qcow2']")

    assert apply() == 1
    assert "is being merged by a:vda, which was interrupted" in capsys.readouterr().out


def test_the_state_directory_may_be_the_image_folder(folder):
    golden = chain(folder, "64k", "64k", "'base.qcow2', 'p.qcow2', 'x.qcow2', 'n.qcow2'")

    assert apply(state=".") == 0
    assert view(folder / "n.qcow2") == golden
