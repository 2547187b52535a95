"""
MkDocs hooks: generated reference, and files of the repository that pages link to.

Links in docs/ lead to files as the repository has them, so that they work there too;
what lies outside docs/ gets a place of its own in the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from scripts.docs import reference, sessions  # noqa: E402

OUTSIDE = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", ".pre-commit-hooks.yaml"),
    *("schemas/*", "examples/**/*", "systemd/*"),
)
"""Files outside docs/ that pages may link to."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
_GENERATED = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def _place(path: str) -> str:
    """Where the site has the file at *path* of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".md") and "/" not in path:
        return f"project/{path}"
    return f"files/{path.replace('.pre-commit', 'pre-commit')}"


def _origin(place: str) -> str:
    """The folder in the repository of the page that the site has at *place*."""
    if place.startswith("project/"):
        return ""
    if place.startswith("files/"):
        return posixpath.dirname(place.removeprefix("files/"))
    return posixpath.dirname(f"docs/{place}")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add what lies outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                place = _place(str(path.relative_to(ROOT)))
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and let links lead to where the site has things."""
    text = sessions.without_directives(markdown)
    origin, here = _origin(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(origin, found[1]))
        return posixpath.relpath(_place(path), here or ".")

    return _GENERATED.sub(_generated, _LINK.sub(link, text))


def _generated(found: re.Match[str]) -> str:
    try:
        return reference.PARTS[found[1]]()
    except reference.Undescribed as error:
        raise PluginError(str(error)) from error
