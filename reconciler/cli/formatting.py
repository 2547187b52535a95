"""`fmt`: specs in one layout."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import typer

from reconciler.cli.naming import printable
from reconciler.engine import specfile
from reconciler.model.errors import Problem, SpecError
from reconciler.spec.document import read_text
from reconciler.spec.layout import formatted
from reconciler.spec.read import spec_files


def fmt(paths: Sequence[Path], *, check: bool, diff: bool) -> int:
    """
    Format every spec file at *paths*; how many change.

    Args:
        check: Only list them.
        diff: Only show what would change.

    Raises:
        SpecError: Some are no specs; then nothing was written.
    """
    texts: dict[Path, tuple[str, str]] = {}
    problems: list[Problem] = []
    for file in [file for path in paths for file in spec_files(path)]:
        try:
            text = read_text(file)
            texts[file] = text, formatted(text, file)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    changed = {file: both for file, both in texts.items() if both[0] != both[1]}
    for file, (before, after) in changed.items():
        if diff:
            name = printable(str(file))
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), name, name, lineterm=""
            )
            typer.echo("\n".join(map(printable, lines)))
        else:
            typer.echo(printable(str(file)))
        if not check and not diff:
            specfile.replace_text(file, before, after)
    return len(changed)
