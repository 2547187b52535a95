"""Spec files on disk: replaced in one act, or made where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from reconciler.model.errors import Busy, Mistake
from reconciler.model.image import Identity
from reconciler.tools import files, images

PATIENCE = 60.0
"""Seconds to wait for other edits of the same file; each may plan before it is written."""


@contextmanager
def alone(paths: Iterable[Path]) -> Iterator[None]:
    """
    Nobody else edits the files *paths* meanwhile; a later edit waits, and is made of the result.

    Raises:
        Mistake: Somebody else still edits one after `PATIENCE`, or it cannot be opened.
    """
    with ExitStack() as held:
        for path in sorted({images.real(path) for path in paths}):
            try:
                held.enter_context(files.alone_in(path, PATIENCE))
            except Busy as error:
                raise Mistake(f"{path} is being edited: {error}; nothing was done") from error
            except OSError as error:
                raise Mistake(f"{path} cannot be edited: {error.strerror}") from error
        yield


def replace_text(path: Path, before: str, after: str, *, held: bool = False) -> None:
    """
    Let the file *path* say *after*, durably, with its owner and mode; links are followed.

    Of two edits at one time the second waits, and is refused: it was made of
    a text that is no longer there.

    Args:
        held: It is edited inside `alone`.

    Raises:
        Mistake: It no longer says *before*, or cannot be written.
    """
    target = images.real(path)
    temporary = _temporary(target)
    try:
        with nullcontext() if held else files.alone_in(target, PATIENCE):
            try:
                if target.read_bytes() != before.encode():
                    raise Mistake(
                        f"{path} was edited by somebody else meanwhile; nothing was done: run "
                        "the same command again"
                    )
                files.write(temporary, after)
                files.take_manners(temporary, target)
                files.sync(temporary)
                os.rename(temporary, target)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)
            _sync_folder(path, target)
    except Busy as error:
        raise Mistake(f"{path} is being edited: {error}; nothing was done") from error
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}; nothing was done") from error


def create(path: Path, text: str) -> None:
    """
    Make the file *path*, which does not exist yet, durably.

    Raises:
        Mistake: It exists, or cannot be written.
    """
    temporary = _temporary(path)
    try:
        files.write(temporary, text, mode=0o666)
        made = os.stat(temporary)
        try:
            files.rename_new(temporary, path)
        except FileExistsError:
            raise
        except OSError as error:
            if images.identity(path) != Identity(made.st_dev, made.st_ino):
                raise
            raise _maybe_lost(path, error) from error
    except FileExistsError:
        raise Mistake(f"{path} exists already; nothing was overwritten") from None
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _temporary(path: Path) -> Path:
    """A name for what will be *path*, of this process alone: another's may be in the works."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}{files.NEW}")


def _sync_folder(path: Path, target: Path) -> None:
    """Make the new name of *target* durable; by now the edit is there, whatever happens."""
    try:
        files.sync(target.parent)
    except OSError as error:
        raise _maybe_lost(path, error) from error


def _maybe_lost(path: Path, error: OSError) -> Mistake:
    return Mistake(
        f"{path} was written, and may be lost if the power fails now: {error.strerror}; look "
        "after its filesystem"
    )
