"""Spec files on disk: replaced in one act, or made where there is none."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from reconciler.model.errors import Mistake
from reconciler.tools import files, images


def replace_text(path: Path, before: str, after: str) -> None:
    """
    Let the file *path* say *after*, durably, with its owner and mode; links are followed.

    Raises:
        Mistake: It no longer says *before*, or cannot be written.
    """
    target = images.real(path)
    temporary = files.unmade(target)
    try:
        if target.read_bytes() != before.encode():
            raise Mistake(f"{path} was edited by somebody else meanwhile; nothing was done")
        files.write(temporary, after)
        files.take_manners(temporary, target)
        files.sync(temporary)
        files.rename_over(temporary, target)
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}; nothing was done") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def create(path: Path, text: str) -> None:
    """
    Make the file *path*, which does not exist yet, durably.

    Raises:
        Mistake: It exists, or cannot be written.
    """
    temporary = files.unmade(path)
    try:
        files.write(temporary, text, mode=0o666)
        files.rename_new(temporary, path)
    except FileExistsError:
        raise Mistake(f"{path} exists already; nothing was overwritten") from None
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)
