"""What untrusted input once did; each was found by these tests and is mended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reconciler.model.errors import ReconcilerError
from reconciler.model.image import Chain
from reconciler.tools import images, qemuimg
from tests.images.disks import folder_facts
from tests.untrusted.scene import Scene, assert_refused, bounded, empty, header


def test_a_connection_runs_no_program(scene: Scene) -> None:
    """A URI of libvirt may name a program as its transport; a spec must not start one."""
    program, ran = scene.root / "program", scene.root / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    empty(scene.images / "x.qcow2")
    for uri in (
        f"qemu+ext:///system?command={program}",
        f"qemu+ssh://localhost/system?command={program}&netcat={program}",
        f"test+ext:///default?command={program}",
    ):
        scene.spec("x", connection=uri)
        outcome = scene.run("plan")
        assert (outcome.code, ran.exists()) == (1, False), uri


def test_a_plan_with_another_connection_runs_no_program(scene: Scene) -> None:
    program, ran, plan = scene.root / "program", scene.root / "ran", scene.root / "plan.json"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    empty(scene.images / "b.qcow2")
    scene.spec("b <- x")
    assert scene.run("plan", "-o", plan).code == 0
    data = json.loads(plan.read_text())
    data["domains"][0]["connection"] = f"qemu+ext:///system?command={program}"
    plan.write_text(json.dumps(data))

    outcome = bounded("apply", "--state-dir", scene.root / "state", plan)

    assert (outcome.code, ran.exists()) == (1, False)


def test_a_chain_of_ten_thousand_images_is_told_in_time(scene: Scene) -> None:
    for number in range(10_000):
        below = f"{number - 1:05}.qcow2".encode() if number else b""
        content = header(bits=9, backing=below, backing_format=b"qcow2" if below else b"")
        (scene.images / f"{number:05}.qcow2").write_bytes(content)
    scene.spec("09999")

    assert_refused(scene.run("plan"), "stands on more than 1000 images")


def test_a_link_that_the_spec_lists_does_not_lead_out_of_its_folders(scene: Scene) -> None:
    """Without allowed_roots, who may write to the folder adds the target's folder to them."""
    (scene.images / "x.qcow2").symlink_to(scene.canary_image)
    scene.spec("x <- y")

    seen = scene.traced("plan")

    assert_refused(seen.outcome, "is never opened")
    assert str(scene.canary_image) not in seen.opened


def test_a_long_dotted_key_in_the_state_file_is_told(scene: Scene) -> None:
    empty(scene.images / "x.qcow2")
    scene.spec("x")
    state = scene.root / "state"
    state.mkdir()
    (state / "vm.toml").write_text("version = 1\n" + "a." * 100_000 + "b = 1\n")

    assert_refused(scene.run("plan"), "vm.toml")


def test_a_nul_in_allowed_roots_is_told(scene: Scene, config: Path) -> None:
    config.write_text('allowed_roots = ["/a\\u0000b"]\n')
    empty(scene.images / "x.qcow2")
    scene.spec("x")

    outcome = scene.run("plan")

    assert (outcome.code, str(config) in outcome.err) == (1, True)
    assert folder_facts(scene.outside)


ANSWERS = (b"", b"x", b"null", b"[1]", b"[{}]", b"[" * 5000, b"\xff", b"9" * 5000)


@pytest.mark.parametrize("said", ANSWERS, ids=lambda one: ascii(one[:6]))
def test_what_qemu_img_prints_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A qemu-img that a crafted image has taken over prints what it likes."""
    (tmp_path / "said").write_bytes(said)
    program = tmp_path / "qemu-img"
    program.write_text(f"#!/bin/sh\ncat '{tmp_path / 'said'}'\n")
    program.chmod(0o755)
    (tmp_path / "x.qcow2").write_bytes(header())
    image = images.read_image(tmp_path / "x.qcow2", "qcow2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(ReconcilerError):
        qemuimg.map_view([image])
    with pytest.raises(ReconcilerError):
        images.confirm(Chain((image,)))


def test_a_spec_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    """Nobody waits for its other end."""
    os.mkfifo(tmp_path / "chain.toml")

    assert bounded("validate", tmp_path / "chain.toml").code == 1


@pytest.mark.parametrize("name", ["/proc/self/mem", "/proc/kmsg", "/sys/kernel/mm/ksm/run"])
def test_a_file_of_the_kernel_is_told(scene: Scene, config: Path, name: str) -> None:
    config.write_text('allowed_roots = ["/"]\n')
    (scene.images / "x.qcow2").symlink_to(name)
    scene.spec("x")

    assert scene.run("plan").code == 1


def test_thousands_of_images_beside_a_chain(scene: Scene) -> None:
    """Somebody else's chain of small files in the folder: looking at ours ends soon."""
    for number in range(5_000):
        below = f"i{number - 1}.qcow2".encode() if number else b""
        content = header(bits=9, backing=below, backing_format=b"qcow2" if below else b"")
        (scene.images / f"i{number}.qcow2").write_bytes(content)
    empty(scene.images / "b.qcow2")
    empty(scene.images / "x.qcow2", "b.qcow2")
    scene.spec("b <- x")

    assert scene.run("plan").code == 0
