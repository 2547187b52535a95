"""What all tests share: no config of the host that they run on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_config = Path(tempfile.mkdtemp(prefix="virt-chain-tests-")) / "config.toml"
_config.touch(mode=0o600)
os.environ["VIRT_CHAIN_CONFIG"] = str(_config)
