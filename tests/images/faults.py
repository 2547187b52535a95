"""
Faults by number: what a run does to the host is counted, and the n-th act fails.

A `Crash` stands for a kill: nothing of virt-chain handles it, so what is on the
disk at that moment is what the next run finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from reconciler.model.errors import ToolFailed
from reconciler.tools import files, process, qemuimg, storage_daemon
from tests.images.disks import KIB, tool

Kind = Literal["killed after", "killed halfway in", "failed"]


class Crash(BaseException):
    """The process ends here, as a kill would end it."""


@dataclass
class Faults:
    """
    Counts effects, and strikes at number *at*.

    Attributes:
        kind: ``killed after``: the effect was done, nothing else is.
            ``killed halfway in``: half of the data that a tool copies is copied.
            ``failed``: the call ends with an error and without an effect.
        acts: What was done, in order, for the message of a failing test.
    """

    kind: Kind
    at: int
    acts: list[str] = field(default_factory=list)
    struck: bool = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watch every call by which virt-chain changes anything."""
        run = process.run

        def watched_run(argv: Sequence[str | Path], **options: Any) -> tuple[int, bytes]:
            words = [os.fspath(word) for word in argv]
            if not _counts(words, self.kind):
                return run(argv, **options)
            halfway = _half_a_copy(words)
            return self._act(" ".join(words[:2]), lambda: run(argv, **options), halfway)

        patch.setattr(process, "run", watched_run)
        copy_up = storage_daemon.copy_up

        def watched_copy(images: Sequence[Any], base: int | None, **options: Any) -> None:
            def half() -> None:
                half_up([str(one.path) for one in images])

            self._act("copy up", lambda: copy_up(images, base, **options), half)

        patch.setattr(storage_daemon, "copy_up", watched_copy)
        for home, name in ((files, "rename_over"), (files, "rename_new"), (files, "remove")):
            self._watch(patch, home, name)
        self._watch(patch, os, "link")

    def _watch(self, patch: pytest.MonkeyPatch, home: Any, name: str) -> None:
        original = getattr(home, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            told = f"{name} {os.path.basename(arguments[-1])}"
            return self._act(told, lambda: original(*arguments, **options), None)

        patch.setattr(home, name, watched)

    def _act(self, told: str, effect: Callable[[], Any], halfway: Callable[[], None] | None) -> Any:
        if self.kind == "killed halfway in" and halfway is None:
            return effect()
        self.acts.append(told)
        if len(self.acts) != self.at:
            return effect()
        self.struck = True
        match self.kind:
            case "failed":
                if told.split()[0] in ("rename_over", "rename_new", "remove", "link"):
                    raise OSError(5, "Input/output error")
                raise ToolFailed(told.split(), 1, "an error that the test made")
            case "killed halfway in":
                assert halfway is not None
                halfway()
            case "killed after":
                effect()
        raise Crash(told)


def _counts(words: Sequence[str], kind: Kind) -> bool:
    """True for a tool that changes an image; every tool may fail."""
    return kind == "failed" or words[1] in ("create", "commit", "rebase", "resize")


def _half_a_copy(words: Sequence[str]) -> Callable[[], None] | None:
    """What is on the disk when *words* is killed in the middle of its data."""
    if words[1] == "commit":
        base = words[words.index("-b") + 1]
        return lambda: half_down(words[-1], base)
    if words[1] == "rebase" and "-u" not in words:
        return lambda: half_up([words[-1]])
    return None


def half_down(top: str, base: str) -> None:
    """Half of a commit: the first half of the view of *top* is in *base*."""
    for name in ("file:", "json:"):
        assert not base.startswith(name), "these tests record plain names"
    _copy_half(top, base)


def half_up(chain: Sequence[str]) -> None:
    """Half of a pull: the first half of what the top reads is its own."""
    _copy_half(chain[-1], chain[-1])


def _copy_half(source: str, target: str) -> None:
    window = Path(source).with_name(".half")
    base_format = _format(target)
    try:
        tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", source, window)
        whole = window.read_bytes()
        window.unlink()
        half = len(whole) // 2 // (64 * KIB) * 64 * KIB
        size = len(whole)
        if _size(target, base_format) < size and base_format == "qcow2":
            tool("qemu-img", "resize", "-q", "-f", base_format, target, str(size))
        commands: list[str] = []
        for at in range(0, half, 64 * KIB):
            window = Path(source).with_name(f".half-{at}")
            window.write_bytes(whole[at : at + 64 * KIB])
            commands += ["-c", f"write -s {window} {at} 64k"]
        if commands:
            said = tool("qemu-io", "-t", "unsafe", "-f", base_format, *commands, target)
            assert "failed" not in said, said
    finally:
        for left in Path(source).parent.glob(".half*"):
            left.unlink()


def _format(image: str) -> str:
    with open(image, "rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def _size(image: str, image_format: str) -> int:
    import json

    said = tool("qemu-img", "info", "-U", "-f", image_format, "--output=json", image)
    return int(json.loads(said)["virtual-size"])


assert qemuimg.process is process, "the one place that starts programs is watched"
