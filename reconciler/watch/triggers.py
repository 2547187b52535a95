"""What leads to a pass: files, signals, domains, the clock.  Every trigger means the same."""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

# watchdog calls it an error that an event arrives while its thread ends, which every stop may do
logging.getLogger("watchdog.observers.inotify").addFilter(
    lambda record: "thread is inactive" not in record.getMessage()
)

QUIET = 0.1
"""Seconds without a further trigger after which a burst is over."""
LONGEST_BURST = 2.0
"""Seconds after which a burst without an end leads to a pass, too."""
POLL = 1.0
"""Seconds between two looks at folders of network filesystems."""
LINKS = 40
"""Symbolic links that one path may lead through, as Linux has it."""
_CHANGES = ("created", "modified", "moved", "deleted", "closed")
_SPECS = "*.toml"


class Trigger:
    """
    Collects reasons for a pass; a burst of them is one.

    Firing is a write to a pipe: signal handlers and other threads may do it at any moment.

    Attributes:
        wakes: The end of the pipe that ends a wait; for `signal.set_wakeup_fd`.
    """

    def __init__(self) -> None:
        self._reasons: deque[str] = deque(maxlen=100)
        self._read, self.wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fire(self, why: str) -> None:
        """Something happened; *why* is for the reader."""
        self._reasons.append(why)
        with suppress(BlockingIOError):  # full: it is woken anyway
            os.write(self.wakes, b"!")

    def wait(self, seconds: float) -> list[str]:
        """
        The reasons of the next burst, once it is over; none after *seconds* without one.

        What fires during a pass is found by the wait after it.
        """
        if not self._fired(seconds):
            return []
        until = time.monotonic() + LONGEST_BURST
        while self._fired(QUIET) and time.monotonic() < until:
            pass
        reasons: dict[str, None] = {}
        while self._reasons:
            reasons[self._reasons.popleft()] = None
        return list(reasons)

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._read)
        os.close(self.wakes)

    def _fired(self, seconds: float) -> bool:
        readable, _, _ = select.select([self._read], [], [], max(seconds, 0))
        if readable:
            with suppress(BlockingIOError):
                os.read(self._read, 65536)
        return bool(readable)


def places(paths: Iterable[Path]) -> dict[Path, frozenset[str]]:
    """
    Folders to watch for *paths*, each with the names in it that matter.

    Every component of every path counts, and of every target of a symbolic
    link: a deployment switches a link anywhere above the spec.  A folder that
    does not exist yet is waited for in the nearest one that does.
    """
    found: dict[Path, set[str]] = {}
    for path in paths:
        for spec in _specs_of(_follow(path.absolute(), found), found):
            _follow(spec, found)
    return {folder: frozenset(names) for folder, names in found.items()}


def _follow(path: Path, found: dict[Path, set[str]]) -> Path | None:
    """The end of *path*, links resolved; each folder on the way and its next name in *found*."""
    links = 0
    at = Path("/")
    rest = deque(path.parts[1:])
    while rest:
        name = rest.popleft()
        if name == "..":
            at = at.parent
            continue
        found.setdefault(at, set()).add(name)
        following = at / name
        try:
            target = Path(os.readlink(following))
        except FileNotFoundError:
            return None
        except OSError:  # no link
            at = following
            continue
        links += 1
        if links > LINKS:
            return None
        at = Path("/") if target.is_absolute() else at
        rest.extendleft(reversed([part for part in target.parts if part != "/"]))
    return at


def _specs_of(folder: Path | None, found: dict[Path, set[str]]) -> Iterator[Path]:
    """The spec files of *folder* that are links."""
    if folder is None or not folder.is_dir():
        return
    found.setdefault(folder, set()).add(_SPECS)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.endswith(".toml") and entry.is_symlink():
                yield folder / entry.name


class _Handler(FileSystemEventHandler):
    def __init__(self, names: frozenset[str], fire: Callable[[str], None]) -> None:
        self.names = names
        self._fire = fire

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Only changes of names that matter: reading a spec leads to no pass."""
        if event.event_type not in _CHANGES:
            return
        for path in (event.src_path, event.dest_path):
            name = os.path.basename(os.fsdecode(path))
            if name in self.names or (_SPECS in self.names and name.endswith(".toml")):
                self._fire(f"{os.fsdecode(path)} changed")


class Files:
    """
    Watches the folders that lead to the specs.

    Args:
        poll: Look at the folders each second: network filesystems tell nothing.
        say: Told once where a folder cannot be watched; the clock finds its changes.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        trigger: Trigger,
        *,
        poll: bool,
        say: Callable[[str], None],
    ) -> None:
        self._paths = tuple(paths)
        self._trigger = trigger
        self._say = say
        self._complained = False
        self._observer = PollingObserver(timeout=POLL) if poll else Observer()
        self._watches: dict[Path, tuple[tuple[int, int], _Handler, object]] = {}

    def start(self) -> None:
        """Begin to watch."""
        self.update()
        self._observer.start()

    def stop(self) -> None:
        """End all threads."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def update(self) -> None:
        """Watch what leads to the specs now; called before each pass, so that nothing is missed."""
        wanted = places(self._paths)
        there = {folder: _identity(folder) for folder in wanted}
        for folder in list(self._watches):
            known, _, watch = self._watches[folder]
            if there.get(folder) != known:
                del self._watches[folder]
                with suppress(KeyError, OSError):
                    self._observer.unschedule(watch)  # type: ignore[arg-type]
        for folder, names in wanted.items():
            identity = there[folder]
            if folder in self._watches:
                self._watches[folder][1].names = names
            elif identity is not None:
                self._add(folder, identity, names)

    def _add(self, folder: Path, identity: tuple[int, int], names: frozenset[str]) -> None:
        handler = _Handler(names, self._trigger.fire)
        try:
            watch = self._observer.schedule(handler, str(folder), recursive=False)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._say(
                    f"{folder} cannot be watched ({error.strerror or error}); changes there are "
                    "found on the clock, or with --poll"
                )
            return
        self._watches[folder] = (identity, handler, watch)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
