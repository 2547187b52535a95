"""The loop: wait for a trigger or the clock, make a pass, tell systemd."""

from __future__ import annotations

import gc
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.engine.state import StateFolder
from reconciler.engine.stopping import Stop, handling
from reconciler.model.desired import Spec
from reconciler.model.errors import Busy, HypervisorError
from reconciler.tools import files, pulse
from reconciler.watch.holds import HOLDS, SUSPENSIONS
from reconciler.watch.notify import notify, watchdog_pause
from reconciler.watch.passes import Passes
from reconciler.watch.triggers import Files, Trigger

if TYPE_CHECKING:
    from reconciler.tools.hypervisor import Hypervisor

JITTER = 0.1
"""Part of the interval by which a pass may come earlier or later, so that hosts do not meet."""

RETRY = 5.0
"""Seconds until a libvirtd that did not answer is asked again: what happens there is not heard."""

PATIENCE = 0.4
"""Seconds to wait for the lock of a watch: `status` has it for a moment, too."""


@dataclass(slots=True)
class Loop:
    """One watch, from start to stop."""

    passes: Passes
    stop: Stop
    poll: bool = False
    _trigger: Trigger = field(default_factory=Trigger)
    _hosts: dict[str, Hypervisor] = field(default_factory=dict)
    _deaf: bool = False

    def run(self, watched: Sequence[Path]) -> None:
        """
        Watch until a signal asks to stop.

        Args:
            watched: The specs, and whatever else shall lead to a pass.

        Raises:
            Busy: Another watch has this state directory.
        """
        voice = self.passes.voice
        folder = self.passes.states.folder
        asked = self.passes.asked
        with alone(self.passes.states), self._signals():
            how = " (dry run)" if asked.dry_run else ""
            voice.tell("start", f"watches {', '.join(map(str, asked.sources))}{how}")
            seen = Files(
                [*watched, folder / HOLDS, folder / SUSPENSIONS],
                self._trigger,
                poll=self.poll,
                say=lambda text: voice.tell("files", text, bad=True),
            )
            seen.start()
            pulse.heard_by(lambda: notify("WATCHDOG=1"))
            gc.disable()  # in the middle of a pass over a thousand disks it takes 0.2 s
            try:
                notify("READY=1")
                self._rounds(seen)
            finally:
                gc.enable()
                pulse.heard_by(None)
                notify("STOPPING=1")
                seen.stop()
            voice.tell("stop", "stopped as asked")

    def _rounds(self, seen: Files) -> None:
        while not self.stop.asked:
            seen.update()
            self.passes.run(self._listen)
            latest = datetime.now(UTC) + timedelta(seconds=self._pause())
            due = self.passes.due(latest)
            notify("WATCHDOG=1", f"STATUS={self._summary()}")
            gc.collect()
            self._wait(due)

    def _wait(self, due: datetime) -> None:
        """Until something triggers a pass, or *due*; systemd hears from us meanwhile."""
        until = time.monotonic() + (due - datetime.now(UTC)).total_seconds()
        longest = watchdog_pause() or float("inf")
        while not self.stop.asked:
            left = until - time.monotonic()
            if left <= 0 or self._trigger.wait(min(left, longest)):
                return
            notify("WATCHDOG=1")

    def _pause(self) -> float:
        interval = self.passes.asked.interval
        if self._deaf:
            interval = min(interval, RETRY)
        return interval * (1 + random.uniform(-JITTER, JITTER))  # noqa: S311 - no secret

    def _summary(self) -> str:
        kinds = Counter(disk.kind for disk in self.passes.disks.values())
        return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no disks"

    def _listen(self, spec: Spec) -> None:
        """Let domains that start or stop trigger a pass, on each connection that answers."""
        self._deaf = False
        for uri in dict.fromkeys(disk.connection for disk in spec.disks if disk.connection):
            from reconciler.tools.hypervisor import connect  # takes a while, for libvirt alone

            try:
                host = connect(uri)
                if self._hosts.get(uri) is not host:
                    host.on_lifecycle(self._domain_event, partial(self._connection_lost, uri))
                    self._hosts[uri] = host
            except HypervisorError:
                self._hosts.pop(uri, None)  # the look says why
                self._deaf = True

    def _connection_lost(self, uri: str) -> None:
        self._trigger.fire(f"the connection to {uri} was lost")

    def _domain_event(self, name: str) -> None:
        self._trigger.fire(f"the domain {name} changed")

    def _signals(self) -> AbstractContextManager[None]:
        """SIGHUP: a pass now.  SIGTERM and SIGINT: stop at the next safe point."""

        def stop(*words: Any) -> None:
            self.stop.ask(words[0])
            self._trigger.fire("asked to stop")

        def pass_now(*_: object) -> None:
            self._trigger.fire("SIGHUP")

        handlers = {signal.SIGHUP: pass_now, signal.SIGTERM: stop, signal.SIGINT: stop}
        return handling(handlers, wakes=self._trigger.wakes)


@contextmanager
def alone(states: StateFolder) -> Iterator[None]:
    """Be the only watch with this state directory; the lock goes with its holder."""
    path = states.lock_file("watch")
    with ExitStack() as held:
        try:
            held.enter_context(files.locked_within(path, "watch", PATIENCE))
        except Busy as error:
            who = str(error).partition(" is working on")[0]
            raise Busy(
                f"{who} watches with the state directory {path.parents[1]} already; stop "
                "it, or name another with --state-dir"
            ) from error
        yield
