"""The way to the collector: one gRPC stream, kept open, fed from the spool.

At most IN_FLIGHT frames wait for their acknowledgement, and a back-fill (frames older than the
newest few) takes at most half of them, so that fresh frames never queue behind old ones. A new
stream first sends a single frame: only a collector that answers gets more. Frames without an
acknowledgement are offered again, the same bytes, on the next stream. A fresh frame leaves
`spread_s` after its window's end, so that a thousand nodes do not speak at once.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting, SpoolFailed
from joulegram.agent.rarely import Rarely
from joulegram.agent.spool.spool import Spool, Spooled
from joulegram.agent.uplink.address import address
from joulegram.agent.uplink.call import Call, write
from joulegram.agent.uplink.comeback import Comeback, after_close, after_error
from joulegram.agent.uplink.credentials import Credentials
from joulegram.agent.uplink.in_flight import InFlight
from joulegram.agent.uplink.patience import Patience
from joulegram.v1.telemetry_pb2 import Ack, Frame

log = logging.getLogger(__name__)

METHOD = "/joulegram.v1.TelemetryService/Report"
CONNECT_TIMEOUT_S = 5.0
STARTS_WITHIN_S = 5.0  # a collector that was started with us is not missed before
SPREAD_MS = 2000  # over so long after a window's end the nodes' frames are spread
STATES = ("connecting", "connected", "waiting", "stopped")

# The text of a refusal comes from outside; as a label it must be one of these.
REASONS = ("sums", "shape", "node", "clock", "conflict", "too_old")

OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Back-off is ours. Channels of one process otherwise share gRPC's, and its connections.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

REMEDY = {
    grpc.StatusCode.UNAUTHENTICATED: "Check this node's credentials. Frames wait in the spool.",
    grpc.StatusCode.PERMISSION_DENIED: "Check that its credentials are for this node's name. "
    "Frames wait in the spool.",
    grpc.StatusCode.UNIMPLEMENTED: "Nobody there speaks joulegram.v1: is it the collector's gRPC "
    "port (--listen, 7471), not the page's?",
    grpc.StatusCode.INVALID_ARGUMENT: "Agent and collector disagree about the protocol: compare "
    "their versions.",
}


@dataclass(frozen=True, slots=True)
class UplinkStats:
    """Counts since this process started."""

    state: str  # one of STATES
    sent: int  # frames handed to gRPC, repeats included
    acked: int
    refused: Mapping[str, int]  # by reason: REASONS, other
    restamped: int  # refused for a clock, and to be offered again with a new time of sending
    streams: int  # streams begun
    ends: Mapping[str, int]  # of streams, and attempts that were none, by reason: Comeback


class Uplink:
    """Carries a spool's frames to a collector from a thread of its own until `stop`."""

    def __init__(
        self,
        spool: Spool,
        collector: str,
        *,
        insecure: bool = False,
        credentials: Credentials | None = None,
        first_backoff_s: float = 2.0,
        max_backoff_s: float = 30.0,
        drain_s: float = 30.0,
        ack_timeout_s: float = 120.0,
        patience: Patience | None = None,
    ) -> None:
        """Args:
            collector: HOST:PORT.
            insecure: allow plaintext beyond loopback.
            drain_s: after a collector that drains, come back within so long.
            credentials: TLS and token; None: neither.
            ack_timeout_s: a collector that has not acknowledged a frame for so long is left, and
                tried again on a new connection.
            patience: with frames refused for a clock.
        Raises: UplinkRefused when `collector` is malformed, or beyond loopback without TLS or
            `insecure`.
        """
        self._credentials = credentials or Credentials(AgentConfig())
        self._address = address(collector, insecure or self._credentials.encrypts)
        self._target = collector
        self._spool = spool
        self._first_backoff_s = first_backoff_s
        self._max_backoff_s = max_backoff_s
        self._drain_s = drain_s
        self._ack_timeout_s = ack_timeout_s
        self._patience = patience or Patience()
        # When the newest frame may leave, monotonic; None once it was looked for.
        self._newest_at_s: float | None = None
        self._overtaken = False  # a newer frame came before one that was held was looked for
        self._stopping = asyncio.Event()
        self._flush_until_s = 0.0  # monotonic; read once `_stopping` is set
        self._changed = asyncio.Event()  # there may be something to send
        self._rarely = Rarely(log)
        self._began_s = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancel: Callable[[], object] = lambda: None
        self._state = "connecting"
        self._sent = self._acked = self._streams = self._restamped = 0
        self._refused: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def wake(self, hold_s: float = 0.0) -> None:
        """Say that the spool holds a new frame, to be sent in `hold_s`. Never waits."""
        self._soon(self._news, time.monotonic() + hold_s)

    def stop(self, within_s: float) -> None:
        """Send what is pending and hear the last acknowledgements, as far as time allows.

        What could not be sent stays in the spool.
        """
        deadline_s = time.monotonic() + within_s
        self._flush_until_s = deadline_s - within_s / 4
        self._soon(self._stopping.set)
        self.wake()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._soon(self._cancel)
            self._thread.join(0.5)

    def stats(self) -> UplinkStats:
        return UplinkStats(
            state=self._state,
            sent=self._sent,
            acked=self._acked,
            refused=dict(self._refused),
            restamped=self._restamped,
            streams=self._streams,
            ends=dict(self._ends),
        )

    def _soon(self, act: Callable[..., object], *args: object) -> None:
        """Have the uplink's thread do this; at once where there is none yet."""
        if self._loop is None:
            act(*args)
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: nothing is left to do
            self._loop.call_soon_threadsafe(act, *args)

    # -- the uplink's thread: one event loop, and nothing else runs in it ------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # type: ignore[arg-type, return-value]
            runner.run(self._carry())
        self._state = "stopped"

    def _news(self, newest_at_s: float) -> None:
        self._overtaken |= self._newest_at_s is not None
        self._newest_at_s = newest_at_s
        self._changed.set()

    async def _carry(self) -> None:
        """Stream after stream, until `stop`."""
        failures = 0
        while True:
            self._state = "connecting"
            # Full jitter, the first time too: a thousand agents lost the collector together.
            backoff_s = min(self._max_backoff_s, self._first_backoff_s * 2 ** min(failures, 10))
            in_flight = InFlight(self._spool, self._patience, probe_recent=failures % 2 == 1)
            try:
                comeback = await self._one_stream(in_flight, backoff_s)
            except SpoolFailed as exc:
                self._rarely.warn("spool", "%s", exc)
                comeback = Comeback("spool", 0.0, backoff_s)
            except Exception:  # whatever it is, the next stream may do better
                log.exception("the uplink stumbled; it tries again")
                comeback = Comeback("other", 0.0, backoff_s)
            self._ends[comeback.reason] += 1
            failures = 0 if in_flight.answered else failures + 1
            if self._stopping.is_set():
                return
            self._state = "waiting"
            wait_s = random.uniform(comeback.least_s, comeback.most_s)  # noqa: S311
            if comeback.reason == "drained":
                log.info("the collector at %s drains: back in %.0f s", self._target, wait_s)
            await _heard(self._stopping, wait_s)  # a stop is worth one more stream, at once

    async def _one_stream(self, in_flight: InFlight, backoff_s: float) -> Comeback:
        """Run one stream to its end. Returns when to come back."""
        if (failed := self._reached()) is not None:
            return Comeback(failed, 0.0, backoff_s)
        try:
            open_channel = self._credentials.channel(self._target, OPTIONS)
            metadata = self._credentials.metadata()
        except BadSetting as exc:
            self._rarely.warn("credentials", "%s Frames wait in the spool; trying again.", exc)
            return Comeback("credentials", 0.0, backoff_s)
        async with open_channel as channel:
            self._streams += 1
            self._state = "connected"
            call = cast(Call, channel.stream_stream(METHOD)(metadata=metadata))
            self._cancel = call.cancel
            sending = asyncio.create_task(self._send(in_flight, call))
            try:
                async for answer in call:  # to the end: `read` forgets answers once it knows of it
                    self._settle(in_flight, Ack.FromString(answer))
            except DecodeError:
                code, details = grpc.StatusCode.INTERNAL, "its answer is no acknowledgement"
                return self._ended(code, details, (), backoff_s)
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                code, details = await call.code(), await call.details()
                return self._ended(code, details, await call.trailing_metadata(), backoff_s)
            finally:
                sending.cancel()
                call.cancel()
                await asyncio.wait((sending,))
        if in_flight.closed:
            return Comeback("closed", 0.0, backoff_s)
        return after_close(self._drain_s)

    def _reached(self) -> str | None:
        """Why nobody can be reached there, None where somebody listens. Waits: there is no stream.

        A gRPC call would take a frame before it knows.
        """
        try:
            socket.create_connection(self._address, CONNECT_TIMEOUT_S).close()
        except OSError as exc:
            unknown = isinstance(exc, socket.gaierror)
            if unknown or time.monotonic() - self._began_s > STARTS_WITHIN_S:
                self._rarely.warn(
                    "unresolved" if unknown else "unreached",
                    "no way to the collector at %s: %s%s. Frames wait in the spool; trying again.",
                    self._target,
                    "its name does not resolve: " if unknown else "",
                    exc,
                )
            return "resolve" if unknown else "connect"
        return None

    def _settle(self, in_flight: InFlight, ack: Ack) -> None:
        durable = [(one.epoch, one.first_seq, one.last_seq) for one in ack.durable]
        if durable:
            self._acked += self._spool.ack(durable)
            positions = in_flight.positions(durable)
            self._patience.settled(positions)
            in_flight.settle(positions)
        for one in ack.refused:
            positions = in_flight.positions([(one.epoch, one.seq, one.seq)])
            in_flight.settle(positions)
            if one.reason == "clock" and any(map(self._patience.refused, positions)):
                in_flight.ask_again()
                self._restamped += 1
                self._rarely.warn(
                    "clock",
                    "the collector refused frame %x/%d for its clock: %s. It is offered again, "
                    "with a new time of sending, a few times over a quarter of an hour.",
                    one.epoch,
                    one.seq,
                    one.detail[:500],
                )
                continue
            self._patience.settled(positions)
            if self._spool.quarantine(one.epoch, one.seq, one.reason, one.detail):
                reason = one.reason if one.reason in REASONS else "other"
                self._refused[reason] += 1
                self._rarely.warn(
                    f"refused {reason}",
                    "the collector refused frame %x/%d (%s): %s. It is kept in the spool, apart, "
                    "and not sent again.",
                    one.epoch,
                    one.seq,
                    one.reason[:100],
                    one.detail[:500],
                )
        in_flight.answered = True
        self._changed.set()

    def _ended(
        self,
        code: grpc.StatusCode,
        details: str | None,
        trailing: Iterable[tuple[str, str | bytes]] | None,
        backoff_s: float,
    ) -> Comeback:
        """When to come back after a stream that ended with a status; says what is wrong."""
        details = details or ""
        comeback = after_error(code, details, trailing or (), backoff_s, self._drain_s)
        stopped = self._stopping.is_set() and code is grpc.StatusCode.CANCELLED
        if not (comeback.normal or stopped):
            if code is grpc.StatusCode.UNAVAILABLE and not self._stopping.is_set():
                details = self._credentials.why(self._address, details) or details
            self._rarely.warn(
                f"stream {code.name}",
                "no way to the collector at %s: %s (%s). %s",
                self._target,
                details,
                code.name,
                REMEDY.get(code, "Frames wait in the spool; trying again."),
            )
        return comeback

    async def _send(self, in_flight: InFlight, call: Call) -> None:
        """Send until there is an end. It is cancelled once the collector has ended the stream."""
        try:
            await self._send_frames(in_flight, call)
            in_flight.closed = True
            await call.done_writing()
            await asyncio.sleep(self._ack_timeout_s)
            self._give_up()
        except TimeoutError:
            self._give_up()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # it is over: whoever reads hears why
        except Exception:
            log.exception("the uplink stumbled; it tries again")
            call.cancel()

    async def _send_frames(self, in_flight: InFlight, call: Call) -> None:
        """Send frames as may be in flight, until nothing is left to send on this stream."""
        try:
            await call.wait_for_connection()
            while True:
                self._changed.clear()
                batch = self._take(in_flight)
                for frame in batch:
                    self._sent += 1
                    async with asyncio.timeout(self._ack_timeout_s):
                        await write(call, stamped(frame.body, time.time_ns() // 1_000_000))
                if not batch and not await self._wait(in_flight):
                    return
        except SpoolFailed as exc:
            self._rarely.warn("spool", "%s", exc)

    def _take(self, in_flight: InFlight) -> list[Spooled]:
        hold = self._hold_s() > 0
        news = not hold and self._newest_at_s is not None
        if news:
            self._newest_at_s = None
        news |= self._overtaken
        self._overtaken = False
        return in_flight.take(news=news, hold_newest=hold)

    def _hold_s(self) -> float:
        """How long the newest frame shall still wait, s; one that stops sends at once."""
        if self._newest_at_s is None or self._stopping.is_set():
            return 0.0
        return self._newest_at_s - time.monotonic()

    async def _wait(self, in_flight: InFlight) -> bool:
        """Wait for something to do. False when this stream has nothing left to send."""
        if self._credentials.stale():
            return False  # the next stream takes the new files; this one ends once it is answered
        now_s = time.monotonic()
        if self._stopping.is_set():
            left = self._spool.pending() - len(in_flight) - len(self._patience.held())
            if now_s >= self._flush_until_s or left <= 0:
                return False
            await _heard(self._changed, self._flush_until_s - now_s)
            return True
        oldest_s = in_flight.oldest_s
        if oldest_s is not None and oldest_s + self._ack_timeout_s <= now_s:
            self._give_up()
            return False
        times_s = [
            None if oldest_s is None else oldest_s + self._ack_timeout_s,
            self._newest_at_s,
            in_flight.due_s,
        ]
        next_s = min((at_s for at_s in times_s if at_s is not None), default=None)
        await _heard(self._changed, None if next_s is None else max(0.0, next_s - now_s))
        return True

    def _give_up(self) -> None:
        self._rarely.warn(
            "silent",
            "the collector at %s has acknowledged nothing for %.0f s: connecting anew",
            self._target,
            self._ack_timeout_s,
        )
        self._cancel()


async def _heard(event: asyncio.Event, within_s: float | None) -> None:
    """Wait for an event, for so long at most; None: without an end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()


def spread_s(node: str, window_ms: int) -> float:
    """How long after its windows' end a node sends, s: the same at every start, below SPREAD_MS."""
    digest = hashlib.sha256(node.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % min(SPREAD_MS, window_ms) / 1000


def stamped(body: bytes, now_ms: int) -> bytes:
    """A serialised frame with its time of sending, the bytes before it untouched.

    Fields of a message may be concatenated: https://protobuf.dev/programming-guides/encoding
    """
    return body + _varint(Frame.SENT_AT_MS_FIELD_NUMBER << 3) + _varint(now_ms)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
