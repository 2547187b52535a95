"""README and docs: examples that run, links that lead somewhere, a reference that is complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from reconciler.cli.main import app
from scripts.docs import reference, sessions

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
WITH_EXAMPLES = [page for page in sessions.pages() if sessions.has_examples(page)]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_a_page_shows_what_the_program_prints(page: Path) -> None:
    today = sessions.replay(page)

    assert page.read_text() == today, f"run: scripts/docs/sessions.py --update {name(page)}"


def test_the_readme_is_short_and_begins_with_what_it_is() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()

    assert len(lines) <= 200
    assert "**virt-chain manages" in lines[2]
    assert any(line.startswith("$ make demo") for line in lines[:24])
    assert any(line.startswith("$ make test") for line in lines[:24])


def test_the_readme_and_the_error_index_have_examples_that_run() -> None:
    names = {name(page) for page in WITH_EXAMPLES}

    assert {"README.md", "docs/getting-started.md", "docs/reference/errors.md"} <= names


def test_the_picture_is_of_the_program_of_today() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "picture", "--check"], check=False)

    assert done.returncode == 0, "run: .venv/bin/python scripts/picture"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_in_the_tree_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = [link for link in _links(page) if not _leads_somewhere(page, link)]

    assert broken == []


def _links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    yield from (link for link in LINK.findall(text) if "://" not in link)


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    """Anchors as GitHub and Python-Markdown make them, those of generated headings included."""
    text = page.read_text()
    for part, make in reference.PARTS.items():
        if f"<!-- generated: {part} -->" in text:
            text += make()
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("schema", "make"),
    [
        ("chain", reference.spec_keys),
        ("config", reference.host_config),
        ("plan", reference.plan_json),
    ],
)
def test_the_reference_has_every_key_of_the_schema(schema: str, make: Any) -> None:
    data = json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text())
    text = make()

    assert [key for key in _keys(data) if f"| `{key}` |" not in text] == []


def _keys(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        yield from data.get("properties", ())
        for value in data.values():
            yield from _keys(value)


def test_a_key_without_a_description_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"properties": {"mute": {"type": "string"}}}
    monkeypatch.setattr(reference, "_schema", lambda _: schema)

    with pytest.raises(reference.Undescribed, match="mute has no description"):
        reference.host_config()


def test_the_reference_has_every_command_argument_and_option() -> None:
    text = reference.commands()
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)

    for command_name, command in group.commands.items():
        section = text.partition(f"## virt-chain {command_name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts if isinstance(parameter, click.Option) else [parameter.metavar]
            for one in shown:
                assert one
                assert f"`{one}`".replace("|", r"\|") in section, f"{command_name} {one}"


def test_the_site_is_built_so_that_a_broken_link_is_an_error() -> None:
    """With --quiet MkDocs does not count warnings, and so --strict finds none."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs" in line]

    assert lines
    for line in lines:
        assert "--strict" in line
        assert "--quiet" not in line


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]

    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_a_console_block_is_only_renewed_where_it_says_something_else() -> None:
    assert sessions.same(
        "kept until 2026-12-02T10:00Z  6.3 MiB\n", "kept until 2027-01-01T11:30Z  6.2 MiB\n"
    )
    assert sessions.same("Done: 1 commit in 0.3 s.", "Done: 1 commit in 12.0 s.\n")
    assert not sessions.same("Done: 1 commit.", "Done: 1 pull.")
