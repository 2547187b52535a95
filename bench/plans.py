"""``plan`` with nothing to do, against the look at the same chains and a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.measure import Cost, run, seconds
from bench.merges import VIRT_CHAIN
from bench.table import Table, Target, as_ratio

MOST_PLAN = 1.5
LAYERS = 4
"""Images of each chain, the shared base included."""
IMPORTS = [sys.executable, "-c", "import typer, jsonschema"]


def make_chains(folder: Path, disks: int) -> list[str]:
    """*disks* chains on one template, and their spec; names of the active images."""
    folder.mkdir(parents=True)
    _create(folder, "base", None)
    spec = ['version = 1\n\n[defaults]\ndirectory = "."\n']
    actives = []
    for number in range(disks):
        names = [f"vm{number}_{level}" for level in range(1, LAYERS)]
        for below, name in zip(["base", *names], names, strict=False):
            _create(folder, name, below)
        listed = "".join(f'  "{name}.qcow2",\n' for name in names)
        base = '  { file = "base.qcow2", template = true },\n'
        spec.append(f"[domains.vm{number}.disks.vda]\nchain = [\n{base}{listed}]\n")
        actives.append(f"{names[-1]}.qcow2")
    (folder / "vm.toml").write_text("\n".join(spec))
    return actives


def _create(folder: Path, name: str, below: str | None) -> None:
    backing = ["-F", "qcow2", "-b", f"{below}.qcow2"] if below else []
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, f"{name}.qcow2"]
    subprocess.run([*argv, *([] if below else ["1G"])], cwd=folder, check=True)


def start_time(scratch: Path, repetitions: int) -> float:
    """Seconds of a bare interpreter that imports typer and jsonschema."""
    return seconds([run(IMPORTS, scratch) for _ in range(repetitions)])


def plan_row(
    scratch: Path, disks: int, repetitions: int, patience: float, *, judged: bool
) -> tuple[tuple[str, ...], Target]:
    """
    One row of `plan_table`: a spec of *disks* disks, all as they should be.

    Args:
        patience: Seconds after which no further repetition begins.
    """
    folder = scratch / f"plan{disks}"
    actives = make_chains(folder, disks)
    info = "qemu-img info -U --backing-chain --output=json -f qcow2"
    look = ["sh", "-ec", "\n".join(f"{info} {active}" for active in actives)]
    plan = [VIRT_CHAIN, "plan", "--state-dir", "state", "vm.toml"]
    run(plan, folder)  # byte code and page cache are warm for all
    run(IMPORTS, folder)
    ours: list[Cost] = []
    looks: list[Cost] = []
    bare: list[Cost] = []
    began = time.monotonic()
    for _ in range(repetitions):
        if ours and time.monotonic() - began > patience:
            break
        ours.append(run(plan, folder))
        looks.append(run(look, folder))
        bare.append(run(IMPORTS, folder))
    tools = seconds(looks) + seconds(bare)
    name = f"{disks} {'disk' if disks == 1 else 'disks'} of {LAYERS} images"
    target = Target(f"plan: {name}", seconds(ours) / tools, MOST_PLAN, judged)
    row = (
        name,
        str(len(ours)),
        f"{seconds(ours):.3f}",
        f"{seconds(looks):.3f}",
        f"{seconds(bare):.3f}",
        as_ratio(target.ratio),
        target.verdict,
    )
    return row, target


def plan_table(
    scratch: Path, disks: tuple[int, int], repetitions: int, patience: float, *, judged: bool
) -> tuple[Table, list[Target]]:
    """The time of ``plan`` for one disk (with more repetitions, as it is short) and for many."""
    few, many = disks
    made = [
        plan_row(scratch, few, 3 * repetitions, patience, judged=judged),
        plan_row(scratch, many, repetitions, patience, judged=judged),
    ]
    note = (
        "Seconds, medians. look: qemu-img info -U --backing-chain on each disk. imports: "
        'python -c "import typer, jsonschema". ratio: plan / (look + imports), at most '
        f"{MOST_PLAN:.2f}."
    )
    head = ("plan with nothing to do", "runs", "plan", "look", "imports", "ratio", "target")
    return Table("Plan", note, head, tuple(row for row, _ in made)), [t for _, t in made]
