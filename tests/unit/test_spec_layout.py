"""One layout for specs: what it looks like, that it stays so, and that nothing is lost."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli.main import run
from reconciler.model.errors import SpecError
from reconciler.spec import edit
from reconciler.spec.layout import formatted

FILE = Path("spec.toml")
LONG = "l" * 45
DISK = '[domains.web.disks.vda]\nchain = ["a"]\n'

CASES = [
    # id, before, and after
    (
        "order, quotes and blank lines",
        "domains.web.disks.vda.chain=['a']\n\n\nversion=1\ndefaults.directory='img'\n",
        'version = 1\n\n[defaults]\ndirectory = "img"\n\n[domains.web.disks.vda]\nchain = ["a"]\n',
    ),
    (
        "the chain comes first",
        (
            "version = 1\n[domains.web.disks.vda]\n"
            '# old ones\ndiscard = ["x"]\n\nchain = ["a"]  # now\n'
        ),
        (
            "version = 1\n\n[domains.web.disks.vda]\n"
            'chain = ["a"]  # now\n# old ones\ndiscard = ["x"]\n'
        ),
    ),
    (
        "more than two images",
        'version = 1\n[domains.web.disks.vda]\nchain = ["a", "b", {file="c"}]\n',
        'version = 1\n\n[domains.web.disks.vda]\nchain = [\n  "a",\n  "b",\n  { file = "c" },\n]\n',
    ),
    (
        "two images on two lines",
        'version = 1\n[domains.web.disks.vda]\nchain = [\n  "a",\n  "b"\n]\n',
        'version = 1\n\n[domains.web.disks.vda]\nchain = ["a", "b"]\n',
    ),
    (
        "two long images",
        f'version = 1\n[domains.web.disks.vda]\nchain = ["{LONG}", "{LONG}"]\n',
        f'version = 1\n\n[domains.web.disks.vda]\nchain = [\n  "{LONG}",\n  "{LONG}",\n]\n',
    ),
    (
        "comments in a chain",
        (
            "version = 1\n[domains.web.disks.vda]\n"
            'chain = [ # base first\n"a" , # "one"\n\n  # two\n"b"\n# end\n]\n'
        ),
        (
            "version = 1\n\n[domains.web.disks.vda]\n"
            'chain = [\n  # base first\n  "a",  # "one"\n  # two\n  "b",\n  # end\n]\n'
        ),
    ),
    (
        "a comment at the top",
        f"#:schema x.json\n# All of it.\n\nversion = 1 # v\n{DISK}",
        f"#:schema x.json\n# All of it.\n\nversion = 1  # v\n\n{DISK}",
    ),
    (
        "the schema stays at the top",
        '#:schema x.json\n# web\ndomains.web.disks.vda.chain = ["a"]\nversion = 1\n',
        f"#:schema x.json\n\nversion = 1\n\n# web\n{DISK}",
    ),
    (
        "comments between tables",
        (
            f"version = 1\n{DISK}# still web\n\n\n# A section.\n\n# db\n"
            '[domains.db.disks.vda] # the db\nchain = ["b"]\n# the end\n'
        ),
        (
            f"version = 1\n\n{DISK}# still web\n\n# A section.\n\n# db\n"
            '[domains.db.disks.vda]  # the db\nchain = ["b"]\n# the end\n'
        ),
    ),
    (
        "inline disks",
        "version = 1\n[domains.web]\nquiesce = 'try'\n"
        'disks = { vda = { size_of = "x" }, vdb = { chain = ["b"] } } # both\n'.replace(
            'size_of = "x"', "discard = [], chain = ['a']"
        ),
        (
            'version = 1\n\n[domains.web]\nquiesce = "try"\n\n# both\n'
            '[domains.web.disks.vda]\nchain = ["a"]\ndiscard = []\n\n'
            '[domains.web.disks.vdb]\nchain = ["b"]\n'
        ),
    ),
    (
        "headers of nothing",
        (
            "version = 1\n[defaults]\n# all\n[domains] # of this host\n[domains.web.disks]\n"
            "# one\n[domains.web.disks.vda]\nchain = ['a']\n"
        ),
        "version = 1\n\n[defaults]\n\n# all\n# of this host\n# one\n" + DISK,
    ),
    (
        "a chain of tables",
        (
            "version = 1\n[[domains.web.disks.vda.chain]] # base\nfile = 'a'\n"
            "[[domains.web.disks.vda.chain]]\n# why\ndescription = '''two\nlines'''\nfile = 'b'\n"
        ),
        (
            "version = 1\n\n[domains.web.disks.vda]\nchain = [\n"
            '  # base\n  { file = "a" },\n  # why\n'
            '  { file = "b", description = "two\\nlines" },\n]\n'
        ),
    ),
    (
        "odd names",
        "version = 1\n[domains.'a.b \"c\"'.disks.vda]\nchain = ['it\\s']\n",
        'version = 1\n\n[domains."a.b \\"c\\"".disks.vda]\nchain = ["it\\\\s"]\n',
    ),
    (
        "tables out of order",
        (
            'version = 1\n[domains.web.disks.vda]\nchain = ["a"]\n[domains.db.disks.vda]\n'
            'chain = ["b"]\n# web again\n[domains.web.disks.vdb]\nchain = ["c"]\n'
        ),
        (
            f'version = 1\n\n{DISK}\n# web again\n[domains.web.disks.vdb]\nchain = ["c"]\n\n'
            '[domains.db.disks.vda]\nchain = ["b"]\n'
        ),
    ),
    ("windows line ends", "version = 1\r\n" + DISK.replace("\n", "\r\n"), None),
    ("only defaults", "version = 1\n[defaults]\nformat = 'raw'\n[domains]\n", None),
]


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(*case, id=name) for name, *case in CASES]
)
def test_a_spec_gets_its_layout_and_keeps_it(before: str, after: str | None) -> None:
    new = formatted(before, FILE)

    if after is not None:
        assert new == after
    assert formatted(new, FILE) == new
    assert tomllib.loads(new) == tomllib.loads(before)
    assert ("\r\n" in new) == ("\r\n" in before)


texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=60)
comments = st.from_regex(r"# [a-z\"'\[\]{}=,.]{1,20}", fullmatch=True)
gaps = st.lists(st.one_of(st.just(""), comments), max_size=4)


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A spec with comments wherever they may be, and these comments."""
    said: list[str] = []

    def gap() -> str:
        lines = draw(gaps)
        said.extend(line for line in lines if line)
        return "".join(f"{line}\n" for line in lines)

    def behind() -> str:
        comment = draw(st.one_of(st.just(""), comments))
        said.extend([comment] if comment else [])
        return f" {comment}\n"

    text = f"{gap()}version = 1{behind()}{gap()}"
    if draw(st.booleans()):
        text += f"[defaults]{behind()}{gap()}directory = {edit.string(draw(texts))}{behind()}"
    names = draw(st.lists(texts, max_size=3, unique=True))
    for name in names:
        text += f"{gap()}[domains.{edit.key(name)}.disks.vda]{behind()}{gap()}"
        if draw(st.booleans()):
            text += f"discard = [{behind()}{gap()}]{behind()}{gap()}"
        text += f"chain = [{behind()}"
        for image in draw(st.lists(texts, min_size=1, max_size=4)):
            text += f"{gap()}{edit.string(image)},{behind()}"
        text += f"{gap()}]{behind()}"
    return text + gap(), said


@given(specs())
def test_formatting_keeps_meaning_and_comments_and_is_done_at_once(
    case: tuple[str, list[str]],
) -> None:
    text, said = case

    new = formatted(text, FILE)

    assert tomllib.loads(new) == tomllib.loads(text)
    assert formatted(new, FILE) == new
    lines = new.splitlines()
    assert [one for one in said if not any(line.endswith(one) for line in lines)] == []


def test_what_is_no_spec_is_not_formatted() -> None:
    with pytest.raises(SpecError, match=r"^spec\.toml:2:1: nothing: unknown key"):
        formatted("version = 1\nnothing = 2\n", FILE)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    file = tmp_path / "spec.toml"
    file.write_text("version=1\n" + DISK)
    file.chmod(0o640)
    (tmp_path / "tidy.toml").write_text('version = 1\n\n[domains.db.disks.vda]\nchain = ["b"]\n')
    return file


def test_fmt_writes_what_changes_and_keeps_the_mode(
    messy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["fmt", str(messy.parent)])

    assert (code, capsys.readouterr().out) == (0, f"{messy}\n")
    assert messy.read_text() == f"version = 1\n\n{DISK}"
    assert messy.stat().st_mode & 0o777 == 0o640
    assert run(["fmt", "--check", str(messy.parent)]) == 0


def test_check_lists_files_and_changes_none(
    messy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["fmt", "--check", str(messy.parent)])

    assert (code, capsys.readouterr().out) == (1, f"{messy}\n")
    assert messy.read_text() == "version=1\n" + DISK


def test_diff_shows_lines_and_changes_none(messy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["fmt", "--diff", str(messy)])

    out = capsys.readouterr().out
    assert code == 0
    assert [line for line in out.splitlines() if line[0] in "-+"][2:] == [
        "-version=1",
        "+version = 1",
        "+",
    ]
    assert messy.read_text() == "version=1\n" + DISK


def test_one_bad_file_leaves_all_as_they_are(
    messy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = messy.parent / "a.toml"
    bad.write_text("version = \n")

    code = run(["fmt", str(messy.parent)])

    assert (code, capsys.readouterr().err.startswith(f"{bad}:1:")) == (1, True)
    assert messy.read_text() == "version=1\n" + DISK
