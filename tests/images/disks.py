"""
Real disk images for the tests, written as one line of text each.

``"64k:A 64k:- 64k:0"`` is an image of three runs: 64 KiB filled with the byte
``A``, 64 KiB that the image leaves to its backing file, and 64 KiB of explicit
zero clusters.  A chain is a mapping from name to text, base first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.cli import main
from reconciler.tools.quarantine import FOLDER
from tests import forked

EXECUTABLE = Path(sys.executable).with_name("virt-chain")
"""The command as it was installed, for tests that need a process of its own."""
NOBODY = 65534
"""A user without any rights."""
KIB = 1024
MIB = 1024 * 1024

_UNITS = {"": 1, "k": KIB, "M": MIB}
_FORMAT_EXTENSION = b"\xe2\x79\x2a\xca"
"""Header extension that records the format of the backing file.  Source: QEMU, qcow2.txt."""


def size_of(text: str | int) -> int:
    """Bytes meant by ``64k``, ``2M`` or a number."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"(\d+)([kM]?)", text)
    assert found, f"{text!r} is no size"
    return int(found[1]) * _UNITS[found[2]]


def runs(text: str) -> Iterator[tuple[int, int, str]]:
    """Start and length in bytes, and letter, of each run of *text*."""
    at = 0
    for word in text.split():
        length, letter = word.split(":")
        yield at, size_of(length), letter
        at += size_of(length)


def length_of(text: str) -> int:
    """Bytes that *text* spans."""
    return sum(length for _, length, _ in runs(text))


def tool(*argv: str | Path, code: int | None = 0, **options: Any) -> str:
    """Standard output of *argv*; it fails loudly unless it ends with exit code *code*."""
    words = [os.fspath(word) for word in argv]
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace", **options)
    assert code is None or ended.returncode == code, f"{words}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def write(image: Path, text: str, *, image_format: str = "qcow2", compressed: bool = False) -> None:
    """Write the runs of *text* into *image* as a guest would."""
    commands: list[str] = []
    for start, length, letter in runs(text):
        if letter == "0":
            commands += ["-c", f"write -z {start} {length}"]
        elif letter != "-":
            how = "-c " if compressed else ""
            commands += ["-c", f"write {how}-P {ord(letter)} {start} {length}"]
    if commands:
        # the writes of a test need not survive a power cut
        said = tool("qemu-io", "-t", "unsafe", "-f", image_format, *commands, image)
        assert "failed" not in said, said


def view(image: Path, image_format: str = "qcow2") -> bytes:
    """All that a reader sees through *image*, as QEMU itself reads it."""
    with tempfile.NamedTemporaryFile(prefix="view-") as raw:
        tool("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", image, raw.name)
        return Path(raw.name).read_bytes()


def info(image: Path, image_format: str = "qcow2") -> dict[str, Any]:
    """What qemu-img tells of one image."""
    said = tool("qemu-img", "info", "-U", "-f", image_format, "--output=json", image)
    told: dict[str, Any] = json.loads(said)
    return told


def recorded_below(image: Path) -> tuple[str, str]:
    """
    Name and format of the backing file as the header of a qcow2 *image* has them, or empty.

    Source: QEMU, docs/interop/qcow2.txt.
    """
    with image.open("rb") as file:
        head = file.read(64 * KIB)
    magic, version, name_at, length = struct.unpack_from(">4sIQI", head)
    assert magic == b"QFI\xfb", f"{image} is no qcow2 image"
    if not name_at:
        return "", ""
    image_format = ""
    at = struct.unpack_from(">I", head, 100)[0] if version >= 3 else 72
    while (kind := head[at : at + 4]) != bytes(4):
        size = int.from_bytes(head[at + 4 : at + 8])
        if kind == _FORMAT_EXTENSION:
            image_format = head[at + 8 : at + 8 + size].decode()
        at += 8 + (size + 7) // 8 * 8
    return os.fsdecode(head[name_at : name_at + length]), image_format


def forget_backing_format(image: Path) -> None:
    """Take the record of the backing format out of the header, as old tools left it."""
    with image.open("r+b") as file:
        head = file.read(4096)
        at = head.index(_FORMAT_EXTENSION)
        file.seek(at)
        file.write(bytes(4))


def differing(one: bytes, other: bytes) -> str:
    """Where two views differ, in words; empty where they are equal."""
    if one == other:
        return ""
    if len(one) != len(other):
        return f"{len(one)} bytes instead of {len(other)}"
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return f"{one[at : at + 1]!r} instead of {other[at : at + 1]!r} at byte {at}"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """All of a file that a change of any kind would alter."""

    digest: str
    inode: int
    changed: int
    mode: int
    owner: tuple[int, int]


def facts(path: Path) -> FileFacts:
    found = path.lstat()
    content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    return FileFacts(
        hashlib.sha256(content).hexdigest(),
        found.st_ino,
        found.st_mtime_ns,
        found.st_mode,
        (found.st_uid, found.st_gid),
    )


def folder_facts(folder: Path) -> dict[str, FileFacts]:
    """Every file below *folder*, by its relative name."""
    return {
        str(path.relative_to(folder)): facts(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of the command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def steps(self) -> list[str]:
        """The steps of the first disk of a JSON plan, in short words."""
        return step_words(self.data["domains"][0]["disks"][0]["steps"])

    @property
    def error(self) -> str | None:
        """The error of the first disk of a JSON plan."""
        error: str | None = self.data["domains"][0]["disks"][0]["error"]
        return error


def step_words(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Steps of a JSON plan such as ``commit x into q, 64k`` or ``remove p``."""
    return [_words(step) for step in steps]


def _words(step: Mapping[str, Any]) -> str:
    def name(key: str) -> str:
        return short(Path(step[key])) if step[key] else "nothing"

    match step["action"]:
        case "create":
            said = f"create {name('image')}" + (f" on {name('backing')}" if step["backing"] else "")
        case "commit":
            said = f"commit {name('top')} into {name('base')}"
        case "pull":
            said = f"pull into {name('into')} down to {name('base')}"
        case "rebase":
            said = f"rebase {name('image')} onto {name('backing')}"
        case "rename":
            said = f"rename {name('source')} to {name('target')}"
        case "resize":
            said = f"resize {name('image')} to {_size_words(step['size'])}"
        case action:
            said = f"{action} {name('image')}"
    return f"{said}, {_size_words(step['bytes'])}" if step["bytes"] else said


def _size_words(size: int) -> str:
    return f"{size // KIB}k" if size % KIB == 0 else f"{size}"


def short(path: Path) -> str:
    """File name without ``.qcow2``."""
    return path.name.removesuffix(".qcow2")


def command(*words: str | Path) -> Outcome:
    """``virt-chain WORDS`` inside this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run([os.fspath(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def process(
    *words: str | Path,
    environment: Mapping[str, str] | None = None,
    umask: int | None = None,
    limits: Mapping[int, int] | None = None,
    user: int = 0,
    tracer: Sequence[str] = (),
    timeout: int = 120,
    **options: Any,
) -> Outcome:
    """
    ``virt-chain WORDS`` as a process of its own.

    With a *tracer* or *options* the installed command is started, which takes
    0.3 s of a processor; else it is forked.

    Args:
        environment, umask, limits, user: As `forked.run` has them.
        tracer: A program and its words that start the command.
        timeout: In seconds.
        options: As `subprocess.run` has them.
    """
    if not tracer and not options:
        ended = forked.run(
            words,
            environment=environment,
            umask=umask,
            limits=limits,
            user=user,
            timeout=timeout,
        )
        return Outcome(ended.returncode, ended.stdout, ended.stderr)
    assert (environment, umask, limits, user) == (None, None, None, 0), "they are for a fork"
    ended = subprocess.run(
        [*tracer, EXECUTABLE, *map(os.fspath, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        **options,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def held_open(image: Path, image_format: str = "qcow2") -> Iterator[None]:
    """A guest's stand-in: qemu-io has *image* open for writing meanwhile."""
    guest = subprocess.Popen(
        ["qemu-io", "-f", image_format, os.fspath(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert guest.stdin
    assert guest.stdout
    try:
        guest.stdin.write("length\n")
        guest.stdin.flush()
        answer = guest.stdout.readline()
        assert answer.strip(), "qemu-io did not open the image"
        yield
    finally:
        guest.communicate("quit\n")


@dataclass(slots=True)
class Disk:
    """
    One disk's images in a folder of their own, with a spec and a state directory.

    Attributes:
        root: Everything of the disk lies below it.
        paths: Where each image is, by name, base first.
        formats: ``qcow2`` or ``raw``, by name.
        golden: The view of every image as it was when `keep` was called.
        before: The facts of every file at that moment.
    """

    root: Path
    paths: dict[str, Path] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    golden: dict[str, bytes] = field(default_factory=dict)
    before: dict[str, FileFacts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images.mkdir(parents=True, exist_ok=True)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def spec_file(self) -> Path:
        return self.root / "chain.toml"

    def path(self, name: str) -> Path:
        """Where *name* is, or would be created."""
        known = self.paths.get(name)
        return known or self.images / (name if "." in name else f"{name}.qcow2")

    def add(
        self,
        name: str,
        text: str,
        *,
        on: str | None = None,
        raw: bool = False,
        size: str | int | None = None,
        cluster_size: str | int = "64k",
        compat: str = "1.1",
        extended_l2: bool = False,
        compression: str | None = None,
        style: str = "relative",
        recorded: str | None = None,
        record_format: bool = True,
        folder: str = "",
    ) -> Path:
        """
        Create one image.

        Args:
            text: Its runs; their sum is its size unless *size* says more.
            on: Name of its backing file.
            compression: ``zlib`` or ``zstd``: its clusters are compressed.
            style: How it names its backing file: ``relative``, ``absolute``,
                ``file`` or ``json``.
            recorded: That name letter by letter, in place of *style*.
            record_format: False: as old tools left it, without the format.
            folder: Below the images' folder.
        """
        path = self.images / folder / (name if "." in name else f"{name}.qcow2")
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = size_of(size) if size else length_of(text)
        if raw:
            tool("qemu-img", "create", "-q", "-f", "raw", path, str(whole))
        else:
            options = [f"cluster_size={size_of(cluster_size)}", f"compat={compat}"]
            options += ["extended_l2=on"] if extended_l2 else []
            options += [f"compression_type={compression}"] if compression == "zstd" else []
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options)]
            if on is not None:
                name_of = recorded or self.backing_name(path, on, style)
                argv += ["-u", "-F", self.formats[on], "-b", name_of]
            tool(*argv, path, str(whole))
        write(path, text, image_format="raw" if raw else "qcow2", compressed=bool(compression))
        if on is not None and not record_format:
            forget_backing_format(path)
        self.paths[name], self.formats[name] = path, "raw" if raw else "qcow2"
        return path

    def backing_name(self, overlay: Path, on: str, style: str) -> str:
        """What *overlay* records for the image *on*."""
        below = os.fspath(self.path(on))
        match style:
            case "relative":
                return os.path.relpath(below, overlay.parent)
            case "absolute":
                return below
            case "file":
                return f"file:{below}"
            case "json":
                file = {"driver": "file", "filename": below}
                return "json:" + json.dumps({"driver": self.formats[on], "file": file})
        raise AssertionError(f"{style!r} is no style")

    def chain(self, texts: Mapping[str, str], **options: Any) -> Disk:
        """
        Create the images of *texts*, base first, each on the one before; keep their views.

        Args:
            options: What `add` takes, for all images; under the name of an
                image (as a mapping) for this one.
        """
        below: str | None = None
        common = {key: value for key, value in options.items() if key not in texts}
        for name, text in texts.items():
            self.add(name, text, on=below, **{**common, **options.get(name, {})})
            below = name
        self.keep()
        return self

    def keep(self) -> None:
        """Remember what every image reads as, and every file as it is."""
        self.golden = {name: self.read(name) for name in self.paths}
        self.before = folder_facts(self.images)

    def save(self) -> None:
        """Copy all images away, for `restore`."""
        shutil.copytree(self.images, self.root / "saved", symlinks=True)

    def restore(self) -> None:
        """Put all images back as they were saved, and forget the state."""
        shutil.rmtree(self.images)
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(self.root / "saved", self.images, symlinks=True)
        self.before = folder_facts(self.images)

    def read(self, name: str) -> bytes:
        """The view of the image *name*, as it is now."""
        return view(self.path(name), self.formats.get(name, "qcow2"))

    def spec(
        self,
        chain: str,
        *,
        discard: Sequence[str] = (),
        templates: Sequence[str] = (),
        sizes: Mapping[str, str | int] | None = None,
        formats: Mapping[str, str] | None = None,
        target: str = "vm.vda",
        more: str = "",
        **keys: object,
    ) -> Path:
        """
        Write the spec of this disk; its file.

        Args:
            chain: ``b <- ~p <- x``; a name after ``~`` has ``restore_point = false``.
            keys: Other keys of the disk, such as ``remove_base=True``.
            more: TOML text that is added at the end.
        """
        domain, disk = target.split(".")
        entries = []
        for word in chain.split(" <- "):
            name = word.strip().removeprefix("~")
            entry: dict[str, object] = {"file": self.listed(name)}
            if word.startswith("~"):
                entry["restore_point"] = False
            if name in templates:
                entry["template"] = True
            if name in (sizes or {}):
                entry["size"] = (sizes or {})[name]
            if name in (formats or {}):
                entry["format"] = (formats or {})[name]
            entries.append(_toml(entry))
        keys = {"discard": [self.listed(name) for name in discard], **keys}
        lines = [
            "version = 1",
            "[defaults]",
            f"directory = {_toml(os.fspath(self.images))}",
            f"[domains.{_toml(domain)}.disks.{_toml(disk)}]",
            f"chain = [{', '.join(entries)}]",
            *(f"{key} = {_toml(value)}" for key, value in keys.items()),
            more,
        ]
        self.spec_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.spec_file

    def listed(self, name: str) -> str:
        """How a spec names the image *name*."""
        return os.path.relpath(self.path(name), self.images)

    def plan(self, *words: str | Path) -> Outcome:
        """``virt-chain plan --json`` of this disk's spec."""
        return command("plan", "--json", "--state-dir", self.state, self.spec_file, *words)

    def apply(self, *words: str | Path) -> Outcome:
        """``virt-chain apply -y`` of this disk's spec."""
        return command("apply", "-y", "--state-dir", self.state, self.spec_file, *words)

    def show(self) -> Any:
        """The data of ``virt-chain show --json``."""
        return command("show", "--json", "--state-dir", self.state, self.spec_file).data

    def active(self) -> Path | None:
        """The image that the guest would be started from, as `show` tells it; None: no disk."""
        images = self.show()["disks"][0]["images"]
        active = [Path(image["path"]) for image in images if image["role"] == "active"]
        assert len(active) == bool(images), images
        return active[0] if active else None

    def headers(self, top: str) -> list[tuple[str, str | None]]:
        """Name and recorded backing name of each image from *top* down, as headers have it."""
        found: list[tuple[str, str | None]] = []
        path, image_format = self.path(top), self.formats.get(top, "qcow2")
        while True:
            recorded, noted = recorded_below(path) if image_format == "qcow2" else ("", "")
            found.append((short(path), recorded or None))
            if not recorded:
                return found
            if recorded.startswith("json:"):
                below = json.loads(recorded.removeprefix("json:"))["file"]["filename"]
            elif recorded.startswith("file:"):
                below = recorded.removeprefix("file:")
            else:
                below = os.path.join(path.parent, recorded)
            path = Path(os.path.realpath(below))
            known = {os.path.realpath(p): self.formats.get(n) for n, p in self.paths.items()}
            image_format = known.get(os.fspath(path)) or noted or "qcow2"

    def stack(self, top: str) -> str:
        """The chain below and including *top*, as headers have it: ``b <- p <- x``."""
        return " <- ".join(name for name, _ in reversed(self.headers(top)))

    def everything(self) -> dict[str, FileFacts]:
        """The facts of every image and of the state directory, but for locks, which are taken."""
        state = {f"state/{name}": fact for name, fact in folder_facts(self.state).items()}
        kept = {name: fact for name, fact in state.items() if not name.startswith("state/locks/")}
        return {**folder_facts(self.images), **kept}


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)


def assert_done(
    disk: Disk,
    chain: str,
    *,
    current: str,
    gone: Sequence[str] = (),
    size: str | int | None = None,
) -> None:
    """
    The folder is as the desired *chain* says, and every promise of DESIGN §2 was kept.

    Args:
        chain: As `Disk.spec` takes it.
        current: The image whose golden copy is the current state; empty: a new disk.
        gone: Images that are no longer there.
        size: Of the disk now, where it has grown.
    """
    names = [word.strip().removeprefix("~") for word in chain.split(" <- ")]
    active = names[-1]
    reads = {name: disk.read(name) for name in names}
    points = [w.strip() for w in chain.split(" <- ")[:-1] if not w.strip().startswith("~")]
    wrong = {
        name: differing(reads[name], disk.golden[name])
        for name in points
        if name in disk.golden and reads[name] != disk.golden[name]
    }
    if current:
        expected = disk.golden[current].ljust(size_of(size or 0), b"\0")
        if reads[active] != expected:
            wrong[active] = differing(reads[active], expected)
    files = {str(disk.path(name).relative_to(disk.images)) for name in names}
    away = {str(disk.path(name).relative_to(disk.images)) for name in gone}

    assert wrong == {}
    assert disk.stack(active) == " <- ".join(names)
    assert (
        set(folder_facts(disk.images)) - set(quarantined(disk)) == (set(disk.before) | files) - away
    )
    for name, was in quarantined(disk).items():
        assert was not in files, f"{was} is in quarantine, and the spec lists it"
        assert (disk.images / name).read_bytes()[:4] == b"QFI\xfb"
    for name in names:
        if disk.formats.get(name, "qcow2") == "qcow2":
            tool("qemu-img", "check", "-q", "-f", "qcow2", disk.path(name))


def quarantined(disk: Disk) -> dict[str, str]:
    """Names of the files in quarantine, each with the name that it had before."""
    found = {}
    for name in folder_facts(disk.images):
        folder, found_it, inside = name.rpartition(f"{FOLDER}/")
        if found_it:
            found[name] = folder + inside.rpartition("~")[0]
    return found


def assert_quiet(disk: Disk) -> None:
    """A second apply does nothing and writes nothing."""
    before = disk.everything()
    count = disk.spec_file.read_text(encoding="utf-8").count("\nchain = ")
    outcome = disk.apply()

    are = "1 disk is" if count == 1 else f"{count} disks are"
    assert outcome == Outcome(0, f"Nothing to do: {are} as the spec says.\n", "")
    assert disk.everything() == before


def assert_untouched(disk: Disk, *names: str) -> None:
    """The files of *names* are as they were, to the bit and to the nanosecond."""
    now = folder_facts(disk.images)
    keys = [str(disk.path(name).relative_to(disk.images)) for name in names]

    assert {key: now.get(key) for key in keys} == {key: disk.before[key] for key in keys}


def unprivileged(disk: Disk, *words: str) -> Outcome:
    """``virt-chain WORDS`` as the user that `NOBODY` is."""
    return process(*words, "--state-dir", disk.state, disk.spec_file, user=NOBODY)
