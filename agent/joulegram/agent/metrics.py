"""The agent's own /metrics: what it made, what it keeps, what it lost, and what it costs."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from joulegram.agent.errors import BadSetting, SpoolFailed
from joulegram.agent.onepage import OnePage
from joulegram.agent.spool.spool import SpoolStats
from joulegram.agent.uplink.uplink import STATES, UplinkStats
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

# What every Prometheus takes; https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_DEVICES = 64  # label values; what comes after is counted as `other`


class AgentMetrics(Collector):
    """Reads the spool's and the uplink's counts when asked; the meter tells the rest.

    Totals of energy are kept in integer microjoules; Prometheus gets them as joules.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lateness = Histogram(
            "joulegram_agent_tick_lateness_seconds",
            "How long after its due time a tick was read.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=self.registry,
        )
        self._one_at_a_time = threading.Lock()
        self._made = 0
        self._unwritten = (0, 0)
        self._energy_uj: dict[tuple[str, str, str], int] = {}  # by device, component, quality
        self._coverage: dict[str, float] = {}
        self._spool: Callable[[], SpoolStats] | None = None
        self._uplink: Callable[[], UplinkStats] | None = None
        self._unsound: Callable[[], int] = lambda: 0
        self._now_ms: Callable[[], int] = lambda: 0
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def watch(
        self,
        spool: Callable[[], SpoolStats],
        uplink: Callable[[], UplinkStats],
        unsound: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        """Say where the counts are to be read."""
        self._spool, self._uplink, self._unsound, self._now_ms = spool, uplink, unsound, now_ms

    def tick(self, late_s: float) -> None:
        """A tick was read, `late_s` after it was due."""
        self._lateness.observe(max(0.0, late_s))

    def unwritten(self, frames: int, limit: int) -> None:
        """So many frames wait in memory for the disk; at `limit` the oldest is lost."""
        self._unwritten = (frames, limit)

    def frame(self, frame: Frame) -> None:
        """A frame was made."""
        with self._one_at_a_time:
            self._made += 1
            for device in frame.devices:
                key = (device.name, device.component, device.quality)
                if key not in self._energy_uj and len(self._energy_uj) >= MAX_DEVICES:
                    key = ("other", "other", "derived")
                self._energy_uj[key] = self._energy_uj.get(key, 0) + device.energy_uj
                self._coverage[key[0]] = device.coverage

    def serve(self, address: str) -> Callable[[], None]:
        """Answer HTTP at HOST:PORT, nowhere when empty. Returns how to stop.

        An address in use costs the metrics, not the agent: it is a warning.
        Raises: BadSetting when `address` is not HOST:PORT.
        """
        if not address:
            return lambda: None
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not (port.isascii() and port.isdecimal() and int(port) < 2**16):
            raise BadSetting(
                f"http = {address!r} under [agent] is not HOST:PORT; write it like 127.0.0.1:7472, "
                "or leave it empty for no metrics."
            )
        try:
            page = OnePage(host, int(port), CONTENT_TYPE, lambda: generate_latest(self.registry))
        except OSError as exc:
            log.warning(
                "no metrics: cannot listen on %s: %s. Another agent may be there; give this one "
                "its own address with --agent-http HOST:PORT.",
                address,
                exc,
            )
            return lambda: None
        return page.close

    def collect(self) -> Iterator[Metric]:
        yield from self._of_frames()
        if self._uplink is not None:
            yield from self._of_uplink(self._uplink())
        if self._spool is not None:
            try:
                yield from self._of_spool(self._spool())
            except SpoolFailed as exc:
                log.warning("no metrics of the spool this time: %s", exc)

    def _of_frames(self) -> Iterator[Metric]:
        with self._one_at_a_time:
            energy, coverage = dict(self._energy_uj), dict(self._coverage)
        yield _counter("frames_made", "Frames that the meter made.", self._made)
        yield _counter(
            "frames_unsound", "Frames withheld because their sums did not hold.", self._unsound()
        )
        frames, limit = self._unwritten
        yield _gauge("unwritten_frames", "Frames in memory that the disk did not take.", frames)
        yield _gauge("unwritten_limit_frames", "So many; then the oldest are lost.", limit)
        joules = CounterMetricFamily(
            "joulegram_agent_device_energy_joules",
            "Energy that the agent metered.",
            labels=("device", "component", "quality"),
        )
        for labels, uj in energy.items():
            joules.add_metric(labels, uj / 1e6)
        yield joules
        covered = GaugeMetricFamily(
            "joulegram_agent_device_coverage_ratio",
            "Measured part of the newest window.",
            labels=("device",),
        )
        for device, ratio in coverage.items():
            covered.add_metric((device,), ratio)
        yield covered

    def _of_uplink(self, uplink: UplinkStats) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "joulegram_agent_uplink_state", "1 for the state it is in.", labels=("state",)
        )
        for name in STATES:
            state.add_metric((name,), float(name == uplink.state))
        yield state
        yield _counter("uplink_streams", "Streams begun to the collector.", uplink.streams)
        yield _counter("frames_sent", "Frames sent, repeats included.", uplink.sent)
        yield _counter("frames_acked", "Frames the collector holds durably.", uplink.acked)
        yield _by_reason(
            "frames_refused", "Frames the collector will never store.", uplink.refused.items()
        )
        yield _counter(
            "frames_restamped",
            "Refusals for a clock after which the frame is offered again.",
            uplink.restamped,
        )
        yield _by_reason(
            "uplink_ends",
            "Streams that ended, and attempts that became none: drained and aged are normal.",
            uplink.ends.items(),
        )

    def _of_spool(self, spool: SpoolStats) -> Iterator[Metric]:
        yield _gauge("spool_usable", "0 while the disk does not take part.", int(spool.usable))
        yield _gauge("spool_bytes", "What the spool's database holds.", spool.used_bytes)
        yield _gauge("spool_limit_bytes", "What it may hold.", spool.limit_bytes)
        frames = GaugeMetricFamily(
            "joulegram_agent_spool_frames", "Frames in the spool.", labels=("state",)
        )
        for name in ("pending", "acked", "refused"):
            frames.add_metric((name,), getattr(spool, name))
        yield frames
        oldest_ms = spool.oldest_pending_ms
        yield _gauge(
            "spool_oldest_pending_seconds",
            "Age of the oldest window that is not acknowledged; 0: none waits.",
            0.0 if oldest_ms is None else max(0.0, (self._now_ms() - oldest_ms) / 1000),
        )
        yield _by_reason(
            "dropped_joules",
            "Joules metered and lost: by a full spool, a spool waited in too long, a failing disk.",
            ((reason, uj / 1e6) for reason, uj in spool.dropped_uj.items()),
        )
        yield _counter("frames_folded", "Frames folded for want of room.", spool.folded)
        yield _counter("spool_salvages", "Damaged spools carried over.", spool.salvages)
        yield _counter("spool_unreadable_frames", "Frames a damaged spool lost.", spool.unreadable)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"joulegram_agent_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"joulegram_agent_{name}", text, value=value)


def _by_reason(name: str, text: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(f"joulegram_agent_{name}", text, labels=("reason",))
    for reason, value in values:
        family.add_metric((reason,), value)
    return family
