"""
virt-chain broken on purpose: a campaign that finds nothing in these would be blind.

Each is what somebody might write who does not know the facts behind the order
of effects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reconciler.backends.offline import Offline, is_relative, link_name
from reconciler.cli import main
from reconciler.engine.apply import groups
from reconciler.model.image import Chain
from reconciler.tools import qemuimg


def plain_rebase() -> None:
    """`qemu-img rebase` with its default cache: the header is written before the data."""

    def pull(self: Offline, into: Path, base: Chain | None, chain: Chain) -> None:
        image = chain.image(into)
        below = base.images[-1] if base else None
        name = link_name(into, below.path, relative=is_relative(image)) if below else ""
        argv = ["qemu-img", "rebase", "-f", "qcow2"]
        argv += ["-F", below.format] if below else []
        qemuimg.run([*argv, "-b", name, os.fspath(into)])

    Offline._pull = pull  # type: ignore[method-assign]


def removes_first() -> None:
    """What is merged away goes as soon as its merge begins."""
    step = groups._step

    def early(disk: Any, planned: Any, *, again: bool) -> Any:
        for left in (disk.resumed or groups._unfinished(disk, (planned,))).remove:
            left.path.unlink(missing_ok=True)
        return (yield from step(disk, planned, again=again))

    groups._step = early


def relinks_first() -> None:
    """A pull rewrites the header before it copies."""
    pull = Offline._pull

    def early(self: Offline, into: Path, base: Chain | None, chain: Chain) -> None:
        self._relink(chain.image(into), base.images[-1] if base else None)
        pull(self, into, base, chain)

    Offline._pull = early  # type: ignore[method-assign]


def always_content() -> None:
    """Exit code 0, whatever happened."""
    run = main.run

    def content(arguments: Sequence[str]) -> int:
        run(arguments)
        return 0

    main.run = content


def commits_badly() -> None:
    """Half of a commit that failed is taken for all of it."""
    commit = qemuimg.run

    def deaf(argv: list[str], progress: Any = None, **options: Any) -> bytes:
        from reconciler.model.errors import ToolFailed

        try:
            return commit(argv, progress, **options)
        except ToolFailed:
            if argv[1] == "commit":
                return b""
            raise

    qemuimg.run = deaf
    Offline._compare = lambda *_: None  # type: ignore[method-assign]


ways: dict[str, Callable[[], None]] = {
    "plain rebase": plain_rebase,
    "removes first": removes_first,
    "relinks first": relinks_first,
    "always content": always_content,
    "commits badly": commits_badly,
}
