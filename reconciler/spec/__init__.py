"""From TOML to desired chains: the schema first, then the meaning; all problems at once."""

from __future__ import annotations

from reconciler.spec.read import Remembering, load

__all__ = ["load", "Remembering"]
