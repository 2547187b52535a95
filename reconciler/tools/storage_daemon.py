"""
qemu-storage-daemon: copies data up into an overlay and leaves every header alone.

``qemu-img rebase`` and a finished stream rewrite the backing name before the
copied data is durable.  Here the stream is cancelled when all is copied, just
before it would touch the header; the data stays.  The caller makes it durable,
compares it, and only then relinks.

Source: FIELD_NOTES §1.1; QEMU, docs/interop/qemu-storage-daemon-qmp-ref,
block-stream and job-cancel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from reconciler.model.errors import ToolFailed
from reconciler.model.image import Image
from reconciler.tools import process
from reconciler.tools.privileges import user_for
from reconciler.tools.qemuimg import Progress

PROGRAM = "qemu-storage-daemon"
_JOB = "copy-up"
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 1024 * 1024),
}
"""
The stream takes a fresh buffer for each piece; kept instead of mapped anew, the
copy takes two thirds of the time (measured, QEMU 7.2).
"""


def available() -> bool:
    """True where the program is installed; `qemuimg.rebase` does the work otherwise."""
    return process.installed(PROGRAM)


def copy_up(
    images: Sequence[Image],
    base: int | None,
    *,
    bandwidth: int | None = None,
    progress: Progress | None = None,
) -> None:
    """
    Copy what the last of *images* reads from above *base* into it.

    Args:
        images: The chain, base first.
        base: Index of the image below which nothing is copied; None: all.
        bandwidth: Limit in bytes a second.
        progress: Called with the part that is done, about twice a second.

    Raises:
        ToolFailed: The daemon or the job failed; every view reads as before.
    """
    argv = [PROGRAM, "--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"]
    *below, top = (image.path for image in images)
    user = user_for(below, [top])
    child = process.start(argv, talk=True, settings=_MALLOC, user=user)
    try:
        daemon = _Monitor(child)
        daemon.ask("qmp_capabilities")
        for index, image in enumerate(images):
            daemon.ask("blockdev-add", **_node(index, image, writable=index == len(images) - 1))
        limit = {"speed": bandwidth} if bandwidth else {}
        above = {} if base is None else {"base-node": f"image{base}"}
        daemon.ask(
            "block-stream",
            **{"job-id": _JOB, "device": f"image{len(images) - 1}"},
            **{"auto-finalize": False, "auto-dismiss": False},
            **above,
            **limit,
        )
        daemon.wait_until("pending", progress)
        daemon.ask("job-cancel", id=_JOB)
        daemon.wait_until("concluded", None)
        daemon.ask("quit")
        _, err = child.communicate()
    except BaseException:
        process.stop(child)
        raise
    if child.returncode:
        raise ToolFailed(argv, child.returncode, err.decode(errors="replace"))


def _node(index: int, image: Image, *, writable: bool) -> dict[str, Any]:
    file = {"driver": "file", "filename": os.fspath(image.path)}
    options: dict[str, Any] = {"driver": image.format, "node-name": f"image{index}", "file": file}
    if image.format == "qcow2":
        options["backing"] = f"image{index - 1}" if index else None
    if not writable:
        options["read-only"] = True
    return options


class _Monitor:
    """A QMP conversation over the standard input and output of a daemon."""

    def __init__(self, child: process.Child) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._to: IO[bytes] = child.stdin
        self._from: IO[bytes] = child.stdout
        self._statuses: list[str] = []
        self._stands = process.Still(child, [PROGRAM])
        self._read()  # the greeting

    def _read(self) -> dict[str, Any]:
        while not process.wait_readable(self._from.fileno(), process.TICK):
            self._stands.check()
        line = self._from.readline()
        if not line:
            code = self._child.wait()
            err = self._child.stderr.read() if self._child.stderr else b""
            raise ToolFailed([PROGRAM], code, err.decode(errors="replace") or "it ended early")
        message: dict[str, Any] = json.loads(line)
        data = message.get("data", {})
        if message.get("event") == "JOB_STATUS_CHANGE" and data.get("id") == _JOB:
            self._statuses.append(data["status"])
        return message

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to *command*; ToolFailed with the daemon's words on an error."""
        request = {"execute": command, "arguments": arguments}
        with suppress(BrokenPipeError):  # the daemon ended: reading tells what it said
            self._to.write(json.dumps(request).encode() + b"\n")
            self._to.flush()
        while True:
            message = self._read()
            if "error" in message:
                raise ToolFailed([PROGRAM, command], 1, message["error"].get("desc", "error"))
            if "return" in message:
                return message["return"]

    def wait_until(self, status: str, progress: Progress | None) -> None:
        """Wait for the job to reach *status*; ToolFailed where it ends before, with its error."""
        while status not in self._statuses:
            if "concluded" in self._statuses:
                jobs = self.ask("query-jobs")
                error = next((job.get("error") for job in jobs if job["id"] == _JOB), None)
                raise ToolFailed([PROGRAM, "block-stream"], 1, error or "the job ended early")
            if progress is None or process.wait_readable(self._from.fileno(), 0.5):
                self._read()
            else:
                self._report(progress)

    def _report(self, progress: Progress) -> None:
        for job in self.ask("query-jobs"):
            if job["id"] == _JOB and job["total-progress"]:
                progress(job["current-progress"] / job["total-progress"])
