"""
The state directory: a state file for each domain, and the locks of disks and folders.

A state file is read by whoever looks, and written by nobody but a session: whoever holds the
disk's lock.  It is replaced atomically (write, fsync, rename, fsync the folder).  Losing it
loses no data.

Locks are taken in one order, disks before folders, and both in the order of their names.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from reconciler.engine.disk_state import DiskState, resolved
from reconciler.engine.state_text import Stored, dump_text, is_spec, load_text
from reconciler.model.errors import StateError
from reconciler.tools import files
from reconciler.tools.homes import at_home
from reconciler.tools.lookups import Lookups

ENVIRONMENT = "VIRT_CHAIN_STATE_DIR"
_LARGEST = 64 * 1024 * 1024
"""Bytes of the largest state file that is read."""
LONGEST_NAME = 100
"""Characters of a quoted name that are kept in a file name (of 255 at most)."""

_ELSEWHERE = f"run as its owner, or name another with --state-dir or {ENVIRONMENT}"

Waiting = Callable[[Path, str], AbstractContextManager[None]]
"""Holds the lock on a file, once whoever has it releases it; the text tells what is locked."""


def waiting(seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Waiting:
    """
    Waits at most so many *seconds* for a lock.

    Args:
        meanwhile: Called before each try; what it raises ends the waiting.
    """
    return lambda path, what: files.locked_within(path, what, seconds, meanwhile)


def default_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The state directory where no option names one."""
    environment = os.environ if environment is None else environment
    if named := environment.get(ENVIRONMENT):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/virt-chain")
    home = environment.get("XDG_STATE_HOME") or at_home("~/.local/state")
    return Path(home) / "virt-chain"


@dataclass(slots=True)
class StateFolder:
    """All state files, one a domain."""

    folder: Path
    _held: _HeldFolders = field(default_factory=lambda: _HeldFolders())
    _own: set[tuple[str, str]] = field(default_factory=set)
    _kept: set[tuple[str, str]] = field(default_factory=set)
    _signature: bytes = b""
    _others: int = 0

    def path(self, domain: str) -> Path:
        """The state file of *domain*; no domain name leads out of the folder."""
        return self.folder / f"{file_name(domain)}.toml"

    def disk(self, domain: str, target: str, lookups: Lookups | None = None) -> DiskState:
        """
        What is remembered of a disk; nothing where it was never applied.

        Raises:
            StateError: The file is there and cannot be read.
        """
        lookups = lookups or Lookups()
        stored = _read(f"{self.folder}/{file_name(domain)}.toml", lookups)
        state = stored.disks.get(target)
        if state is None:
            state = DiskState()
        if any(one.restart for one in stored.disks.values()):
            state = replace(state, restart=True)  # whichever disk of the domain it was stopped for
        return resolved(state, lookups.real)

    def stopped_for(self, domain: str) -> tuple[str, ...]:
        """Disks of *domain* that its guest was stopped for, and has to be started again after."""
        disks = _read(os.fspath(self.path(domain)), Lookups()).disks
        return tuple(sorted(target for target, one in disks.items() if one.restart))

    def in_flight(self, lookups: Lookups | None = None) -> dict[Path, tuple[str, ...]]:
        """
        Images that steps in flight write, each with the labels of the disks concerned.

        Raises:
            StateError: A state file cannot be read.
        """
        lookups = lookups or Lookups()
        found: dict[Path, tuple[str, ...]] = {}
        for file in self._files(lookups):
            if not file.mentions_steps or file.is_spec:
                continue
            for target, state in file.stored.disks.items():
                if state.unfinished is None:
                    continue
                there = resolved(state, lookups.real).unfinished
                for image in there.written if there else ():
                    label = f"{file.stored.domain}:{target}"
                    found[image] = (*found.get(image, ()), label)
        return found

    def known_images(self, lookups: Lookups) -> dict[str, tuple[Path, ...]]:
        """
        Images of every disk that was ever applied with this state directory, by its label.

        Raises:
            StateError: A state file cannot be read.
        """
        found: dict[str, tuple[Path, ...]] = {}
        for file in self._files(lookups):
            if file.is_spec:
                continue
            stored = file.stored
            for target, state in stored.disks.items():
                active = () if state.active is None else (state.active,)
                found[f"{stored.domain}:{target}"] = (*state.images, *active)
        return found

    def active_images(self, lookups: Lookups) -> dict[str, Path]:
        """
        The active image of every disk that was ever applied with this state directory.

        Raises:
            StateError: A state file cannot be read.
        """
        return {
            f"{file.stored.domain}:{target}": state.active
            for file in self._files(lookups)
            if not file.is_spec
            for target, state in file.stored.disks.items()
            if state.active is not None
        }

    def _files(self, lookups: Lookups) -> Iterator[_File]:
        folder = lookups.real(os.fspath(self.folder))
        names = lookups.names(folder)
        if names is None:
            raise StateError(f"the state directory {self.folder} cannot be read; {_ELSEWHERE}")
        for name in names:
            file = _file(f"{folder}/{name}", lookups) if name.endswith(".toml") else None
            if file is not None:
                yield file

    @contextmanager
    def locked(self, domain: str, target: str, wait: Waiting) -> Iterator[Session]:
        """The session of a disk: nobody else works on it meanwhile."""
        kept = (domain, target) in self._kept
        with nullcontext() if kept else self._disk_locked(domain, target, wait):
            self._own.add((domain, target))
            try:
                yield Session(self, domain, target, self.disk(domain, target))
            finally:
                self._own.discard((domain, target))

    @contextmanager
    def keeping(
        self, disks: Iterable[tuple[str, str]], wait: Waiting, *, only_looking: bool = False
    ) -> Iterator[None]:
        """
        The locks of *disks*, each a domain and a target, from a look until all is done.

        Sessions of the same process find them held, and are made without waiting.

        Args:
            only_looking: Nothing will be done, so that no lock file is left behind: a disk
                without one was never worked on.
        """
        with ExitStack() as held:
            for domain, target in sorted(set(disks)):
                lock = self._lock(f"{file_name(domain)}:{file_name(target)}")
                if only_looking and not lock.exists():
                    continue
                held.enter_context(self._disk_locked(domain, target, wait))
                self._kept.add((domain, target))
                held.callback(self._kept.discard, (domain, target))
            yield

    def _disk_locked(self, domain: str, target: str, wait: Waiting) -> AbstractContextManager[None]:
        return wait(self.disk_lock_file(domain, target), f"{domain}:{target}")

    def at_work(self, domain: str, target: str) -> str | None:
        """Which other virt-chain works on a disk at this moment, in words; None: none."""
        if (domain, target) in self._own | self._kept:
            return None
        return files.holder(self._lock(f"{file_name(domain)}:{file_name(target)}"))

    @contextmanager
    def folders_locked(self, folders: Iterable[Path], wait: Waiting) -> Iterator[None]:
        """
        No other process changes images in *folders* meanwhile; threads of this one share them.

        A folder is locked by its identity, so under each of its names it is the same one.
        """
        places: dict[Path, str] = {}
        for folder in folders:
            found = os.stat(folder)
            name = f"folder-{found.st_dev:x}-{found.st_ino:x}"
            places.setdefault(self.lock_file(name), str(folder))
        with ExitStack() as held:
            for path, what in sorted(places.items()):
                held.enter_context(self._held.share(path, partial(wait, path, what)))
            yield

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

    def _write(self, domain: str, target: str, state: DiskState, *, started: bool) -> None:
        path = self.path(domain)
        self._make_folder()
        try:
            with files.alone_with(self.folder / ".lock") as lock:
                self._count_others(lock)
                self._signature = uuid4().bytes
                os.pwrite(lock, self._signature, 0)
                disks = dict(_read(os.fspath(path), Lookups()).disks)
                if started:
                    disks = {one: replace(known, restart=False) for one, known in disks.items()}
                text = dump_text(Stored(domain=domain, disks={**disks, target: state}))
                files.write_private(path, text)
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error
        except UnicodeEncodeError as error:
            raise StateError(f"{path} cannot hold a name that is not UTF-8: {error}") from error

    def writes_of_others(self) -> int:
        """A number that grows when another virt-chain has written a state file meanwhile."""
        if self.folder.is_dir():
            with files.alone_with(self.folder / ".lock") as lock:
                self._count_others(lock)
        return self._others

    def _count_others(self, lock: int) -> None:
        """Whoever writes a state file signs the file that is locked for it."""
        signature = os.pread(lock, 16, 0)
        if signature != self._signature:
            self._signature = signature
            self._others += 1

    def disk_lock_file(self, domain: str, target: str) -> Path:
        """The file that is locked while a disk is worked on."""
        return self.lock_file(f"{file_name(domain)}:{file_name(target)}")

    def lock_file(self, name: str) -> Path:
        """An existing file below the folder, which only its owner can open and lock."""
        self._make_folder()
        path = self._lock(name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
        except OSError as error:
            raise StateError(f"{path} cannot be created: {error.strerror}") from error
        return path

    def _lock(self, name: str) -> Path:
        return self.folder / "locks" / name

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"the state directory {self.folder} cannot be created: {error.strerror}; "
                f"{_ELSEWHERE}"
            ) from error


@dataclass(slots=True)
class Session:
    """
    A disk whose lock is held: only here is its state written.

    Attributes:
        state: As the state file has it now.
    """

    states: StateFolder
    domain: str
    target: str
    state: DiskState

    def write(self, state: DiskState) -> None:
        """
        Remember *state*, durably.

        Raises:
            StateError: The file cannot be written.
        """
        if state != self.state:
            started = self.state.restart and not state.restart
            self.states._write(self.domain, self.target, state, started=started)
            self.state = state


class _HeldFolders:
    """Folder locks that threads of this process share; the last one to leave releases a lock."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._mutexes: dict[Path, threading.Lock] = {}
        self._held: dict[Path, tuple[int, ExitStack]] = {}

    @contextmanager
    def share(self, path: Path, take: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Hold the lock *path*; *take* takes it where no thread has it yet."""
        with self._guard:
            mutex = self._mutexes.setdefault(path, threading.Lock())
        with mutex:
            count, lock = self._held.get(path, (0, ExitStack()))
            if count == 0:
                lock.enter_context(take())
            self._held[path] = (count + 1, lock)
        try:
            yield
        finally:
            with mutex:
                count, lock = self._held[path]
                self._held[path] = (count - 1, lock)
                if count == 1:
                    del self._held[path]
                    lock.close()


class _File:
    """A state file as it was read; it is decoded when somebody asks what it holds."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    @property
    def mentions_steps(self) -> bool:
        """False where no steps are in flight, told without decoding."""
        return "unfinished" in self._text

    @cached_property
    def is_spec(self) -> bool:
        """True for a spec: the state directory may be the folder of the specs, too."""
        return is_spec(self._text)

    @cached_property
    def stored(self) -> Stored:
        """What the file holds; StateError where it is damaged, or a spec."""
        if self.is_spec:
            raise StateError(
                f"{self._name} is a spec, and the state file of a domain would have that name; the "
                f"state directory, {os.path.dirname(self._name)}, has to be another folder than "
                f"that of the specs: name one with --state-dir or {ENVIRONMENT}"
            )
        try:
            return load_text(self._text)
        except ValueError as error:
            raise StateError(
                f"{self._name} cannot be used ({error}); {_away(self._name)}"
            ) from error


def _away(name: str) -> str:
    """What to do with the state file *name*, which is damaged."""
    file, place = shlex.quote(name), shlex.quote(f"{name}.damaged")
    return (
        f"move the file away: mv --backup=numbered {file} {place}; a disk without libvirt then "
        "goes on from `active`, else from the highest image of its chain that exists: see with "
        "virt-chain show and plan that this is the one that the guest used last, or name that one "
        "with virt-chain adopt; leave the spec as it is until apply has run, as a merge may have "
        "been interrupted"
    )


def _parse(name: str, descriptor: int, found: os.stat_result) -> _File | StateError:
    if found.st_size > _LARGEST:
        return StateError(
            f"{name} cannot be used (it is larger than any state file); {_away(name)}"
        )
    try:
        with open(descriptor, "rb", closefd=False) as file:
            return _File(name, file.read().decode())
    except OSError as error:
        return StateError(f"{name} cannot be read: {error}")
    except UnicodeDecodeError as error:
        return StateError(f"{name} cannot be used ({error}); {_away(name)}")


def _file(name: str, lookups: Lookups) -> _File | None:
    """The state file *name*; None: there is none."""
    real = lookups.real(name)
    if lookups.lstat(real) is None:
        if why := lookups.hidden(real):
            raise StateError(f"{name} cannot be read: {why}; {_ELSEWHERE}")
        return None
    try:
        file = lookups.read(real, _parse)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{name} cannot be read: {error.strerror}; {_ELSEWHERE}") from error
    if isinstance(file, StateError):
        raise file
    return file


def _read(name: str, lookups: Lookups) -> Stored:
    file = _file(name, lookups)
    return Stored() if file is None else file.stored


def file_name(name: str) -> str:
    """*name* as one file name that leads nowhere else; a long one is cut, with a digest."""
    quoted = name if name.isalnum() and name.isascii() else quote(name, safe=" ")
    if len(quoted) > LONGEST_NAME:
        quoted = f"{quoted[:LONGEST_NAME]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
