"""Home folders of users."""

from __future__ import annotations

import os
import pwd


def at_home(name: str) -> str:
    """
    *name* with a ``~`` at its start replaced by the folder it stands for, if it is known.

    A home that the environment leaves empty, as some service managers do, or names by no absolute
    path, is the one in the password database; ``/`` would be another folder altogether.
    """
    if name[:1] != "~":
        return name
    user, slash, rest = name.partition("/")
    if user != "~" or os.environ.get("HOME", "").startswith("/"):
        return os.path.expanduser(name)
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return name
    return f"{home.rstrip('/')}{slash}{rest}" if home.startswith("/") else name
