"""`watch`, `status`, `hold` and `release`: what is said, and in which form."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import typer

from reconciler.cli import logs
from reconciler.cli.naming import printable
from reconciler.cli.stopping import Interrupted
from reconciler.engine.apply.options import Options
from reconciler.engine.state import StateFolder, default_folder
from reconciler.engine.stopping import Stop
from reconciler.model.desired import DesiredDisk, Spec
from reconciler.model.errors import Mistake, ReconcilerError
from reconciler.model.plan import DiskPlan, PlannedStep
from reconciler.model.units import human_size
from reconciler.spec import Remembering
from reconciler.spec.host import config_file, duration, read_host
from reconciler.watch import status as told
from reconciler.watch.holds import Hold, Holds, Suspensions
from reconciler.watch.loop import Loop
from reconciler.watch.metrics import Metrics
from reconciler.watch.notify import notify
from reconciler.watch.passes import Asked, Passes

_SHORTEST = 1
"""Seconds of the shortest interval."""


def watch(
    *,
    sources: tuple[Path, ...],
    states: StateFolder,
    load: Callable[[], Spec],
    connect: str | None,
    choose: Callable[[Spec], Sequence[DesiredDisk] | None],
    options: Options,
    interval: float,
    poll: bool,
    dry_run: bool,
    jobs: int,
    textfile: Path | None,
    port: int | None,
) -> None:
    """Watch until a signal asks to stop."""
    stop = Stop()
    options.stopping = lambda: stop.asked
    asked = Asked(
        sources=sources,
        load=load,
        choose=choose,
        command=lambda path: _command(states.folder, [path, *sources], connect),
        interval=interval,
        jobs=jobs,
        dry_run=dry_run,
    )
    metrics = Metrics(textfile, port) if textfile is not None or port is not None else None
    voice = voice_for(sys.stderr.isatty(), os.environ)
    logs.to_voice(lambda record, text: _log(voice, record, text))
    try:
        passes = Passes(asked, states, options, voice, metrics)
        Loop(passes, stop, poll).run([*sources, config_file()])
    except ReconcilerError as error:
        voice.tell("end", str(error), bad=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        text = "stopped at once; nothing is lost: the next start goes on"
        voice.tell("stop", text, bad=True)
        raise Interrupted(stop.signal or signal.SIGINT) from None
    except Exception as error:
        text = "".join(traceback.format_exception(error)).rstrip()
        voice.tell("end", f"this is a bug, please report it: {text}", bad=True)
        raise typer.Exit(1) from error


def _log(voice: Voice, record: logging.LogRecord, text: str) -> None:
    bad = record.levelno >= logging.WARNING
    voice.tell("log", text, bad=bad, logger=record.name, severity=record.levelname.lower())


def loading(sources: Sequence[Path], connection: str | None) -> Callable[[], Spec]:
    """Reads the specs again and again, as the host allows at that moment."""
    remembering = Remembering()
    last: list[tuple[Spec, object, Spec]] = []

    def load() -> Spec:
        spec, host = remembering.load(sources), read_host()
        if not last or last[0][0] is not spec or last[0][1] != host:
            last[:] = [(spec, host, spec.through(connection).on(host))]
        return last[0][2]

    return load


def seconds(option: str, text: str) -> float:
    """The duration *text* of an option."""
    try:
        found = duration(text)
    except ValueError as error:
        raise Mistake(f"{option}: {error}") from error
    if found < _SHORTEST:
        raise Mistake(f"{option}: at least {_SHORTEST}s")
    return float(found)


def _command(folder: Path, paths: Sequence[Path], connect: str | None) -> str:
    words = ["virt-chain", "apply"]
    if folder != default_folder({}):
        words += ["--state-dir", str(folder)]
    words += ["-c", connect] if connect else []
    return shlex.join([*words, *map(str, paths)])


# Lines


def _write(text: str) -> None:
    """One line of the log, whole or not at all: a watch that is killed leaves no half of one."""
    sys.stderr.flush()
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # of a caller inside this process
        sys.stderr.write(f"{text}\n")
    else:
        os.write(descriptor, f"{text}\n".encode("utf-8", "backslashreplace"))


class Voice:
    """One line on stderr for each event; steps are told when they are done."""

    def step(self, plan: DiskPlan, number: int, planned: PlannedStep) -> None:
        """A step begins; systemd hears of it."""
        notify("WATCHDOG=1", f"STATUS={printable(plan.label)}: {printable(str(planned.step))}")

    def progress(self, done: float) -> None:
        """Work goes on; systemd hears of it."""
        notify("WATCHDOG=1")

    def finished(self, plan: DiskPlan, number: int, planned: PlannedStep, seconds: float) -> None:
        """A step is done."""
        size = f"  {human_size(planned.bytes)}" if planned.bytes else ""
        self.tell(
            "step",
            f"{planned.step}{size} in {seconds:.1f} s",
            disk=plan.label,
            action=planned.step.action,
            bytes=planned.bytes,
            seconds=round(seconds, 3),
        )

    def note(self, plan: DiskPlan, text: str) -> None:
        """Something that the reader should know."""
        self.tell("note", text, disk=plan.label)

    def tell(self, event: str, text: str, *, bad: bool = False, **more: object) -> None:
        """A line for people, with the time."""
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        _write(f"{stamp}  {line(text, more)}")


class Journal(Voice):
    """Lines for systemd's journal, which adds the time.  Source: sd-daemon(3), SD_ERR."""

    def tell(self, event: str, text: str, *, bad: bool = False, **more: object) -> None:
        """A line with its priority."""
        priority = 3 if bad else 6
        _write(f"<{priority}>{line(text, more)}")


class Lines(Voice):
    """One JSON document a line, for programs."""

    def tell(self, event: str, text: str, *, bad: bool = False, **more: object) -> None:
        """An object: time, level, event, text, and what belongs to the event."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        level = "error" if bad else "info"
        data = {"time": stamp, "level": level, "event": event, **more, "text": text}
        _write(json.dumps(data))


def voice_for(terminal: bool, environment: Mapping[str, str]) -> Voice:
    """For people on a terminal, for the journal where systemd has given one, else JSON lines."""
    if terminal:
        return Voice()
    return Journal() if environment.get("JOURNAL_STREAM") else Lines()


def line(text: str, more: Mapping[str, object]) -> str:
    """*text*, with its disk in front."""
    disk = more.get("disk")
    return printable(f"{disk}  {text}" if disk else text)


# Status


def status(states: StateFolder, *, as_json: bool, check: bool) -> int:
    """Print what the watch has told; the exit code."""
    try:
        data = told.collect(states)
    except Exception as error:
        if not check:
            raise
        typer.echo(f"UNKNOWN: {printable(str(error))}")
        return 3
    if check:
        health = told.check(data)
        typer.echo(printable(health.line))
        return health.code
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        for one in _status_lines(data):
            typer.echo(printable(one))
    return 0


def _status_lines(data: Mapping[str, Any]) -> list[str]:
    if "pid" not in data:
        lines = ["No watch has run with this state directory."]
    else:
        running = data["running"]
        lines = [f"watch: {'runs' if running else 'is not running'}, started {data['started']}"]
        lines[0] += " (dry run)" if data["dry_run"] else ""
        following = data["next_pass"] if running else "none, start it again"
        lines.append(f"last pass {data['last_pass']}, next pass {following}")
        if data.get("problem"):
            lines.append(f"the last pass failed, everything stays as it is: {data['problem']}")
        if data.get("working"):
            lines.append(f"at work on {', '.join(data['working'])}")
    quiet = 0
    for label, disk in data["disks"].items():
        if disk["kind"] == "in force" and not disk["why"]:
            quiet += 1
            continue
        lines.append(f"{label}  {disk['kind']}: {disk['why']}")
        if disk["steps"] and disk["kind"] != "vanished":
            lines.append(f"  {', '.join(disk['steps'])}")
        if disk["command"]:
            lines.append(f"  {disk['command']}")
    for one in data["holds"]:
        until = f" until {one['until']}" if one["until"] else ""
        lines.append(f"{one['label']}  is held by {one['who']}{until}: {one['reason']}")
    if quiet:
        lines.append(f"{quiet} {'disk is' if quiet == 1 else 'disks are'} as the spec says.")
    return lines


# Holds


def hold(states: StateFolder, labels: Sequence[str], reason: str, until: str | None) -> None:
    """Hold each of *labels*."""
    if not reason.strip():
        raise Mistake("--reason: say why, for whoever meets the hold")
    now = datetime.now(UTC)
    end = None if until is None else _end(until, now)
    holds = Holds(states.folder)
    watched = told.StatusFile(states.folder).read().get("disks", {})
    for label in labels:
        if watched and not any(label in (disk, disk.rpartition(":")[0]) for disk in watched):
            text = (
                f"virt-chain: no watched domain or disk is called {label}; it is held all the same"
            )
            typer.echo(printable(text), err=True)
        since = now.isoformat(timespec="seconds")
        holds.add(Hold(label, reason, _user(), since, end))
        said = f" until {end}" if end else ""
        typer.echo(printable(f"{label} is held{said}; let it go with: virt-chain release {label}"))


def release(states: StateFolder, labels: Sequence[str]) -> None:
    """Let go of each of *labels*: its holds, and its suspension."""
    holds, suspensions = Holds(states.folder), Suspensions(states.folder)
    for label in labels:
        gone = [one.label for one in holds.release(label)]
        known = suspensions.all()
        failed = [one for one in known if one == label or one.rpartition(":")[0] == label]
        suspensions.over(failed)
        if not gone and not failed:
            raise Mistake(f"{label} is neither held nor suspended")
        for one in dict.fromkeys([*gone, *failed]):
            typer.echo(printable(f"{one} is free; the next pass takes it up"))


def _end(text: str, now: datetime) -> str:
    try:
        end = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        if re.fullmatch(r"[0-9]+[smhdw]", text):
            end = now + timedelta(seconds=seconds("--until", text))
        else:
            raise Mistake(
                f"--until {text}: write how long, such as 2h or 7d, or when: 2030-01-31T18:00"
            ) from None
    if end <= now:
        raise Mistake(f"--until {text}: that is over")
    return end.isoformat(timespec="seconds")


def _user() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()
