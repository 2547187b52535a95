"""``virt-chain``, and ``python -m reconciler``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """The entry point of the command."""
    # a command ends before cycles matter, and looking for some takes a tenth of a plan; those
    # that run long turn it on
    gc.disable()
    from reconciler.cli.main import run

    code = run(sys.argv[1:])
    if code > 128:  # a signal: what threads still wait for is let go
        from reconciler.cli.stopping import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
