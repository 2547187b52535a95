"""Saved plans: what is written comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from reconciler.model.image import Chain
from reconciler.model.plan import DiskPlan, Plan, PlannedStep, RestorePoints
from reconciler.model.steps import (
    STEPS,
    Attach,
    Commit,
    Create,
    Forget,
    Pull,
    Rebase,
    Remove,
    Rename,
    Repair,
    Resize,
)
from reconciler.spec.planfile import MAX_BYTES, PlanFileError, looks_like_plan, read_plan
from reconciler.spec.schema import schema
from tests.notation import chain, path

EMPTY: dict[str, Any] = {
    "format_version": 1,
    "spec": ["/spec.toml"],
    "domains": [],
    "summary": {
        "create": 0,
        "commit": 0,
        "pull": 0,
        "rebase": 0,
        "rename": 0,
        "attach": 0,
        "remove": 0,
        "bytes_to_copy": 0,
        "deferred": 0,
        "errors": 0,
    },
}
EVERY_STEP = (
    Create(path("x"), path("b"), "qcow2", 512),
    Create(path("x"), None, "raw", 512),
    Commit(path("x"), path("b")),
    Commit(path("x"), path("b"), relink=False),
    Pull(path("x"), path("b")),
    Pull(path("x"), None),
    Rebase(path("x"), path("c")),
    Rename(path("p"), path("x")),
    Rename(path("p"), path("x"), link=True),
    Resize(path("x"), 1024),
    Repair(path("x")),
    Attach(path("p")),
    Forget("before the upgrade"),
    Remove(path("p")),
)


def disk(target: str = "vda", **facts: Any) -> DiskPlan:
    steps = tuple(
        PlannedStep(step, Chain(), Chain(), "because", bytes=4096, deferred="it runs")
        for step in EVERY_STEP
    )
    made = DiskPlan(
        domain="web",
        target=target,
        observed=chain("b <- p <- x*"),
        desired=(path("b"), path("x")),
        steps=steps,
        restore_points=RestorePoints((path("b"),), (path("p"),), (path("q"),)),
        fingerprint="sha256:0123",
        notes=("b stays on disk",),
        warnings=("b was written to",),
    )
    return replace(made, **facts)


def saved(folder: Path, *disks: DiskPlan) -> Path:
    file = folder / "plan.json"
    data = Plan((Path("/spec.toml"),), disks).as_data()
    Draft202012Validator(schema("plan")).validate(data)
    file.write_text(json.dumps(data))
    return file


def refusal(folder: Path, content: bytes | str | dict[str, Any]) -> str:
    file = folder / "plan.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PlanFileError) as raised:
        read_plan(file)
    return str(raised.value).replace(f"{folder}/", "")


def test_a_plan_file_is_what_the_design_says():
    data = Plan((Path("/spec.toml"),), (disk(steps=disk().steps[4:5]),)).as_data()

    assert data == {
        "format_version": 1,
        "spec": ["/spec.toml"],
        "domains": [
            {
                "name": "web",
                "connection": None,
                "state": "offline",
                "disks": [
                    {
                        "target": "vda",
                        "observed": ["/images/b.qcow2", "/images/p.qcow2", "/images/x.qcow2"],
                        "desired": ["/images/b.qcow2", "/images/x.qcow2"],
                        "fingerprint": "sha256:0123",
                        "restore_points": {
                            "kept": ["/images/b.qcow2"],
                            "dropped": ["/images/p.qcow2"],
                            "discarded": ["/images/q.qcow2"],
                        },
                        "steps": [
                            {
                                "action": "pull",
                                "into": "/images/x.qcow2",
                                "base": "/images/b.qcow2",
                                "bytes": 4096,
                                "reason": "because",
                                "deferred": "it runs",
                            }
                        ],
                        "warnings": ["b was written to"],
                        "notes": ["b stays on disk"],
                        "error": None,
                    }
                ],
            }
        ],
        "summary": EMPTY["summary"] | {"pull": 1, "bytes_to_copy": 4096, "deferred": 1},
    }


def test_a_saved_plan_comes_back_and_matches(tmp_path):
    one, two = disk(), disk("vdb", steps=(), fingerprint="")
    other = disk(domain="db", error="no", steps=())

    found = read_plan(saved(tmp_path, one, two, other))

    assert found.sources == (Path("/spec.toml"),)
    assert list(found.disks) == [("web", "vda"), ("web", "vdb"), ("db", "vda")]
    assert found.disks["web", "vda"].steps == EVERY_STEP
    assert [found.disks[d.domain, d.target].matches(d) for d in (one, two, other)] == [True] * 3


def test_every_kind_of_step_is_in_these_tests():
    assert {type(step) for step in EVERY_STEP} == set(STEPS)


@pytest.mark.parametrize(
    "fresh",
    [
        pytest.param(disk(fingerprint="sha256:4567"), id="another fingerprint"),
        pytest.param(disk(steps=disk().steps[1:]), id="a step less"),
        pytest.param(disk(steps=(*disk().steps, disk().steps[0])), id="a step more"),
        pytest.param(disk(steps=disk().steps[::-1]), id="another order"),
        pytest.param(disk(steps=(), fingerprint=""), id="nothing to do"),
    ],
)
def test_another_plan_does_not_match(tmp_path, fresh):
    found = read_plan(saved(tmp_path, disk())).disks["web", "vda"]

    assert found.matches(fresh) is False


paths = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8).map(
    lambda text: Path("/images") / f"x{text}"
)
steps = st.one_of(
    st.builds(Create, paths, st.none() | paths, st.sampled_from(["raw", "qcow2"]), st.just(512)),
    st.builds(Commit, paths, paths, st.booleans()),
    st.builds(Pull, paths, st.none() | paths),
    st.builds(Rename, paths, paths, st.booleans()),
    st.builds(Resize, paths, st.integers(512, 2**63 - 1)),
    st.builds(Repair, paths),
    st.builds(Forget, st.text(max_size=8)),
    st.builds(Remove, paths),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps, max_size=4), st.text("0123456789abcdef", max_size=8))
def test_any_plan_comes_back_and_matches(tmp_path, chosen, fingerprint):
    planned = tuple(PlannedStep(step, Chain(), Chain()) for step in chosen)
    made = disk(steps=planned, fingerprint=fingerprint)

    found = read_plan(saved(tmp_path, made)).disks["web", "vda"]

    assert (found.steps, found.matches(made)) == (tuple(chosen), True)


BROKEN = [
    # id, content, what is said
    (
        "empty",
        "",
        "plan.json: no plan file: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        "no JSON",
        "{",
        (
            "plan.json: no plan file: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)"
        ),
    ),
    (
        "a list",
        "[]",
        (
            "plan.json: no plan file of this version: the document: [] is not of type 'object'; "
            "plan again"
        ),
    ),
    (
        "no version",
        {key: value for key, value in EMPTY.items() if key != "format_version"},
        (
            "plan.json: no plan file of this version: the document: 'format_version' is a required "
            "property; plan again"
        ),
    ),
    (
        "another version",
        EMPTY | {"format_version": 2},
        "plan.json: no plan file of this version: format_version: 1 was expected; plan again",
    ),
]


@pytest.mark.parametrize(
    ("content", "said"), [pytest.param(*case, id=name) for name, *case in BROKEN]
)
def test_what_is_no_plan_file_is_told(tmp_path, content, said):
    assert refusal(tmp_path, content) == said


def with_step(step: object) -> dict[str, Any]:
    data = Plan((Path("/spec.toml"),), (disk(steps=()),)).as_data()
    data["domains"][0]["disks"][0]["steps"] = [step]
    return data


STEP = {"bytes": 0, "reason": "", "deferred": None}
GARBAGE = [
    ("no text", b"{\xff}"),
    ("another encoding", json.dumps(EMPTY).encode("utf-16")),
    ("a number", "1"),
    ("nothing", "null"),
    ("a number with too many digits", '{"format_version": 1' + "0" * 5000 + "}"),
    ("very deep nesting", "[" * 100_000),
    ("very deep nesting that ends", "[" * 100_000 + "]" * 100_000),
    ("deep nesting of a version", '{"format_version":' + "[" * 900 + "]" * 900 + "}"),
    ("deep nesting of a fact", json.dumps(EMPTY)[:-1] + ',"spec":' + "[" * 900 + "]" * 900 + "}"),
    ("a domain that is a text", EMPTY | {"domains": ["web"]}),
    ("a long text in a wrong place", EMPTY | {"domains": "x" * 100_000}),
    ("a step that is a text", with_step("commit")),
    ("an unknown step", with_step({**STEP, "action": "explode"})),
    ("a step that is a list", with_step({**STEP, "action": ["commit"]})),
    ("a relative path", with_step({**STEP, "action": "remove", "image": "x"})),
    ("a path that is a number", with_step({**STEP, "action": "remove", "image": 5})),
    ("a backing file that is a number", with_step({**STEP, "action": "create", "backing": 5})),
]


@pytest.mark.parametrize("content", [pytest.param(text, id=name) for name, text in GARBAGE])
def test_garbage_is_told_in_a_line_of_reading_length(tmp_path, content):
    said = refusal(tmp_path, content)

    assert (said.startswith("plan.json: "), len(said) < 3000, "\n" in said) == (True, True, False)


def test_a_huge_plan_file_is_not_read(tmp_path):
    file = tmp_path / "plan.json"
    with file.open("wb") as made:
        made.write(b"{")
        made.truncate(MAX_BYTES + 1)

    with pytest.raises(PlanFileError) as raised:
        read_plan(file)

    assert str(raised.value) == f"{file}: more than {MAX_BYTES} bytes are no plan file"


def test_a_missing_plan_file_is_told(tmp_path):
    with pytest.raises(PlanFileError, match=r"no plan file: .*No such file or directory"):
        read_plan(tmp_path / "gone.json")


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format_version", "spec", "domains", "summary", "steps"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_random_json_is_told(tmp_path, data):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))

    with pytest.raises(PlanFileError):
        read_plan(file)


LOOKS = [
    ("plan.json", b"{}", True),
    ("plan", b" \n\t{", True),
    ("plan.toml", b"{}", False),
    ("spec", b"version = 1", False),
    ("list.json", b"[]", False),
    ("empty.json", b"", False),
]


@pytest.mark.parametrize(("name", "content", "expected"), LOOKS)
def test_a_plan_file_is_known_by_its_first_letter(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)

    assert looks_like_plan(tmp_path / name) is expected


def test_what_is_no_file_is_no_plan_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")

    found = [looks_like_plan(tmp_path / name) for name in (".", "fifo", "gone")]

    assert found == [False, False, False]
