"""
qemu-img: command lines, and what its answers mean.

Building a command line and running it are two functions, so that the first
is tested as a table.  Absolute names settle every question of odd file names:
a colon after the first slash is no protocol, and ``-`` starts no option.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from reconciler.model.errors import ObserveError, ToolFailed
from reconciler.model.extents import Extent, Extents
from reconciler.model.image import Format, Image
from reconciler.tools import process
from reconciler.tools.privileges import user_for

Argv = list[str]
Progress = Callable[[float], None]
"""Called with the part that is done, from 0 to 1."""

_PERCENT = re.compile(rb"\(\s*(\d+(?:\.\d+)?)/100%\)")


def node(images: Sequence[Image]) -> dict[str, Any]:
    """
    The block graph of the chain *images* (base first), every format spelled out.

    QEMU opens just these files with just these formats: nothing is probed and
    no name from a header is followed.

    Raises:
        ObserveError: One of them must not be opened.
    """
    for image in images:
        if why := image.left_alone:
            raise ObserveError(f"{image.path} is left alone: {why}")
    below: dict[str, Any] | None = None
    for image in images:
        graph: dict[str, Any] = {
            "driver": image.format,
            "file": {"driver": "file", "filename": os.fspath(image.path)},
        }
        if image.format == "qcow2":
            graph["backing"] = below
        below = graph
    assert below is not None
    return below


def filename(images: Sequence[Image]) -> str:
    """The ``json:`` name by which qemu-img opens the view of the last of *images*."""
    return "json:" + json.dumps(node(images), ensure_ascii=False)


def create(image: Path, image_format: Format, size: int) -> Argv:
    """Create an image that stands on nothing; *size* in bytes."""
    return ["qemu-img", "create", "-q", "-f", image_format, os.fspath(image), str(size)]


def create_on(image: Path, backing: str, backing_format: Format, size: int) -> Argv:
    """
    Create an empty qcow2 overlay that records the name *backing*.

    ``-u`` leaves the backing file unopened: the image is made under a
    temporary name, and a relative *backing* is meant from its final one.
    """
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", backing_format]
    return [*argv, "-b", backing, os.fspath(image), str(size)]


def commit(top: Path, base: str, bandwidth: int | None = None) -> Argv:
    """
    Copy all data above *base* down into it; change no header.

    ``-d`` keeps *top* as it is: without it qemu-img empties *top*, and an
    error in the middle destroys both.

    Args:
        base: The backing name as `commit_name` tells it.
        bandwidth: Limit in bytes a second.
    """
    rate = ["-r", str(bandwidth)] if bandwidth else []
    return ["qemu-img", "commit", "-p", "-d", *rate, "-f", "qcow2", "-b", base, os.fspath(top)]


def commit_name(base: Image, overlay: Image) -> str:
    """
    The name by which ``qemu-img commit -b`` finds *base*.

    Plain names are compared when they are made absolute, names with a protocol
    letter by letter with what *overlay* records; of a file with two names, headers
    have the second one.  Source: QEMU, block.c, bdrv_find_backing_image.
    """
    recorded = overlay.recorded or ""
    return recorded if ":" in recorded.split("/", 1)[0] else os.fspath(base.second or base.path)


def relink(image: Path, backing: str, backing_format: Format | None) -> Argv:
    """Rewrite the backing name in the header of *image*; an empty name: none."""
    formats = ["-F", backing_format] if backing and backing_format else []
    return ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *formats, "-b", backing, str(image)]


def rebase(image: Path, backing: str, backing_format: Format | None) -> Argv:
    """
    Copy up what *image* would read differently on *backing*, then relink it.

    ``-t writethrough``: with the default cache the header is durable before
    the copied data is, and a kill in between loses it.  Source: FIELD_NOTES §1.1.
    """
    formats = ["-F", backing_format] if backing and backing_format else []
    argv = ["qemu-img", "rebase", "-p", "-t", "writethrough", "-f", "qcow2", *formats]
    return [*argv, "-b", backing, os.fspath(image)]


def resize(image: Path, image_format: Format, size: int) -> Argv:
    """Grow *image* to *size* bytes; what is new reads as zeroes."""
    return ["qemu-img", "resize", "-q", "-f", image_format, os.fspath(image), str(size)]


def info(image: Path, image_format: Format) -> Argv:
    """What QEMU knows of *image* and of all below it, top first."""
    argv = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", image_format]
    return [*argv, os.fspath(image)]


def run(
    argv: Argv,
    progress: Progress | None = None,
    *,
    reads: Iterable[Path] = (),
    writes: Iterable[Path] = (),
) -> bytes:
    """
    Run a command line of this module; its standard output.

    Args:
        reads, writes: Files that it opens, by which it is known as whom it runs.

    Raises:
        ToolFailed: It ended with an error.
    """
    follow = _percents(progress) if progress else None
    return process.run(argv, progress=follow, user=user_for(reads, writes))[1]


def _percents(progress: Progress) -> Callable[[bytes], None]:
    def follow(piece: bytes) -> None:
        if found := _PERCENT.findall(piece):
            progress(float(found[-1]) / 100)

    return follow


def chain_info(chain: Sequence[Image]) -> list[tuple[str, int]]:
    """Name and size in bytes of each image that QEMU finds in *chain*, base first."""
    active = chain[-1]
    argv = info(active.second or active.path, active.format)
    _, out = process.run(argv, reads=True, user=user_for(one.path for one in chain))
    with _as_expected(argv):
        told = [(str(one["filename"]), int(one["virtual-size"])) for one in json.loads(out)]
    return told[::-1]


def map_view(images: Sequence[Image], *, as_recorded: bool = False) -> Extents:
    """
    Which image provides which bytes of the view of the last of *images* (base first).

    Args:
        as_recorded: The headers of *images* name this very chain: QEMU may follow them.
            It takes eight times as long for twice as many images that are spelled out
            one in another (measured, QEMU 7.2: more than a minute for 400).
    """
    top = images[-1]
    if as_recorded and all(one.recorded is None or one.recorded_format for one in images):
        argv = ["qemu-img", "map", "-U", "--output=json", "-f", top.format, os.fspath(top.path)]
    else:
        argv = ["qemu-img", "map", "-U", "--output=json", filename(images)]
    user = user_for(one.path for one in images)
    answer = process.run(argv, reads=True, user=user)[1]
    with _as_expected(argv):
        return tuple(map(_extent, json.loads(answer)))


def _extent(one: dict[str, Any]) -> Extent:
    start, length, depth = int(one["start"]), int(one["length"]), int(one["depth"])
    if min(start, length, depth) < 0:
        raise ValueError("a number is negative")
    offset = one.get("offset") if one["data"] and not one.get("compressed") else None
    return Extent(
        start=start,
        length=length,
        depth=depth,
        zero=bool(one["zero"]),
        present=bool(one.get("present", True)),
        offset=None if offset is None else int(offset),
    )


@contextmanager
def _as_expected(argv: Argv) -> Iterator[None]:
    """An answer of another form is the tool's failure, not a fault of ours."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ToolFailed(argv, 0, f"its answer cannot be read: {error!r:.200}") from error


def convert_window(images: Sequence[Image], start: int, length: int, target: int) -> None:
    """
    Write bytes *start* to *start + length* of a view into the file behind *target*.

    Args:
        target: An open file descriptor of a seekable file.
    """
    window = {"driver": "raw", "offset": start, "size": length, "file": node(images)}
    source = "json:" + json.dumps(window, ensure_ascii=False)
    # as another user it may not open the file anew by its number, but is given it
    output = f"/dev/fd/{target}"
    user = user_for(image.path for image in images)
    if user is not None:
        os.fchown(target, *user)
    argv = ["qemu-img", "convert", "-U", "-n", "-O", "raw", "-S", "0", source, output]
    process.run(argv, pass_fds=[target], user=user)


def check(image: Path, *, shared: bool = False) -> bool:
    """
    Raises ToolFailed where the metadata of the qcow2 *image* is wrong; True: there are leaks.

    Args:
        shared: A running QEMU has the image open, too.

    Exit codes: 0 clean, 2 corrupt, 3 leaked clusters only.
    Source: qemu-img(1), section check.
    """
    share = ["-U"] if shared else []
    argv = ["qemu-img", "check", "-q", *share, "-f", "qcow2", os.fspath(image)]
    return process.run(argv, accept=(0, 3), user=user_for([image]))[0] == 3


def repair(image: Path, what: Literal["leaks", "all"] = "all") -> None:
    """
    Mend leaks, or reference counts too, of the qcow2 *image*.

    A commit into a target with wrong reference counts ends with exit code 0
    and wrong content; after this it is right.  Source: FIELD_NOTES §1.2.

    Raises:
        ToolFailed: Errors remain.
    """
    argv = ["qemu-img", "check", "-q", "-r", what, "-f", "qcow2", os.fspath(image)]
    # 0, 2 and 3 speak of what was found before the repair
    process.run(argv, accept=(0, 2, 3), user=user_for([], [image]))
    check(image)


def version() -> str:
    """The version of qemu-img, such as ``7.2.22``; ``unknown`` where it says none."""
    try:
        out = process.run(["qemu-img", "--version"])[1].decode(errors="replace")
    except ToolFailed:
        return "unknown"
    found = re.search(r"version (\d+(?:\.\d+)*)", out)
    return found[1] if found else "unknown"
