"""The commands.  Results go to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import signal
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from reconciler import __version__
from reconciler.cli import logs
from reconciler.cli.naming import apply_command, printable
from reconciler.cli.stopping import Interrupted
from reconciler.engine.looking import look
from reconciler.engine.planning import plan_all
from reconciler.engine.state import ENVIRONMENT, StateFolder, default_folder
from reconciler.model.errors import Mistake, ReconcilerError, SpecError, worded
from reconciler.model.plan import Plan
from reconciler.model.units import parse_rate
from reconciler.spec import load
from reconciler.spec.host import read_host

if TYPE_CHECKING:
    from reconciler.cli.applying import Session
    from reconciler.engine.looking import Look
    from reconciler.model.desired import DesiredDisk, Spec


class Exit(IntEnum):
    """Exit codes, as OpenTofu and kubectl have them."""

    DONE = 0
    ERROR = 1
    CHANGES = 2


class Verify(StrEnum):
    """What ``apply`` compares."""

    none = "none"
    moved = "moved"
    full = "full"


class Form(StrEnum):
    """How ``plan`` prints a plan."""

    text = "text"
    json = "json"
    markdown = "markdown"


app = typer.Typer(
    name="virt-chain",
    help="Keeps the disk snapshot chains of KVM/QEMU guests as a TOML spec says.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Specs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[SPEC]...", help="Spec files or folders; left out: this folder."),
]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="DOMAIN[:DISK]", help="Only these disks; globs work."),
]
StateDir = Annotated[
    Path | None,
    # the environment has its turn after all options, before the command and after it
    typer.Option("--state-dir", help=f"Where state is kept; left out: {ENVIRONMENT}, if set."),
]
Connect = Annotated[
    str | None,
    typer.Option(
        "-c", "--connect", metavar="URI", help="The connection to libvirt, whatever the spec says."
    ),
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Apply without asking.")]
Bandwidth = Annotated[
    str | None, typer.Option(metavar="RATE", help="Copy at most RATE a second, such as 100M.")
]
Jobs = Annotated[
    int, typer.Option("-j", "--jobs", min=1, help="Work on so many domains side by side.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Detailed = Annotated[
    bool, typer.Option("--detailed-exitcode", help="Exit with 2 where there are changes.")
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"virt-chain {__version__}")
        raise typer.Exit(Exit.DONE)


@app.callback()
def options(
    context: typer.Context,
    state_dir: StateDir = None,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Log steps; -vv: every command.")
    ] = 0,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logs.to_stderr(level)
    context.obj = state_dir


@app.command()
def validate(spec: Specs = None) -> None:
    """Check specs: schema and meaning, without a look at the host."""
    loaded = load(_paths(spec))
    disks = len(loaded.disks)
    typer.echo(f"{disks} {'disk' if disks == 1 else 'disks'}: the spec is valid.")


@app.command()
def show(
    context: typer.Context,
    spec: Specs = None,
    target: Target = None,
    connect: Connect = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Draw the observed chains as trees, with sizes, restore points and drift."""
    from reconciler.cli import report, tree
    from reconciler.engine import showing

    paths = _paths(spec)
    looks = _look(_loaded(paths, connect), _states(context, state_dir), target)
    plans = plan_all(_sources(paths), looks)
    if as_json:
        _print_json(showing.as_data(looks, plans.disks))
    else:
        tree.print_show(looks, plans.disks, report.console())
    raise typer.Exit(Exit.ERROR if plans.errors else Exit.DONE)


@app.command()
def plan(
    context: typer.Context,
    spec: Specs = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Save the plan to this file.")
    ] = None,
    as_json: Json = False,
    form: Annotated[
        Form, typer.Option("--format", help="How to print it: for people, programs, or a comment.")
    ] = Form.text,
    detailed_exitcode: Detailed = False,
    target: Target = None,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Show the steps that bring each disk to its spec, and why; change nothing."""
    paths = _paths(spec)
    looks = _look(_loaded(paths, connect), _states(context, state_dir), target)
    made = plan_all(_sources(paths), looks)
    if output is not None:
        _save(output, made)
    if as_json or form is Form.json:
        _print_json(made.as_data())
    elif form is Form.markdown:
        from reconciler.cli.markdown import plan_text

        typer.echo(plan_text(made), nl=False)
    else:
        _print_plan(
            made,
            apply_command([output, *(spec or ())], connect)
            if output
            else apply_command(spec, connect, target),
        )
    if made.errors:
        raise typer.Exit(Exit.ERROR)
    raise typer.Exit(Exit.CHANGES if detailed_exitcode and made.changes else Exit.DONE)


@app.command()
def apply(
    context: typer.Context,
    spec: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PLANFILE] [SPEC]...",
            help="Spec files or folders (left out: this folder); before them a saved plan.",
        ),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
    target: Target = None,
    verify: Annotated[
        Verify,
        typer.Option(
            help="Compare nothing, what was moved, or the digests of all kept views.",
        ),
    ] = Verify.moved,
    bandwidth: Bandwidth = None,
    jobs: Jobs = 1,
    max_drops: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="With -y: take away at most N restore points (default: the host's config, 10).",
        ),
    ] = None,
    lock_timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Wait so long for another virt-chain."),
    ] = 10.0,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Bring each disk to its spec: plan, ask, do, look again."""
    from reconciler.cli.applying import Session
    from reconciler.engine.apply.options import Options
    from reconciler.engine.stopping import Stop

    stop = Stop()
    session = Session(
        loading=_loaded,
        max_drops=max_drops,
        states=_states(context, state_dir),
        stop=stop,
        options=Options(
            verify=verify.value,
            bandwidth=_rate(bandwidth),
            patience=_patience(lock_timeout),
            stopping=lambda: stop.asked,
        ),
        target=target,
        connection=connect,
        jobs=jobs,
        as_json=as_json,
        yes=yes,
    )
    raise typer.Exit(_applied(session, spec))


@app.command()
def history(
    context: typer.Context,
    domain: Annotated[
        list[str] | None, typer.Argument(metavar="[DOMAIN[:DISK]]...", help="Left out: all.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """List what was applied when, from which spec, and how it ended."""
    from reconciler.cli import past
    from reconciler.engine.history import read

    records = list(read(_states(context, state_dir).folder))
    if domain:
        records = [one for one in records if past.is_of(one, domain)]
    if as_json:
        _print_json({"history": past.as_data(records)})
    else:
        past.print_history(records)


@app.command()
def gc(
    context: typer.Context,
    spec: Specs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Images whose time is not over, too.")
    ] = False,
    as_json: Json = False,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Empty the quarantine: remove images whose time there is over."""
    from reconciler.cli import past
    from reconciler.engine.apply.options import PATIENCE
    from reconciler.engine.collecting import empty_quarantine
    from reconciler.engine.state import waiting

    loaded, states = _loaded(_paths(spec), connect), _states(context, state_dir)
    wait = waiting(PATIENCE)
    done = empty_quarantine(loaded, states, wait, dry_run=dry_run, everything=everything)
    if as_json:
        _print_json(past.kept_as_data(done))
    else:
        past.print_kept(done, dry_run=dry_run)


Where = Annotated[
    str, typer.Argument(metavar="DOMAIN[:DISK]", help="A domain with all its disks, or one disk.")
]
EditedSpec = Annotated[
    Path, typer.Option("--spec", metavar="SPEC", help="The spec file or folder that is edited.")
]
NoApply = Annotated[
    bool, typer.Option("--no-apply", help="Edit the spec, show the plan, and leave it at that.")
]


@app.command()
def snapshot(
    context: typer.Context,
    where: Where,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Of the overlay; left out: by overlay_name."),
    ] = None,
    spec: EditedSpec = Path("."),
    yes: Yes = False,
    no_apply: NoApply = False,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Write a new overlay on top of each disk into the spec, and apply it."""
    from reconciler.cli import editing

    act = editing.Act(spec, where, connect, _states(context, state_dir), yes, not no_apply)
    raise typer.Exit(Exit.DONE if editing.snapshot(act, name) else Exit.ERROR)


@app.command()
def drop(
    context: typer.Context,
    where: Where,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="By file name or path.")],
    spec: EditedSpec = Path("."),
    yes: Yes = False,
    no_apply: NoApply = False,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Take images out of the spec, and apply it: their data is merged into a neighbour."""
    from reconciler.cli import editing

    act = editing.Act(spec, where, connect, _states(context, state_dir), yes, not no_apply)
    raise typer.Exit(Exit.DONE if editing.drop(act, images) else Exit.ERROR)


@app.command()
def rollback(
    context: typer.Context,
    where: Where,
    to: Annotated[
        str, typer.Option("--to", metavar="IMAGE", help="The restore point, by file name or path.")
    ],
    spec: EditedSpec = Path("."),
    yes: Yes = False,
    no_apply: NoApply = False,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Go on from a restore point in a new overlay; what came after it is thrown away."""
    from reconciler.cli import editing

    act = editing.Act(spec, where, connect, _states(context, state_dir), yes, not no_apply)
    raise typer.Exit(Exit.DONE if editing.roll_back(act, to) else Exit.ERROR)


@app.command()
def adopt(
    context: typer.Context,
    where: Annotated[str, typer.Argument(metavar="DOMAIN:DISK", help="One disk of the spec.")],
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE]",
            help="The active image from now on; left out: the one that the disk has.",
        ),
    ] = None,
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="All images are gone for good; the next apply creates a new disk."
        ),
    ] = False,
    spec: Annotated[
        Path, typer.Option("--spec", metavar="SPEC", help="The spec file or folder.")
    ] = Path("."),
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Adopt without asking.")] = False,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Accept what is on the disk after another program or a person has changed it."""
    from reconciler.cli import adopting
    from reconciler.cli.editing import disks_named

    if image is not None and new:
        raise Mistake("--new and an image exclude each other; give one of them")
    loaded = _loaded([spec], connect)
    disks = disks_named(loaded, where)
    if len(disks) > 1:
        names = ", ".join(disk.label for disk in disks)
        raise Mistake(f"{where} has several disks; name one of {names}")
    adopting.adopt(loaded, _states(context, state_dir), disks[0], image, new=new, yes=yes)


@app.command(name="import")
def import_(
    context: typer.Context,
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DOMAIN]... | IMAGE... | FOLDER",
            help="Domains of the connection (left out: all), active images, or a folder of them.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("-d", "--directory", metavar="DIR", help="Write a file for each domain."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="SPEC", help="Add to this spec file; what it has stays."),
    ] = None,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Write the spec that describes what is there; a plan of it has no steps."""
    from reconciler.cli import importing

    if folder is not None and into is not None:
        raise Mistake("-d and --into exclude each other; say one of them")
    host = read_host()
    disks = importing.find(things or [], connect, host)
    if not disks:
        raise Mistake("nothing was found: no disk, and no image")
    states = _states(context, state_dir)
    words = ["virt-chain", "import", *(["-c", connect] if connect else []), *(things or [])]
    title = f"Written by {shlex.join(words)}"
    if into is not None:
        good = importing.into(disks, into, states, host)
    elif folder is not None:
        good = importing.to_folder(disks, folder, title, states, host)
    else:
        good = importing.to_stdout(disks, title, states, host)
    raise typer.Exit(Exit.DONE if good else Exit.ERROR)


@app.command()
def fmt(
    spec: Specs = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only list the files that would change; exit 1.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Only show what would change.")] = False,
) -> None:
    """Put specs into one layout; comments and meaning stay."""
    from reconciler.cli import formatting

    changed = formatting.fmt(_paths(spec), check=check, diff=diff)
    raise typer.Exit(Exit.ERROR if check and changed else Exit.DONE)


@app.command()
def watch(
    context: typer.Context,
    spec: Specs = None,
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="Pass at least so often, such as 30s, 5m or 1h.")
    ] = "5m",
    poll: Annotated[
        bool, typer.Option("--poll", help="Look at folders each second: network filesystems.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Watch and plan only.")] = False,
    target: Target = None,
    verify: Annotated[Verify, typer.Option(help="What to compare, as in apply.")] = Verify.moved,
    bandwidth: Bandwidth = None,
    jobs: Jobs = 1,
    metrics_textfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write metrics for node_exporter's textfile collector."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="Serve metrics on 127.0.0.1:N."),
    ] = None,
    connect: Connect = None,
    state_dir: StateDir = None,
) -> None:
    """Reconcile on every change of a spec or a domain, and on a clock."""
    from reconciler.cli import watching
    from reconciler.engine.apply.options import Options

    states, sources = _states(context, state_dir), _sources(_paths(spec))
    watching.watch(
        sources=sources,
        states=states,
        load=watching.loading(sources, connect),
        connect=connect,
        choose=lambda loaded: _chosen(loaded, target),
        options=Options(verify=verify.value, bandwidth=_rate(bandwidth)),
        interval=watching.seconds("--interval", interval),
        poll=poll,
        dry_run=dry_run,
        jobs=jobs,
        textfile=metrics_textfile,
        port=metrics_port,
    )


@app.command()
def status(
    context: typer.Context,
    as_json: Json = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="One line and an exit code, as Nagios and Icinga want them."),
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Tell what watch has found and done, and what waits for a person."""
    from reconciler.cli import watching

    raise typer.Exit(watching.status(_states(context, state_dir), as_json=as_json, check=check))


@app.command()
def hold(
    context: typer.Context,
    disk: Annotated[list[str], typer.Argument(metavar="DOMAIN[:DISK]...", help="What to hold.")],
    reason: Annotated[str, typer.Option(help="Why; whoever meets the hold reads it.")],
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="For so long (2h, 7d), or until 2030-01-31T18:00."),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Leave disks alone: watch and apply plan them and change nothing."""
    from reconciler.cli import watching

    watching.hold(_states(context, state_dir), disk, reason, until)


@app.command()
def release(
    context: typer.Context,
    disk: Annotated[list[str], typer.Argument(metavar="DOMAIN[:DISK]...", help="What to let go.")],
    state_dir: StateDir = None,
) -> None:
    """Let go of disks that are held, or suspended after a failure."""
    from reconciler.cli import watching

    watching.release(_states(context, state_dir), disk)


def _applied(session: Session, arguments: list[Path] | None) -> Exit:
    from reconciler.spec.planfile import looks_like_plan

    plans = [path for path in arguments or () if looks_like_plan(path)]
    specs = [path for path in arguments or () if path not in plans]
    if len(plans) > 1:
        raise Mistake("one apply applies one saved plan; name them one after the other")
    if plans:
        good = session.apply_file(plans[0], specs, read_host().specs)
    else:
        good = session.apply_specs(_paths(specs), _look)
    return Exit.DONE if good else Exit.ERROR


def _loaded(paths: Sequence[Path], connect: str | None) -> Spec:
    """The specs at *paths*, as far as this host allows."""
    return load(paths).through(connect).on(read_host())


def _paths(spec: list[Path] | None) -> list[Path]:
    return spec or [Path(".")]


def _sources(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(path.absolute() for path in paths)


def _states(context: typer.Context, state_dir: Path | None) -> StateFolder:
    return StateFolder((state_dir or context.obj or default_folder()).absolute())


def _look(spec: Spec, states: StateFolder, target: Sequence[str] | None) -> list[Look]:
    return look(spec, states, _chosen(spec, target))


def _chosen(spec: Spec, target: Sequence[str] | None) -> list[DesiredDisk] | None:
    """The disks that ``--target`` names; None: all."""
    if not target:
        return None
    chosen = [disk for disk in spec.disks if any(_matches(disk, one) for one in target)]
    if not chosen:
        known = ", ".join(disk.label for disk in spec.disks[:8])
        raise Mistake(f"--target {' '.join(target)} names no disk of the spec; it has {known}")
    return chosen


def _matches(disk: DesiredDisk, target: str) -> bool:
    if fnmatchcase(disk.label, target) or fnmatchcase(disk.domain, target):
        return True
    return disk.domain == target


def _rate(text: str | None) -> int | None:
    """Bytes a second that ``--bandwidth`` allows; None: no limit."""
    try:
        return None if text is None else parse_rate(text)
    except ValueError as error:
        raise Mistake(f"--bandwidth {text}: {error}") from error


def _patience(seconds: float) -> float:
    """The time that ``--lock-timeout`` allows; typer takes nan and inf for numbers."""
    if not math.isfinite(seconds):
        raise Mistake(f"--lock-timeout {seconds}: write seconds, such as 60")
    return seconds


def _save(path: Path, made: Plan) -> None:
    """Only its owner may write to it: `apply` refuses what others could have written."""
    from reconciler.spec.planfile import is_plan_file

    if os.path.lexists(path) and not _is_device(path) and not is_plan_file(path):
        raise Mistake(f"{path} exists and is not a plan file; nothing was overwritten")
    try:
        with open(
            path, "w", encoding="utf-8", opener=lambda name, how: os.open(name, how, 0o600)
        ) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                with suppress(PermissionError):
                    os.fchmod(file.fileno(), 0o600)
            file.write(json.dumps(made.as_data(), indent=2) + "\n")
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}") from error


def _is_device(path: Path) -> bool:
    """True for ``/dev/stdout`` and the like, which hold nothing that could be lost."""
    with suppress(OSError):
        return stat.S_ISCHR(path.stat().st_mode) or stat.S_ISFIFO(path.stat().st_mode)
    return False


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2))


def _print_plan(made: Plan, apply_with: str) -> None:
    if made.errors or any(disk.steps or disk.warnings for disk in made.disks):
        from reconciler.cli import report

        report.print_plan(made, report.console(), apply_with)
    else:
        # rich takes a while to load, and this is the daily case
        count = len(made.disks)
        typer.echo(
            f"Nothing to do: {count} {'disk is' if count == 1 else 'disks are'} as the spec says."
        )


_signal: int = signal.SIGINT
"""The signal that ends the command."""
_TYPER_INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt.  Source: typer/core.py, _main."""


_NO_THREAD = "can't start new thread"
"""All that Python tells where the kernel gives it no thread."""
_NOTHING_LOST = "nothing is lost: virt-chain apply continues"


def run(arguments: Sequence[str]) -> int:
    """The exit code of ``virt-chain ARGUMENTS``; every error is one clear message."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(list(arguments), prog_name="virt-chain", standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return int(code or Exit.DONE)
    except SpecError as error:
        for line in error.lines:
            print(printable(line), file=sys.stderr)
    except ReconcilerError as error:
        _say(str(error))
    except KeyboardInterrupt:
        _say(f"interrupted; {_NOTHING_LOST}")
        return 128 + _signal
    except Interrupted as error:
        return error.code
    except typer.Abort:
        _say("nothing was done")
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        logging.getLogger(__name__).debug("an error of the kernel", exc_info=True)
        _say(worded(error))
    except MemoryError:
        _say(f"not enough memory; {_NOTHING_LOST}")
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
            _say(f"not enough memory, or too many processes of this user; {_NOTHING_LOST}")
            return Exit.ERROR
        if not hasattr(error, "format_message"):
            raise
        _usage(error)
    return Exit.ERROR


def _usage(error: Any) -> None:
    """A mistake on the command line, and how it is meant."""
    context = getattr(error, "ctx", None)
    if not error.format_message():
        return  # the help was printed, and that is all
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
    _say(error.format_message())


def _say(text: str) -> None:
    print(f"virt-chain: {printable(text)}", file=sys.stderr)


def _interrupt(number: int, _: object) -> NoReturn:
    global _signal
    _signal = number
    raise KeyboardInterrupt
