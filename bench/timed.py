"""
The chains whose merges are timed: each holds 1 GiB of guest data.

The scripts are the fastest correct sequences that somebody who knows FIELD_NOTES
§1 and §3 by heart would type, and, since no sequence is correct that a power cut
undoes, each ends with ``sync`` of the file that now holds the data and of the
folder.  They know the chain beforehand, check nothing and cannot be resumed.
"""

from __future__ import annotations

from bench.scenes import CLUSTER, MIB, Layer, Scene, mib

COMMIT = "qemu-img commit -q -d -f qcow2"
REBASE = "qemu-img rebase -q -f qcow2 -F qcow2"
FLAT = "qemu-img rebase -q -f qcow2"
RELINK = "qemu-img rebase -q -u -f qcow2 -F qcow2"


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def timed_scenes(shrink: int) -> tuple[Scene, ...]:
    """All of them, divided by *shrink* in size."""
    size = 1024 * MIB // shrink
    return (
        _big_under_small(size, shrink),
        _middle(size, shrink),
        _flatten(size, shrink),
        _five_into_one(size, shrink),
        _scattered(size),
    )


def _big_under_small(size: int, shrink: int) -> Scene:
    return Scene(
        "drop a big layer under a small active one",
        size,
        (
            Layer("base", (mib(0, 160, shrink),)),
            Layer("big", (mib(100, 800, shrink),)),
            Layer("active", (mib(60, 64, shrink),)),
        ),
        keep=("base", "active"),
        experts=(
            _lines(
                f"{COMMIT} -b big.qcow2 active.qcow2",
                "mv big.qcow2 active.qcow2",
                "sync active.qcow2 .",
            ),
        ),
        today=(
            (
                "rebase upward",
                _lines(f"{REBASE} -b base.qcow2 active.qcow2", "sync active.qcow2", "rm big.qcow2"),
            ),
        ),
    )


def _middle(size: int, shrink: int) -> Scene:
    return Scene(
        "drop two middle layers, pulled up",
        size,
        (
            Layer("base", (mib(0, 256, shrink),)),
            Layer("p1", (mib(100, 128, shrink),)),
            Layer("p2", (mib(200, 128, shrink),)),
            Layer("q", (mib(300, 384, shrink),)),
            Layer("active", (mib(0, 128, shrink),)),
        ),
        keep=("base", "q", "active"),
        experts=(
            _lines(f"{REBASE} -b base.qcow2 q.qcow2", "sync q.qcow2", "rm p1.qcow2 p2.qcow2"),
        ),
        today=(
            (
                "rebase one by one",
                _lines(
                    f"{REBASE} -b p1.qcow2 q.qcow2",
                    "rm p2.qcow2",
                    f"{REBASE} -b base.qcow2 q.qcow2",
                    "sync q.qcow2",
                    "rm p1.qcow2",
                ),
            ),
        ),
    )


def _flatten(size: int, shrink: int) -> Scene:
    return Scene(
        "flatten two layers off a golden base",
        size,
        (
            Layer("base", (mib(0, 512, shrink),)),
            Layer("a", (mib(384, 256, shrink),)),
            Layer("active", (mib(576, 256, shrink),)),
        ),
        keep=("active",),
        experts=(
            _lines(f'{FLAT} -b "" active.qcow2', "sync active.qcow2", "rm a.qcow2"),
            _lines(
                "qemu-img convert -q -W -f qcow2 -O qcow2 active.qcow2 new.qcow2",
                "sync new.qcow2",
                "mv new.qcow2 active.qcow2",
                "rm a.qcow2",
                "sync .",
            ),
        ),
        today=(
            (
                "rebase one by one",
                _lines(
                    f"{REBASE} -b base.qcow2 active.qcow2",
                    "rm a.qcow2",
                    f'{FLAT} -b "" active.qcow2',
                    "sync active.qcow2",
                ),
            ),
        ),
    )


def _five_into_one(size: int, shrink: int) -> Scene:
    return Scene(
        "merge five layers into one",
        size,
        (
            Layer("base", (mib(0, 240, shrink),)),
            Layer("a", (mib(200, 160, shrink),)),
            Layer("b", (mib(320, 160, shrink),)),
            Layer("c", (mib(440, 320, shrink),)),
            Layer("d", (mib(700, 96, shrink),)),
            Layer("active", (mib(40, 48, shrink),)),
        ),
        keep=("base", "active"),
        experts=(
            _lines(
                f"{COMMIT} -b c.qcow2 active.qcow2",
                f"{REBASE} -b base.qcow2 c.qcow2",
                "mv c.qcow2 active.qcow2",
                "sync active.qcow2 .",
                "rm a.qcow2 b.qcow2 d.qcow2",
            ),
            _lines(
                f"{COMMIT} -b a.qcow2 active.qcow2",
                "mv a.qcow2 active.qcow2",
                "sync active.qcow2 .",
                "rm b.qcow2 c.qcow2 d.qcow2",
            ),
        ),
        today=(
            (
                "commit one by one from the top",
                _lines(
                    f"{COMMIT} -b d.qcow2 active.qcow2",
                    f"{COMMIT} -b c.qcow2 d.qcow2",
                    f"{COMMIT} -b b.qcow2 c.qcow2",
                    f"{COMMIT} -b a.qcow2 b.qcow2",
                    "mv a.qcow2 active.qcow2",
                    "sync active.qcow2 .",
                    "rm b.qcow2 c.qcow2 d.qcow2",
                ),
            ),
            (
                "rebase one by one upward",
                _lines(
                    *(
                        f"{REBASE} -b {below}.qcow2 active.qcow2"
                        for below in ("c", "b", "a", "base")
                    ),
                    "sync active.qcow2",
                    "rm a.qcow2 b.qcow2 c.qcow2 d.qcow2",
                ),
            ),
        ),
    )


def _scattered(size: int) -> Scene:
    clusters = size // CLUSTER
    return Scene(
        "drop a middle layer of scattered clusters",
        size,
        (
            Layer("base", (range(clusters * 3 // 8),)),
            Layer("p", (range(0, clusters, 8),)),
            Layer("q", (range(0, clusters, 3),)),
            Layer("active", (range(clusters // 6),)),
        ),
        keep=("base", "q", "active"),
        experts=(_lines(f"{REBASE} -b base.qcow2 q.qcow2", "sync q.qcow2", "rm p.qcow2"),),
    )


def written_scenes(shrink: int) -> tuple[Scene, ...]:
    """Smaller chains of which only the written bytes are measured."""
    size = 1024 * MIB // shrink
    clusters = size // CLUSTER
    base = Layer("base", (mib(0, 64, shrink),))
    return (
        Scene(
            "600 MiB layer under an active one of 8 MiB",
            size,
            (
                base,
                Layer("big", (mib(100, 600, shrink),)),
                Layer("active", (mib(300, 8, shrink),)),
            ),
            keep=("base", "active"),
        ),
        Scene(
            "drop a middle layer, committed down and renamed",
            size,
            (
                base,
                Layer("p", (mib(0, 192, shrink),)),
                Layer("q", (mib(150, 48, shrink),)),
                Layer("active", (mib(600, 32, shrink),)),
            ),
            keep=("base", "q", "active"),
        ),
        Scene(
            "drop the active layer",
            size,
            (
                base,
                Layer("p", (mib(0, 96, shrink),)),
                Layer("active", (mib(64, 48, shrink),)),
            ),
            keep=("base", "p"),
        ),
        Scene(
            "three groups",
            size,
            (
                base,
                Layer("a", (mib(0, 64, shrink),)),
                Layer("b", (mib(48, 32, shrink),)),
                Layer("c", (mib(200, 24, shrink),)),
                Layer("d", (mib(220, 80, shrink),)),
                Layer("e", (mib(500, 64, shrink),)),
                Layer("f", (mib(540, 40, shrink),)),
                Layer("active", (mib(0, 8, shrink),)),
            ),
            keep=("base", "b", "d", "active"),
        ),
        Scene(
            "scattered clusters in three layers",
            size,
            (
                base,
                Layer("a", (range(0, clusters, 12),)),
                Layer("b", (range(0, clusters, 7),)),
                Layer("active", (range(0, clusters, 10),)),
            ),
            keep=("base", "active"),
        ),
    )
