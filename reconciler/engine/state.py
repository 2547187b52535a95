"""
The state file of a domain: what images cannot tell.

It is replaced atomically (write, fsync, rename, fsync the folder).  Losing it
loses no data.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconciler.model.errors import StateError
from reconciler.model.image import Identity
from reconciler.model.steps import Commit, Step, as_data, from_data, touched
from reconciler.tools import files
from reconciler.tools.moment import Moment, Version, version_of

VERSION = 1
HEAD = (
    "# Written by virt-chain: what images cannot tell, down to `# end`. Losing it loses no data.\n"
)
END = "# end\n"
"""First and last line: a file that was cut at the end of a table is valid TOML, too."""
ENVIRONMENT = "VIRT_CHAIN_STATE_DIR"
_LARGEST = 64 * 1024 * 1024
"""Bytes of the largest state file that is read."""
_LONG_KEY = re.compile(r"^[^=\"'\n]{1000}", re.MULTILINE)
"""A dotted key of 40 KB takes tomllib seconds and gigabytes (FIELD_NOTES §2)."""
LONGEST_NAME = 100
"""Characters of a quoted name that are kept in a file name (of 255 at most)."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """
    A file whose data was merged elsewhere or discarded, to be removed.

    Attributes:
        changed: Its modification time in nanoseconds when it went off the
            chain.  A later time means that somebody still uses it.
        discarded: Its data was thrown away, and is nowhere else.
    """

    path: Path
    identity: Identity
    changed: int
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class OldLink:
    """
    What an image was before the first step.

    Attributes:
        backing, format: What its header named, before it was relinked.
        changed: Its modification time in nanoseconds.
    """

    image: Path
    backing: str | None
    format: str | None
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """
    Steps that belong together and have begun.

    From the first write of a commit on, the views of its base and of all
    images up to its top are gone: only finishing leads anywhere.

    Attributes:
        live: QEMU did it while the guest ran, and may have died with data in its memory.
        pivots: Images that QEMU was about to change for one another, with their
            modification times when both held the same.
    """

    steps: tuple[Step, ...]
    remove: tuple[Leftover, ...] = ()
    links: tuple[OldLink, ...] = ()
    begun: str = ""
    live: bool = False
    pivots: Mapping[Path, int] = field(default_factory=dict)

    @property
    def written(self) -> tuple[Path, ...]:
        """Images whose bytes or views the steps change."""
        order = [link.image for link in self.links]
        paths: dict[Path, None] = {}
        for step in self.steps:
            paths.update(dict.fromkeys(touched(step)))
            if isinstance(step, Commit) and step.base in order and step.top in order:
                paths.update(dict.fromkeys(order[order.index(step.base) : order.index(step.top)]))
        return tuple(paths)

    def untouched(self) -> bool:
        """True where nothing was written yet: each image is as it was before the first step."""
        before = {link.image: link.changed for link in self.links}
        return all(
            files.changed(path) == before[path] if path in before else not os.path.lexists(path)
            for step in self.steps
            for path in touched(step)
        )


@dataclass(frozen=True, slots=True)
class DiskState:
    """
    What is remembered of one disk.

    Attributes:
        active: The image that the guest writes; None: never applied.
        applied: When the disk was last found or made as the spec says, ISO 8601.
        names: Files with two names while the guest runs: by the name that
            QEMU and the headers have, the name that the spec has.
    """

    active: Path | None = None
    applied: str | None = None
    unfinished: Unfinished | None = None
    leftovers: tuple[Leftover, ...] = ()
    names: Mapping[Path, Path] = field(default_factory=dict)


def default_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The state directory where no option names one."""
    environment = os.environ if environment is None else environment
    if named := environment.get(ENVIRONMENT):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/virt-chain")
    home = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "virt-chain"


def now() -> str:
    """The time as the state file has it: UTC, seconds, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def paths_in(state: DiskState) -> tuple[Path, ...]:
    """Every image that *state* would have changed, moved or removed."""
    unfinished = state.unfinished or Unfinished(())
    left = [one.path for one in (*state.leftovers, *unfinished.remove)]
    links = [link.image for link in unfinished.links]
    values = [getattr(step, key) for step in unfinished.steps for key in step.__slots__]
    return (*left, *links, *(value for value in values if isinstance(value, Path)))


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a state file holds; it is good for as long as the file is *version*."""

    version: tuple[int, ...] = ()
    domain: str = ""
    disks: dict[str, DiskState] = field(default_factory=dict)


@dataclass(slots=True)
class StateFolder:
    """All state files, one a domain; each is read when asked for, and when it was replaced."""

    folder: Path
    _read: dict[Path, _Stored] = field(default_factory=dict)
    _paths: dict[str, Path] = field(default_factory=dict)

    def path(self, domain: str) -> Path:
        """The state file of *domain*; no domain name leads out of the folder."""
        if domain not in self._paths:
            self._paths[domain] = self.folder / f"{file_name(domain)}.toml"
        return self._paths[domain]

    def lock_file(self, domain: str, target: str) -> Path:
        """An existing file that is locked while a disk is worked on."""
        self._make_folder()
        folder = self.folder / "locks"
        path = folder / f"{file_name(domain)}:{file_name(target)}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise StateError(f"{path} cannot be made: {error.strerror}") from error
        return path

    def disk(self, domain: str, target: str, moment: Moment | None = None) -> DiskState:
        """
        What is remembered of a disk at *moment* (default: now); nothing where it was never applied.

        Raises:
            StateError: The file is there and cannot be read.
        """
        return self._stored(self.path(domain), moment).disks.get(target, DiskState())

    def in_flight(self, moment: Moment | None = None) -> dict[Path, tuple[str, ...]]:
        """
        Images that steps in flight write, each with the labels of the disks concerned.

        Raises:
            StateError: A state file cannot be read.
        """
        found: dict[Path, tuple[str, ...]] = {}
        for path in sorted(self.folder.glob("*.toml")) if self.folder.is_dir() else ():
            stored = self._stored(path, moment)
            for target, state in stored.disks.items():
                for image in state.unfinished.written if state.unfinished else ():
                    found[image] = (*found.get(image, ()), f"{stored.domain}:{target}")
        return found

    def _stored(self, path: Path, moment: Moment | None = None) -> _Stored:
        known, version = self._read.get(path), _version(path, moment)
        if known is None or known.version != version:
            self._read[path] = known = _load(path, version)
        return known

    def write(self, domain: str, target: str, state: DiskState) -> None:
        """
        Remember *state*, durably.

        Raises:
            StateError: The file cannot be written.
        """
        path = self.path(domain)
        if self._stored(path).disks.get(target) == state:
            return
        self._make_folder()
        try:
            with files.alone_with(self.folder / ".lock"):
                disks = {**self._stored(path).disks, target: state}
                files.write_private(path, _dump(domain, disks))
                self._read[path] = _Stored(_version(path), domain, disks)
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error
        except UnicodeEncodeError as error:
            raise StateError(f"{path} cannot hold a name that is no UTF-8: {error}") from error

    def replace_file(self, path: Path, made: str | Callable[[], str]) -> None:
        """
        Write a text to *path* below the folder, durably.

        Args:
            made: The text, or what makes it, called while nobody else writes here.

        Raises:
            StateError: The file cannot be written.
        """
        self._make_folder()
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with files.alone_with(self.folder / ".lock"):
                files.write_private(path, made if isinstance(made, str) else made())
        except (OSError, UnicodeEncodeError) as error:
            raise StateError(f"{path} cannot be written: {error}") from error

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"the state directory {self.folder} cannot be made: {error.strerror}; "
                f"name another with --state-dir or {ENVIRONMENT}"
            ) from error


def file_name(name: str) -> str:
    """*name* as one file name that leads nowhere else; a long one is cut, with a digest."""
    quoted = quote(name, safe=" ")
    if len(quoted) > LONGEST_NAME:
        quoted = f"{quoted[:LONGEST_NAME]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _version(path: Path, moment: Moment | None = None) -> Version:
    """What changes whenever the file *path* is replaced; empty where there is none."""
    found = (moment or Moment()).behind(str(path))
    return () if found is None else version_of(found)


def _load(path: Path, version: tuple[int, ...]) -> _Stored:
    if version and not (files.is_regular(path) and path.stat().st_size <= _LARGEST):
        raise StateError(f"{path} cannot be read: it is no regular file of reasonable size")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _Stored()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    try:
        if _LONG_KEY.search(text):
            raise ValueError("it has a key of more than a thousand characters")
        data = tomllib.loads(text)
        if data.get("version") != VERSION:
            raise ValueError(f"its version is {data.get('version')!r}, this program has {VERSION}")
        disks = {target: _disk(disk) for target, disk in data.get("disks", {}).items()}
        if text.startswith(HEAD) and not text.endswith(END):
            raise ValueError(f"its last line is not {END.rstrip()!r}")
        return _Stored(version, str(data.get("domain", path.stem)), disks)
    except (
        ArithmeticError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise StateError(
            f"{path} is damaged ({error}); look at the images with `virt-chain show`, then move "
            "the file away: the active image is then taken from `active` or the spec's chain"
        ) from error


def _disk(data: dict[str, Any]) -> DiskState:
    unfinished = data.get("unfinished")
    return DiskState(
        active=Path(data["active"]) if "active" in data else None,
        applied=data.get("applied"),
        unfinished=_unfinished(unfinished) if unfinished else None,
        leftovers=tuple(_leftover(one) for one in data.get("leftovers", ())),
        names={Path(one["qemu"]): Path(one["spec"]) for one in data.get("names", ())},
    )


def _unfinished(data: dict[str, Any]) -> Unfinished:
    return Unfinished(
        steps=tuple(from_data(step) for step in data["steps"]),
        remove=tuple(_leftover(one) for one in data.get("remove", ())),
        links=tuple(
            OldLink(
                Path(one["image"]), one.get("backing"), one.get("format"), one.get("changed", 0)
            )
            for one in data.get("links", ())
        ),
        begun=str(data.get("begun", "")),
        live=data.get("live") is True,
        pivots={Path(one["image"]): int(one["changed"]) for one in data.get("pivots", ())},
    )


def _leftover(data: dict[str, Any]) -> Leftover:
    path, device, inode = Path(data["path"]), int(data["device"]), int(data["inode"])
    with suppress(OSError):
        # a filesystem may have another device number since the machine was started
        there = os.stat(path)
        device = there.st_dev if there.st_ino == inode else device
    discarded = data.get("discarded") is True
    return Leftover(path, Identity(device, inode), int(data["changed"]), discarded)


def _dump(domain: str, disks: dict[str, DiskState]) -> str:
    import tomlkit  # takes a while, and only writing needs it

    data = {
        "version": VERSION,
        "domain": domain,
        "disks": {target: _disk_data(state) for target, state in disks.items()},
    }
    return HEAD + tomlkit.dumps(data) + END


def _disk_data(state: DiskState) -> dict[str, Any]:
    data: dict[str, Any] = {"active": _text(state.active), "applied": state.applied}
    if state.unfinished:
        data["unfinished"] = {
            "begun": state.unfinished.begun,
            "live": state.unfinished.live,
            "pivots": [
                {"image": str(image), "changed": changed}
                for image, changed in state.unfinished.pivots.items()
            ],
            "steps": [_without_none(as_data(step)) for step in state.unfinished.steps],
            "remove": [_leftover_data(one) for one in state.unfinished.remove],
            "links": [
                _without_none(
                    {
                        "image": str(one.image),
                        "backing": one.backing,
                        "format": one.format,
                        "changed": one.changed,
                    }
                )
                for one in state.unfinished.links
            ],
        }
    if state.leftovers:
        data["leftovers"] = [_leftover_data(one) for one in state.leftovers]
    if state.names:
        data["names"] = [{"qemu": str(a), "spec": str(b)} for a, b in state.names.items()]
    return _without_none(data)


def _leftover_data(one: Leftover) -> dict[str, Any]:
    where = {"device": one.identity.device, "inode": one.identity.inode}
    data = {"path": str(one.path), **where, "changed": one.changed}
    return {**data, "discarded": True} if one.discarded else data


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def begun(state: DiskState, unfinished: Unfinished) -> DiskState:
    """*state* with *unfinished* in flight."""
    return replace(state, unfinished=replace(unfinished, begun=now()))
