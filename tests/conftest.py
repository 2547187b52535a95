"""What all tests share: no config of the host that they run on, and one command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.forked import build_once

build_once()
# each of the programs that tests start would compile all of virt-chain anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# a pause of a busy machine is no finding
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def _as_good_as_a_disk(folder: Path) -> bool:
    """
    Whether *folder* has room, and all of a filesystem that tests rely on.

    Those are birth times, extended attributes and O_DIRECT, which a tmpfs has in
    newer kernels only.
    """
    try:
        if shutil.disk_usage(folder).free < _ROOM:
            return False
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.setxattr(file.name, "user.test", b"1")
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
            argv = ["stat", "--format=%W", file.name]
            born = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
            return int(born) > 0
    except (OSError, ValueError, subprocess.CalledProcessError):
        return False


_ROOM = 2 * 1024**3
if _as_good_as_a_disk(Path("/dev/shm")):
    # the folders of tests lie in memory, where an fsync costs nothing; what the
    # power takes is tried on real filesystems in tests/faults
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
_config = Path(tempfile.mkdtemp(prefix="virt-chain-tests-")) / "config.toml"
_config.touch(mode=0o600)
os.environ["VIRT_CHAIN_CONFIG"] = str(_config)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The host's own config, empty."""
    path = tmp_path / "config.toml"
    path.touch(mode=0o600)
    monkeypatch.setenv("VIRT_CHAIN_CONFIG", str(path))
    return path
