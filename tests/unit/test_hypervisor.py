"""A connection that cannot do what plans are made of is refused before anything else."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
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
    assert "test:///default is no connection to the QEMU of this host" in ended.out
    assert "write qemu:///system" in ended.out


@dataclass
class Connection:
    """What a libvirt with another QEMU would answer."""

    capabilities: str
    kept_alive: list[tuple[int, int]] = field(default_factory=list)

    def getCapabilities(self) -> str:  # noqa: N802 (libvirt's name)
        return self.capabilities

    def setKeepAlive(self, seconds: int, unanswered: int) -> None:  # noqa: N802
        self.kept_alive.append((seconds, unanswered))


def opened(monkeypatch: pytest.MonkeyPatch, uri: str, connection: Connection) -> None:
    monkeypatch.setattr(hypervisor, "_opened", lambda *_: connection)
    monkeypatch.setattr(hypervisor.Hypervisor, "_wait_reconnected", _stop)
    hypervisor.Hypervisor.open(uri)


def test_a_daemon_that_answers_late_is_waited_for_and_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that has just been started by its socket, or that waits for a password."""
    monkeypatch.setattr(hypervisor, "SLOW", 0.1)
    late = threading.Event()
    threading.Timer(0.3, late.set).start()
    answer = hypervisor._answered(lambda: late.wait(60), "qemu:///system")

    assert answer is True
    assert [one.getMessage() for one in caplog.records] == [
        "qemu:///system has not answered for 0 s; waiting for it up to 120 s"
    ]


class Accepted(Exception):
    pass


def _stop(_: Any) -> None:
    raise Accepted


@pytest.mark.parametrize("capabilities", [UNABLE, "<capabilities/>"])
def test_a_qemu_without_disk_snapshots_is_refused(
    monkeypatch: pytest.MonkeyPatch, capabilities: str
) -> None:
    with pytest.raises(HypervisorError, match="no disk snapshots"):
        opened(monkeypatch, "qemu:///system", Connection(capabilities))


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ssh://far/system",
        "qemu+ssh://localhost/system?command=/tmp/x",
        "qemu+tcp://10.0.0.1/system",
        "qemu+tls://far/system",
        "qemu+ext:///system?command=/tmp/x",
        "qemu:///system?command=/tmp/x",
        "qemu://far/system",
        "lxc:///",
        "xen:///system",
        "esx://far",
        "http://[",
        "",
    ],
)
def test_only_the_qemu_of_this_host_is_asked(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    with pytest.raises(HypervisorError, match="run virt-chain there"):
        opened(monkeypatch, uri, Connection(ABLE))


@pytest.mark.parametrize(
    "uri", ["qemu:///system", "qemu:///embed?root=/a", "qemu+unix:///system?socket=/run/libvirt/x"]
)
def test_connections_to_this_host(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    connection = Connection(ABLE)
    with pytest.raises(Accepted):
        opened(monkeypatch, uri, connection)

    assert connection.kept_alive == [hypervisor.KEEPALIVE]


def test_capabilities_of_any_guest_count() -> None:
    assert has_disk_snapshots(ABLE)
    assert not has_disk_snapshots(UNABLE)


class Failed(Exception):
    pass


@dataclass
class Guest:
    """A domain whose agent is told to freeze, as libvirt's binding has it."""

    told: list[tuple[str, *tuple[int, ...]]]
    refuses: bool = False

    def agentSetResponseTimeout(self, seconds: int) -> None:  # noqa: N802
        self.told.append(("timeout", seconds))

    def fsFreeze(self) -> None:  # noqa: N802
        self.told.append(("freeze",))
        if self.refuses:
            raise Failed

    def fsThaw(self) -> None:  # noqa: N802
        self.told.append(("thaw",))


class Binding:
    libvirtError = Failed  # noqa: N815
    VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK = -2


def host_of(monkeypatch: pytest.MonkeyPatch, guest: Guest) -> hypervisor.Hypervisor:
    monkeypatch.setattr(hypervisor.Hypervisor, "_handle", lambda *_: guest)
    monkeypatch.setattr(hypervisor, "_told", lambda _: nullcontext())
    return hypervisor.Hypervisor("qemu:///system", Connection(ABLE), Binding())  # type: ignore


FROZEN = [("timeout", hypervisor.FREEZE), ("freeze",)]
THAWED = [("thaw",), ("timeout", -2)]


def test_the_agent_waits_as_long_as_before_after_a_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest([])
    with host_of(monkeypatch, guest)._frozen("web", required=True):
        assert guest.told == FROZEN

    assert guest.told == FROZEN + THAWED


def test_a_snapshot_that_fails_leaves_nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest([])
    with (
        pytest.raises(ZeroDivisionError),
        host_of(monkeypatch, guest)._frozen("web", required=True),
    ):
        raise ZeroDivisionError

    assert guest.told == FROZEN + THAWED


def test_a_freeze_that_was_interrupted_is_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest([])

    host_of(monkeypatch, guest).thaw("web")

    assert guest.told == [("timeout", hypervisor.FREEZE), *THAWED]


@pytest.mark.parametrize(
    ("version", "images"),
    [
        (9_000_000, None),
        (10_007_000, None),
        (10_008_000, 22),
        (11_003_000, 22),
        (11_010_000, 22),
        (12_000_000, None),
    ],
)
def test_the_libvirt_of_debian_13_follows_22_images(version: int, images: int | None) -> None:
    assert hypervisor.deepest_chain(version) == images
