"""Runs of bytes, against a model that counts every byte."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.extents import Extent, Range, join, ranges, rounded, total
from reconciler.planner.price import at_most_differing, moved, moves, subtract

MOST = 60
"""Bytes of the disks in these tests."""

runs = st.tuples(st.integers(0, MOST), st.integers(0, MOST)).map(lambda run: tuple(sorted(run)))
some_runs = st.lists(runs, max_size=8)


def covered(found: list[Range] | tuple[Range, ...]) -> set[int]:
    """The bytes of runs, one by one."""
    return {byte for start, end in found for byte in range(start, end)}


def is_tidy(found: tuple[Range, ...]) -> bool:
    """True where runs are in order, not empty, and leave a gap between each other."""
    edges = [edge for run in found for edge in run]
    return all(one < other for one, other in pairwise(edges))


@st.composite
def maps(draw: st.DrawFn) -> tuple[Extent, ...]:
    """The map of a disk: extents that follow each other from 0 to its end."""
    cuts = sorted(draw(st.sets(st.integers(1, MOST - 1), max_size=8)))
    found = []
    for start, end in zip([0, *cuts], [*cuts, MOST], strict=True):
        present = draw(st.booleans())
        zero = draw(st.booleans()) or not present
        offset = None if zero else draw(st.none() | st.integers(0, 1000))
        depth = draw(st.integers(0, 3))
        found.append(Extent(start, end - start, depth, zero, present, offset))
    return tuple(found)


def test_an_extent_has_data_where_it_is_there_and_no_zeroes():
    found = {
        (zero, present): Extent(0, 1, 0, zero, present).data
        for zero in (False, True)
        for present in (False, True)
    }

    assert found == {
        (False, False): False,
        (False, True): True,
        (True, False): False,
        (True, True): False,
    }


@given(some_runs)
def test_joined_runs_cover_the_same_bytes_in_order(given_runs):
    found = join(given_runs)

    assert (covered(found), is_tidy(found)) == (covered(given_runs), True)


@given(some_runs)
def test_joining_again_changes_nothing(given_runs):
    once = join(given_runs)

    assert join(once) == once


@given(some_runs)
def test_the_total_of_joined_runs_counts_every_byte_once(given_runs):
    assert total(join(given_runs)) == len(covered(given_runs))


@given(some_runs, st.integers(1, 20), st.integers(0, MOST))
def test_rounded_runs_cover_whole_units_up_to_the_end(given_runs, unit, size):
    found = rounded(join(given_runs), unit, size)

    units = {byte // unit for byte in covered(given_runs)}
    expected = {byte for byte in range(size) if byte // unit in units}
    assert (covered(found), is_tidy(found)) == (expected, True)


@given(maps())
def test_the_runs_of_a_map_cover_it(extents):
    assert ranges(extents) == ((0, MOST),)
    assert covered(ranges(one for one in extents if one.data)) == {
        byte for one in extents if one.data for byte in range(one.start, one.end)
    }


@given(some_runs, some_runs)
def test_subtracted_runs_leave_what_is_outside(given_runs, away):
    found = subtract(join(given_runs), join(away))

    assert (covered(found), is_tidy(found)) == (covered(given_runs) - covered(away), True)


@given(maps(), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(0, 16))
def test_moved_bytes_are_whole_clusters_of_visible_data(extents, depths, cluster):
    found = moved(extents, range(*depths), cluster, MOST)

    unit = max(cluster, 1)
    clusters = {
        byte // unit
        for one in extents
        if one.data and one.depth in range(*depths)
        for byte in range(one.start, one.end)
    }
    assert found == sum(byte // unit in clusters for byte in range(MOST))


@given(maps(), st.integers(1, 4), st.integers(0, 16), st.integers(1, MOST))
def test_the_price_of_every_survivor_is_what_a_count_for_it_alone_gives(
    extents, count, cluster, size
):
    found = moves(extents, count, cluster, size)

    alone = [moved(extents, range(depth), cluster, size) for depth in range(count)]
    below = [moved(extents, range(depth + 1, count), cluster, size) for depth in range(count)]
    assert (list(found.down), list(found.up)) == (alone, below)


@given(maps(), maps(), st.integers(0, 3), st.integers(0, 3))
def test_what_may_differ_is_what_either_chain_alone_holds(mine, theirs, shared, new):
    own, left, fresh = range(1), range(1, 1 + shared), range(new)
    found = at_most_differing(own, left, mine, fresh, theirs)

    def held(extents: tuple[Extent, ...], depths: range) -> set[int]:
        return {
            byte
            for one in extents
            if one.present and one.depth in depths
            for byte in range(one.start, one.end)
        }

    every = range(10)  # where one view ends, or holds nothing, the other may hold something
    either = held(mine, left) | held(theirs, fresh) | held(mine, every) ^ held(theirs, every)
    assert (covered(found), is_tidy(found)) == (either - held(mine, own), True)
