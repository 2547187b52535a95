"""
What the tests on untrusted input share.

A canary is a file outside of the folders that may be opened.  Its bytes never
appear in any output, and in a handful of tests strace proves that no process of
the command opened it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import struct
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.disks import Disk, Outcome, process, tool

SECRET = "the-canary-sang-at-dawn"
LIMITS = {resource.RLIMIT_AS: 1 << 30}
"""1 GiB of address space, for virt-chain and all that it starts."""
SECONDS = 30
"""Most seconds that the command may take on any input."""

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_CALL = re.compile(
    r"\b(?P<call>open|openat|openat2|connect|execve)\((?P<words>.*?)\)\s+= (?P<result>-?\d+)"
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def header(
    *,
    version: int = 3,
    backing: bytes = b"",
    backing_format: bytes = b"",
    bits: int = 16,
    size: int = 1 << 20,
    crypt: int = 0,
    l1_size: int = 1,
    l1_at: int = 0x30000,
    refcounts_at: int = 0x10000,
    refcounts: int = 1,
    snapshots: int = 0,
    snapshots_at: int = 0,
    incompatible: int = 0,
    name_at: int | None = None,
    name_length: int | None = None,
    header_length: int = 104,
) -> bytes:
    """The first cluster of a qcow2 image, each field as the caller wants it."""
    extensions = b""
    if backing_format:
        padded = backing_format.ljust(-(-len(backing_format) // 8) * 8, b"\0")
        extensions = struct.pack(">II", 0xE2792ACA, len(backing_format)) + padded
    extensions += bytes(8)
    where = header_length + len(extensions) if backing else 0
    fixed = _FIXED.pack(
        b"QFI\xfb",
        version,
        where if name_at is None else name_at,
        len(backing) if name_length is None else name_length,
        bits,
        size,
        crypt,
        l1_size,
        l1_at,
        refcounts_at,
        refcounts,
        snapshots,
        snapshots_at,
    )
    text = fixed + _V3.pack(incompatible, 0, 0, 4, header_length) + extensions + backing
    return text.ljust(1 << min(max(bits, 9), 16), b"\0")


def empty(path: Path, backing: str = "", backing_format: str = "qcow2") -> Path:
    """A valid empty image of 1 MiB with four clusters, written without qemu-img."""
    head = header(
        backing=os.fsencode(backing), backing_format=backing_format.encode() if backing else b""
    )
    table = struct.pack(">Q", 0x20000).ljust(65536, b"\0")
    counts = struct.pack(">4H", 1, 1, 1, 1).ljust(65536, b"\0")
    path.write_bytes(head + table + counts + bytes(65536))
    return path


def patch(path: Path, at: int, content: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@dataclass(frozen=True, slots=True)
class Traced:
    """What the command and all that it started did: files opened, programs run, addresses."""

    outcome: Outcome
    opened: frozenset[str]
    ran: frozenset[str]
    connected: tuple[str, ...]


@dataclass(slots=True)
class Scene:
    """
    One disk, and a canary beside its folder.

    Attributes:
        root: Scratch folder; images, spec and state lie below it.
    """

    root: Path
    disk: Disk = field(init=False)

    def __post_init__(self) -> None:
        self.disk = Disk(self.root)
        self.outside.mkdir()
        self.canary.write_text(f"{SECRET}\n" * 3000)
        self.canary_image.write_bytes(b"")
        tool("qemu-img", "create", "-q", "-f", "qcow2", self.canary_image, "1M")
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 67 0 64k", self.canary_image)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def canary(self) -> Path:
        return self.outside / "canary.txt"

    @property
    def canary_image(self) -> Path:
        """A qcow2 image nobody may open."""
        return self.outside / "canary.qcow2"

    def spec(self, chain: str, **keys: object) -> Path:
        """The spec of ``vm.vda`` with the images *chain*, ``b <- x``."""
        return self.disk.spec(chain, **keys)  # type: ignore[arg-type]

    def words(self, verb: str, *words: str | Path) -> list[str | Path]:
        yes = ["-y"] if verb == "apply" else []
        return [verb, *yes, "--state-dir", self.root / "state", self.root / "chain.toml", *words]

    def run(self, verb: str, *words: str | Path) -> Outcome:
        """The command on the spec as a process of its own, within its bounds."""
        return bounded(*self.words(verb, *words))

    def traced(self, verb: str, *words: str | Path) -> Traced:
        """The command on the spec under strace."""
        return traced(self.root, *self.words(verb, *words))


def bounded(*words: str | Path, umask: int | None = None) -> Outcome:
    """``virt-chain WORDS`` within 1 GiB and 30 s; what it prints is clean."""
    outcome = process(*words, umask=umask, limits=LIMITS, timeout=SECONDS)
    assert_clean(outcome)
    return outcome


def traced(root: Path, *words: str | Path) -> Traced:
    """``virt-chain WORDS`` under strace: every file that any of its processes opened."""
    log = root / "strace.log"
    calls = "trace=open,openat,openat2,connect,execve"
    # a filter in the kernel: only these calls stop the process
    tracing = ("-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", calls, "-o", log)
    outcome = process(*words, tracer=("strace", *map(os.fspath, tracing)))
    assert_clean(outcome)
    opened, ran, connected = set(), set(), []
    for call in _calls(log.read_text(errors="replace")):
        names = [_unescaped(name) for name in _QUOTED.findall(call["words"])]
        if call["call"] == "connect":
            connected.append(call["words"])
        elif int(call["result"]) >= 0 and call["call"] == "execve":
            ran.add(os.path.basename(names[0]))
        elif int(call["result"]) >= 0:
            opened.add(os.path.realpath(os.path.join(root, names[0])))
    assert opened, "strace saw nothing"
    return Traced(outcome, frozenset(opened), frozenset(ran), tuple(connected))


def _calls(text: str) -> list[re.Match[str]]:
    """Calls of the log; one that was interrupted by another process is put together again."""
    begun: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
        elif rest.startswith("<... "):
            lines.append(begun.pop(pid, "") + rest.partition(" resumed>")[2])
        else:
            lines.append(rest)
    return [found for line in lines if (found := _CALL.search(line))]


def _unescaped(name: str) -> str:
    return name.encode("latin-1", "replace").decode("unicode_escape")


def assert_clean(outcome: Outcome) -> None:
    """No control characters, no secret, no traceback; all that was said is text."""
    said = outcome.out + outcome.err
    bad = sorted({char for char in said if not char.isprintable() and char != "\n"})

    assert bad == [], said
    assert SECRET not in said
    assert "Traceback" not in said, said


def assert_refused(outcome: Outcome, *said: str) -> None:
    """It ended with exit code 1 and a message that has all of *said*."""
    text = " ".join((outcome.out + outcome.err).split())

    assert outcome.code == 1, outcome
    assert [one for one in said if one not in text] == [], text


def json_name(**options: object) -> str:
    """A ``json:`` backing name."""
    return "json:" + json.dumps(options)
