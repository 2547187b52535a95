"""Starting programs: what they print, how they end, and who ends them."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.model.errors import ToolFailed
from reconciler.tools import process

ROOT = Path(process.__file__).parents[2]
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A deadlock fails a test and does not hang it."""

    def late(*_: object) -> None:
        raise TimeoutError("this took too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def runs(pid: int) -> bool:
    """True while the process *pid* runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def ends(pid: int, seconds: float = 5.0) -> bool:
    """True as soon as the process *pid* has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not runs(pid):
            return True
        time.sleep(0.01)
    return False


def test_the_standard_output_is_told():
    assert process.run(shell("echo hello; echo other >&2")) == (0, b"hello\n")


def test_an_exit_code_that_is_accepted_is_told():
    assert process.run(shell("echo hello; exit 3"), accept=(0, 3)) == (3, b"hello\n")


@pytest.mark.parametrize("progress", [None, lambda _: None], ids=["silent", "followed"])
def test_another_exit_code_is_a_failure_that_carries_what_was_said(progress):
    with pytest.raises(ToolFailed) as raised:
        process.run(shell("echo out; echo ' no space ' >&2; exit 4"), progress=progress)

    error = raised.value
    assert (error.argv, error.code, error.output) == (
        ("sh", "-c", "echo out; echo ' no space ' >&2; exit 4"),
        4,
        "no space",
    )
    assert str(error) == "sh -c: no space"


def test_a_failure_that_says_nothing_tells_its_exit_code():
    with pytest.raises(ToolFailed) as raised:
        process.run(["false"])

    assert str(raised.value) == "false: exit code 1"


def test_a_killed_program_tells_its_signal():
    with pytest.raises(ToolFailed) as raised:
        process.run(shell("kill -KILL $$"))

    assert (raised.value.code, str(raised.value)) == (-9, "sh -c: signal 9")


def test_words_that_are_no_text_are_told_as_they_can_be():
    with pytest.raises(ToolFailed) as raised:
        process.run(shell(r"printf 'caf\351' >&2; exit 1"))

    assert raised.value.output == "caf\ufffd"


MISSING = [
    ("qemu-img", "qemu-img is not installed; on Debian it is in qemu-utils"),
    (
        "qemu-storage-daemon",
        "qemu-storage-daemon is not installed; on Debian it is in qemu-system-common",
    ),
]


@pytest.mark.parametrize(("program", "said"), MISSING)
def test_a_missing_program_says_where_it_is_found(monkeypatch, tmp_path, program, said):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolFailed) as raised:
        process.run([program, "--version"])

    assert (raised.value.code, raised.value.output) == (127, said)


def test_a_program_is_installed_where_the_path_has_it(monkeypatch, tmp_path):
    (tmp_path / "qemu-frob").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert (process.installed("qemu-frob"), process.installed("qemu-img")) == (True, False)


FLOOD = """
import sys
for number in range(64):
    sys.stderr.buffer.write(b"e" * 65536)
    sys.stdout.buffer.write(b"o" * 65536)
    sys.stdout.buffer.flush()
sys.exit(int(sys.argv[1]))
"""
ONE_AFTER_THE_OTHER = """
import os, sys
os.write(1, b"")
for number in range(64):
    sys.stderr.buffer.write(b"e" * 65536)
sys.stderr.buffer.flush()
for number in range(64):
    sys.stdout.buffer.write(b"o" * 65536)
sys.stdout.buffer.flush()
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("script", [FLOOD, ONE_AFTER_THE_OTHER], ids=["mixed", "one by one"])
@pytest.mark.parametrize("followed", [False, True], ids=["silent", "followed"])
def test_output_larger_than_a_pipe_arrives_whole(script, followed):
    told: list[bytes] = []
    progress = told.append if followed else None

    code, out = process.run([*python(script), "0"], progress=progress)
    with pytest.raises(ToolFailed) as raised:
        process.run([*python(script), "7"], progress=progress)

    assert (code, out == b"o" * 4 * MIB) == (0, True)
    assert (raised.value.code, raised.value.output == "e" * 4 * MIB) == (7, True)
    assert b"".join(told) == out * 2 * followed


def test_output_is_told_as_it_arrives():
    told: list[tuple[bytes, bool]] = []
    began = time.monotonic()

    process.run(
        shell("echo one; sleep 0.5; echo two"),
        progress=lambda piece: told.append((piece, time.monotonic() - began < 0.45)),
    )

    assert told == [(b"one\n", True), (b"two\n", False)]


@pytest.mark.parametrize("progress", [None, lambda _: None], ids=["silent", "followed"])
def test_a_program_that_closes_its_output_early_is_waited_for(progress):
    script = "exec >&- 2>&-; sleep 0.2; exit 5"

    assert process.run(shell(script), accept=(5,), progress=progress) == (5, b"")


def test_a_program_speaks_english_and_gets_no_environment_but_the_path(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example")

    out = process.run(["env"])[1].decode().splitlines()

    names = {line.partition("=")[0] for line in out}
    assert names <= {"PATH", "TMPDIR", "LC_ALL", "MALLOC_ARENA_MAX"}
    assert "LC_ALL=C.UTF-8" in out
    assert f"PATH={os.environ['PATH']}" in out


class Refusing:
    """libc whose setns fails at some of its calls, counted from 1."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.calls = failing, 0

    def setns(self, *_: int) -> int:
        self.calls += 1
        if self.calls in self.failing:
            ctypes.set_errno(errno.EPERM)
            return -1
        return 0


def test_where_the_network_cannot_be_taken_away_programs_run_with_it(monkeypatch):
    monkeypatch.setattr(process, "_no_network", lambda: 0)
    monkeypatch.setattr(process, "_libc", Refusing(1))
    with process._without_network():
        pass
    assert process._libc.calls == 1


def test_a_thread_that_cannot_come_back_to_its_network_says_so(monkeypatch):
    monkeypatch.setattr(process, "_no_network", lambda: 0)
    monkeypatch.setattr(process, "_libc", Refusing(2))
    with (
        pytest.raises(OSError, match="this thread stays without network: Operation not permitted"),
        process._without_network(),
    ):
        pass


def test_a_program_has_no_network():
    interfaces = process.run(["cat", "/proc/net/dev"])[1].decode().splitlines()[2:]
    routes = process.run(["cat", "/proc/net/route"])[1].decode().splitlines()[1:]

    assert os.geteuid() == 0, "only root can take the network away; run the tests as root"
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert routes == []
    assert len(Path("/proc/net/dev").read_text().splitlines()) >= 3  # ours is as it was


@pytest.fixture
def limits(monkeypatch):
    def give(**values):
        monkeypatch.setattr(process, "_limits", process.Limits(**values))

    return give


def test_a_program_that_asks_for_too_much_memory_fails(limits):
    limits(memory=256 * MIB)

    with pytest.raises(ToolFailed, match="MemoryError"):
        process.run(python("import time; time.sleep(0.3); bytearray(512 * 1024 * 1024)"))


@pytest.mark.parametrize("reads", [False, True])
def test_a_program_of_another_user_has_its_limits_too(limits, reads):
    limits(memory=256 * MIB)
    script = "sleep 0.3; ulimit -v; ulimit -c; ulimit -t"
    out = process.run(shell(script), user=(65534, 65534), reads=reads)[1]

    seconds = process._limits.seconds if reads else "unlimited"
    assert out.decode().split() == [str(256 * 1024), "0", str(seconds)]


@pytest.mark.parametrize("progress", [None, lambda _: None])
def test_a_program_that_prints_without_end_is_ended(limits, progress):
    limits(output=MIB)

    with pytest.raises(ToolFailed, match="prints more than 1048576 bytes"):
        process.run(["yes"], progress=progress)


def test_a_program_that_stands_still_is_ended(limits, monkeypatch):
    monkeypatch.setattr(process, "TICK", 0.1)
    limits(seconds=1)

    with pytest.raises(ToolFailed, match="it stood still for 1 s"):
        process.run(["sleep", "60"])


def test_a_program_that_computes_without_a_word_goes_on(limits, monkeypatch):
    monkeypatch.setattr(process, "TICK", 0.1)
    limits(seconds=1)
    script = "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"

    assert process.run(python(script))[0] == 0


def test_a_program_that_only_reads_may_not_compute_for_ever(limits):
    limits(seconds=1)

    with pytest.raises(ToolFailed) as failed:
        process.run(python("while True: pass"), reads=True)
    assert failed.value.code in (-signal.SIGXCPU, -signal.SIGKILL)


def test_a_program_runs_as_the_user_that_it_is_given(tmp_path):
    out = process.run(["id"], user=(65534, 65534))[1].decode()

    assert out.startswith("uid=65534")
    assert "groups=65534" in out


def test_the_environment_of_virt_chain_itself_stays(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    process.run(["true"])

    assert os.environ["LC_ALL"] == "de_DE.UTF-8"


def test_what_a_program_makes_is_for_its_owner_alone(tmp_path):
    process.run(["touch", tmp_path / "new"])

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_program_has_nothing_to_read():
    assert process.run(["cat"]) == (0, b"")


def test_a_program_gets_the_descriptors_it_is_given_and_no_other(tmp_path):
    with (tmp_path / "given").open("wb") as given, (tmp_path / "kept").open("wb") as kept:
        os.set_inheritable(kept.fileno(), True)
        script = (
            f"echo hello > /dev/fd/{given.fileno()}; test -e /dev/fd/{kept.fileno()} || echo closed"
        )

        out = process.run(shell(script), pass_fds=[given.fileno()])[1]

    assert (out, (tmp_path / "given").read_bytes()) == (b"closed\n", b"hello\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_program_ends_with_an_error_of_who_follows_it(error):
    pids: list[int] = []

    def follow(piece: bytes) -> None:
        pids.append(int(piece))
        raise error

    with pytest.raises(error):
        process.run(shell("echo $$; exec sleep 60"), progress=follow)

    assert [runs(pid) for pid in pids] == [False]


def test_a_program_that_does_not_listen_is_killed():
    deaf = process.start(shell("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    assert deaf.stdout is not None
    deaf.stdout.read(6)

    process.stop(deaf, patience=0.2)

    assert deaf.returncode == -9


def test_stopping_what_has_ended_is_fine():
    child = process.start(["true"])
    child.wait()

    process.stop(child)
    process.stop(child)

    assert child.returncode == 0


def test_something_to_read_is_waited_for():
    reading, writing = os.pipe()
    empty = process.wait_readable(reading, 0.01)
    os.write(writing, b"x")
    full = process.wait_readable(reading, 5)
    os.close(reading)
    os.close(writing)

    assert (empty, full) == (False, True)


PARENT = """
import sys
from reconciler.tools import process
child = process.start(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
"""


def parent(script: str) -> subprocess.Popen[str]:
    """Another Python that has the package, in a process group of its own."""
    return subprocess.Popen(
        python(script),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_program_ends_when_virt_chain_is_killed():
    with parent(PARENT) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        before = runs(pid)
        other.kill()
        other.wait()
        after = ends(pid)

    assert (before, after) == (True, True)


def test_the_interrupt_of_a_terminal_reaches_virt_chain_alone():
    script = """
import signal
from reconciler.tools import process
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
child = process.start(["sh", "-c", "echo ready; sleep 0.5; echo done"])
child.stdout.read(6)
print("ready", flush=True)
out = child.communicate()[0].decode().strip()
print(child.returncode, out, flush=True)
"""
    with parent(script) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        os.killpg(other.pid, signal.SIGINT)
        out, _ = other.communicate()

    assert out == "interrupted\n0 done\n"


def test_an_interrupted_run_ends_its_program():
    script = """
import signal
from reconciler.tools import process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def follow(piece):
    print(piece.decode().strip(), flush=True)
try:
    process.run(["sh", "-c", "echo $$; exec sleep 60"], progress=follow)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with parent(script) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        os.killpg(other.pid, signal.SIGINT)
        out, _ = other.communicate()

    assert (out, ends(pid)) == ("interrupted\n", True)
