"""Random chains and random wishes, each from the dice that it is given."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.images.disks import Disk


@dataclass
class Wish:
    """A desired chain, made from an observed one."""

    chain: str
    current: str
    gone: list[str]
    keys: dict[str, Any] = field(default_factory=dict)


def random_text(dice: random.Random, letter: str, *, base: bool) -> str:
    """Up to 16 runs of 64 KiB: data, zeroes, or nothing."""
    count = dice.choice([16, 16, 16, dice.randint(4, 16)])
    weights = [6, 1, 1] if base else [3, 1, dice.choice([2, 8])]
    letters = dice.choices([letter, "0", "-"], weights, k=count)
    return " ".join(f"64k:{one}" for one in letters)


def random_options(dice: random.Random, *, base: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "cluster_size": dice.choice(["64k", "64k", "4k", 512, "2M"]),
        "compat": dice.choice(["1.1", "1.1", "0.10"]),
        "style": dice.choice(["relative", "relative", "absolute", "file", "json"]),
        "record_format": dice.random() > 0.1,
    }
    if base and dice.random() < 0.15:
        return {"raw": True}
    if options["compat"] == "1.1" and options["cluster_size"] in ("64k", "2M"):
        options["extended_l2"] = dice.random() < 0.2
    return options


def random_wish(dice: random.Random, names: list[str], top: str = "new") -> Wish:
    """
    A subsequence of the chain; sometimes a new top, a roll back, views nobody needs.

    Args:
        top: The name of a new top.
    """
    observed = list(names)
    keys: dict[str, Any] = {"active": f"{names[-1]}.qcow2"}
    gone: list[str] = []
    if dice.random() < 0.25 and len(observed) > 1:
        count = dice.randint(1, len(observed) - 1)
        gone = observed[-count:]
        observed = observed[:-count]
        keys["discard"] = list(gone)
    listed = [name for name in observed if dice.random() < 0.6] or [dice.choice(observed)]
    if dice.random() < 0.3:
        listed.append(top)
    if dice.random() < 0.2:
        keys["remove_base"] = True
    dropped = [name for name in observed if name not in listed]
    stays = names[0] in dropped and not keys.get("remove_base")
    gone += [name for name in dropped if not (stays and name == names[0])]
    marked = [
        f"~{name}" if name != listed[-1] and name != top and dice.random() < 0.25 else name
        for name in listed
    ]
    return Wish(" <- ".join(marked), observed[-1], gone, keys)


def random_chain(disk: Disk, dice: random.Random) -> tuple[list[str], bool]:
    """Two to six images in *disk*, base first; their names, and whether the base is raw."""
    names = [f"i{number}" for number in range(dice.randint(2, 6))]
    raw_base = False
    for number, name in enumerate(names):
        options = random_options(dice, base=number == 0)
        raw_base |= "raw" in options
        if raw_base and not options.get("record_format", True):
            options["record_format"] = True  # else only the spec could tell that it is raw
        text = random_text(dice, "ABCDEF"[number], base=number == 0)
        disk.add(name, text, on=names[number - 1] if number else None, **options)
    return names, raw_base
