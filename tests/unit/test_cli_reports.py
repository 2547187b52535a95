"""What people read: plans and trees as exact text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.cli import naming, progress, report, tree
from reconciler.engine.disk_state import DiskState
from reconciler.engine.tasks import Look
from reconciler.model.desired import DesiredDisk, Entry, Location
from reconciler.model.image import Chain, Image
from reconciler.model.plan import DiskPlan, Plan, PlannedStep, RestorePoints
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Resize,
    Step,
)
from tests.notation import MIB, chain, names, path

EVIL = "\x1b[31mred\x1b]0;title\x07\r\n\u202eevil"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def planned(step: Step, reason: str = "", **facts: object) -> PlannedStep:
    return PlannedStep(step, Chain(), Chain(), reason, **facts)  # type: ignore[arg-type]


def points(kept: str = "", dropped: str = "", discarded: str = "") -> RestorePoints:
    return RestorePoints(*(tuple(map(path, text.split())) for text in (kept, dropped, discarded)))


def disk(observed: str, desired: str, *steps: PlannedStep, **facts: object) -> DiskPlan:
    made = DiskPlan("web01", "vda", chain(observed), tuple(map(path, names(desired))), steps)
    return replace(made, **facts)  # type: ignore[arg-type]


def shown(
    capsys: pytest.CaptureFixture[str], *disks: DiskPlan, apply_with: str | None = None
) -> str:
    report.print_plan(Plan((), disks), report.console(), apply_with)
    return capsys.readouterr().out


DESIGN = disk(
    "centosbase <- centos2 <- centos2_sn1 <- centos2_sn2 <- centos2_sn3 <- centos2_sn4*",
    "centosbase <- centos2 <- centos2_sn1 <- centos2_sn4*",
    planned(
        Commit(path("centos2_sn4"), path("centos2_sn2"), relink=False),
        "cheapest: pulling up would copy 600 MiB",
        bytes=8 * MIB,
    ),
    planned(Rename(path("centos2_sn2"), path("centos2_sn4"))),
    planned(Remove(path("centos2_sn3")), frees=8 * MIB + 300 * 1024),
    restore_points=points("centosbase centos2 centos2_sn1", "centos2_sn2 centos2_sn3"),
    domain="centos2",
)
QUIET = disk("b <- x*", "b <- x*")


def test_a_plan_reads_as_the_design_shows_it(capsys):
    out = shown(capsys, DESIGN, *[QUIET] * 11, apply_with="virt-chain apply")

    assert (
        out
        == """\
centos2:vda  offline  6 images, the spec has 4
  centosbase <- centos2 <- centos2_sn1 <- centos2_sn2 <- centos2_sn3 <- centos2_sn4*
  1  commit  centos2_sn4 down into centos2_sn2  8.0 MiB  cheapest: pulling up would copy 600 MiB
  2  rename  centos2_sn2 to centos2_sn4
  3  remove  centos2_sn3                                 frees 8.3 MiB
  keeps the restore points centosbase, centos2, centos2_sn1; drops centos2_sn2, centos2_sn3

Plan: 1 commit, 1 rename, 1 remove; 8.0 MiB to copy. 11 other disks are as the spec says.
Apply it with: virt-chain apply
"""
    )


def test_every_step_has_words_of_its_own(capsys):
    made = disk(
        "b <- p <- x*",
        "b <- y*",
        planned(Create(path("y"), path("p"), "qcow2", 64 * MIB), "the spec lists y"),
        planned(Create(path("z"), None, "qcow2", 10 * MIB), "a new disk"),
        planned(Commit(path("x"), path("p")), "drops x"),
        planned(Pull(path("x"), path("b")), "drops p", bytes=5 * MIB),
        planned(Pull(path("x"), None), "flattens x"),
        planned(Rebase(path("x"), path("c")), "the spec has c below"),
        planned(Rename(path("p"), path("q"))),
        planned(Resize(path("x"), 128 * MIB), "the spec says so"),
        planned(Attach(path("p")), "a rollback"),
        planned(Forget("before [bold]"), "it is gone"),
        planned(Remove(path("x")), "discarded", deferred="the domain runs"),
        restore_points=points("b", "p", "x"),
        notes=("b stays on disk",),
        state="running",
    )

    assert (
        shown(capsys, made)
        == """\
web01:vda  running  3 images, the spec has 2
  b <- p <- x*
   1  create  y on p                         the spec lists y
   2  create  z, 10 MiB                      a new disk
   3  commit  x down into p             0 B  drops x
   4  pull    up into x, down to b  5.0 MiB  drops p
   5  pull    up into x, all of it      0 B  flattens x
   6  rebase  x onto c                       the spec has c below
   7  rename  p to q
   8  resize  x to 128 MiB                   the spec says so
   9  attach  p                              a rollback
  10  forget  before [bold]                  it is gone
  11  remove  x                              discarded (deferred: the domain runs)
  keeps the restore point b; drops p; discards x
  b stays on disk

Plan: 2 creates, 1 commit, 2 pulls, 1 rebase, 1 rename, 1 resize, 1 attach, 1 forget; \
5.0 MiB to copy. 1 step waits until the guest is off.
"""
    )


def test_a_disk_that_cannot_be_planned_says_why(capsys):
    bad = disk("b <- x*", "x <- b*", error="a chain is a history; its order is fixed")

    assert (
        shown(capsys, bad, QUIET)
        == """\
web01:vda  offline  2 images, the spec has 2
  b <- x*
  error: a chain is a history; its order is fixed

1 disk cannot be planned. 1 other disk is as the spec says.
"""
    )


CLOSINGS = [
    # id, disks: d(esign), q(uiet), b(roken); the last line
    ("one quiet", "q", "Nothing to do: 1 disk is as the spec says."),
    ("two quiet", "qq", "Nothing to do: 2 disks are as the spec says."),
    ("none", "", "Nothing to do: 0 disks are as the spec says."),
    ("one changed", "d", "Plan: 1 commit, 1 rename, 1 remove; 8.0 MiB to copy."),
    (
        "two changed, one quiet",
        "ddq",
        "Plan: 2 commits, 2 renames, 2 removes; 16 MiB to copy. 1 other disk is as the spec says.",
    ),
    ("one broken", "b", "1 disk cannot be planned."),
    ("two broken", "bb", "2 disks cannot be planned."),
    (
        "all kinds",
        "dbqq",
        (
            "Plan: 1 commit, 1 rename, 1 remove; 8.0 MiB to copy. 1 disk cannot be planned. "
            "2 other disks are as the spec says."
        ),
    ),
]


@pytest.mark.parametrize(
    ("kinds", "line"), [pytest.param(*case, id=name) for name, *case in CLOSINGS]
)
def test_the_closing_line_counts(kinds, line):
    by_kind = {"d": DESIGN, "q": QUIET, "b": replace(QUIET, error="no")}

    assert report.closing(Plan((), tuple(by_kind[kind] for kind in kinds))) == line


COUNTS = [
    ("(none)", "x*", "no images, the spec has 1"),
    ("b*", "b <- x*", "1 image, the spec has 2"),
    ("b <- x*", "x*", "2 images, the spec has 1"),
]


@pytest.mark.parametrize(("observed", "desired", "text"), COUNTS)
def test_images_are_counted(capsys, observed, desired, text):
    out = shown(capsys, disk(observed, desired, planned(Attach(path("x")))))

    assert out.splitlines()[0] == f"web01:vda  offline  {text}"


def test_a_long_chain_is_shortened_in_the_middle(capsys):
    whole = " <- ".join(f"s{number}" for number in range(12)) + "*"
    longer = " <- ".join(f"s{number}" for number in range(13)) + "*"

    lines = [
        shown(capsys, disk(text, "s0*", error="no")).splitlines()[1] for text in (whole, longer)
    ]

    assert lines == [f"  {whole}", "  s0 <- s1 <- s2 <- (7 more) <- s10 <- s11 <- s12*"]


def test_many_restore_points_are_counted(capsys):
    every = " ".join(f"s{number}" for number in range(10))
    made = disk("b*", "b*", planned(Attach(path("b"))), restore_points=points(every, every))

    assert shown(capsys, made).splitlines()[3] == (
        "  keeps the restore points s0, s1, s2, s3, s4, s5, s6, s7 and 2 more; "
        "drops s0, s1, s2, s3, s4, s5, s6, s7 and 2 more"
    )


def test_a_chain_without_images_has_a_name():
    assert naming.chain_text([], str) == "(none)"


NAMED = [
    ("suffixes go", ["/i/a.qcow2", "/i/b.img", "/i/c.raw"], ["a", "b", "c"]),
    ("other suffixes stay", ["/i/a.iso", "/i/web.example.org"], ["a.iso", "web.example.org"]),
    ("the same without a suffix", ["/i/a.qcow2", "/i/a.img"], ["a.qcow2", "a.img"]),
    (
        "the same in two folders",
        ["/i/a.qcow2", "/o/a.qcow2", "/i/b.qcow2"],
        ["/i/a.qcow2", "/o/a.qcow2", "b"],
    ),
    ("a suffix alone", ["/i/.qcow2"], [".qcow2"]),
]


@pytest.mark.parametrize(
    ("paths", "short"), [pytest.param(*case, id=name) for name, *case in NAMED]
)
def test_images_are_named_as_short_as_they_can_be_told_apart(paths, short):
    name = naming.naming(map(Path, paths))

    assert [name(Path(one)) for one in paths] == short


PRINTABLE = [
    ("plain", "plain"),
    ("ä东 ok", "ä东 ok"),
    ("\x1b[31m", r"\x1b[31m"),
    ("\x9b31m", r"\x9b31m"),
    ("a\tb\nc\rd", r"a\tb\nc\rd"),
    ("\u202egpj.exe", r"\u202egpj.exe"),
    ("\u200b", r"\u200b"),
    ("caf\udce9", r"caf\udce9"),
    ("\x7f\x07", r"\x7f\x07"),
]


@pytest.mark.parametrize(("text", "safe"), PRINTABLE)
def test_what_a_terminal_would_act_on_is_spelled_out(text, safe):
    assert naming.printable(text) == safe


def evil_disk() -> DiskPlan:
    names_ = [Path(f"/{EVIL}/{number}{EVIL}.qcow2") for number in range(3)]
    images = tuple(Image(path=one, format="qcow2", virtual_size=MIB) for one in names_)
    return DiskPlan(
        domain=EVIL,
        target=EVIL,
        observed=Chain(images),
        desired=tuple(names_),
        steps=(
            planned(Forget(EVIL), EVIL, deferred=EVIL),
            planned(Commit(names_[2], names_[1]), EVIL, bytes=1),
        ),
        restore_points=RestorePoints(tuple(names_), tuple(names_), tuple(names_)),
        notes=(EVIL,),
    )


def is_safe(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_no_name_reaches_a_terminal_raw_in_a_plan(capsys):
    made = evil_disk()

    out = shown(capsys, made, replace(made, error=EVIL))

    assert (is_safe(out), out.count("title") > 10) == (True, True)


def test_no_name_reaches_a_terminal_raw_in_the_command_to_apply(capsys):
    out = shown(capsys, DESIGN, apply_with=f"virt-chain apply {EVIL}")

    assert is_safe(out)


def test_no_name_reaches_a_terminal_raw_in_progress(capsys):
    made = evil_disk()
    terminal = progress.Terminal()
    for number, one in enumerate(made.steps, start=1):
        terminal.step(made, number, one)
        terminal.progress(0.5)
        terminal.finished(made, number, one, 1.25)
    terminal.note(made, EVIL)
    terminal.close()
    err = capsys.readouterr().err

    assert (is_safe(err), len(err.splitlines())) == (True, 3)


def test_progress_is_one_line_a_step_without_a_terminal(capsys):
    terminal = progress.Terminal()
    for number, one in enumerate(DESIGN.steps, start=1):
        terminal.step(DESIGN, number, one)
        terminal.progress(0.5)
        terminal.finished(DESIGN, number, one, 1.25)
    terminal.note(DESIGN, "the current state reads as before")
    terminal.close()

    assert (
        capsys.readouterr().err
        == """\
centos2:vda  1/3  commit  centos2_sn4 down into centos2_sn2  8.0 MiB in 1.2 s
centos2:vda  2/3  rename  centos2_sn2 to centos2_sn4  1.2 s
centos2:vda  3/3  remove  centos2_sn3  1.2 s
centos2:vda: the current state reads as before
"""
    )


COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9](?:;[0-9;]*)?m")


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_heeded_on_a_terminal(capsys, monkeypatch, no_color, coloured):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)

    out = shown(capsys, DESIGN)

    assert bool(COLOUR.search(out)) is coloured


def test_there_is_no_colour_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")

    assert "\x1b" not in shown(capsys, DESIGN)


def look(label: str, observed: str, desired: str, template: str = "") -> Look:
    """A disk whose files do not exist, so that nothing is known to be held alone."""
    domain, target = label.split(":")
    entries = tuple(
        Entry(path(name), f"{name}.qcow2", template=name == template) for name in names(desired)
    )
    where = Location(Path("spec.toml"), 1, 1)
    wanted = DesiredDisk(domain, target, entries, where, Path("/images"))
    return Look(wanted, DiskState(), chain(observed), None, {})


def tree_of(capsys: pytest.CaptureFixture[str], *looks: Look, **facts: object) -> str:
    plans = [
        replace(
            DiskPlan(one.desired.domain, one.desired.target, one.chain, ()),
            **facts,  # type: ignore[arg-type]
        )
        for one in looks
    ]
    tree.print_show(looks, plans, report.console())
    return capsys.readouterr().out


def drawn(out: str) -> list[str]:
    """The first column of a tree."""
    head, *rows = out.split("\n\n")[0].splitlines()
    return [row[: head.index("what it is")].rstrip() for row in rows]


def test_a_chain_is_drawn_without_indents(capsys):
    assert (
        tree_of(capsys, look("web:vda", "b <- p <- x*", "b <- p <- x*"))
        == """\
image  what it is         size  on disk  alone
b      restore point    64 MiB      0 B    0 B
p      restore point    64 MiB      0 B    0 B
x*     active: web:vda  64 MiB      0 B    0 B

web:vda  as the spec says
"""
    )


def test_branches_are_indented_and_a_shared_image_is_drawn_once(capsys):
    out = tree_of(
        capsys,
        look("web1:vda", "t <- s <- a <- b*", ""),
        look("web2:vda", "t <- s <- c <- d*", ""),
        look("web3:vda", "t <- s <- e*", ""),
        look("web4:vda", "z*", ""),
    )

    assert drawn(out) == [
        "t",
        "s",
        "├─ a",
        "│  b*",
        "├─ c",
        "│  d*",
        "└─ e*",
        "z*",
    ]


def test_a_branch_on_a_branch_is_indented_further(capsys):
    out = tree_of(
        capsys,
        look("a:vda", "t <- s <- a*", ""),
        look("b:vda", "t <- s <- b*", ""),
        look("c:vda", "t <- c*", ""),
    )

    assert drawn(out) == ["t", "├─ s", "│  ├─ a*", "│  └─ b*", "└─ c*"]


def test_drift_and_errors_are_told_below_the_tree(capsys):
    one = look("web:vda", "b <- x*", "b*")
    drift = tree_of(capsys, one, steps=(planned(Commit(path("x"), path("b")), bytes=MIB),))
    broken = tree_of(capsys, replace(one, chain=Chain()), error="b does not exist")

    assert (drift.splitlines()[-1], broken) == (
        "web:vda  drift: 1 commit; 1.0 MiB to copy (virt-chain plan)",
        "web:vda  error: b does not exist\n",
    )


def test_no_name_reaches_a_terminal_raw_in_a_tree(capsys):
    made = evil_disk()
    entries = tuple(Entry(one, EVIL) for one in made.desired)
    wanted = DesiredDisk(EVIL, EVIL, entries, Location(Path("s"), 1, 1), Path("/"))
    found = Look(wanted, DiskState(), made.observed, None, {})

    tree.print_show([found, found], [made, replace(made, error=EVIL)], report.console())

    assert is_safe(capsys.readouterr().out)
