"""A connection that cannot do what plans are made of is refused before anything else."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.errors import HypervisorError
from reconciler.tools import hypervisor
from reconciler.tools.domain_xml import has_disk_snapshots
from tests.images.disks import process

ABLE = (
    "<capabilities><guest><os_type>hvm</os_type><features><deviceboot/>"
    "<disksnapshot default='on' toggle='no'/></features></guest></capabilities>"
)
UNABLE = ABLE.replace("default='on'", "default='off'")


def test_a_driver_that_is_no_qemu_is_refused(tmp_path: Path) -> None:
    """libvirt's own test driver is a connection like any other."""
    (tmp_path / "s.toml").write_text(
        'version = 1\n[domains.test.disks.vda]\nconnection = "test:///default"\n'
        'chain = ["a.qcow2"]\n'
    )

    ended = process("--state-dir", tmp_path / "state", "plan", tmp_path / "s.toml")

    assert ended.code == 1
    assert "test:///default is a connection to TEST" in ended.out
    assert "write qemu:///system" in ended.out


@dataclass
class Connection:
    """What a libvirt on another host, or with another QEMU, would answer."""

    host: str
    capabilities: str

    def getType(self) -> str:  # noqa: N802 (libvirt's name)
        return "QEMU"

    def getHostname(self) -> str:  # noqa: N802
        return self.host

    def getCapabilities(self) -> str:  # noqa: N802
        return self.capabilities


def opened(monkeypatch: pytest.MonkeyPatch, uri: str, connection: Connection) -> None:
    monkeypatch.setattr(hypervisor, "_opened", lambda *_: connection)
    monkeypatch.setattr(hypervisor.Hypervisor, "_wait_reconnected", _stop)
    hypervisor.Hypervisor.open(uri)


class Accepted(Exception):
    pass


def _stop(_: Any) -> None:
    raise Accepted


@pytest.mark.parametrize(
    ("uri", "host", "capabilities", "said"),
    [
        ("qemu+ssh://far/system", "far.example", ABLE, "is on the host far.example"),
        ("qemu+tcp://10.0.0.1/system", "far", ABLE, "run virt-chain there"),
        ("qemu:///system", socket.gethostname(), UNABLE, "no disk snapshots"),
        ("qemu:///system", socket.gethostname(), "<capabilities/>", "no disk snapshots"),
    ],
)
def test_what_a_connection_cannot_do(
    monkeypatch: pytest.MonkeyPatch, uri: str, host: str, capabilities: str, said: str
) -> None:
    with pytest.raises(HypervisorError, match=said):
        opened(monkeypatch, uri, Connection(host, capabilities))


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu+tcp://127.0.0.1/system"])
def test_this_host_is_accepted_under_any_name(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    with pytest.raises(Accepted):
        opened(monkeypatch, uri, Connection(socket.gethostname(), ABLE))


def test_capabilities_of_any_guest_count() -> None:
    assert has_disk_snapshots(ABLE)
    assert not has_disk_snapshots(UNABLE)
