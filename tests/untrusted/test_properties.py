"""
Whatever is read, a value comes out, or an error that the package raises on purpose.

More examples: UNTRUSTED_EXAMPLES=5000.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.engine.state import StateFolder
from reconciler.model.errors import ReconcilerError
from reconciler.spec import load
from reconciler.spec.host import ENVIRONMENT, read_host
from reconciler.spec.planfile import read_plan
from reconciler.tools import domain_xml, qcow2
from tests.untrusted.scene import header

EXAMPLES = int(os.environ.get("UNTRUSTED_EXAMPLES", "150"))
bounded = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
OVERLAY = Path("/images/x.qcow2")
WORDS = [
    "version", "domains", "disks", "chain", "vm", "vda", "file", "size", "=", ".", "[", "]", "{",
    "}", ",", '"', "'", "\n", "1", "true", "inf", "nan", "1e400", "\\u0000", "\x1b", "\ud7ff",
    "1979-05-27", "unfinished", "steps", "leftovers", "active", "links", "path", "device", "inode",
    "changed", "[disks.vda]\n", "[domains.vm.disks.vda]\n", "version = 1\n", '"10G"', "-0", "0x1",
]  # fmt: skip
texts = st.text(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def tried(what: Callable[[], object]) -> str:
    """``told`` where *what* raises an error of the package, ``read`` where it raises none."""
    try:
        what()
    except ReconcilerError as error:
        return "told" if str(error) else "without a word"
    return "read"


def in_file(content: str | bytes, read: Callable[[Path], object], name: str = "it.toml") -> None:
    """*read* a file of *content*; the folder holds nothing else afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        before = path.read_bytes()
        assert tried(lambda: read(path)) in ("told", "read")
        assert [one.name for one in Path(folder).iterdir()] == [name]
        assert path.read_bytes() == before


def header_of(content: bytes) -> qcow2.Header | None:
    descriptor = os.memfd_create("header")
    try:
        os.write(descriptor, content)
        return qcow2.read_header(descriptor, Path("x"))
    finally:
        os.close(descriptor)


edits = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=6)


@bounded
@given(edits, st.integers(0, 600))
def test_a_mutated_header_is_read_or_told(changes: list[tuple[int, bytes]], cut: int) -> None:
    content = bytearray(header(backing=b"json:{}", backing_format=b"qcow2", bits=9))
    for at, piece in changes:
        content[at : at + len(piece)] = piece

    for one in (bytes(content), bytes(content[:cut])):
        assert tried(lambda one=one: header_of(one)) in ("told", "read")  # type: ignore[misc]


@bounded
@given(st.binary(max_size=600))
def test_random_bytes_are_no_header_or_told(content: bytes) -> None:
    assert header_of(b"RAW!" + content) is None
    assert tried(lambda: header_of(qcow2.MAGIC + content)) in ("told", "read")


names = st.text(max_size=60) | st.binary(max_size=60).map(os.fsdecode)
prefixes = st.sampled_from(["", "json:", "file:", "nbd:", "fd:", "vvfat:", "/", "../", "json:{"])


@bounded
@given(prefixes, names | values.map(json.dumps))
def test_any_backing_name_is_a_local_file_or_told(prefix: str, name: str) -> None:
    recorded = prefix + name
    overlay = str(OVERLAY)
    said = tried(lambda: qcow2.backing_file(recorded, overlay))
    possible = qcow2.possible_file(recorded, overlay)

    if said == "read":
        assert possible == qcow2.backing_file(recorded, overlay)
        assert os.path.isabs(possible or "")


@bounded
@given(texts | st.binary(max_size=200))
def test_any_spec_is_read_or_told(content: str | bytes) -> None:
    in_file(content, lambda path: load([path]))


@bounded
@given(texts | st.binary(max_size=200))
def test_any_config_is_read_or_told(content: str | bytes) -> None:
    in_file(content, lambda path: read_host({ENVIRONMENT: str(path)}))


@bounded
@given(texts | st.binary(max_size=200))
def test_any_state_file_is_read_or_told(content: str | bytes) -> None:
    in_file(content, lambda path: StateFolder(path.parent).disk("vm", "vda"), "vm.toml")


@bounded
@given(texts | values.map(json.dumps) | st.binary(max_size=200))
def test_any_plan_file_is_read_or_told(content: str | bytes) -> None:
    in_file(content, read_plan, "plan.json")


tags = ["<domain>", "</domain>", "<devices>", "</devices>", "<disk type='file'>", "</disk>",
        "<source file='a'/>", "<target dev='vda'/>", "<driver/>", "<backingStore>",
        "</backingStore>", "<backingStore/>", "<!--", "-->", "<![CDATA[", "]]>", "&amp;", "&#0;",
        "<mirror/>", "<source file='>'/>", "é", "\x1b"]  # fmt: skip
xml = st.text(max_size=100) | st.lists(st.sampled_from(tags), max_size=25).map("".join)


@bounded
@given(xml, st.sampled_from(["", "<domain><devices>"]))
def test_any_xml_is_read_or_told(text: str, before: str) -> None:
    edit: dict[str, Any] = {"vda": (Path("/a'\"<&>"), "qcow2")}
    for what in (
        lambda: domain_xml.disks(before + text),
        lambda: domain_xml.with_sources(before + text, edit),
        lambda: domain_xml.without_backing(before + text, ["vda"]),
    ):
        assert tried(what) in ("told", "read")
