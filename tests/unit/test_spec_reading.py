"""Specs as users write them: what they mean, and what each mistake is told as."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from reconciler.model.desired import DesiredDisk, Entry, Location, Spec
from reconciler.model.errors import SpecError
from reconciler.spec import load, positions
from reconciler.spec.schema import FORMS, schema


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test; messages then name files as short as users see them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def problems(*paths: str | Path) -> list[str]:
    """What loading *paths* complains about, one line each."""
    with pytest.raises(SpecError) as raised:
        load([Path(path) for path in paths])
    return str(raised.value).split("\n")


DISK = '[domains.web.disks.vda]\nchain = ["web.qcow2"]\n'


def test_the_shortest_spec_gets_every_default(folder: Path) -> None:
    path = write("spec.toml", f"version = 1\n{DISK}")

    assert load([path]) == Spec(
        sources=(folder / "spec.toml",),
        disks=(
            DesiredDisk(
                domain="web",
                target="vda",
                chain=(Entry(folder / "web.qcow2", "web.qcow2"),),
                where=Location(path, 2, 20),
                directory=folder,
                discard=(),
                active=None,
                remove_base=False,
                bitmaps="keep",
                format="qcow2",
                connection=None,
                on_running="refuse",
                quiesce="never",
            ),
        ),
    )


def test_a_spec_with_every_key_is_read_in_full(folder: Path) -> None:
    path = write(
        "spec.toml",
        """\
version = 1

[defaults]
connection = "qemu:///system"
directory = "images"
format = "raw"
remove_base = true
bitmaps = "drop"
on_running = "restart"
quiesce = "try"

[domains.centos2.disks.vda]
chain = [
  { file = "/golden/base.raw", format = "raw", template = true },
  { file = "centos2.qcow2", size = "10G", restore_point = false, description = "before" },
  "centos2_sn1.qcow2",
]
discard = ["old.qcow2", "/tmp/older.qcow2"]
active = "old.qcow2"
""",
    )
    images = folder / "images"

    assert load([path]).disks == (
        DesiredDisk(
            domain="centos2",
            target="vda",
            chain=(
                Entry(Path("/golden/base.raw"), "/golden/base.raw", "raw", template=True),
                Entry(
                    images / "centos2.qcow2",
                    "centos2.qcow2",
                    size=10 * 1024**3,
                    restore_point=False,
                    description="before",
                ),
                Entry(images / "centos2_sn1.qcow2", "centos2_sn1.qcow2"),
            ),
            where=Location(path, 12, 24),
            directory=images,
            discard=(images / "old.qcow2", Path("/tmp/older.qcow2")),
            active=images / "old.qcow2",
            remove_base=True,
            bitmaps="drop",
            format="raw",
            connection="qemu:///system",
            on_running="restart",
            quiesce="try",
        ),
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("connection", ["qemu:///system", "qemu:///session", "test:///default"]),
        ("directory", ["/a", "/b", "/c"]),
        ("format", ["raw", "qcow2", "raw"]),
        ("remove_base", [True, False, True]),
        ("bitmaps", ["drop", "keep", "drop"]),
        ("on_running", ["restart", "refuse", "restart"]),
        ("quiesce", ["require", "try", "never"]),
    ],
)
def test_a_disk_overrides_its_domain_and_a_domain_the_defaults(key: str, values: list[Any]) -> None:
    written = [f'"{v}"' if isinstance(v, str) else str(v).lower() for v in values]
    path = write(
        "spec.toml",
        f"""
version = 1
defaults.{key} = {written[0]}
domains.a.disks.vda.chain = ["a"]
domains.b.disks.vda.chain = ["b"]
domains.b.{key} = {written[1]}
domains.b.disks.vdb.chain = ["c"]
domains.b.disks.vdb.{key} = {written[2]}
""",
    )

    found = {disk.label: getattr(disk, key) for disk in load([path]).disks}

    want = dict(zip(["a:vda", "b:vda", "b:vdb"], values, strict=True))
    assert {label: str(value) for label, value in found.items()} == {
        label: str(value) for label, value in want.items()
    }


def test_a_relative_directory_starts_at_the_folder_of_its_file(folder: Path) -> None:
    write("specs/spec.toml", f'version = 1\ndefaults.directory = "../images"\n{DISK}')

    [disk] = load([Path("specs")]).disks

    assert disk.chain[0].path == folder / "specs/../images/web.qcow2"


def test_links_in_paths_stay_as_they_are_written(folder: Path) -> None:
    (folder / "real/deep").mkdir(parents=True)
    (folder / "link").symlink_to("real/deep")
    path = write("spec.toml", f'version = 1\ndefaults.directory = "link/.."\n{DISK}')

    [disk] = load([path]).disks

    assert disk.chain[0].path == folder / "link/../web.qcow2"


SPEC_PROBLEMS = [
    # id, text below `version = 1`, messages
    (
        "unknown key at the top",
        f"domain = 1\n{DISK}",
        ['2:1: spec: unknown key "domain"; did you mean "domains"?'],
    ),
    (
        "unknown key in the defaults",
        f'defaults.zzz = "raw"\n{DISK}',
        [
            (
                '2:10: defaults: unknown key "zzz"; known here: connection, directory, format,'
                " remove_base, bitmaps, on_running, quiesce, shutdown_timeout, overlay_name"
            )
        ],
    ),
    (
        "unknown key in a domain",
        f'[domains.web]\nquiece = "try"\n{DISK}',
        ['3:1: domains.web: unknown key "quiece"; did you mean "quiesce"?'],
    ),
    (
        "unknown key in a disk",
        f"{DISK}discart = []",
        ['4:1: web.vda: unknown key "discart"; did you mean "discard"?'],
    ),
    (
        "unknown key in an entry",
        '[domains.web.disks.vda]\nchain = [{ file = "a", templte = true }, "b"]',
        ['3:24: web.vda: unknown key "templte"; did you mean "template"?'],
    ),
    (
        "unknown key with control characters",
        f'"a\\u001b[31m" = 1\n{DISK}',
        ['2:1: spec: unknown key "a\\u001b[31m"; known here: version, defaults, domains'],
    ),
    (
        "defaults that are no table",
        f"defaults = 1\n{DISK}",
        ["2:1: defaults: defaults is an integer; write a table, such as [defaults]"],
    ),
    (
        "domains that are no table",
        "domains = []",
        ["2:1: domains: domains is a list; write a table, such as [domains.web.disks.vda]"],
    ),
    (
        "domain that is no table",
        "domains.web = 1979-05-27",
        ["2:9: domains.web: web is a date or time; write a table, such as [domains.web.disks.vda]"],
    ),
    (
        "domain without disks",
        '[domains.web]\nquiesce = "try"',
        [
            (
                "2:10: domains.web: disks is missing; write a table of disks,"
                " such as [domains.web.disks.vda]"
            )
        ],
    ),
    (
        "domain with no disk",
        "domains.web.disks = {}",
        [
            (
                "2:13: domains.web.disks: disks is empty; write a table of disks,"
                " such as [domains.web.disks.vda]"
            )
        ],
    ),
    (
        "disk that is a list of tables",
        '[[domains.web.disks.vda]]\nchain = ["a"]',
        [
            (
                "2:21: web.vda: vda is a list; write a table with the key chain,"
                ' such as { chain = ["base.qcow2", "web.qcow2"] }'
            )
        ],
    ),
    (
        "disk without a chain",
        "[domains.web.disks.vda]\ndiscard = []",
        [
            (
                "2:20: web.vda: chain is missing; write the images, base first,"
                ' such as chain = ["base.qcow2", "web.qcow2"]'
            )
        ],
    ),
    (
        "empty chain",
        "[domains.web.disks.vda]\nchain = []",
        [
            (
                "3:1: web.vda: chain is empty; write the images, base first,"
                ' such as chain = ["base.qcow2", "web.qcow2"]'
            )
        ],
    ),
    (
        "chain that is a name",
        '[domains.web.disks.vda]\nchain = "a"',
        [
            (
                "3:1: web.vda: chain is a string; write the images, base first,"
                ' such as chain = ["base.qcow2", "web.qcow2"]'
            )
        ],
    ),
    (
        "entry that is a number",
        '[domains.web.disks.vda]\nchain = ["a", 2.5]',
        [
            (
                "3:15: web.vda: entry 2 of chain is a float; write a file name,"
                ' or a table such as { file = "base.qcow2", template = true }'
            )
        ],
    ),
    (
        "entry that is an empty name",
        '[domains.web.disks.vda]\nchain = [""]',
        [
            (
                "3:10: web.vda: entry 1 of chain is empty; write a file name,"
                ' or a table such as { file = "base.qcow2", template = true }'
            )
        ],
    ),
    (
        "entry without a file",
        "[domains.web.disks.vda]\nchain = [{ template = true }]",
        ['3:10: web.vda: file is missing; write a file name, such as file = "web.qcow2"'],
    ),
    (
        "file that is no name",
        "[domains.web.disks.vda]\nchain = [{ file = false }]",
        ['3:12: web.vda: file is a boolean; write a file name, such as file = "web.qcow2"'],
    ),
    (
        "file name with a control character",
        '[domains.web.disks.vda]\nchain = [{ file = "a\\nb" }]',
        ["3:12: web.vda: file has a control character; write the name without it"],
    ),
    (
        "file name that ends in a line feed",
        '[domains.web.disks.vda]\nchain = ["a\\n"]',
        ["3:10: web.vda: entry 1 of chain has a control character; write the name without it"],
    ),
    (
        "file name with a C1 control character",
        '[domains.web.disks.vda]\nchain = ["a"]\nactive = "\\u009b"',
        ["4:1: web.vda: active has a control character; write the name without it"],
    ),
    (
        "file name that is a folder's",
        (
            '[domains.web.disks.vda]\nchain = ["images/", { file = ".." }]\n'
            'discard = ["."]\nactive = "/"'
        ),
        [
            '3:10: web.vda: "images/" is the name of a folder; write the name of an image file',
            '3:23: web.vda: ".." is the name of a folder; write the name of an image file',
            '4:12: web.vda: "." is the name of a folder; write the name of an image file',
            '5:1: web.vda: "/" is the name of a folder; write the name of an image file',
        ],
    ),
    (
        "format of another program",
        '[domains.web.disks.vda]\nchain = [{ file = "a", format = "vmdk" }]',
        ['3:24: web.vda: format is "vmdk"; write "qcow2" or "raw"'],
    ),
    (
        "default format of another program",
        f'[defaults]\nformat = "vmdk"\n{DISK}',
        ['3:1: defaults.format: format is "vmdk"; write "qcow2" or "raw"'],
    ),
    (
        "choice that is no string",
        f"[domains.web]\nquiesce = true\n{DISK}on_running = 3",
        [
            '3:1: domains.web.quiesce: quiesce is true; write "never" or "try" or "require"',
            '6:1: web.vda: on_running is 3; write "refuse" or "restart"',
        ],
    ),
    (
        "size that is a boolean",
        '[domains.web.disks.vda]\nchain = [{ file = "a", size = true }]',
        ['3:24: web.vda: size is a boolean; write bytes or a string such as "10G"'],
    ),
    (
        "size that is a float",
        '[domains.web.disks.vda]\nchain = [{ file = "a", size = 1024.0 }]',
        ['3:24: web.vda: size is a float; write bytes or a string such as "10G"'],
    ),
    (
        "size without sense",
        '[domains.web.disks.vda]\nchain = [{ file = "a", size = "ten" }]',
        ["3:24: web.vda: 'ten' is no size; write bytes or a unit, such as 10G or 512M"],
    ),
    (
        "size of half a sector",
        '[domains.web.disks.vda]\nchain = [{ file = "a", size = 1000 }]',
        ["3:24: web.vda: 1000 is no multiple of 512 bytes"],
    ),
    (
        "size of nothing",
        '[domains.web.disks.vda]\nchain = [{ file = "a", size = 0 }]',
        ["3:24: web.vda: size is out of range; a disk has from 512 bytes to 8 EiB"],
    ),
    (
        "size beyond any disk",
        f'[domains.web.disks.vda]\nchain = [{{ file = "a", size = 0x{"f" * 1000} }}]',
        ["3:24: web.vda: size is out of range; a disk has from 512 bytes to 8 EiB"],
    ),
    (
        "size without end",
        f'[domains.web.disks.vda]\nchain = [{{ file = "a", size = "{"9" * 5000}" }}]',
        ['3:24: web.vda: size has 5000 characters; write bytes or a string such as "10G"'],
    ),
    (
        "template that is a string",
        '[domains.web.disks.vda]\nchain = [{ file = "a", template = "yes" }]',
        ["3:24: web.vda: template is a string; write true or false"],
    ),
    (
        "empty connection",
        f'defaults.connection = ""\n{DISK}',
        [
            (
                "2:10: defaults.connection: connection is empty;"
                ' write a libvirt URI such as "qemu:///system", or leave the key out'
            )
        ],
    ),
    (
        "discard that is a name",
        f'{DISK}discard = "a"',
        ['4:1: web.vda: discard is a string; write a list of file names, such as ["old.qcow2"]'],
    ),
    (
        "discard of a number",
        f"{DISK}discard = [1]",
        ['4:12: web.vda: entry 1 of discard is an integer; write a file name, such as "web.qcow2"'],
    ),
    (
        "domain name with a control character",
        '[domains."a\\n".disks.vda]\nchain = ["a"]',
        [
            (
                '2:10: domains: the name "a\\n" has a control character;'
                " write the name that libvirt shows"
            )
        ],
    ),
    (
        "disk name that is empty",
        '[domains.web.disks.""]\nchain = ["a"]',
        ['2:20: domains.web.disks: the name "" is empty; write the name that libvirt shows'],
    ),
    (
        "image that is listed twice",
        '[domains.web.disks.vda]\nchain = ["a", "b", { file = "a" }]',
        ['3:22: web.vda: "a" is entry 1 of this chain already; list every image once'],
    ),
    (
        "image under two spellings",
        '[domains.web.disks.vda]\nchain = ["a", "./x/../a"]',
        [
            (
                '3:15: web.vda: "./x/../a" is entry 1 of this chain already, as "a";'
                " list every image once"
            )
        ],
    ),
    (
        "template that is active",
        '[domains.web.disks.vda]\nchain = ["a", { file = "b", template = true }]',
        [
            (
                '3:29: web.vda: "b" is active, and a template is never written;'
                " list an overlay above it, or leave template out"
            )
        ],
    ),
    (
        "raw overlay",
        '[domains.web.disks.vda]\nchain = ["a", { file = "b", format = "raw" }]',
        [
            (
                '3:29: web.vda: "b" stands on another image, and a raw image has no backing file;'
                ' write format = "qcow2", or list it as the base'
            )
        ],
    ),
    (
        "template without a view of its own",
        (
            '[domains.web.disks.vda]\nchain = [{ file = "a", template = true, '
            'restore_point = false }, "b"]'
        ),
        [
            (
                '3:41: web.vda: "a" is a template, and its view is always kept;'
                " leave out restore_point or template"
            )
        ],
    ),
    (
        "discarded image that is listed",
        '[domains.web.disks.vda]\nchain = ["a"]\ndiscard = ["b", "./a"]',
        [
            (
                '4:17: web.vda: "./a" is in the chain too; take it out of discard to keep it,'
                " or out of chain to throw it away"
            )
        ],
    ),
    (
        "one active image for two disks",
        '[domains.a.disks.vda]\nchain = ["base", "x"]\n[domains.b.disks.vda]\nchain = ["./x"]',
        [
            (
                '5:10: b.vda: "./x" is also the active image of a.vda (spec.toml:2:18);'
                " list an overlay of its own for each disk"
            )
        ],
    ),
    (
        "template that is active elsewhere",
        (
            '[domains.a.disks.vda]\nchain = ["t"]\n'
            '[domains.b.disks.vda]\nchain = [{ file = "t", template = true }, "x"]'
        ),
        [
            (
                '3:10: a.vda: "t" is active here and a template of b.vda (spec.toml:4:18);'
                " list an overlay above it"
            )
        ],
    ),
]


@pytest.mark.parametrize(
    ("text", "messages"), [pytest.param(*case, id=name) for name, *case in SPEC_PROBLEMS]
)
def test_problem(text: str, messages: list[str]) -> None:
    path = write("spec.toml", f"version = 1\n{text}")

    assert problems(path) == [f"spec.toml:{message}" for message in messages]


FILE_PROBLEMS = [
    # id, whole text, messages
    (
        "empty file",
        "# nothing\n",
        [
            (
                "1:1: spec: the file is empty; write version = 1, and a disk such as"
                ' [domains.web.disks.vda] with chain = ["web.qcow2"]'
            )
        ],
    ),
    ("no version", DISK, ["1:1: spec: version is missing; write version = 1"]),
    (
        "later version, of which nothing else is judged",
        f"version = 2\nnew = true\n{DISK}",
        ["1:1: version: version is 2; this virt-chain reads version = 1"],
    ),
    (
        "version that is a string",
        f'version = "1"\n{DISK}',
        ['1:1: version: version is "1"; this virt-chain reads version = 1'],
    ),
    (
        "version that is true",
        f"version = true\n{DISK}",
        ["1:1: version: version is true; this virt-chain reads version = 1"],
    ),
    (
        "no domains",
        'version = 1\ndefaults.format = "raw"',
        [
            (
                "1:1: spec: no domains; write a disk, such as"
                ' [domains.web.disks.vda] with chain = ["web.qcow2"]'
            )
        ],
    ),
    (
        "syntax error",
        "version = 1\n[defaults]\nformat 'raw'\n",
        ["3:8: spec: not valid TOML: Expected '=' after a key in a key/value pair"],
    ),
    (
        "syntax error at the end",
        "version = 1\nx = [1,\n\n",
        ["2:8: spec: not valid TOML: Invalid value"],
    ),
    (
        "string without an end",
        'version = 1\nx = """[[[[\n',
        ["2:12: spec: not valid TOML: Unterminated string"],
    ),
    (
        "byte order mark",
        f"\ufeffversion = 1\n{DISK}",
        ["1:1: spec: the file starts with a byte order mark; save the file as UTF-8 without one"],
    ),
    (
        "long dotted key",
        "a." * 20_000 + "a = 1",
        ["1:1: spec: keys are nested more than 32 levels deep; a spec needs 8"],
    ),
    (
        "long dotted header",
        'version = 1\n["a".' + "b . " * 20_000 + "a]",
        ["2:2: spec: keys are nested more than 32 levels deep; a spec needs 8"],
    ),
    (
        "nested lists",
        "a = " + "[" * 20_000,
        ["1:37: spec: keys are nested more than 32 levels deep; a spec needs 8"],
    ),
    (
        "nested tables",
        "a = " + "{ a.b = " * 20_000,
        ["1:126: spec: keys are nested more than 32 levels deep; a spec needs 8"],
    ),
    (
        "long key",
        f"version = 1\n{'a' * 2000} = 1",
        ["2:1: spec: a key or number has more than 1024 characters; write a shorter one"],
    ),
    (
        "long quoted key",
        f'"{"a" * 2000}" = 1',
        ["1:1: spec: a key or number has more than 1024 characters; write a shorter one"],
    ),
    (
        "long number",
        f"version = {'1' * 5000}",
        ["1:1: spec: a key or number has more than 1024 characters; write a shorter one"],
    ),
    (
        "large file",
        f"version = 1 {' ' * 2**23}\n{DISK}",
        ["1:1: spec: the file is larger than 8 MiB; split it into several files of one folder"],
    ),
]


@pytest.mark.parametrize(
    ("text", "messages"), [pytest.param(*case, id=name) for name, *case in FILE_PROBLEMS]
)
def test_problem_of_a_file(text: str, messages: list[str]) -> None:
    path = write("spec.toml", text)

    assert problems(path) == [f"spec.toml:{message}" for message in messages]


@pytest.mark.parametrize(
    "text",
    [
        f"description = '{'[' * 100}'",
        f'description = "{"a." * 100}\\"{"{" * 100}"',
        f'description = """\n{"[a.b=" * 500}"\\"""""',
        f"description = '''\n{'=' * 5000}'''",
        f"# {'[' * 100}{'a.' * 100}{'=' * 5000}",
        f"format = 'qcow2' # {'x' * 5000}",
    ],
    ids=["literal", "basic", "multi-line", "multi-line literal", "comment", "long comment"],
)
def test_strings_and_comments_may_hold_what_is_refused_as_structure(text: str) -> None:
    path = write(
        "spec.toml",
        f'version = 1\n[[domains.web.disks.vda.chain]]\nfile = "a"\n{text}\n',
    )

    assert len(load([path]).disks) == 1


def test_a_chain_may_be_long() -> None:
    names = ", ".join(f'{{ file = "{n}", size = "1.5G" }}' for n in range(2000))
    path = write("spec.toml", f"version = 1\ndomains.web.disks.vda.chain = [{names}]")

    assert len(load([path]).disks[0].chain) == 2000


def test_a_file_that_is_not_utf_8_is_told_with_the_place() -> None:
    path = Path("spec.toml")
    path.write_bytes("version = 1\n# grün, grün, ".encode() + b"gr\xfcn\n")

    assert problems(path) == ["spec.toml:2:17: spec: not UTF-8; save the file as UTF-8"]


def test_a_missing_file_is_told() -> None:
    message = "spec: there is no such file or folder; name a spec that exists"

    assert problems("no.toml") == [f"no.toml:1:1: {message}"]


def test_an_unreadable_file_is_told() -> None:
    Path("spec.toml").symlink_to("spec.toml")
    reason = "Too many levels of symbolic links"

    assert problems("spec.toml") == [
        f"spec.toml:1:1: spec: cannot be read: {reason}; name a file that can be read"
    ]


def test_all_problems_of_a_file_are_told_at_once() -> None:
    """A mistake of the schema hides no mistake of meaning elsewhere, nor the other way round."""
    path = write(
        "spec.toml",
        """\
version = 1
[defaults]
format = "vmdk"
[domains.a]
quiece = "try"
disks.vda.chain = ["a", "a"]
disks.vdb.chain = [{ file = "b", templte = true, size = "x" }]
[domains.c.disks.vda]
chain = [1]
[domains.d]
[domains.e.disks.vda]
chain = ["b"]
""",
    )

    assert problems(path) == [
        'spec.toml:3:1: defaults.format: format is "vmdk"; write "qcow2" or "raw"',
        'spec.toml:5:1: domains.a: unknown key "quiece"; did you mean "quiesce"?',
        'spec.toml:6:25: a.vda: "a" is entry 1 of this chain already; list every image once',
        'spec.toml:7:34: a.vdb: unknown key "templte"; did you mean "template"?',
        "spec.toml:7:50: a.vdb: 'x' is no size; write bytes or a unit, such as 10G or 512M",
        (
            "spec.toml:9:10: c.vda: entry 1 of chain is an integer; write a file name,"
            ' or a table such as { file = "base.qcow2", template = true }'
        ),
        (
            "spec.toml:10:10: domains.d: disks is missing; write a table of disks,"
            " such as [domains.web.disks.vda]"
        ),
        (
            'spec.toml:12:10: e.vda: "b" is also the active image of a.vdb (spec.toml:7:7);'
            " list an overlay of its own for each disk"
        ),
    ]


def test_one_image_under_two_links_is_one_image(folder: Path) -> None:
    (folder / "a").touch()
    (folder / "link").symlink_to("a")
    path = write("spec.toml", 'version = 1\ndomains.web.disks.vda.chain = ["a", "link"]')

    assert problems(path) == [
        (
            'spec.toml:2:37: web.vda: "link" is entry 1 of this chain already, as "a";'
            " list every image once"
        )
    ]


class TestFolders:
    def test_files_are_read_as_one_in_the_order_of_their_names(self, folder: Path) -> None:
        write("specs/b.toml", 'version = 1\ndomains.web.disks.vdb.chain = ["b"]')
        write("specs/a.toml", 'version = 1\ndomains.web.disks.vda.chain = ["a"]')
        write("specs/defaults.toml", 'version = 1\ndefaults.directory = "images"')
        write("specs/.hidden.toml", "not TOML")
        write("specs/notes.txt", "not TOML")
        write("specs/deeper/c.toml", "not TOML")
        write("specs/folder.toml/c.toml", "not TOML")

        spec = load([Path("specs")])

        assert spec.sources == tuple(
            folder / "specs" / name for name in ("a.toml", "b.toml", "defaults.toml")
        )
        assert [(disk.label, disk.chain[0].path) for disk in spec.disks] == [
            ("web:vda", folder / "specs/images/a"),
            ("web:vdb", folder / "specs/images/b"),
        ]

    def test_settings_of_a_domain_hold_for_its_disks_in_other_files(self) -> None:
        write("specs/a.toml", 'version = 1\ndomains.web.disks.vda.chain = ["a"]')
        write(
            "specs/b.toml",
            'version = 1\n[domains.web]\nquiesce = "try"\ndisks.vdb.chain = ["b"]',
        )

        assert [disk.quiesce for disk in load([Path("specs")]).disks] == ["try", "try"]

    def test_a_default_has_one_value(self) -> None:
        write("specs/a.toml", f'version = 1\ndefaults.format = "raw"\n{DISK}')
        write("specs/b.toml", 'version = 1\n[defaults]\nformat = "qcow2"\nremove_base = true')
        write("specs/c.toml", 'version = 1\n[defaults]\nformat = "raw"\nremove_base = false')

        assert problems("specs") == [
            (
                'specs/b.toml:3:1: defaults.format: format is "qcow2" here and "raw"'
                " at specs/a.toml:2:10; write one value"
            ),
            (
                "specs/c.toml:4:1: defaults.remove_base: remove_base is false here and true"
                " at specs/b.toml:4:1; write one value"
            ),
        ]

    def test_a_setting_of_a_domain_has_one_value(self) -> None:
        head = "version = 1\n[domains.web]\n"
        write("specs/a.toml", f'{head}quiesce = "try"\ndisks.vda.chain = ["a"]')
        write("specs/b.toml", f'{head}quiesce = "never"\ndisks.vdb.chain = ["b"]')

        assert problems("specs") == [
            (
                'specs/b.toml:3:1: domains.web.quiesce: quiesce is "never" here and "try"'
                " at specs/a.toml:3:1; write one value"
            )
        ]

    def test_a_disk_is_written_once(self) -> None:
        write("specs/a.toml", f"version = 1\n{DISK}")
        write("specs/b.toml", f"version = 1\n\n{DISK}")

        assert problems("specs") == [
            (
                "specs/b.toml:3:20: web.vda: this disk is also written at specs/a.toml:2:20;"
                " keep one of the two"
            )
        ]

    def test_problems_of_all_files_are_told_at_once(self) -> None:
        write("specs/a.toml", "version = ")
        write("specs/b.toml", f"version = 1\nx = 1\n{DISK}")
        write("specs/c.toml", "")

        assert [message.split(": ")[0] for message in problems("specs")] == [
            "specs/a.toml:1:10",
            "specs/b.toml:2:1",
            "specs/c.toml:1:1",
        ]

    def test_a_folder_without_specs_is_told(self) -> None:
        Path("specs").mkdir()

        assert problems("specs") == [
            "specs:1:1: spec: the folder has no *.toml files; write one, or name another folder"
        ]

    def test_a_link_to_nowhere_is_told(self) -> None:
        write("specs/a.toml", f"version = 1\n{DISK}")
        Path("specs/b.toml").symlink_to("gone.toml")
        message = "spec: there is no such file or folder; name a spec that exists"

        assert problems("specs") == [f"specs/b.toml:1:1: {message}"]

    def test_a_folder_without_domains_is_told(self) -> None:
        write("specs/a.toml", 'version = 1\ndefaults.format = "raw"')

        assert problems("specs") == [
            (
                "specs:1:1: spec: no domains; write a disk, such as"
                ' [domains.web.disks.vda] with chain = ["web.qcow2"]'
            )
        ]


class TestSeveralSpecs:
    def test_each_has_its_own_defaults(self) -> None:
        a = write("a.toml", f'version = 1\ndefaults.format = "raw"\n{DISK}')
        b = write("b.toml", 'version = 1\ndomains.db.disks.vda.chain = ["db"]')

        assert [disk.format for disk in load([a, b]).disks] == ["raw", "qcow2"]

    def test_disks_are_in_the_order_of_the_paths(self) -> None:
        a = write("a.toml", f"version = 1\n{DISK}")
        b = write("b.toml", 'version = 1\ndomains.db.disks.vda.chain = ["db"]')

        assert [disk.domain for disk in load([b, a]).disks] == ["db", "web"]

    def test_no_active_image_is_in_two_of_them(self) -> None:
        write("a/spec.toml", f"version = 1\n{DISK}")
        write("b/spec.toml", 'version = 1\ndomains.db.disks.vda.chain = ["../a/web.qcow2"]')

        assert problems("a", "b") == [
            (
                'b/spec.toml:2:31: db.vda: "../a/web.qcow2" is also the active image of web.vda'
                " (a/spec.toml:2:20); list an overlay of its own for each disk"
            )
        ]

    def test_no_disk_is_in_two_of_them(self) -> None:
        write("a.toml", f"version = 1\n{DISK}")
        write("b.toml", f"version = 1\n{DISK}")

        assert problems("a.toml", "b.toml") == [
            "b.toml:2:20: web.vda: this disk is also written at a.toml:2:20; keep one of the two"
        ]

    def test_no_file_is_given_twice(self) -> None:
        write("specs/a.toml", f"version = 1\n{DISK}")

        assert problems("specs", "specs/../specs/a.toml") == [
            "specs/../specs/a.toml:1:1: spec: this file is given twice; name it once"
        ]


def properties(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that the schema knows, as ``place.key``, with what it says of the key."""
    if isinstance(part, dict):
        for key, value in part.get("properties", {}).items():
            yield ".".join((*path[-1:], key)), value
        for key, value in part.items():
            yield from properties(value, path if key == "properties" else (*path, key))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """*part* with what its ``$ref`` adds."""
    if "$ref" not in part:
        return part
    return resolved(schema()["$defs"][part["$ref"].rsplit("/", 1)[1]]) | part


KEYS = dict(properties(schema()))
STRUCTURE = ("version", "defaults", "domains", "domain.disks", "disk.chain")
VALUES = {
    "connection": '"qemu:///system"',
    "directory": '"/images"',
    "format": '"raw"',
    "remove_base": "true",
    "bitmaps": '"drop"',
    "on_running": '"restart"',
    "quiesce": '"try"',
    "shutdown_timeout": "5",
    "overlay_name": '"{domain}.{time:%Y}"',
    "chain": '[{ file = "a" }, "top"]',
    "discard": '["b"]',
    "active": '"b"',
    "file": '"b"',
    "size": "512",
    "template": "true",
    "restore_point": "false",
    "description": '"x"',
}


def read_with(key: str) -> DesiredDisk:
    """The disk of a small spec that sets *key*, such as ``domain.format``, to its value above."""
    place, name = key.split(".")
    tables: dict[str, dict[str, str]] = {"defaults": {}, "domain": {}, "disk": {}, "entry": {}}
    tables["entry"]["file"] = '"a"'
    tables[place][name] = VALUES[name]
    entry = ", ".join(f"{key} = {value}" for key, value in tables["entry"].items())
    tables["disk"]["chain"] = f'[{{ {entry} }}, "top"]'
    text = "version = 1\n"
    for place, header in (
        ("defaults",) * 2,
        ("domain", "domains.d"),
        ("disk", "domains.d.disks.a"),
    ):
        lines = [f"{key} = {value}" for key, value in tables[place].items()]
        text += "\n".join([f"[{header}]", *lines, ""])
    [disk] = load([write("spec.toml", text)]).disks
    return disk


class TestSchema:
    def test_it_is_a_valid_schema(self) -> None:
        Draft202012Validator.check_schema(schema())

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_has_a_description(self, key: str) -> None:
        assert len(resolved(KEYS[key])["description"]) > 20

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_has_words_for_what_to_write(self, key: str) -> None:
        assert "enum" in resolved(KEYS[key]) or key.split(".")[-1] in FORMS

    def test_every_table_is_closed(self) -> None:
        def tables(part: Any) -> Iterator[dict[str, Any]]:
            if isinstance(part, dict):
                if "properties" in part:
                    yield part
                for value in part.values():
                    yield from tables(value)

        assert [table["additionalProperties"] for table in tables(schema())] == [False] * 5

    @pytest.mark.parametrize("key", [key for key in KEYS if key not in STRUCTURE])
    def test_the_meaning_knows_every_key(self, key: str) -> None:
        """Each key that the schema lets pass changes what is read."""
        assert read_with(key) != read_with("disk.chain")


def test_a_name_that_starts_with_a_tilde_starts_at_a_home_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a shell, for the user who runs virt-chain; a tilde without a slash is just a name."""
    monkeypatch.setenv("HOME", "/home/max")
    path = write(
        "spec.toml",
        'version = 1\n[domains.web.disks.vda]\ndirectory = "~/images"\n'
        'chain = ["~/golden/base", "~mon", "/~/tue", "wed/~/x"]\ndiscard = ["~/old"]\n'
        'active = "~/golden/base"\n[domains.db.disks.vda]\ndirectory = "~root"\nchain = ["db"]\n',
    )

    web, db = load([path]).disks

    images = Path("/home/max/images")
    assert [entry.path for entry in web.chain] == [
        Path("/home/max/golden/base"),
        images / "~mon",
        Path("/~/tue"),
        images / "wed/~/x",
    ]
    assert web.chain[0].name == "~/golden/base"
    assert (web.discard, web.active) == ((Path("/home/max/old"),), Path("/home/max/golden/base"))
    assert db.directory == Path("~root").expanduser()


@pytest.mark.parametrize("home", ["", "images", None])
def test_a_home_that_the_environment_does_not_tell_is_that_of_the_password_database(
    folder: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    path = write(
        "spec.toml", 'version = 1\n[domains.web.disks.vda]\ndirectory = "~"\nchain = ["~/b"]'
    )
    [disk] = load([path]).disks
    own = Path(pwd.getpwuid(os.getuid()).pw_dir)

    assert (disk.directory, disk.chain[0].path) == (own, own / "b")


def test_a_user_without_a_home_names_folders_in_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    path = write("spec.toml", 'version = 1\n[domains.web.disks.vda]\nchain = ["~/b"]')

    [told] = problems(path)
    assert "the user who runs virt-chain has no home folder here; write the folder in" in told


def test_a_home_folder_of_nobody_is_told() -> None:
    path = write(
        "spec.toml",
        'version = 1\n[domains.web.disks.vda]\ndirectory = "~no-such-user/images"\n'
        'chain = ["~no-such-user/base", "~mon"]\n',
    )
    what = 'the user "no-such-user" has no home folder here; write the folder in full'

    assert problems(path) == [
        f'spec.toml:3:1: web.vda: directory: "~no-such-user/images": {what}',
        f'spec.toml:4:10: web.vda: "~no-such-user/base": {what}',
    ]


def test_places_are_found_only_when_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding them costs as much as reading the file, and nobody asks in a spec that is right."""
    path = write("spec.toml", f"version = 1\n{DISK}")
    with monkeypatch.context() as patched:
        patched.setattr(positions, "Positions", None)
        spec = load([path])

    assert str(spec.disks[0].where) == "spec.toml:2:20"


def test_a_template_of_many_disks_is_one_value(folder: Path) -> None:
    disk = '.disks.vda]\ndirectory = "/srv"\nchain = [{ file = "base", template = true }, '
    path = write(
        "spec.toml", "version = 1\n" + "".join(f'[domains.{n}{disk}"{n}"]\n' for n in "ab")
    )

    one, two = load([path]).disks

    assert one.chain[0] is two.chain[0]


@pytest.mark.parametrize("files", [1, 3000])
def test_thousands_of_disks_are_read_in_time(folder: Path, files: int) -> None:
    """Ten times what a quiet machine takes; jsonschema alone would take three times this."""
    disks = [
        f'[domains.vm{n}.disks.vda]\ndirectory = "/srv/vm{n}"\nchain = ["base", "a", "b"]\n'
        for n in range(3000)
    ]
    if files == 1:
        write("specs/all.toml", "version = 1\n" + "".join(disks))
    else:
        for number, disk in enumerate(disks):
            write(f"specs/{number}.toml", f"version = 1\n{disk}")
    began = time.process_time()

    spec = load([Path("specs")])

    assert len(spec.disks) == 3000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{domain:>9999999999}", "{domain:>9999999999} is too wide; a file name has at most 255"),
        ("{disk:256}", "{disk:256} is too wide"),
        ("{disk:.999999999999999999999}", "is too wide"),
        ("{time:%99999999Y}", "is too wide"),
        ("{domain:{disk}}", "is a field within a field"),
        ("x" * 256, "has 256 bytes, and a file name has at most 255"),
        ("{domain:>200}{disk:>200}", "has 400 bytes, and a file name has at most 255"),
    ],
)
def test_a_pattern_of_names_that_no_file_can_have_is_told(pattern: str, said: str) -> None:
    path = write("spec.toml", f'version = 1\n{DISK}overlay_name = "{pattern}"\n')

    (problem,) = problems(path)

    assert problem.startswith("spec.toml:4:1: web.vda: overlay_name: ")
    assert said in problem
    assert "write one such as {domain}-{disk}-{time:%Y%m%dT%H%M%S}.qcow2" in problem


def test_a_pattern_with_a_width_is_filled_in() -> None:
    path = write("spec.toml", f'version = 1\n{DISK}overlay_name = "{{domain:_>8}}-{{time:%Y}}"\n')

    assert load([path]).disks[0].overlay_name == "{domain:_>8}-{time:%Y}"


@pytest.mark.parametrize(("name", "fine"), [("é" * 127 + "x", True), ("é" * 128, False)])
def test_a_file_name_has_at_most_255_bytes(name: str, fine: bool) -> None:
    path = write("spec.toml", f'version = 1\n[domains.web.disks.vda]\nchain = ["a/{name}"]\n')

    if fine:
        assert load([path]).disks[0].chain[0].path.name == name
    else:
        what = f"{name[:40]!r}... has 256 bytes, and a file name has at most 255"

        assert problems(path) == [f"spec.toml:3:10: web.vda: {what}; write a shorter one"]
