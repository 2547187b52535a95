"""Running guests: their writes during a merge, the start of a job, and a whole story."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import chains
from bench.measure import run
from bench.running import Latency, Running, Watched, booted, daemon
from bench.scenes import MIB, Layer, Scene, mib
from bench.table import Table, Target, as_ratio

MOST_LATENCY = 1.05
MOST_START = 0.5
"""Seconds from command to job, more than virsh needs."""
SIZE = 192 * MIB
"""Bytes of every image."""
MOVED = 36
"""MiB that each job has to copy."""
RATE = 12
"""MiB a second that a job may copy; an active commit ends only where the guest writes less."""
REST = 1.5
"""Seconds that the guest writes undisturbed before each job."""
STORIES = 2
"""The whole story is told in so many of the repetitions."""
VIRSH = "virsh"
OURS = "virt-chain"


@dataclass(frozen=True, slots=True)
class Job:
    """
    One merge of a running guest.

    Attributes:
        keep: The chain afterwards, by the names that a spec has.
        virsh: The same as a shell script, see `Running.virsh`.
    """

    name: str
    keep: tuple[str, ...]
    virsh: str


LAYERS = (
    Layer("base", (mib(16, 4),)),
    Layer("a", (mib(20, 4),)),
    Layer("b", (mib(24, MOVED),)),
    Layer("c", (mib(60, MOVED),)),
    Layer("d", (mib(96, 12),)),
    Layer("e", (mib(108, MOVED),)),
)
"""Each job moves one of them; what is above is larger, so that the cheapest way is this one."""

LIMIT = f"--bytes {RATE * MIB}"
JOBS = (
    Job(
        "active commit",
        ("base", "a", "b", "c", "d"),
        "{virsh} blockcommit {web} vda --base {images}/d.qcow2 --active --pivot --wait " + LIMIT,
    ),
    Job(
        "commit below, link",
        ("base", "b", "c", "d"),
        "{virsh} blockcommit {web} vda --base {images}/a.qcow2 --top {images}/b.qcow2 --wait "
        + LIMIT,
    ),
    Job(
        "pull",
        ("base", "b", "d"),
        "{virsh} blockpull {web} vda --base {images}/a.qcow2 --wait " + LIMIT,
    ),
)
"""In this order, on one guest."""

FLUSH = "{virsh} 'suspend {web}; resume {web}'\n"
"""QEMU writes back what a job has left in its memory; before that nothing may be removed."""
SNAPSHOT = (
    "{{virsh}} snapshot-create-as {{web}} --disk-only --atomic --no-metadata "
    "--diskspec vda,file={{images}}/{name}.qcow2"
)
STORY = (
    Job("snapshot monday", ("web", "monday"), SNAPSHOT.format(name="monday")),
    Job("snapshot tuesday", ("web", "monday", "tuesday"), SNAPSHOT.format(name="tuesday")),
    Job(
        "snapshot wednesday",
        ("web", "monday", "tuesday", "wednesday"),
        SNAPSHOT.format(name="wednesday"),
    ),
    Job(
        "drop monday in the middle",
        ("web", "tuesday", "wednesday"),
        "{virsh} blockcommit {web} vda --base {images}/monday.qcow2 --top {images}/tuesday.qcow2 "
        f"--wait\n{FLUSH}ln -f monday.qcow2 tuesday.qcow2",
    ),
    Job(
        "pull tuesday up",
        ("web", "wednesday"),
        "{virsh} blockpull {web} vda --base {images}/web.qcow2 --wait\n"
        f"{FLUSH}rm monday.qcow2 tuesday.qcow2",
    ),
    Job(
        "commit wednesday, active",
        ("web",),
        "{virsh} blockcommit {web} vda --active --pivot --wait\n" + FLUSH + "rm wednesday.qcow2",
    ),
)
"""The story of examples/running, without its last step, for which the guest is off."""

Watches = dict[str, dict[str, list[Watched]]]
"""By job, then by contender."""
Times = dict[str, dict[str, list[float]]]
"""Seconds by step of the story, then by contender."""


def guest_tables(
    scratch: Path, repetitions: int, until: float, *, judged: bool
) -> tuple[list[Table], list[Target]]:
    """
    All three tables.

    Args:
        until: When, on the monotonic clock, no further repetition begins.

    Raises:
        MissingPackage: virsh or a part of libvirt is not installed.
    """
    masters = scratch / "guests"
    merges = chains.make(Scene("jobs", SIZE, LAYERS, ()), masters / "jobs")
    story = chains.make(Scene("story", SIZE, (Layer("web", ()),), ()), masters / "story")
    watches: Watches = {job.name: {OURS: [], VIRSH: []} for job in JOBS}
    times: Times = {step.name: {OURS: [], VIRSH: []} for step in STORY}
    with daemon() as world:
        for number in range(repetitions):
            if number and time.monotonic() > until:
                break
            for contender in (OURS, VIRSH) if number % 2 else (VIRSH, OURS):
                if number < STORIES:
                    with booted(world, f"s{number}{contender}", story, "web") as guest:
                        _tell_story(guest, contender, times)
                with booted(world, f"j{number}{contender}", merges, "e") as guest:
                    _do_jobs(guest, contender, watches)
    shutil.rmtree(masters)
    writes, latency = _latency_table(watches, judged=judged)
    starts, start = _start_table(watches, judged=judged)
    return [writes, starts, _story_table(times)], [*latency, *start]


def _do_jobs(running: Running, contender: str, watches: Watches) -> None:
    for job in JOBS:
        ours = running.apply(job.keep, "--bandwidth", f"{RATE}M")
        argv = ours if contender == OURS else running.virsh(job.virsh)
        watches[job.name][contender].append(running.watched(argv, REST))
    running.confirm()


def _tell_story(running: Running, contender: str, times: Times) -> None:
    for step in STORY:
        ours = running.apply(step.keep)
        argv = ours if contender == OURS else running.virsh(step.virsh)
        times[step.name][contender].append(run(argv, running.folder).seconds)
        running.guest.wait_for(20)
    running.confirm()


VALUES: tuple[tuple[str, Callable[[Latency], float]], ...] = (
    ("p50", lambda one: one.p50),
    ("p99", lambda one: one.p99),
    ("longest", lambda one: one.longest),
    ("silence", lambda one: one.silence),
)


def _latency_table(watches: Watches, *, judged: bool) -> tuple[Table, list[Target]]:
    rows, targets = [], []
    for name, by in watches.items():
        for value, of in VALUES:
            idle = median(of(one.idle) for one in [*by[OURS], *by[VIRSH]])
            ours, virsh = (median(of(one.during) for one in by[who]) for who in (OURS, VIRSH))
            job = [f"{median(of(one.copying) for one in by[who]):.1f}" for who in (OURS, VIRSH)]
            target = Target(f"guest writes: {name}: {value}", ours / virsh, MOST_LATENCY, judged)
            targets.append(target)
            row = (f"{idle:.1f}", f"{ours:.1f}", f"{virsh:.1f}", as_ratio(target.ratio))
            rows.append((f"{name}: {value}", str(len(by[OURS])), *row, target.verdict, *job))
    note = (
        "Milliseconds, medians of interleaved repetitions, each on a copy of the same chain; 4 KiB "
        f"records with fdatasync while {MOVED} MiB are copied at {RATE} MiB/s, from the begin of "
        "the command to its end. longest: by the guest's clock, which stops while the guest is "
        "suspended; silence: the longest time between two records by the host's clock. idle: just "
        "before; how far it is from one row to the next tells the noise. ratio: at most "
        f"{MOST_LATENCY}. in job: the same, but only while libvirt tells of the job. virsh is "
        "in Debian's package libvirt-clients."
    )
    head = ("guest writes during", "runs", "idle", "virt-chain", "virsh", "ratio", "target")
    table = Table("Running guests: latency", note, (*head, "in job", "virsh"), tuple(rows))
    return table, targets


def _start_table(watches: Watches, *, judged: bool) -> tuple[Table, list[Target]]:
    rows, targets = [], []
    for name, by in watches.items():
        start = {who: median(one.started for one in by[who]) for who in (OURS, VIRSH)}
        job = {who: median(one.job for one in by[who]) for who in (OURS, VIRSH)}
        after = {who: median(_after(one) for one in by[who]) for who in (OURS, VIRSH)}
        more = start[OURS] - start[VIRSH]
        target = Target(f"seconds to job start over virsh: {name}", more, MOST_START, judged)
        targets.append(target)
        cells = [f"{one[who]:.2f}" for one in (start, job, after) for who in (OURS, VIRSH)]
        rows.append((name, str(len(by[OURS])), *cells, f"{more:.2f}", target.verdict))
    note = (
        "Seconds, medians. start: from the command to the first blockJobInfo that tells of the "
        "job, asked every 2 ms in another connection to the same libvirtd; job: from then to the "
        "last one; after: until the command ends. more: start, virt-chain - virsh, at most "
        f"{MOST_START}."
    )
    head = ("command to job start", "runs", "start", "virsh", "job", "virsh", "after", "virsh")
    return Table("Running guests: start", note, (*head, "more", "target"), tuple(rows)), targets


def _after(one: Watched) -> float:
    return one.seconds - one.started - one.job


def _story_table(times: Times) -> Table:
    middle = {name: [median(by[who]) for who in (OURS, VIRSH)] for name, by in times.items()}
    whole = [sum(both) for both in zip(*middle.values(), strict=True)]
    runs = str(min(len(by[OURS]) for by in times.values()))
    rows = [_story_row(name, runs, both) for name, both in {**middle, "whole": whole}.items()]
    note = (
        "Seconds, medians; no bandwidth limit. virsh: the shortest correct sequence by hand "
        "(bench/guests.py), with a flush by suspend and resume before anything is removed. It "
        "knows the chain beforehand, checks nothing and cannot be resumed."
    )
    head = ("examples/running, live", "runs", "virt-chain", "virsh", "more", "ratio")
    return Table("Running guests: the whole story", note, head, tuple(rows))


def _story_row(name: str, runs: str, both: Sequence[float]) -> tuple[str, ...]:
    ours, virsh = both
    return name, runs, f"{ours:.2f}", f"{virsh:.2f}", f"{ours - virsh:.2f}", as_ratio(ours / virsh)
