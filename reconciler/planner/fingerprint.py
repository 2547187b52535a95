"""What a plan relies on, as a digest."""

from __future__ import annotations

import hashlib

from reconciler.model.image import Image
from reconciler.planner.task import Task


def fingerprint(task: Task) -> str:
    """
    A digest of all that a plan relies on, but not of the guest's own data.

    It changes with the observed chain (files, sizes, headers), the desired
    chain, and with who else stands on an image.
    """
    facts = {
        "observed": [_facts(image) for image in task.chain],
        "outside": {str(p): [_facts(i) for i in c] for p, c in sorted(task.outside.items())},
        "desired": [
            [str(w.path), w.format, w.size, w.template, w.restore_point, w.image is not None]
            for w in task.wanted
        ],
        # while a guest runs, its image is always so
        "dirty": [] if task.on else [str(image.path) for image in task.chain if image.dirty],
        "discard": sorted(str(path) for path in task.discard),
        "rules": [task.remove_base, task.bitmaps, task.default_format],
        "users": {str(path): list(users) for path, users in sorted(task.users.items())},
        "templates": sorted(str(path) for path in task.chain.paths if path in task.templates),
        "state": [task.on, str(task.attached), task.pinned, task.on_running],
        "snapshots": {name: str(one.image) for name, one in sorted(task.snapshots.items())},
        "definition": [task.transient, [str(path) for path in task.outdated]],
        "writers": {str(path): who for path, who in sorted(task.writers.items())},
        "strangers": sorted(str(path) for path in task.strangers),
        "hidden": {str(path): str(file) for path, file in sorted(task.hidden.items())},
    }
    text = repr(facts)  # of texts, numbers, lists: the same in every process
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _facts(image: Image) -> list[object]:
    identity = (image.identity.device, image.identity.inode) if image.identity else None
    return [
        str(image.path),
        identity,
        image.format,
        image.virtual_size,
        image.recorded,
        image.recorded_format,
        image.snapshots,
        image.bitmaps,
        image.links,
        str(image.second),
        [image.encrypted, image.data_file, image.corrupt, image.unknown_features],
    ]
