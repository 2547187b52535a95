"""``virt-chain``, and ``python -m reconciler``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """The entry point of the command."""
    # what the imports make lives until the end: looking through it costs a tenth of a `plan`
    gc.disable()
    from reconciler.cli.main import run

    gc.freeze()
    gc.enable()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
