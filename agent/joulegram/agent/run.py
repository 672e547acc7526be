"""A running agent: the meter's frames into the spool, the spool's frames to the collector."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import SpoolFailed
from joulegram.agent.floors import Floors
from joulegram.agent.metrics import AgentMetrics
from joulegram.agent.rarely import Rarely
from joulegram.agent.spool.spool import HOUR_MS, Spool
from joulegram.agent.uplink.address import address
from joulegram.agent.uplink.credentials import Credentials
from joulegram.agent.uplink.uplink import Uplink, spread_s
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

STOP_WITHIN_S = 2.0
UNWRITTEN_MAX = 60  # frames kept in memory while the disk takes none
FLOORS_EVERY_MS = 600_000  # learnt idle floors are written so often, and at the end


class Meter(Protocol):
    """What `serve` asks of a meter."""

    unsound: int  # frames withheld because their sums did not hold

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames as windows close, until `stop` is set; then the last one, without delay."""


def serve(
    meter: Meter,
    config: AgentConfig,
    stop: threading.Event,
    *,
    frames: int = 0,
    metrics: AgentMetrics | None = None,
    floors: Floors | None = None,
    etc: Path = Path("/etc"),
) -> int:
    """Run until `stop` is set, or for `frames` frames. Returns the exit code.

    After `stop` it ends within STOP_WITHIN_S and a second; what could not be sent by then stays
    in the spool for the next start.

    Raises: UplinkRefused, SpoolFailed, BadSetting at the start; later failures are counted,
        logged, and tried again.
    """
    credentials = Credentials(config)
    credentials.check()  # before anything is made on disk
    address(config.collector, config.insecure or credentials.encrypts)
    metrics = metrics or AgentMetrics()
    spool = Spool.open(
        config.state.expanduser(),
        config.node,
        _machine_id(etc),
        max_bytes=round(config.spool_max_mb * 1_000_000),
        keep_acked_ms=round(config.spool_keep_hours * HOUR_MS),
        max_age_ms=round(config.spool_max_days * 24 * HOUR_MS),
    )
    with contextlib.closing(spool):
        uplink = Uplink(spool, config.collector, insecure=config.insecure, credentials=credentials)
        metrics.watch(spool.stats, uplink.stats, lambda: meter.unsound, _now_ms)
        stop_metrics = metrics.serve(config.http)
        uplink.start()
        try:
            _carry(meter, stop, frames, metrics, spool, uplink, floors or Floors())
        finally:
            uplink.stop(STOP_WITHIN_S)
            stop_metrics()
            with contextlib.suppress(SpoolFailed):
                log.info("frames left in the spool for the next start: %d", spool.pending())
    return 0


def _carry(
    meter: Meter,
    stop: threading.Event,
    frames: int,
    metrics: AgentMetrics,
    spool: Spool,
    uplink: Uplink,
    floors: Floors,
) -> None:
    unwritten: deque[Frame] = deque()
    rarely = Rarely(log)
    saved_ms = _now_ms()
    for made, frame in enumerate(meter.frames(stop), 1):
        metrics.frame(frame)
        unwritten.append(frame)
        if len(unwritten) > UNWRITTEN_MAX:
            spool.count_lost(unwritten.popleft(), "disk")
        try:
            while unwritten:
                spool.append(unwritten[0])
                unwritten.popleft()
        except SpoolFailed as exc:
            rarely.warn("spool", "%s", exc)
        metrics.unwritten(len(unwritten), UNWRITTEN_MAX)
        uplink.wake(hold_s(frame, _now_ms()))
        if abs(_now_ms() - saved_ms) > FLOORS_EVERY_MS:
            floors.save()
            saved_ms = _now_ms()
        if made == frames:
            break
    floors.save()
    for frame in unwritten:
        spool.count_lost(frame, "disk")
    if unwritten:
        log.error("%d frames could not be written to the spool and are lost", len(unwritten))


def hold_s(frame: Frame, now_ms: int) -> float:
    """How long a fresh frame waits before it leaves, s: until its node's time after the window.

    Never longer than that time, wherever a clock has leapt to.
    """
    after_s = spread_s(frame.node, frame.window_ms)
    due_s = (frame.window_start_ms + frame.window_ms - now_ms) / 1000 + after_s
    return min(max(0.0, due_s), after_s)


def _machine_id(etc: Path) -> str:
    try:
        return (etc / "machine-id").read_text(errors="replace").strip()
    except OSError:
        return ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
