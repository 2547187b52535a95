"""
The campaign: workers that play runs, and who counts what they tell.

A worker is a process with strike.c preloaded.  It makes a case, counts what an
undisturbed apply does, and strikes it many times; each run is one line of JSON
on its standard output.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.faults import wrong
from tests.faults.kinds import KINDS, MOUNTED, Kind
from tests.faults.runs import Result, Run, count, numbers
from tests.faults.scenes import Scene
from tests.faults.strike import LIBRARY, Striker, end_with_parent, library, temporary_folder
from tests.images.disks import Disk, tool

PER_CASE = 18
"""Runs of a case that is struck at random numbers."""
EXHAUSTIVE = 6
"""Every sixth case is struck at every number, by one kind of kill."""
SMALL = 160
"""Most calls of a case that is struck at every one of them."""
ROOM = "64M"
"""Size of a worker's filesystem."""


@dataclass(frozen=True, slots=True)
class Order:
    """
    What a worker plays.

    Attributes:
        cases: Numbers of the first case, and of the one after the last.
        step: From one case to the next; each worker has its own.
        until: Wall clock (monotonic) at which no further run begins; 0: never.
        wrong: A way in which virt-chain is broken on purpose, by its name.
        only: Names of runs of one case, which are played once more; where virt-chain
            is broken on purpose, the first loss is enough.
    """

    seed: int
    first: int = 0
    last: int = 1_000_000_000
    step: int = 1
    until: float = 0.0
    kinds: tuple[str, ...] = ()
    runs: int = PER_CASE
    exhaustive: int = EXHAUSTIVE
    wrong: str = ""
    only: tuple[str, ...] = ()
    folder: str = ""


@contextmanager
def filesystem(folder: Path) -> Iterator[bool]:
    """A small filesystem on *folder*; False where nothing may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", os.fspath(folder)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        tool("umount", "-l", folder)


def work(order: Order) -> Iterator[Result]:
    """Every run of *order*, as it ends."""
    folder = Path(order.folder)
    with filesystem(folder / "disk") as mounted:
        striker = Striker(folder / "strike", folder / "disk", wrong.ways.get(order.wrong))

        def scene_of(name: str) -> Scene:
            return Scene(name, Disk(folder / "disk"), striker, folder / "saved")

        if order.only:
            yield from again(scene_of(order.only[0].split(":")[0]), order)
            return
        chosen = [KINDS[name] for name in order.kinds or KINDS]
        chosen = [kind for kind in chosen if mounted or kind.world not in MOUNTED]
        for case in range(order.first, order.last, order.step):
            if _late(order):
                return
            scene = scene_of(f"{order.seed}.{case}")
            scene.build()
            problems = count(scene)
            yield Result(f"{scene.name}:undisturbed:0", "undisturbed", problems=problems)
            if problems:
                continue
            for kind, at in strikes(scene, case, chosen, order):
                if _late(order):
                    return
                yield Run(scene, kind, at).play()


def again(scene: Scene, order: Order) -> Iterator[Result]:
    """The runs that *order* names, on one *scene*."""
    scene.build()
    problems = count(scene)
    for run in order.only:
        _, word, number = run.split(":")
        if word == "undisturbed":
            result = Result(run, word, problems=problems)
        else:
            result = Run(scene, KINDS[word], int(number)).play()
        yield result
        if order.wrong and "loss" in dict(result.problems):
            return


def _late(order: Order) -> bool:
    return bool(order.until) and time.monotonic() > order.until


def strikes(
    scene: Scene, number: int, kinds: Sequence[Kind], order: Order
) -> Iterator[tuple[Kind, int]]:
    """The faults of one case: all of one kind, or some of many."""
    dice = random.Random(f"{scene.name}/strikes")
    all_of = [kind for kind in kinds if kind.exhaustive]
    if all_of and number % order.exhaustive == 0 and scene.calls <= SMALL:
        kind = all_of[number // order.exhaustive % len(all_of)]
        yield from ((kind, at) for at in range(1, scene.calls + 1))
        return
    chosen = dice.choices(kinds, [kind.weight for kind in kinds], k=order.runs)
    for kind in kinds:
        times = chosen.count(kind)
        yield from ((kind, at) for at in numbers(kind, scene, dice, times))


Told = Callable[[Result], None]


def play(orders: Sequence[Order], told: Told) -> list[str]:
    """Let a worker play each of *orders* at the same time; what workers died of."""
    folder = temporary_folder()
    shared = _library()
    environment = {
        **os.environ,
        "LD_PRELOAD": os.fspath(shared),
        LIBRARY: os.fspath(shared),
    }
    workers: dict[int, subprocess.Popen[bytes]] = {}
    logs = []
    try:
        for number, order in enumerate(orders):
            place = folder / f"w{number}"
            place.mkdir()
            mine = json.dumps({**asdict(order), "folder": os.fspath(place)})
            log = (folder / f"log{number}").open("w+b")
            logs.append(log)
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.faults", "--worker", mine],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert worker.stdout
            workers[worker.stdout.fileno()] = worker
        _listen(workers, told)
        died = []
        for worker, log in zip(workers.values(), logs, strict=True):
            if worker.wait():
                log.seek(0)
                died.append(log.read().decode(errors="replace")[-3000:])
        return died
    finally:
        for worker in workers.values():
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
        for log in logs:
            log.close()
        for place in folder.glob("w*/disk"):
            subprocess.run(["umount", "-l", place], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _library() -> Path:
    """The compiled strike.c, which goes with this process."""
    folder = temporary_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return library(folder)


def _listen(workers: dict[int, subprocess.Popen[bytes]], told: Told) -> None:
    rest = dict.fromkeys(workers, b"")
    still_open = set(workers)
    while still_open:
        for descriptor in select.select(list(still_open), [], [])[0]:
            piece = os.read(descriptor, 65536)
            if not piece:
                still_open.discard(descriptor)
            *lines, rest[descriptor] = (rest[descriptor] + piece).split(b"\n")
            for line in lines:
                data = json.loads(line)
                data["problems"] = [(kind, text) for kind, text in data["problems"]]
                told(Result(**data))


def be_worker(text: str) -> None:
    """Play the order in *text*, and tell each run on standard output; it ends with its parent."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end_with_parent()
    data = json.loads(text)
    data["kinds"], data["only"] = tuple(data["kinds"]), tuple(data["only"])
    for result in work(Order(**data)):
        print(json.dumps(asdict(result)), flush=True)


def repeat(names: Sequence[str], told: Told, broken: str = "") -> list[str]:
    """Play the runs *names*, all of one case, once more."""
    return play([Order(0, only=tuple(names), wrong=broken)], told)
