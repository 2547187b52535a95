"""Adopting domains of libvirt, and acts on one that runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import forked
from tests.guests.domain_xml import DiskSource
from tests.guests.scene import Scene, grown
from tests.guests.world import World

Done = subprocess.CompletedProcess[str]

NETWORK = """\
<disk type='network' device='disk'><driver name='qemu' type='raw'/>
<source protocol='nbd' name='x'><host name='localhost' port='10809'/></source>
<target dev='vdx' bus='virtio'/></disk>"""
BLOCK = """\
<disk type='block' device='disk'><driver name='qemu' type='raw'/>
<source dev='/dev/null'/><target dev='vdy' bus='virtio'/></disk>"""


def call(world: World, *words: str | Path, uri: bool = False) -> Done:
    """``virt-chain WORDS``; with *uri* the connection is only in the environment."""
    environment = {**os.environ, "VIRT_CHAIN_STATE_DIR": str(world.root / "state")}
    environment.pop("LIBVIRT_DEFAULT_URI", None)
    if uri:
        environment["LIBVIRT_DEFAULT_URI"] = world.uri
    return forked.run(words, environment=environment, folder=world.images, timeout=40)


def qcow2(world: World, name: str, on: str | None = None) -> Path:
    path = world.images / f"{name}.qcow2"
    below = ["-b", f"{on}.qcow2", "-F", "qcow2"] if on else []
    size = [] if on else ["16M"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), *size]
    subprocess.run(argv, check=True, cwd=world.images)
    return path


@pytest.fixture
def host(world: World) -> World:
    """Two domains on a template, one with disks that are in no file; none runs."""
    qcow2(world, "t")
    qcow2(world, "a1", "t")
    raw = world.images / "data.img"
    raw.write_bytes(bytes(1024 * 1024))
    world.define("alpha", qcow2(world, "a2", "a1"), DiskSource(raw, "raw"))
    world.define("beta", qcow2(world, "b1", "t"))
    xml = world.xml("beta", inactive=True)
    world.define_xml(xml.replace("<devices>", f"<devices>{NETWORK}{BLOCK}", 1))
    return world


def without_sizes(text: str) -> str:
    """*text* without the sizes in its comments."""
    lines = []
    for line in text.splitlines():
        before, mark, comment = line.partition("  # ")
        role = comment.split(", ", 1)[1] if ", " in comment else ""
        lines.append(before + (f"{mark}{role}" if role else ""))
    return "\n".join(lines) + "\n"


ALPHA = """\
[domains.alpha.disks.vda]
chain = [
  { file = "t.qcow2", template = true },  # template of 2 disks
  "a1.qcow2",  # restore point
  "a2.qcow2",  # active
]

[domains.alpha.disks.vdb]
chain = [{ file = "data.img", format = "raw" }]  # active
"""
BETA = """\
[domains.beta.disks.vda]
chain = [
  { file = "t.qcow2", template = true },  # template of 2 disks
  "b1.qcow2",  # active
]

# beta:vdx is left out: it is a disk of type network, and only disks in files are handled

# beta:vdy is left out: it is a disk of type block, and only disks in files are handled
"""


def head(world: World, words: str) -> str:
    defaults = f'connection = "{world.uri}"\ndirectory = "{world.images}"'
    return f"# Written by virt-chain import{words}\n\nversion = 1\n\n[defaults]\n{defaults}\n\n"


def assert_no_steps(world: World, spec: Path, disks: int) -> None:
    planned = call(world, "plan", "--detailed-exitcode", spec)
    said = f"{disks} {'disk is' if disks == 1 else 'disks are'}"
    assert (planned.returncode, planned.stdout) == (
        0,
        f"Nothing to do: {said} as the spec says.\n",
    ), planned


@pytest.mark.parametrize("uri", [False, True], ids=["option", "environment"])
def test_all_domains_become_a_spec(host: World, uri: bool) -> None:
    done = call(host, "import", *([] if uri else ["--connect", host.uri]), uri=uri)

    words = "" if uri else f" -c '{host.uri}'"
    assert done.returncode == 0, done
    assert without_sizes(done.stdout) == head(host, words) + ALPHA + "\n" + BETA
    spec = host.images / "all.toml"
    spec.write_text(done.stdout)
    assert_no_steps(host, spec, 3)


def test_one_domain_knows_of_the_template_of_all(host: World) -> None:
    done = call(host, "import", "-c", host.uri, "alpha")

    assert done.returncode == 0, done
    assert without_sizes(done.stdout) == head(host, f" -c '{host.uri}' alpha") + ALPHA
    assert done.stderr == ""


def test_each_domain_gets_its_file(host: World) -> None:
    done = call(host, "import", "-c", host.uri, "-d", "specs")

    assert (done.returncode, done.stdout) == (0, "specs/alpha.toml\nspecs/beta.toml\n")
    assert_no_steps(host, host.images / "specs", 3)


def test_an_unknown_domain_is_told(host: World) -> None:
    done = call(host, "import", "-c", host.uri, "gamma")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"virt-chain: {host.uri} has no domain gamma (it has: alpha, beta)\n")


def test_a_disk_that_two_domains_write_is_left_out_of_both(host: World) -> None:
    host.define("gamma", host.images / "b1.qcow2")

    done = call(host, "import", "-c", host.uri)

    assert done.returncode == 0, done
    assert "# beta:vda is left out: its image is also that of gamma:vda" in done.stdout
    assert "# gamma:vda is left out: its image is also that of beta:vda" in done.stdout
    assert "[domains.alpha.disks.vda]" in done.stdout


def test_a_running_guest_is_adopted_and_acted_on(scene: Scene) -> None:
    grown(scene, "mon", "tue")
    scene.spec.unlink()
    state = ["--state-dir", str(scene.world.images / "state")]

    done = call(scene.world, "import", "-c", scene.world.uri, "web", *state)

    assert done.returncode == 0, done
    scene.spec.write_text(done.stdout)
    assert scene.observed() == (["base", "mon", "tue"], [])

    act = ["--spec", scene.spec, "-y", *state]
    taken = call(scene.world, "snapshot", "web", "wed", *act)
    assert taken.returncode == 0, taken
    scene.guest.wait_for(8)
    assert scene.chain() == ["base", "mon", "tue", "wed"]

    dropped = call(scene.world, "drop", "web", "tue", *act)
    assert dropped.returncode == 0, dropped
    assert scene.observed() == (["base", "mon", "wed"], [])
    assert scene.guest.errors() == []

    text = scene.spec.read_text()
    refused = call(scene.world, "rollback", "web", "--to", "mon", *act)
    assert refused.returncode == 1, refused
    assert scene.spec.read_text() == text

    scene.world.shutdown("web")
    back = call(scene.world, "rollback", "web", "--to", "mon", *act)
    assert back.returncode == 0, back
    chain, steps = scene.observed()
    assert (chain[:2], len(chain), steps) == (["base", "mon"], 3, [])
    assert scene.world.boot("web").boot_verdicts()["vda"].ok
