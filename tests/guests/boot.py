"""The kernel and the initramfs that every test guest boots."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "gcc": "gcc libc6-dev",
    "libvirtd": "libvirt-daemon",
}
"""Debian's package of each program that the guests need."""

LIBVIRT_PARTS = {
    "libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu",
}
"""Debian's package of each part of libvirt that the embedded driver loads."""

KERNEL_PACKAGE = "linux-image-cloud-amd64"

MODULES = (
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko",
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/input/evdev.ko",
    "kernel/drivers/acpi/button.ko",
)
"""In this order each module finds the symbols it needs.

A kernel may have some of them built in, and keep the others compressed, as Debian 13's does."""

COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off "
    # Half a second of every boot goes into these self tests and profiles.
    "cryptomgr.notests apparmor=0 audit=0"
)

WITNESS = Path(__file__).with_name("witness.c")


class MissingPackage(Exception):
    """The machine lacks something that test guests need."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"tests of live guests need {what}: {remedy}")


@dataclass(frozen=True, slots=True)
class Boot:
    """
    What a guest boots.

    Attributes:
        kernel: Debian's cloud kernel as it is installed.
        initrd: The witness and the kernel modules it loads.
        saved: Folder that keeps guests which have booted it, see `tests.guests.warm`;
            None: each start boots it.
    """

    kernel: Path
    initrd: Path
    saved: Path | None = None


def build_boot(cache: Path) -> Boot:
    """
    The kernel of this machine and an initramfs, built once for each version of both.

    Args:
        cache: Folder that keeps the initramfs between test sessions.

    Raises:
        MissingPackage: A program, the kernel or libvirt is not installed.
    """
    check_machine()
    kernel, modules = _kernel()
    content = WITNESS.read_bytes() + "".join(map(str, modules)).encode()
    initrd = cache / f"initrd-{hashlib.sha256(content).hexdigest()[:16]}"
    if not initrd.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{initrd.name}.{os.getpid()}"
        part.write_bytes(_initramfs(_compiled(part.with_suffix(".init")), modules))
        part.rename(initrd)  # at once, for test processes that run side by side
    return Boot(kernel, initrd)


def check_machine() -> None:
    """
    Raises:
        MissingPackage: Says what to install.
    """
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            raise MissingPackage(program, _apt(package))
    for part, package in LIBVIRT_PARTS.items():
        if not [*Path("/usr").glob(f"lib*/{part}"), *Path("/usr").glob(f"lib/*/{part}")]:
            raise MissingPackage(f"libvirt's {Path(part).name}", _apt(package))
    try:
        import libvirt  # noqa: F401
    except ImportError:
        remedy = _apt("libvirt-dev pkg-config gcc") + " && pip install libvirt-python"
        raise MissingPackage("libvirt's Python module", remedy) from None
    if os.geteuid() == 0 and not _has_user("libvirt-qemu"):
        # The driver looks the name up before it reads qemu.conf.
        remedy = "useradd --system --user-group --no-create-home libvirt-qemu"
        raise MissingPackage("the user libvirt-qemu when they run as root", remedy)


def _apt(packages: str) -> str:
    return f"apt-get install --no-install-recommends {packages}"


def _has_user(name: str) -> bool:
    lines = Path("/etc/passwd").read_text().splitlines()
    return any(line.startswith(f"{name}:") for line in lines)


def _kernel() -> tuple[Path, list[Path]]:
    """The newest cloud kernel, and the files of those of MODULES that are not built in."""
    found = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=_version, reverse=True)
    for kernel in found:
        folder = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")
        with suppress(FileNotFoundError):
            return kernel, _modules(folder)
    raise MissingPackage("a kernel for guests", _apt(KERNEL_PACKAGE))


def _modules(folder: Path) -> list[Path]:
    """
    Raises:
        FileNotFoundError: The kernel of that folder lacks a module.
    """
    built_in = (folder / "modules.builtin").read_text().split()
    return [_module(folder / name) for name in MODULES if name not in built_in]


def _module(file: Path) -> Path:
    compressed = file.with_name(f"{file.name}.xz")
    if not file.exists() and compressed.exists():
        return compressed
    file.stat()
    return file


def _version(kernel: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", kernel.name))


def _compiled(program: Path) -> bytes:
    argv = ["gcc", "-O2", "-static", "-pthread", "-o", str(program), str(WITNESS)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise MissingPackage(f"gcc to compile {WITNESS.name}", ran.stderr or _apt("libc6-dev"))
    try:
        return program.read_bytes()
    finally:
        program.unlink()


def _initramfs(init: bytes, modules: Sequence[Path]) -> bytes:
    """A cpio archive; the witness loads ``/modules/a``, ``/modules/b``, ... in turn."""
    members = [("init", 0o100755, init), ("modules", 0o040755, b"")]
    for letter, module in zip(ascii_lowercase, modules, strict=False):
        members.append((f"modules/{letter}", 0o100644, _read(module)))
    members.append(("TRAILER!!!", 0, b""))
    return b"".join(_member(*member) for member in members)


def _read(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def _member(name: str, mode: int, data: bytes) -> bytes:
    """
    One file in cpio's "newc" format.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
    """
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
