"""What untrusted input once did; each was found by these tests and is mended."""

from __future__ import annotations

import json
from pathlib import Path

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
