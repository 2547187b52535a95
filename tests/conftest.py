"""What all tests share: no config of the host that they run on, and one command line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.forked import build_once

build_once()
# a pause of a busy machine is no finding
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
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
