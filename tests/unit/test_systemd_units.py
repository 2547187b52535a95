"""What the units allow is what virt-chain needs; each was tried under a real systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

import reconciler

FOLDER = Path(reconciler.__file__).parents[1] / "systemd"
NAMES = ("virt-chain-watch.service", "virt-chain-apply.service")


def settings(name: str) -> dict[str, str]:
    """The keys of a unit that no key of another section is called like."""
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#[")


NEEDED = [
    ("CAP_SETUID CAP_SETGID", "tools run as the owner of an image"),
    ("CAP_SYS_ADMIN", "tools run without network: setns(2)"),
    ("CAP_SYS_RESOURCE", "tools of another user get their limits: prlimit(2)"),
    ("CAP_KILL", "tools of another user are ended, and die with virt-chain"),
    ("CAP_CHOWN CAP_FOWNER", "overlays get the owner and mode of the active image; hard links"),
    ("CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH", "images and folders of any owner"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("capabilities", "why"), NEEDED, ids=[why for _, why in NEEDED])
def test_a_service_keeps_what_it_needs(name: str, capabilities: str, why: str) -> None:
    kept = settings(name)["CapabilityBoundingSet"].split()

    assert set(capabilities.split()) <= set(kept), why


@pytest.mark.parametrize("name", NAMES)
def test_a_service_may_make_a_network_namespace_and_speak_to_libvirt(name: str) -> None:
    found = settings(name)

    assert found["RestrictNamespaces"] == "net"
    assert "AF_UNIX" in found["RestrictAddressFamilies"].split()
    assert found["KillMode"] == "mixed"  # the tool of a step that is finished first lives on


def test_both_services_are_hardened_alike() -> None:
    watch, apply = map(settings, NAMES)
    words = ("Protect", "Private", "Restrict", "Capab", "NoNew", "Lock", "System", "State", "UMask")
    hardening = {key: value for key, value in watch.items() if key.startswith(words)}

    assert len(hardening) > 15
    assert {key: apply.get(key) for key in hardening} == hardening
    assert apply["ReadWritePaths"] == watch["ReadWritePaths"]


def test_systemd_waits_for_the_watch_to_say_that_it_is_ready_and_alive() -> None:
    found = settings("virt-chain-watch.service")

    assert (found["Type"], found["NotifyAccess"], found["Restart"]) == (
        "notify",
        "main",
        "on-failure",
    )
    assert "WatchdogSec" in found
