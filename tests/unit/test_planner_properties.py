"""
Plans for random disks, played on a concrete model of files.

The model is written without the package's own idea of what a step does: a file
is a table from cluster to content, and every step copies contents about.  The
promise of DESIGN §2 is checked on what is read through the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path

from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from hypothesis.vendor.pretty import RepresentationPrinter

from reconciler.model.errors import Refused
from reconciler.model.extents import Extent
from reconciler.model.image import Chain, Format, Identity, Image
from reconciler.model.plan import DiskPlan
from reconciler.model.steps import (
    Attach,
    Commit,
    Create,
    Pull,
    Rebase,
    Remove,
    Rename,
    Resize,
    Step,
)
from reconciler.planner.making import make_plan, needed
from reconciler.planner.proof import ProofFailed, World, prove
from reconciler.planner.task import Task, View, Wanted
from tests.notation import FOLDER, OTHER, lines, path

UNIT = 65536
"""Bytes of a cluster; every size here is a number of clusters."""
ZERO = "0"
"""What a cluster of zeroes holds, whether it is allocated or not."""
DEVICES = {FOLDER: 1, OTHER: 2}

Content = tuple[str, ...]

settings.register_profile(
    "planner",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@dataclass
class File:
    """
    One image file: what its clusters hold, how large it is, what it stands on.

    Attributes:
        number: Its inode; it stays the same under any name.
        recorded: The format of the backing file is written down.
        snapshots: Size and clusters of each internal snapshot.
    """

    number: int
    size: int
    cells: dict[int, str] = field(default_factory=dict)
    backing: Path | None = None
    format: Format = "qcow2"
    recorded: bool = True
    links: int = 1
    bitmaps: int = 0
    snapshots: tuple[tuple[int, dict[int, str]], ...] = ()

    def bits(self) -> tuple[object, ...]:
        return self.number, self.size, dict(self.cells), self.backing, self.recorded


@dataclass
class Disks:
    """All files there are, and which one the guest writes."""

    files: dict[Path, File]
    active: Path | None
    forged: bool = False

    def below(self, at: Path | None) -> Iterator[Path]:
        """*at* and everything it stands on, top first."""
        while at is not None:
            yield at
            at = self.files[at].backing

    def cell(self, at: Path, cluster: int, base: Path | None = None) -> str | None:
        """What *at* reads from above *base*; None: nothing there, *base* shows through."""
        file = self.files[at]
        if cluster in file.cells:
            return file.cells[cluster]
        if file.backing is None or cluster >= self.files[file.backing].size:
            return ZERO
        if file.backing == base:
            return None
        return self.cell(file.backing, cluster, base)

    def read(self, at: Path) -> Content:
        return tuple(self.cell(at, cluster) or ZERO for cluster in range(self.files[at].size))

    def snapshot_reads(self, file: File) -> list[Content]:
        """What the internal snapshots of *file* read."""
        under = dict(enumerate(self.read(file.backing) if file.backing else ()))
        return [
            tuple(cells.get(cluster, under.get(cluster, ZERO)) for cluster in range(size))
            for size, cells in file.snapshots
        ]

    def run(self, step: Step) -> int:
        """Carry out *step*; the bytes of data that were written for it."""
        match step:
            case Create(image, backing, image_format, size):
                assert image not in self.files, "a file was there before"
                assert not (backing and image_format == "raw"), "raw has no backing file"
                assert backing is None or backing in self.files
                number = max((file.number for file in self.files.values()), default=0) + 1
                self.files[image] = File(number, size // UNIT, backing=backing, format=image_format)
                self.active = image
                return 0
            case Commit(top, base, relink):
                return self._commit(top, base, relink)
            case Pull(into, base):
                return self._pull(into, base)
            case Rebase(image, backing):
                return self._rebase(image, backing)
            case Rename(source, target):
                self._rename(source, target)
                return 0
            case Resize(image, size):
                assert size // UNIT > self.files[image].size
                self._grow(image, size // UNIT)
                return 0
            case Attach(image):
                assert image in self.below(self.active)
                self.active = image
                return 0
            case Remove(image):
                standing = [at for at, file in self.files.items() if file.backing == image]
                assert not standing, f"{standing} stand on {image}"
                assert image != self.active
                del self.files[image]
                return 0
            case _:
                raise AssertionError(f"{step} is not for a disk without libvirt")

    def _grow(self, at: Path, size: int) -> None:
        file = self.files[at]
        for cluster in range(file.size, size):
            file.cells[cluster] = ZERO
        file.size = max(file.size, size)

    def _commit(self, top: Path, base: Path, relink: bool) -> int:
        walk = list(self.below(top))
        assert base in walk[1:]
        lower = self.files[base]
        assert not lower.bitmaps or lower.number in self.may_lose_bitmaps
        assert not (lower.format == "raw" and self.forged), "raw would be taken for qcow2"
        for at in walk:
            assert self.files[at].recorded or not self.files[at].backing, f"{at}: format guessed"
        written = {
            cluster: found
            for cluster in range(self.files[top].size)
            if (found := self.cell(top, cluster, base)) is not None
        }
        above = [at for at in self.below(self.active) if self.files[at].backing == top]
        self._grow(base, self.files[top].size)
        lower.cells |= written
        if relink:
            for at in above:
                self.files[at].backing = base
            self.active = base if self.active == top else self.active
        return UNIT * sum(found != ZERO for found in written.values())

    may_lose_bitmaps: frozenset[int] = frozenset()

    def _pull(self, into: Path, base: Path | None) -> int:
        file = self.files[into]
        assert base is None or base in self.below(file.backing)
        missing = [cluster for cluster in range(file.size) if cluster not in file.cells]
        written = {
            cluster: found
            for cluster in missing
            if (found := self.cell(into, cluster, base)) is not None
        }
        file.cells |= written
        file.backing = base
        file.recorded = True
        return UNIT * sum(found != ZERO for found in written.values())

    def _rebase(self, image: Path, backing: Path) -> int:
        file = self.files[image]
        before = self.read(image)
        assert image not in self.below(backing)
        file.backing = backing
        file.recorded = True
        after = self.read(image)
        written = {at: old for at, old in enumerate(before) if old != after[at]}
        file.cells |= written
        return UNIT * sum(old != ZERO for old in written.values())

    def _rename(self, source: Path, target: Path) -> None:
        assert DEVICES[source.parent] == DEVICES[target.parent], "another filesystem"
        above = [at for at in self.below(self.active) if self.files[at].backing == source]
        self.files[target] = self.files.pop(source)
        for at in above:
            if at != target:
                self.files[at].backing = target
        self.active = target if self.active == source else self.active

    def extents(self, at: Path) -> tuple[Extent, ...]:
        """The map of the view of *at*, as ``qemu-img map`` tells it."""
        found: list[Extent] = []
        for cluster in range(self.files[at].size):
            one = self._extent(at, cluster)
            last = found[-1] if found else None
            if last and (last.depth, last.zero, last.present) == (one.depth, one.zero, one.present):
                found[-1] = replace(last, length=last.length + UNIT)
            else:
                found.append(one)
        return tuple(found)

    def _extent(self, at: Path, cluster: int) -> Extent:
        start = cluster * UNIT
        for depth, under in enumerate(self.below(at)):
            file = self.files[under]
            if cluster in file.cells:
                zero = file.cells[cluster] == ZERO
                return Extent(start, UNIT, depth, zero, True, None if zero else start)
            if file.backing is None or cluster >= self.files[file.backing].size:
                return Extent(start, UNIT, depth, True, file.format == "raw")
        raise AssertionError

    def image(self, at: Path) -> Image:
        file = self.files[at]
        below = file.backing
        return Image(
            path=at,
            format=file.format,
            virtual_size=file.size * UNIT,
            cluster_size=1 if file.format == "raw" else UNIT,
            identity=Identity(DEVICES[at.parent], file.number),
            links=file.links,
            recorded=str(below) if below else None,
            recorded_format=self.files[below].format if below and file.recorded else None,
            snapshots=len(file.snapshots),
            bitmaps=file.bitmaps,
        )

    def chain(self, at: Path | None) -> Chain:
        return Chain(tuple(self.image(under) for under in reversed(list(self.below(at)))))


@dataclass(frozen=True)
class Case:
    """
    A disk and what the spec says of it.

    Attributes:
        wanted: Path, restore_point, format and size of every entry.
    """

    disks: Disks
    wanted: tuple[Wanted, ...]
    discard: frozenset[Path] = frozenset()
    templates: frozenset[Path] = frozenset()
    remove_base: bool = False
    drop_bitmaps: bool = False
    busy: bool = False
    free: int = 1 << 40

    def __repr__(self) -> str:
        rows = [
            f"{at.parent.name}/{at.stem}: {file}" for at, file in sorted(self.disks.files.items())
        ]
        entries = " <- ".join(
            f"{'' if one.restore_point else '~'}{one.path.stem}{f':{one.size}' if one.size else ''}"
            for one in self.wanted
        )
        rest = (
            f"discard={sorted(one.stem for one in self.discard)} "
            f"templates={sorted(one.stem for one in self.templates)} "
            f"remove_base={self.remove_base} drop_bitmaps={self.drop_bitmaps} "
            f"forged={self.disks.forged} free={self.free}"
        )
        observed = self.disks.chain(self.disks.active)
        return "\n".join(["", f"{observed}  =>  {entries}*  {rest}", *rows])

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def names(self) -> tuple[Path, ...]:
        return tuple(one.path for one in self.wanted)

    def task(self, disks: Disks) -> Task:
        """What the planner is told when the files are as in *disks*."""
        chain = disks.chain(disks.active)
        users = {
            image.path: tuple(
                at.name
                for at, file in disks.files.items()
                if file.backing == image.path and at not in chain
            )
            for image in chain
        }
        on_active = users.get(disks.active, ()) if disks.active else ()
        return Task(
            domain="web01",
            target="vda",
            chain=chain,
            wanted=tuple(
                replace(one, image=disks.image(one.path) if one.path in disks.files else None)
                for one in self.wanted
            ),
            discard=self.discard,
            remove_base=self.remove_base,
            bitmaps="drop" if self.drop_bitmaps else "keep",
            outside={
                at: disks.chain(at) for at in self.names if at in disks.files and at not in chain
            },
            users={at: names for at, names in users.items() if names},
            templates=self.templates,
            strangers=tuple(
                at for at in disks.files if at.name in on_active and at not in self.names
            ),
            filesystems=DEVICES,
            free=dict.fromkeys(DEVICES.values(), self.free),
            busy=self.busy,
        )

    def plan(self, disks: Disks) -> DiskPlan:
        task = self.task(disks)
        views = {at: View(disks.extents(at), disks.forged) for at in needed(task)}
        return make_plan(task, views)


PERCENT = st.integers(0, 99)
BITS = st.integers(0, 255)
"""A cluster a bit."""


def drawn_cells(draw: st.DrawFn, name: str, size: int, *, zeroes: bool) -> dict[int, str]:
    data, zero = draw(BITS), draw(BITS) if zeroes else 0
    written = {at: f"{name}.{at}" for at in range(size) if data >> at & 1}
    return written | {at: ZERO for at in range(size) if zero >> at & 1}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A chain of up to 8 images with all that may stand in the way, and a wish."""

    def chance(percent: int) -> bool:
        return draw(PERCENT) >= 100 - percent

    odd = chance(60)
    files: dict[Path, File] = {}

    def a_file(name: str, backing: Path | None, size: int, folder: Path = FOLDER) -> Path:
        at = folder / f"{name}.qcow2"
        cells = drawn_cells(draw, name, size, zeroes=odd and chance(20))
        files[at] = File(len(files), size, cells, backing)
        return at

    usual = draw(st.integers(2, 8))
    count = draw(st.integers(0 if chance(10) else 1, 8))
    dips = odd and chance(25)
    observed: list[Path] = []
    for index in range(count):
        size = draw(st.integers(1, 8)) if dips else usual
        folder = OTHER if odd and chance(8) else FOLDER
        at = a_file(f"i{index}", observed[-1] if observed else None, size, folder)
        observed.append(at)
        file = files[at]
        if odd:
            file.links = 2 if chance(3) else 1
            file.bitmaps = 1 if chance(4) else 0
            file.recorded = not chance(6)
            if chance(4):
                file.snapshots = ((size, {c: f"s{index}.{c}" for c in range(0, size, 2)}),)
            if index == 0 and chance(25):
                file.format = "raw"
    for index, at in enumerate(observed[:-1]):
        if odd and chance(5):
            a_file(f"u{index}", at, files[at].size)
    if observed and odd and chance(2):
        a_file("stranger", observed[-1], usual)

    discarded = draw(st.integers(1, count)) if count and chance(25) else 0
    left = observed[: count - discarded]
    foreign: list[Path] = []
    if chance(15 if count else 50):
        if left and chance(40):
            foreign = left[: draw(st.integers(1, len(left)))]
        for index in range(draw(st.integers(1, 2))):
            size = usual if not dips else draw(st.integers(1, 8))
            foreign.append(a_file(f"f{index}", foreign[-1] if foreign else None, size))

    listed = [at for at in left if at not in foreign]
    if foreign and foreign[0] in left:
        last = max(index for index, at in enumerate(left) if at in foreign)
        listed = left[last + 1 :]
    keeping = draw(st.lists(st.booleans(), min_size=len(listed), max_size=len(listed)))
    kept = [at for at, keep in zip(listed, keeping, strict=True) if keep]
    new = [FOLDER / f"n{index}.qcow2" for index in range(draw(st.sampled_from([0, 0, 1, 1, 2])))]
    if new and odd and chance(10):
        new[0] = OTHER / new[0].name
    chain = [*foreign, *kept, *new] or [path("n9")]
    if odd and chance(4):
        chain = draw(st.permutations(chain))

    wanted = []
    for index, at in enumerate(chain):
        is_top = index == len(chain) - 1
        exists = at in files
        size = None
        if (is_top and chance(10)) or (not exists and not count) or (odd and chance(2)):
            size = draw(st.integers(1, 12)) * UNIT
        elif exists and odd and chance(10):
            size = files[at].size * UNIT
        wanted.append(
            Wanted(
                at,
                at.name,
                size=size,
                format="raw" if not exists and odd and chance(2) else None,
                restore_point=is_top or not chance(25),
            )
        )
    templates = frozenset(at for at in [*observed[:-1], *foreign] if chance(6))
    return Case(
        Disks(files, observed[-1] if observed else None, forged=odd and chance(30)),
        tuple(wanted),
        frozenset(observed[len(left) :]),
        templates,
        remove_base=chance(50),
        drop_bitmaps=chance(50),
        busy=bool(observed) and odd and chance(2),  # a disk without an image is open nowhere
        free=draw(st.integers(0, 20 * 1024 * 1024)) if odd and chance(4) else 1 << 40,
    )


def planned(case: Case) -> DiskPlan | None:
    """The plan; None: refused, with a reason and a way out.  Anything else comes out."""
    try:
        made = case.plan(case.disks)
    except Refused as refused:
        event("refused")
        if refused.reason and refused.way_out:
            return None
        raise AssertionError("refused without a word") from refused
    event(f"{min(len(made.steps), 6)} steps")
    return made


@dataclass(frozen=True)
class Promise:
    """
    What must hold after every step, as read before the first one.

    Attributes:
        current: The last image that is not discarded; it holds the current state.
        frozen: Files that must stay as they are, bit by bit.
        own: Files of the chain that belong to it alone.
    """

    case: Case
    current: Path | None
    state: Content
    kept: dict[Path, Content]
    frozen: dict[Path, tuple[object, ...]]
    others: dict[Path, Content]
    snapshots: dict[int, list[Content]]
    bitmaps: frozenset[int]

    @classmethod
    def of(cls, case: Case) -> Promise:
        disks = case.disks
        chain = list(disks.below(disks.active))[::-1]
        left = [at for at in chain if at not in case.discard]
        others = [at for at in disks.files if at not in chain]
        frozen = chain[: frozen_count(case)]
        if left and chain[0] not in case.names and not case.remove_base:
            frozen = chain[:1] + frozen[1:]
        safe = [file for at, file in disks.files.items() if at not in case.discard]
        kept = {one.path for one in case.wanted[:-1] if one.restore_point} & set(left)
        return cls(
            case,
            left[-1] if left else None,
            disks.read(left[-1]) if left else (),
            {at: disks.read(at) for at in kept},
            {at: disks.files[at].bits() for at in [*frozen, *others]},
            {at: disks.read(at) for at in others},
            {file.number: disks.snapshot_reads(file) for file in safe if file.snapshots},
            frozenset(file.number for file in safe if file.bitmaps and not case.drop_bitmaps),
        )

    def holds(self, disks: Disks) -> None:
        """Fails where *disks* break the promise."""
        for at, bits in self.frozen.items():
            assert disks.files[at].bits() == bits, f"{at} changed"
        for at, content in self.others.items():
            assert disks.read(at) == content, f"{at} reads differently"
        for at, content in self.kept.items():
            assert disks.read(at) == content, f"the restore point {at} changed"
        if self.current:
            waiting = disks.active in self.case.discard
            active = self.current if waiting else disks.active
            assert active
            content = disks.read(active)
            beyond = (ZERO,) * (len(content) - len(self.state))
            assert content == self.state + beyond, "the current state changed"
        by_number = {file.number: file for file in disks.files.values()}
        for number, contents in self.snapshots.items():
            assert disks.snapshot_reads(by_number[number]) == contents, "an internal snapshot"
        assert self.bitmaps <= set(by_number), "dirty bitmaps were lost"


def frozen_count(case: Case) -> int:
    """How many images from the base are a template's or somebody else's view, too."""
    disks = case.disks
    chain = list(disks.below(disks.active))[::-1]
    standing = {file.backing for at, file in disks.files.items() if at not in chain}
    shared = [
        index + 1
        for index, at in enumerate(chain)
        if at in case.templates or at in standing or disks.files[at].links > 1
    ]
    return max(shared, default=0)


def copied(disks: Disks) -> Disks:
    files = {at: replace(file, cells=dict(file.cells)) for at, file in disks.files.items()}
    return replace(disks, files=files)


def play(case: Case, made: DiskPlan) -> Disks:
    """The disks after all steps, each of which kept the promise and cost what it should."""
    disks = copied(case.disks)
    disks.may_lose_bitmaps = frozenset(
        file.number for at, file in disks.files.items() if case.drop_bitmaps or at in case.discard
    )
    promise = Promise.of(case)
    observed = set(case.disks.below(case.disks.active))
    for one in made.steps:
        price = disks.run(one.step)
        foreign = isinstance(one.step, Rebase) and one.step.backing not in observed
        assert price <= one.bytes if foreign else price == one.bytes, f"{one.step}: {price} bytes"
        promise.holds(disks)
        assert one.after.paths == tuple(disks.below(disks.active))[::-1]
    return disks


@settings(settings.get_profile("planner"), max_examples=1200)
@given(cases())
def test_a_plan_keeps_the_promise_and_leads_to_the_desired_chain(case: Case) -> None:
    made = planned(case)
    if made is None:
        return
    disks = play(case, made)
    again = case.plan(disks)

    assert tuple(disks.below(case.names[-1]))[::-1] == case.names
    assert disks.active == case.names[-1]
    assert set(disks.files) == set(case.names) | staying(case)
    assert lines(again) == []


def staying(case: Case) -> set[Path]:
    """Files that must be there in the end, though the spec may not list them."""
    chain = list(case.disks.below(case.disks.active))[::-1]
    golden = not case.remove_base and not case.discard >= set(chain[:1])
    others = set(case.disks.files) - set(chain)
    return others | set(chain[: frozen_count(case)]) | set(chain[:1] if golden else ())


@st.composite
def plain_cases(draw: st.DrawFn) -> Case:
    """Cases with nothing in the way but templates and users: what `cheapest` can judge."""
    case = draw(cases())
    disks = copied(case.disks)
    size = max((file.size for file in disks.files.values()), default=1)
    for file in disks.files.values():
        file.size, file.format, file.recorded, file.links = size, "qcow2", True, 1
        file.bitmaps, file.snapshots = 0, ()
    plain = replace(
        case,
        disks=replace(disks, forged=False),
        wanted=tuple(replace(one, size=None, format=None) for one in case.wanted),
        busy=False,
        free=1 << 40,
    )
    assume(is_a_merge_of_one_chain(plain))
    return plain


def cheapest(case: Case) -> int | None:
    """
    The least that any way of merging copies, by trying all of them; None: no way.

    A run of neighbours ends in one file.  It costs what is read through its top
    and held by one of the run, but not by the file that stays.
    """
    disks = case.disks
    chain = [at for at in list(disks.below(disks.active))[::-1] if at not in case.discard]
    frozen = min(frozen_count(case), len(chain))
    golden = chain[0] not in case.names and not case.remove_base
    kept = [chain.index(at) for at in case.names if at in chain]
    entries = {one.path: one for one in case.wanted}
    tops: list[list[int]] = []
    for position, index in enumerate(kept):
        above = kept[position + 1] if position + 1 < len(kept) else None
        free = not entries[chain[index]].restore_point and index >= frozen
        if above is None and case.names[-1] == chain[index]:
            tops.append([len(chain) - 1])
        elif free:
            tops.append(list(range(index, len(chain) if above is None else above)))
        else:
            tops.append([index])
    new = [at for at in case.names if at not in disks.files]
    if not new and case.discard & set(disks.below(disks.active)) and kept[-1] < frozen:
        return None  # the guest would write to what others stand on
    prices = []
    for ends in product(*tops):
        runs = list(zip([-1, *ends], [*ends], strict=False))
        targets = [chain[index] for index in kept]
        if new:
            runs.append((ends[-1] if ends else -1, len(chain) - 1))
            targets.append(new[0])
        price: int | None = 0
        for (below, top), target in zip(runs, targets, strict=True):
            one = run_price(disks, chain, range(below + 1, top + 1), target, frozen, golden)
            price = None if one is None or price is None else price + one
        if price is not None:
            prices.append(price)
    return min(prices, default=None)


def run_price(
    disks: Disks, chain: list[Path], run: range, target: Path, frozen: int, golden: bool
) -> int | None:
    if not run or (len(run) == 1 and chain[run[0]] == target):
        return 0
    if target in chain[:frozen]:
        return None
    top = chain[run[-1]]
    shown = [
        len(run) - 1 - extent.depth
        for cluster in range(disks.files[top].size)
        if not (extent := disks._extent(top, cluster)).zero and extent.depth < len(run)
    ]
    may_stay = [
        place
        for place, index in enumerate(run)
        if index >= frozen
        and not (golden and index == 0)
        and DEVICES[chain[index].parent] == DEVICES[target.parent]
    ]
    prices = [UNIT * sum(holder != place for holder in shown) for place in may_stay]
    if target not in chain:
        prices.append(UNIT * len(shown))
    return min(prices, default=None)


def is_a_merge_of_one_chain(case: Case) -> bool:
    """No foreign image, no new disk, no nonsense."""
    disks = case.disks
    chain = [at for at in list(disks.below(disks.active))[::-1] if at not in case.discard]
    known = [at for at in case.names if at in disks.files]
    new = [at for at in case.names if at not in disks.files]
    return bool(
        chain
        and set(known) <= set(chain)
        and [*sorted(known, key=chain.index), *new] == list(case.names)
        and not any(file.backing == disks.active for file in disks.files.values())
    )


@settings(settings.get_profile("planner"), max_examples=1000)
@given(plain_cases())
def test_no_way_copies_less_and_a_way_is_found_where_there_is_one(case: Case) -> None:
    made = planned(case)

    assert (made.bytes_to_copy if made else None) == cheapest(case)


@dataclass(frozen=True)
class Wild:
    """Steps that nobody planned, on files of any size."""

    disks: Disks
    steps: tuple[Step, ...]
    kept: frozenset[Path]

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:
        rows = [f"{at.stem}: {file}" for at, file in self.disks.files.items()]
        kept = f"keeps {sorted(at.stem for at in self.kept)}"
        printer.text("\n".join(["", *rows, kept, *map(str, self.steps)]))


@cache
def among(names: tuple[Path, ...]) -> tuple[SearchStrategy[Path], SearchStrategy[Step]]:
    """One of *names*, and any step on them; made once, for making them takes most of the time."""
    some = st.sampled_from(names)
    step: SearchStrategy[Step] = st.one_of(
        st.builds(Commit, some, some, st.booleans()),
        st.builds(Pull, some, st.none() | some),
        st.builds(Rename, some, some),
        st.builds(Rebase, some, some),
        st.builds(Resize, some, st.integers(1, 5).map(lambda size: size * UNIT)),
        st.builds(Remove, some),
        st.builds(
            Create,
            st.just(path("n0")),
            some,
            st.just("qcow2"),
            st.integers(1, 5).map(lambda size: size * UNIT),
        ),
    )
    return some, step


@st.composite
def wild_steps(draw: st.DrawFn) -> Wild:
    files: dict[Path, File] = {}
    names = [path(f"i{index}") for index in range(draw(st.integers(2, 5)))]
    for index, at in enumerate(names):
        size = draw(st.integers(1, 4))
        cells = drawn_cells(draw, at.stem, size, zeroes=False)
        files[at] = File(index, size, cells, names[index - 1] if index else None)
    some, step = among(tuple(names))
    steps = tuple(draw(st.lists(step, min_size=1, max_size=3)))
    kept = frozenset(draw(st.lists(some, max_size=2)))
    return Wild(Disks(files, names[-1]), steps, kept)


@settings(settings.get_profile("planner"), max_examples=1000)
@given(wild_steps())
def test_what_the_proof_accepts_keeps_the_promise(wild: Wild) -> None:
    """The proof is right about any steps that a disk can take, planned or not."""
    disks = copied(wild.disks)
    active = disks.active
    assert active
    world = World.of([disks.chain(active)], active)
    try:
        prove(world, wild.steps, kept=wild.kept, untouched=(), current=active)
    except (ProofFailed, RecursionError):
        event("rejected")
        return
    state = disks.read(active)
    views = {at: disks.read(at) for at in wild.kept}
    for step in wild.steps:
        try:
            disks.run(step)
        except (AssertionError, KeyError):
            event("no disk can do that")
            return
        assert disks.active
        content = disks.read(disks.active)

        assert content[: len(state)] == state
        assert {at: disks.read(at) for at in wild.kept} == views
    event("accepted")
