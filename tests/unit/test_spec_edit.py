"""Edits of specs: the spec before, the act, and the spec after, character by character."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.errors import Mistake
from reconciler.spec import edit
from reconciler.spec.overlay_names import overlay_name


def spec(body: str) -> str:
    """A spec with the disk web:vda, whose table has *body*."""
    return f"version = 1\n\n[domains.web.disks.vda]\n{body}"


ADDED = [
    # id, the disk's table before, and after
    ("inline", 'chain = ["a", "b"]\n', 'chain = ["a", "b", "new"]\n'),
    ("one image", 'chain = ["a"]  # only one\n', 'chain = ["a", "new"]  # only one\n'),
    ("tight", 'chain=["a","b"]\n', 'chain=["a","b","new"]\n'),
    ("wide brackets", 'chain = [ "a", "b" ]\n', 'chain = [ "a", "b", "new" ]\n'),
    ("a comma behind", 'chain = ["a", "b",]\n', 'chain = ["a", "b", "new",]\n'),
    ("single quotes", "chain = ['a', 'b']\n", "chain = ['a', 'b', 'new']\n"),
    ("no newline at the end", 'chain = ["a"]', 'chain = ["a", "new"]'),
    (
        "one a line",
        'chain = [\n  "a",\n  "b",\n]\n',
        'chain = [\n  "a",\n  "b",\n  "new",\n]\n',
    ),
    (
        "one a line, no comma behind",
        'chain = [\n    "a",\n    "b"\n]\n',
        'chain = [\n    "a",\n    "b",\n    "new"\n]\n',
    ),
    (
        "tabs and windows line ends",
        'chain = [\r\n\t"a",\r\n\t"b",\r\n]\r\n',
        'chain = [\r\n\t"a",\r\n\t"b",\r\n\t"new",\r\n]\r\n',
    ),
    (
        "comments behind entries",
        'chain = [\n  "a",  # base, not "b"\n  "b"  # daily ]\n]\n',
        'chain = [\n  "a",  # base, not "b"\n  "b",  # daily ]\n  "new"\n]\n',
    ),
    (
        "comments on their own lines",
        'chain = [\n  # oldest\n  "a",\n  # newest\n  "b",\n  # end\n]\n',
        'chain = [\n  # oldest\n  "a",\n  # newest\n  "b",\n  "new",\n  # end\n]\n',
    ),
    (
        "commas first",
        'chain = [\n    "a"\n  , "b"\n]\n',
        'chain = [\n    "a"\n  , "b"\n  , "new"\n]\n',
    ),
    (
        "the bracket behind the last",
        'chain = ["a",\n         "b"]\n',
        'chain = ["a",\n         "b",\n         "new"]\n',
    ),
    (
        "several a line",
        'chain = [\n  "a", "b",\n  "c", "d",\n]\n',
        'chain = [\n  "a", "b",\n  "c", "d", "new",\n]\n',
    ),
    (
        "a template and names",
        'chain = [\n  { file = "a", template = true },\n  "b",\n]\n',
        'chain = [\n  { file = "a", template = true },\n  "b",\n  "new",\n]\n',
    ),
    (
        "tables only",
        'chain = [{ file = "a" }, { file = "b", description = "[x]" }]\n',
        'chain = [{ file = "a" }, { file = "b", description = "[x]" }, { file = "new" }]\n',
    ),
    (
        "tight tables",
        "chain = [{file = 'a'}, {file = 'b'}]\n",
        "chain = [{file = 'a'}, {file = 'b'}, {file = 'new'}]\n",
    ),
    (
        "keys around",
        '# top\nformat = "qcow2" # f\nchain = ["a"]\n\ndiscard = []\n',
        '# top\nformat = "qcow2" # f\nchain = ["a", "new"]\n\ndiscard = []\n',
    ),
]


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(*case, id=name) for name, *case in ADDED]
)
def test_an_overlay_is_added_as_its_neighbours_are_written(before: str, after: str) -> None:
    assert edit.add_overlay(spec(before), "web", "vda", "new") == spec(after)


WHOLE = [
    # id, a whole spec before, and after an overlay was added
    (
        "dotted keys",
        'version = 1\ndomains.web.disks.vda.chain = ["a"]\ndomains.web.disks.vdb.chain = ["b"]\n',
        (
            'version = 1\ndomains.web.disks.vda.chain = ["a", "new"]\n'
            'domains.web.disks.vdb.chain = ["b"]\n'
        ),
    ),
    (
        "inline disks",
        'version = 1\n[domains.web]\ndisks = { vdb = { chain = ["b"] }, vda = { chain = ["a"] } }',
        (
            "version = 1\n[domains.web]\n"
            'disks = { vdb = { chain = ["b"] }, vda = { chain = ["a", "new"] } }'
        ),
    ),
    (
        "quoted names",
        'version = 1\n["domains" . "web" . disks . \'vda\']\n"chain" = ["a"]\n',
        'version = 1\n["domains" . "web" . disks . \'vda\']\n"chain" = ["a", "new"]\n',
    ),
    (
        "tables out of order",
        (
            'version = 1\n[domains.web.disks.vdb]\nchain = ["b"]\n[domains.db.disks.vda]\n'
            'chain = ["c"]\n[domains.web.disks.vda]  # here\nchain = ["a"]\n[defaults]\n'
        ),
        (
            'version = 1\n[domains.web.disks.vdb]\nchain = ["b"]\n[domains.db.disks.vda]\n'
            'chain = ["c"]\n[domains.web.disks.vda]  # here\nchain = ["a", "new"]\n[defaults]\n'
        ),
    ),
]


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(*case, id=name) for name, *case in WHOLE]
)
def test_an_overlay_is_added_wherever_the_disk_is_written(before: str, after: str) -> None:
    assert edit.add_overlay(before, "web", "vda", "new") == after


def test_a_format_is_written_where_the_default_is_another() -> None:
    before = spec('chain = ["a"]\n')

    after = edit.add_overlay(before, "web", "vda", "new", image_format="qcow2")

    assert after == spec('chain = ["a", { file = "new", format = "qcow2" }]\n')


def test_an_odd_name_is_quoted_rightly() -> None:
    after = edit.add_overlay(spec("chain = ['a']\n"), "web", "vda", 'it\'s "\\new"')

    assert after == spec('chain = [\'a\', "it\'s \\"\\\\new\\""]\n')


DROPPED = [
    # id, what goes, the disk's table before, and after
    ("inline middle", "b", 'chain = ["a", "b", "c"]\n', 'chain = ["a", "c"]\n'),
    ("inline first", "a", 'chain = ["a", "b", "c"]\n', 'chain = ["b", "c"]\n'),
    ("inline last", "c", 'chain = ["a", "b", "c"]\n', 'chain = ["a", "b"]\n'),
    ("inline, a comma behind", "c", 'chain = ["a", "b", "c",]\n', 'chain = ["a", "b",]\n'),
    ("wide brackets", "c", 'chain = [ "a", "c" ]\n', 'chain = [ "a" ]\n'),
    ("neighbours", "bc", 'chain = ["a", "b", "c", "d"]\n', 'chain = ["a", "d"]\n'),
    ("the upper two", "bc", 'chain = ["a", "b", "c"]\n', 'chain = ["a"]\n'),
    (
        "a line",
        "b",
        'chain = [\n  "a",\n  "b",  # goes with its line\n  "c",\n]\n',
        'chain = [\n  "a",\n  "c",\n]\n',
    ),
    (
        "the last line",
        "c",
        'chain = [\n  "a",\n  "b", # b\n  "c"\n]\n',
        'chain = [\n  "a",\n  "b" # b\n]\n',
    ),
    (
        "the first line",
        "a",
        'chain = [\n  "a",\n  "b",\n]\n',
        'chain = [\n  "b",\n]\n',
    ),
    (
        "windows line ends",
        "b",
        'chain = [\r\n  "a",\r\n  "b",\r\n  "c",\r\n]\r\n',
        'chain = [\r\n  "a",\r\n  "c",\r\n]\r\n',
    ),
    (
        "a table with a comment above",
        "b",
        'chain = [\n  "a",\n  # why b\n  { file = "b", description = "}" },\n  "c",\n]\n',
        'chain = [\n  "a",\n  # why b\n  "c",\n]\n',
    ),
    (
        "commas first, middle",
        "b",
        'chain = [\n    "a"\n  , "b"\n  , "c"\n]\n',
        'chain = [\n    "a"\n  , "c"\n]\n',
    ),
    (
        "commas first, first",
        "a",
        'chain = [\n    "a"\n  , "b"\n  , "c"\n]\n',
        'chain = [\n    "b"\n  , "c"\n]\n',
    ),
    (
        "the bracket behind the last",
        "c",
        'chain = ["a",\n         "b",\n         "c"]\n',
        'chain = ["a",\n         "b"]\n',
    ),
    (
        "behind a comment",
        "b",
        'chain = ["a", # first\n         "b"]\n',
        'chain = ["a" # first\n]\n',
    ),
    (
        "several a line",
        "bc",
        'chain = [\n  "a", "b",\n  "c", "d",\n]\n',
        'chain = [\n  "a",\n  "d",\n]\n',
    ),
]


@pytest.mark.parametrize(
    ("gone", "before", "after"), [pytest.param(*case, id=name) for name, *case in DROPPED]
)
def test_an_image_is_dropped_with_its_line(gone: str, before: str, after: str) -> None:
    assert edit.drop_images(spec(before), "web", "vda", set(gone)) == spec(after)


def test_the_last_image_stays() -> None:
    with pytest.raises(Mistake, match="web:vda would have no image left; keep one"):
        edit.drop_images(spec('chain = ["a"]\n'), "web", "vda", {"a"})


ROLLED_BACK = [
    # id, the disk's table before, and after it went back to b
    (
        "inline",
        'chain = ["a", "b", "c", "d"]\n',
        'chain = ["a", "b", "new"]\ndiscard = ["c", "d"]\n',
    ),
    (
        "one a line",
        'chain = [\n  "a",\n  "b",  # good\n  "c",  # bad\n  "d",\n]  # end\n\n# next\n',
        'chain = [\n  "a",\n  "b",  # good\n  "new",\n]  # end\ndiscard = ["c", "d"]\n\n# next\n',
    ),
    (
        "one a line, no comma behind",
        'chain = [\n  "a",\n  "b",\n  "c"\n]\n',
        'chain = [\n  "a",\n  "b",\n  "new"\n]\ndiscard = ["c"]\n',
    ),
    (
        "to the lowest line",
        'chain = [\n  "b",\n  "c",\n]',
        'chain = [\n  "b",\n  "new",\n]\ndiscard = ["c"]',
    ),
    (
        "discarded before",
        'discard = ["x"]  # old\nchain = ["b", "c"]\n',
        'discard = ["x", "c"]  # old\nchain = ["b", "new"]\n',
    ),
    (
        "an empty discard",
        "chain = ['b', 'c']\ndiscard = []\n",
        "chain = ['b', 'new']\ndiscard = [\"c\"]\n",
    ),
    (
        "single quotes, indented",
        "  chain = ['b', 'c']\n",
        "  chain = ['b', 'new']\n  discard = ['c']\n",
    ),
    (
        "windows line ends",
        'chain = ["b", "c"]\r\n',
        'chain = ["b", "new"]\r\ndiscard = ["c"]\r\n',
    ),
]


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(*case, id=name) for name, *case in ROLLED_BACK]
)
def test_a_roll_back_takes_the_top_off_and_discards_it(before: str, after: str) -> None:
    listed = [edit.file_of(e) for e in tomllib.loads(before)["chain"]]
    above = listed[listed.index("b") + 1 :]

    done = edit.roll_back(spec(before), "web", "vda", to="b", name="new", discard=above)

    assert done == spec(after)


def test_a_roll_back_in_an_inline_table_stays_there() -> None:
    before = 'version = 1\n[domains.web.disks]\nvda = { chain = ["b", "c"], format = "qcow2" }\n'

    after = edit.roll_back(before, "web", "vda", to="b", name="new", discard=["c"])

    assert after == (
        "version = 1\n[domains.web.disks]\n"
        'vda = { chain = ["b", "new"], discard = ["c"], format = "qcow2" }\n'
    )


def test_a_roll_back_with_dotted_keys_writes_one_more() -> None:
    before = 'version = 1\ndomains.web.disks.vda.chain = ["b", "c"]\n'

    after = edit.roll_back(before, "web", "vda", to="b", name="new", discard=["c"])

    assert after == (
        'version = 1\ndomains.web.disks.vda.chain = ["b", "new"]\n'
        'domains.web.disks.vda.discard = ["c"]\n'
    )


def test_a_long_discard_has_one_image_a_line() -> None:
    names = [f"{letter * 40}.qcow2" for letter in "cde"]
    chain = ", ".join(f'"{name}"' for name in ("b", *names))

    done = edit.roll_back(
        spec(f"chain = [{chain}]\n"), "web", "vda", to="b", name="new", discard=names
    )

    listed = "".join(f'  "{name}",\n' for name in names)
    assert done == spec(f'chain = ["b", "new"]\ndiscard = [\n{listed}]\n')


def test_a_chain_of_tables_is_refused_with_the_way_out() -> None:
    before = 'version = 1\n[[domains.web.disks.vda.chain]]\nfile = "a"\n'

    with pytest.raises(Mistake, match=r"write it as one list \(virt-chain fmt\)"):
        edit.add_overlay(before, "web", "vda", "new")


def test_a_disk_is_added_at_the_end() -> None:
    disk = edit.NewDisk(
        'odd "name"',
        "vda",
        (
            edit.NewEntry("base.raw", "raw", template=True, comment="1.0 GiB, template of 2 disks"),
            edit.NewEntry("tom's.qcow2", comment="active"),
        ),
        {"connection": "qemu:///system"},
        "10 GiB",
    )

    assert edit.add_disk("version = 1  # one", disk) == (
        "version = 1  # one\n"
        "\n"
        '[domains."odd \\"name\\"".disks.vda]  # 10 GiB\n'
        "chain = [\n"
        '  { file = "base.raw", format = "raw", template = true },'
        "  # 1.0 GiB, template of 2 disks\n"
        '  "tom\'s.qcow2",  # active\n'
        "]\n"
        'connection = "qemu:///system"\n'
    )


names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=8)
spaces = st.sampled_from(["", " ", "\n", "\n  ", '  # say, "x" ]\n  ', "\r\n\t"])


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A spec with the disk web:vda, written in any way, between other disks; its images."""
    listed = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    parts = []
    for number, name in enumerate(listed):
        value = draw(st.sampled_from(['"', "'"]))
        text = edit.string(name, quote=value)
        if draw(st.booleans()):
            text = f'{{ file = {text}, description = "}}, \'[" }}'
        last = number == len(listed) - 1
        comma = "," if not last or draw(st.booleans()) else ""
        parts += [draw(spaces), text, draw(spaces), comma, draw(spaces)]
    other = '\n[domains.{0}.disks.vda]  # {0}\nchain = ["{0}"]\n'
    comment = draw(st.sampled_from(["", "  # the chain"]))
    table = f"\n[domains.web.disks.vda]\nchain = [{''.join(parts)}]{comment}"
    end = draw(st.sampled_from(["", "\n"]))
    after = other.format("after") if end else ""
    return f"version = 1\n{other.format('before')}{table}{end}{after}", listed


def others(text: str) -> Any:
    data = tomllib.loads(text)
    del data["domains"]["web"]
    return data


def chain_in(text: str) -> list[str]:
    chain = tomllib.loads(text)["domains"]["web"]["disks"]["vda"]["chain"]
    return [edit.file_of(entry) for entry in chain]


@given(written(), names)
def test_an_edit_changes_only_its_disk(case: tuple[str, list[str]], new: str) -> None:
    text, listed = case

    added = edit.add_overlay(text, "web", "vda", new)

    assert (chain_in(added), others(added)) == ([*listed, new], others(text))
    head, tail = text[: text.index("chain = [", 40)], "  # the chain" in text
    assert added.startswith(head)
    assert ("  # the chain" in added) == tail


@given(written(), st.data())
def test_dropping_changes_only_its_disk(case: tuple[str, list[str]], data: st.DataObject) -> None:
    text, listed = case
    gone = data.draw(st.sets(st.sampled_from(listed), max_size=len(listed) - 1))

    left = edit.drop_images(text, "web", "vda", gone)

    assert chain_in(left) == [name for name in listed if name not in gone]
    assert others(left) == others(text)


@given(written(), names, st.data())
def test_rolling_back_changes_only_its_disk(
    case: tuple[str, list[str]], new: str, data: st.DataObject
) -> None:
    text, listed = case
    to = data.draw(st.sampled_from(listed))
    above = listed[listed.index(to) + 1 :]

    done = edit.roll_back(text, "web", "vda", to=to, name=new, discard=above)

    assert chain_in(done) == [*listed[: listed.index(to) + 1], new]
    assert tomllib.loads(done)["domains"]["web"]["disks"]["vda"].get("discard", []) == above
    assert others(done) == others(text)


NOON = datetime(2026, 3, 1, 12, 30, 59, tzinfo=UTC)

PATTERNS = [
    ("{domain}-{disk}-{time:%Y%m%dT%H%M%S}.qcow2", "web-vda-20260301T123059.qcow2"),
    ("snap/{time:%j}", "snap/060"),
    ("{{x}}{disk:>5}", "{x}  vda"),
]


@pytest.mark.parametrize(("pattern", "name"), PATTERNS)
def test_a_pattern_names_an_overlay(pattern: str, name: str) -> None:
    assert overlay_name(pattern, "web", "vda", NOON) == name


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{host}", "{host} is unknown; known are {domain}, {disk}, {time}"),
        ("{domain.__class__}", "{domain.__class__} is unknown"),
        ("{}", "{} is unknown"),
        ("{time!r}", "{time} is unknown"),
        ("{domain", "expected '}' before end of string"),
        ("{domain:d}", "Unknown format code 'd'"),
        ("x/", "'x/' is the name of no file"),
    ],
)
def test_what_is_no_pattern_is_told(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"write one such as \{domain\}-\{disk\}") as error:
        overlay_name(pattern, "web", "vda", NOON)

    assert str(error.value).startswith(said)
