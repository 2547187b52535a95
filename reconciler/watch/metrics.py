"""Metrics for Prometheus, in a textfile or on loopback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from reconciler.model.errors import Mistake
from reconciler.model.plan import PlannedStep
from reconciler.watch.status import DiskStatus, Kind


class Metrics:
    """
    What a watch counts.

    Args:
        textfile: Written after each pass, for node_exporter's textfile collector.
        port: Served on loopback.

    Raises:
        Mistake: The library is missing, or the port cannot be had.
    """

    def __init__(self, textfile: Path | None = None, port: int | None = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise Mistake(
                "metrics need the prometheus_client library: apt install "
                "python3-prometheus-client, or pip install 'virt-chain[metrics]'"
            ) from error
        self._prometheus = prometheus
        self._textfile = textfile
        self.registry = prometheus.CollectorRegistry()
        into = self.registry
        counter, gauge = prometheus.Counter, prometheus.Gauge
        self._passes = counter(
            "virt_chain_passes", "Passes, by how they ended.", ["end"], registry=into
        )
        self._seconds = prometheus.Histogram(
            "virt_chain_pass_seconds",
            "How long passes take.",
            buckets=(0.01, 0.1, 1, 10, 60, 600, 3600),
            registry=into,
        )
        self._steps = counter("virt_chain_steps", "Steps done.", ["action"], registry=into)
        self._bytes = counter(
            "virt_chain_copied_bytes", "Bytes that steps copied.", ["action"], registry=into
        )
        self._failures = counter("virt_chain_failures", "Failures.", ["disk"], registry=into)
        self._disks = gauge(
            "virt_chain_disks", "Disks, by what is with them.", ["kind"], registry=into
        )
        self._drift = gauge(
            "virt_chain_drift", "1: a disk is not as its spec says.", ["disk"], registry=into
        )
        self._depth = gauge(
            "virt_chain_chain_images", "Images of a chain.", ["disk"], registry=into
        )
        self._last = gauge(
            "virt_chain_last_pass_timestamp_seconds", "When the last pass ended.", registry=into
        )
        for end in ("done", "failed"):
            self._passes.labels(end)
        if port is not None:
            try:
                prometheus.start_http_server(port, addr="127.0.0.1", registry=self.registry)
            except OSError as error:
                raise Mistake(f"port {port} of 127.0.0.1: {error.strerror}") from error

    def step(self, planned: PlannedStep) -> None:
        """A step is done."""
        action = planned.step.action
        self._steps.labels(action).inc()
        self._bytes.labels(action).inc(planned.bytes)

    def failure(self, label: str) -> None:
        """A disk failed."""
        self._failures.labels(label).inc()

    def passed(self, disks: Mapping[str, DiskStatus] | None, seconds: float) -> None:
        """A pass ended; *disks* None: it failed as a whole."""
        self._passes.labels("failed" if disks is None else "done").inc()
        self._seconds.observe(seconds)
        self._last.set_to_current_time()
        if disks is not None:
            self._show(disks)
        if self._textfile is not None:
            try:
                self._prometheus.write_to_textfile(str(self._textfile), self.registry)
            except OSError as error:
                raise Mistake(f"{self._textfile} cannot be written: {error.strerror}") from error

    def _show(self, disks: Mapping[str, DiskStatus]) -> None:
        count = Counter(disk.kind for disk in disks.values())
        kinds: Iterable[Kind] = get_args(Kind)
        for kind in kinds:
            self._disks.labels(kind).set(count[kind])
        self._drift.clear()
        self._depth.clear()
        for label, disk in disks.items():
            self._drift.labels(label).set(disk.kind not in ("in force", "vanished"))
            self._depth.labels(label).set(disk.images)
