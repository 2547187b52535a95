"""The chains that are measured: which cluster is in which layer, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

CLUSTER = 64 * 1024
"""Bytes of a cluster: the default of qcow2."""
MIB = 1024 * 1024
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Layer:
    """
    One image of a chain, and the clusters that are allocated in it.

    Attributes:
        runs: Cluster numbers; a range with a step is scattered.
    """

    name: str
    runs: tuple[range, ...]

    @property
    def clusters(self) -> frozenset[int]:
        """Numbers of all allocated clusters."""
        return frozenset(number for run in self.runs for number in run)

    @property
    def bytes(self) -> int:
        """Bytes of guest data."""
        return len(self.clusters) * CLUSTER


@dataclass(frozen=True, slots=True)
class Scene:
    """
    A chain, and what the spec keeps of it.

    Attributes:
        size: Virtual size of every image, in bytes.
        layers: Base first, active last.  The base is a golden image: it stays
            on the disk as it is, listed or not.
        keep: Names that the spec lists, base first.
        experts: Shell scripts, any of which leads to the same chain; the
            fastest one is the yardstick.
        today: What people type today, by name.
    """

    name: str
    size: int
    layers: tuple[Layer, ...]
    keep: tuple[str, ...]
    experts: tuple[str, ...] = ()
    today: tuple[tuple[str, str], ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of guest data in all layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def spec(self) -> str:
        """The spec file that asks for the chain."""
        base = self.layers[0].name
        files = [
            f'  {{ file = "{name}.qcow2"{", template = true" if name == base else ""} }},'
            for name in self.keep
        ]
        head = 'version = 1\n\n[defaults]\ndirectory = "."\n\n[domains.vm.disks.vda]\nchain = ['
        top = self.layers[-1].name
        active = [] if top in self.keep else [f'active = "{top}.qcow2"']
        return "\n".join([head, *files, "]", *active, ""])

    def groups(self) -> list[list[Layer]]:
        """Neighbours that become one image: dropped ones, then the kept one above them."""
        found: list[list[Layer]] = [[]]
        for layer in self.layers:
            found[-1].append(layer)
            if layer.name in self.keep:
                found.append([])
        tail = found.pop()  # dropped from the top: they go down into the last kept one
        found[-1].extend(tail)
        return found

    def bound(self) -> int:
        """
        Bytes of guest data that any way to the desired chain has to write.

        Of each group the file of one layer k survives, and what is visible
        through the group and not in k has to be copied into it: at least
        |U| - |W(k)|, with U the clusters allocated in any layer of the group
        and W(k) those whose topmost allocation is in k.  Source: FIELD_NOTES §3.
        """
        return sum(self._least(group) for group in self.groups()) * CLUSTER

    def _least(self, group: list[Layer]) -> int:
        winner = {cluster: layer.name for layer in group for cluster in layer.clusters}
        won = {layer.name: 0 for layer in group if len(group) == 1 or layer != self.layers[0]}
        for name in winner.values():
            if name in won:
                won[name] += 1
        return len(winner) - max(won.values())


def mib(start: int, length: int, shrink: int = 1) -> range:
    """Clusters of *length* MiB from *start* MiB on, both divided by *shrink*."""
    per = MIB // CLUSTER
    return range(start * per // shrink, (start + length) * per // shrink)
