"""
One libvirt call on a connection, in a process of its own.

One process at a time holds an embedded root, and the command under test is such
a process.  Opening a root takes 10 ms, so each call opens it, acts and ends.

Usage: ``driver.py URI '["call", {arguments}]'``; the answer is
``{"value": ...}`` or ``{"error": text, "code": number}``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]

STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "none",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}


def define(connection: Any, xml: str) -> None:
    connection.defineXML(xml)


def start(connection: Any, name: str, flags: int = 0) -> None:
    connection.lookupByName(name).createWithFlags(flags)


def destroy(connection: Any, name: str) -> None:
    connection.lookupByName(name).destroy()


def suspend(connection: Any, name: str) -> None:
    connection.lookupByName(name).suspend()


def resume(connection: Any, name: str) -> None:
    connection.lookupByName(name).resume()


def shutdown(connection: Any, name: str, seconds: float) -> None:
    """QEMU stays after the guest's power off until libvirt ends it, so this waits."""
    domain = connection.lookupByName(name)
    domain.shutdown()
    _wait_off(domain, seconds)


def wait_off(connection: Any, name: str, seconds: float) -> None:
    _wait_off(connection.lookupByName(name), seconds)


def _wait_off(domain: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while domain.isActive():
        if time.monotonic() > end:
            raise TimeoutError(f"{domain.name()} still runs after {seconds} s")
        time.sleep(0.02)


def undefine(connection: Any, name: str) -> None:
    domain = connection.lookupByName(name)
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    )


def managed_save(connection: Any, name: str) -> None:
    connection.lookupByName(name).managedSave()


def save(connection: Any, name: str, path: str) -> None:
    connection.lookupByName(name).save(path)


def restore(connection: Any, path: str) -> None:
    connection.restore(path)


def has_managed_save(connection: Any, name: str) -> bool:
    return bool(connection.lookupByName(name).hasManagedSaveImage())


def xml(connection: Any, name: str, inactive: bool) -> str:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
    return str(connection.lookupByName(name).XMLDesc(flags))


def state(connection: Any, name: str) -> str:
    return STATES[connection.lookupByName(name).state()[0]]


def domains(connection: Any) -> list[str]:
    return sorted(domain.name() for domain in connection.listAllDomains())


def create_snapshot(connection: Any, name: str, xml: str, flags: int) -> str:
    return str(connection.lookupByName(name).snapshotCreateXML(xml, flags).getName())


def snapshots(connection: Any, name: str) -> list[str]:
    domain = connection.lookupByName(name)
    return sorted(snapshot.getName() for snapshot in domain.listAllSnapshots())


def snapshot_xml(connection: Any, name: str, snapshot: str) -> str:
    return str(connection.lookupByName(name).snapshotLookupByName(snapshot).getXMLDesc())


def delete_snapshot(connection: Any, name: str, snapshot: str, flags: int) -> None:
    connection.lookupByName(name).snapshotLookupByName(snapshot).delete(flags)


def job(connection: Any, name: str, disk: str) -> dict[str, int]:
    return dict(connection.lookupByName(name).blockJobInfo(disk))


def active_in_qemu(connection: Any, name: str) -> dict[str, str]:
    """Libvirt's aliases tell the disks apart: ``virtio-disk0`` is the first one."""
    domain = connection.lookupByName(name)
    answer = libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-block"}', 0)
    aliases = {
        alias.get("name"): disk.find("target").get("dev")  # type: ignore[union-attr]
        for disk in ET.fromstring(domain.XMLDesc()).findall("devices/disk")
        if (alias := disk.find("alias")) is not None
    }
    found = {}
    for block in json.loads(answer)["return"]:
        target = aliases.get(str(block.get("qdev")).split("/")[3])
        if target is not None and "inserted" in block:
            found[target] = _path(block["inserted"]["image"]["filename"])
    return found


def _path(filename: str) -> str:
    """QEMU says ``json:{...}`` where the chain differs from what the headers record."""
    if not filename.startswith("json:"):
        return filename
    node = json.loads(filename.removeprefix("json:"))
    while isinstance(node, dict):
        node = node.get("filename") or node.get("file")
    return str(node)


def start_pull(
    connection: Any, name: str, disk: str, base: str | None, bandwidth: int, flags: int
) -> None:
    flags |= libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
    connection.lookupByName(name).blockRebase(disk, base, bandwidth, flags)


def start_commit(
    connection: Any,
    name: str,
    disk: str,
    base: str | None,
    top: str | None,
    bandwidth: int,
    flags: int,
) -> None:
    flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
    connection.lookupByName(name).blockCommit(disk, base, top, bandwidth, flags)


def set_speed(connection: Any, name: str, disk: str, bandwidth: int) -> None:
    flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
    connection.lookupByName(name).blockJobSetSpeed(disk, bandwidth, flags)


def abort_job(connection: Any, name: str, disk: str, flags: int) -> None:
    connection.lookupByName(name).blockJobAbort(disk, flags)


def attach_disk(connection: Any, name: str, xml: str, flags: int) -> None:
    connection.lookupByName(name).attachDeviceFlags(xml, flags)


def detach_disk(connection: Any, name: str, xml: str, flags: int) -> None:
    connection.lookupByName(name).detachDeviceFlags(xml, flags)


CALLS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        define, start, destroy, suspend, resume, shutdown, wait_off, undefine, managed_save,
        save, restore, has_managed_save, xml, state, domains, create_snapshot, snapshots,
        snapshot_xml,
        delete_snapshot, active_in_qemu, job, start_pull, start_commit, set_speed, abort_job,
        attach_disk, detach_disk,
    )
}  # fmt: skip


def _wait_reconnected(connection: Any) -> None:
    """
    Wait until the driver has met the guests that run already.

    A call that races it fails with "domain is not running"; a query job waits
    for its turn.
    """
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            target = ET.fromstring(domain.XMLDesc()).find("devices/disk/target")
            if target is not None:
                domain.blockInfo(target.get("dev"))
        except libvirt.libvirtError:
            continue  # QEMU is gone, and now the driver knows


def _loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def main() -> None:
    call, arguments = json.loads(sys.argv[2])
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_loop, daemon=True).start()
    try:
        connection = libvirt.open(sys.argv[1])
        _wait_reconnected(connection)
        answer = {"value": CALLS[call](connection, **arguments)}
        connection.close()
    except libvirt.libvirtError as error:
        answer = {"error": str(error), "code": error.get_error_code()}
    except TimeoutError as error:
        answer = {"error": str(error), "code": -1}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # the loop's thread never ends


if __name__ == "__main__":
    main()
