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
    code = run(sys.argv[1:])
    if code > 128:  # a signal: what threads still wait for is let go
        from reconciler.cli.stopping import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
