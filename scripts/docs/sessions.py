#!/usr/bin/env python3
"""
Run the examples of README.md and docs/, and compare what they print with what the pages say.

    scripts/docs/sessions.py [--update] [PAGE...]

A page marks its examples with comments, which no reader sees:

    <!-- setup ... -->      begins a session in an empty folder, and runs these lines of bash
    <!-- hidden ... -->     runs them in the session that has begun
    <!-- write web.toml --> the next block is the content of this file
    <!-- run -->            the next block is run: a `console` block line by line, with the output
                            that it shows, a `sh` block as a whole

Lines of bash may also say:

    fill IMAGE BYTE OFFSET LENGTH     what a guest writes
    snapshot NAME BYTE OFFSET LENGTH  a snapshot of web, and what the guest writes then
    overlay NAME BELOW BYTE OFFSET    an overlay that is made by hand, and a write
    disk                              web <- monday <- tuesday, and the spec of it, vms.toml
    list NAME...                      the same spec, with these images

Output is compared without what differs from run to run: times, sizes on disk, digests, ids.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "/srv/vms"
"""What pages have instead of the scratch folder."""
STATE = "/var/lib/virt-chain"
"""The same, for the state directory."""

_DIRECTIVE = re.compile(
    r"^<!-- (?P<what>setup|hidden|write|run)\b(?P<text>.*?)-->\n"
    r"(?:```(?P<language>\w+)\n(?P<block>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_VARIES = (
    (r"\d{8}T\d{6}Z?|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z| UTC)?", "TIME"),
    (r"\d{4}-\d\d-\d\d", "DATE"),
    (r"\b\d+(\.\d+)? ?(B|KiB|MiB|GiB)\b", "SIZE"),
    (r"\b\d+(\.\d+)? s\b", "TIME"),
    (r"\b[0-9a-f]{12,64}\b", "DIGEST"),
    (r"\b(pid|process|inode) \d+", r"\1 N"),
    (r"\bheld by [\w-]+", "held by USER"),
    (r"^# |\n# ", "\n"),  # a comment is wrapped, and paths differ in length
    (r"\s+", " "),
)
_PRELUDE = r"""
fill() { qemu-io -f qcow2 -c "write -P $2 $3 $4" "$1" >/dev/null; }
overlay() {
    qemu-img create -q -f qcow2 -b "$2.qcow2" -F qcow2 "$1.qcow2"
    fill "$1.qcow2" "$3" "$4" 1M
}
list() {
    printf 'version = 1\n\n[domains.web.disks.vda]\nchain = [\n' >vms.toml
    printf '  "%s.qcow2",\n' "$@" >>vms.toml
    echo ']' >>vms.toml
}
disk() {
    qemu-img create -q -f qcow2 web.qcow2 8G
    fill web.qcow2 1 0 1M
    overlay monday web 2 1G
    overlay tuesday monday 3 2G
    list web monday tuesday
}
snapshot() { virt-chain snapshot web "$1" -y >/dev/null 2>&1; fill "$1.qcow2" "$2" "$3" "$4"; }
"""


def pages() -> list[Path]:
    """Every page that may have examples."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def has_examples(page: Path) -> bool:
    """True where *page* has something to run."""
    return any(one["what"] == "run" for one in _DIRECTIVE.finditer(page.read_text()))


def without_directives(markdown: str) -> str:
    """*markdown* without the comments that only this script reads."""
    return re.sub(
        r"^<!-- (setup|hidden|write|run)\b.*?-->\n", "", markdown, flags=re.DOTALL | re.MULTILINE
    )


def same(shown: str, printed: str) -> bool:
    """True where both say the same, apart from what differs from run to run."""
    return _essence(shown) == _essence(printed)


def _essence(text: str) -> str:
    for pattern, replacement in _VARIES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.strip()


def replay(page: Path) -> str:
    """
    The text of *page* with the output that its examples have today.

    Output that is the same but for times and sizes stays as the page has it.

    Raises:
        SystemExit: A setup or a `sh` block failed.
    """
    text, done, parts = page.read_text(), 0, []
    with tempfile.TemporaryDirectory(prefix="virt-chain-docs-") as name:
        session = None
        for number, found in enumerate(_DIRECTIVE.finditer(text)):
            block, new = found["block"], None
            if found["what"] == "setup" or session is None:
                if session:
                    session.close()
                session = _Session(Path(name).resolve() / str(number))
            match found["what"]:
                case "setup" | "hidden":
                    session.script(found["text"])
                case "write":
                    (session.folder / found["text"].strip()).write_text(_needed(block, page))
                case "run" if found["language"] == "console":
                    new = "".join(session.lines(_needed(block, page)))
                case _:
                    session.script(_needed(block, page))
            if new is not None and not same(block, new):
                parts += [text[done : found.start("block")], new]
                done = found.end("block")
        if session:
            session.close()
    return "".join([*parts, text[done:]])


def _needed(block: str | None, page: Path) -> str:
    if block is None:
        raise SystemExit(f"{page}: a `run` or `write` comment has no block below it")
    return block


_END = "--- end of a command ---"


class _Session:
    """One shell in a scratch folder, so that `cd` and `export` hold for what follows."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "vms"
        self.folder.mkdir(parents=True)
        (scratch / "config.toml").touch(mode=0o600)
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=self.folder,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "HOME": str(self.folder),
                "LC_ALL": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
                "VIRT_CHAIN_CONFIG": str(scratch / "config.toml"),
                "VIRT_CHAIN_STATE_DIR": str(scratch / "state"),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.script(_PRELUDE)

    def close(self) -> None:
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.close()
        self._shell.stdout.close()
        self._shell.wait()

    def script(self, lines: str) -> None:
        """Run *lines*, each of which has to end well."""
        self._run(f"set -e\n{lines}\nset +e")

    def lines(self, block: str) -> Iterator[str]:
        """The block anew: each command, and what it prints now."""
        space = ""
        for line in block.splitlines():
            if line.startswith("$ "):
                printed = self._run(line[2:])
                yield f"{space}{line}\n{printed}"
                space = "\n" if printed else ""

    def _run(self, text: str) -> str:
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{{\n{text}\n}} </dev/null\necho; echo '{_END}'\n")
        self._shell.stdin.flush()
        printed = []
        for line in self._shell.stdout:
            if line.rstrip() == _END:
                text = "".join(printed).replace(str(self.folder), FOLDER).strip("\n")
                text = text.replace(f"{self.folder.parent}/state", STATE)
                return "".join(f"{one.rstrip()}\n" for one in text.splitlines())
            printed.append(line)
        raise SystemExit(f"{text.strip()}\nended with an error:\n{''.join(printed)}")


def main(arguments: Sequence[str]) -> int:
    """The exit code: 1 where a page shows what is not printed any more."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--update", action="store_true", help="write the new output into the pages")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    asked = parser.parse_args(arguments)
    stale = False
    for page in asked.pages or pages():
        if not has_examples(page):
            continue
        old, new = page.read_text(), replay(page)
        if old != new:
            stale = True
            lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, str(page), "today", n=1))
            if asked.update:
                page.write_text(new)
    return int(stale and not asked.update)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
