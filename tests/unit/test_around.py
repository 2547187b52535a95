"""What libvirt knows, read again one domain at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.engine import around
from reconciler.engine.around import Around
from reconciler.model.desired import DesiredDisk, Location
from reconciler.model.errors import ObserveError

URI = "test:///default"


def test_a_connection_that_did_not_answer_stays_silent_until_all_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers for one domain by now; which images the others have, nobody has told."""

    def connect(uri: str) -> None:
        raise AssertionError(f"{uri} was asked for one domain of many")

    monkeypatch.setattr(around, "_connect", connect)
    disk = DesiredDisk(
        "vm", "vda", (), Location(Path("chain.toml"), 1, 1), Path("/images"), connection=URI
    )
    renewed = Around({}, {URI: f"{URI} does not answer"}).renewed(disk)

    with pytest.raises(ObserveError, match="does not answer"):
        renewed.disk(disk)
