"""The way to the collector: one gRPC stream, kept open, fed from the spool.

At most IN_FLIGHT frames wait for their acknowledgement, and a back-fill (frames older than the
newest few) takes at most half of them, so that fresh frames never queue behind old ones. A new
stream first sends a single frame: only a collector that answers gets more. Frames without an
acknowledgement are offered again, the same bytes, on the next stream. A fresh frame leaves
`spread_s` after its window's end, so that a thousand nodes do not speak at once.
"""

import hashlib
import ipaddress
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting, SpoolFailed, UplinkRefused
from joulegram.agent.rarely import Rarely
from joulegram.agent.spool.spool import Spool, Spooled
from joulegram.agent.uplink.comeback import Comeback, after_close, after_error
from joulegram.agent.uplink.credentials import Credentials
from joulegram.agent.uplink.patience import Patience
from joulegram.v1.telemetry_pb2 import Ack, Frame

log = logging.getLogger(__name__)

METHOD = "/joulegram.v1.TelemetryService/Report"
IN_FLIGHT = 8  # frames sent and not acknowledged
BACKLOG = IN_FLIGHT // 2
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


@dataclass(slots=True)
class _Sent:
    frame: Spooled
    backlog: bool
    at_s: float  # monotonic


@dataclass(slots=True)
class _Stream:
    """One stream's own state; requests and responses run in different threads."""

    probe_recent: bool
    changed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_flight: dict[int, _Sent] = field(default_factory=dict)  # by position in the spool
    answered: bool = False
    finished: bool = False  # we end it: nothing more is sent
    ended: bool = False
    over: bool = False  # its call is
    due: threading.Event = field(default_factory=threading.Event)  # an answer, or the end

    def add(self, frames: list[Spooled], backlog: bool) -> None:
        now_s = time.monotonic()
        with self.lock:
            for frame in frames:
                self.in_flight[frame.position] = _Sent(frame, backlog, now_s)
            if frames:
                self.due.set()

    def end_of_call(self) -> None:
        with self.lock:
            self.over = True
            self.due.set()

    def rest(self) -> None:
        """Nothing is due while nothing is in flight."""
        with self.lock:
            if not self.in_flight and not self.over:
                self.due.clear()

    def settle(self, ranges: list[tuple[int, int, int]]) -> None:
        """Frames of these (epoch, first seq, last seq) are in flight no more."""
        for position in self.positions(ranges):
            with self.lock:
                self.in_flight.pop(position, None)
        self.answered = True
        self.changed.set()

    def positions(self, ranges: list[tuple[int, int, int]]) -> list[int]:
        """Positions of those in flight among these (epoch, first seq, last seq)."""
        with self.lock:
            return [
                position
                for position, sent in self.in_flight.items()
                if any(
                    sent.frame.epoch == epoch and first <= sent.frame.seq <= last
                    for epoch, first, last in ranges
                )
            ]

    def waiting(self) -> tuple[list[int], int, float | None]:
        """Positions in flight, how many of them are backlog, when the oldest was sent."""
        with self.lock:
            sent = list(self.in_flight.values())
        return (
            [one.frame.position for one in sent],
            sum(one.backlog for one in sent),
            min((one.at_s for one in sent), default=None),
        )


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
        self._newest_at_s = 0.0  # monotonic: when the newest frame may leave
        self._stopping = threading.Event()
        self._flush_until_s = 0.0  # monotonic; read once `_stopping` is set
        self._rarely = Rarely(log)
        self._began_s = time.monotonic()
        self._stream: _Stream | None = None
        self._cancel: Callable[[], object] = lambda: None
        self._state = "connecting"
        self._sent = self._acked = self._streams = self._restamped = 0
        self._refused: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self, hold_s: float = 0.0) -> None:
        """Say that the spool holds a new frame, to be sent in `hold_s`. Never waits."""
        self._newest_at_s = time.monotonic() + hold_s
        if stream := self._stream:
            stream.changed.set()

    def stop(self, within_s: float) -> None:
        """Send what is pending and hear the last acknowledgements, as far as time allows.

        What could not be sent stays in the spool.
        """
        deadline_s = time.monotonic() + within_s
        self._flush_until_s = deadline_s - within_s / 4
        self._stopping.set()
        self.wake()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._cancel()
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

    # -- the uplink's thread -------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while True:
            self._state = "connecting"
            # Full jitter, the first time too: a thousand agents lost the collector together.
            backoff_s = min(self._max_backoff_s, self._first_backoff_s * 2 ** min(failures, 10))
            stream = _Stream(probe_recent=failures % 2 == 1)
            try:
                comeback = self._one_stream(stream, backoff_s)
            except SpoolFailed as exc:
                self._rarely.warn("spool", "%s", exc)
                comeback = Comeback("spool", 0.0, backoff_s)
            except Exception:  # whatever it is, the next stream may do better
                log.exception("the uplink stumbled; it tries again")
                comeback = Comeback("other", 0.0, backoff_s)
            self._ends[comeback.reason] += 1
            failures = 0 if stream.answered else failures + 1
            if self._stopping.is_set():
                break
            self._state = "waiting"
            wait_s = random.uniform(comeback.least_s, comeback.most_s)  # noqa: S311
            if comeback.reason == "drained":
                log.info("the collector at %s drains: back in %.0f s", self._target, wait_s)
            self._stopping.wait(wait_s)  # a stop is worth one more stream, at once
        self._state = "stopped"

    def _one_stream(self, stream: _Stream, backoff_s: float) -> Comeback:
        """Run one stream to its end. Returns when to come back."""
        if (failed := self._reached()) is not None:
            return Comeback(failed, 0.0, backoff_s)
        try:
            open_channel = self._credentials.channel(self._target, OPTIONS)
            metadata = self._credentials.metadata()
        except BadSetting as exc:
            self._rarely.warn("credentials", "%s Frames wait in the spool; trying again.", exc)
            return Comeback("credentials", 0.0, backoff_s)
        with open_channel as channel:
            self._stream = stream  # before the first request is asked for: `wake` must find it
            self._streams += 1
            self._state = "connected"
            report = channel.stream_stream(METHOD, bytes, Ack.FromString)
            call = report(self._requests(stream), metadata=metadata)
            self._cancel = call.cancel
            try:
                if not call.add_callback(stream.end_of_call):
                    stream.end_of_call()
                # Not `for ack in call`: to wait, gRPC wakes up ten times a second.
                while stream.due.wait():
                    self._settle(stream, next(call))
                    stream.rest()
            except StopIteration:
                pass
            except grpc.RpcError as exc:
                return self._ended(exc, backoff_s)
            finally:
                self._stream = None
                stream.ended = True
                stream.changed.set()
                call.cancel()
        return Comeback("closed", 0.0, backoff_s) if stream.finished else after_close(self._drain_s)

    def _reached(self) -> str | None:
        """Why nobody can be reached there, None where somebody listens.

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

    def _settle(self, stream: _Stream, ack: Ack) -> None:
        durable = [(one.epoch, one.first_seq, one.last_seq) for one in ack.durable]
        if durable:
            self._acked += self._spool.ack(durable)
            self._patience.settled(stream.positions(durable))
        for one in ack.refused:
            positions = stream.positions([(one.epoch, one.seq, one.seq)])
            if one.reason == "clock" and any(map(self._patience.refused, positions)):
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
        stream.settle(durable + [(one.epoch, one.seq, one.seq) for one in ack.refused])

    def _ended(self, exc: grpc.RpcError, backoff_s: float) -> Comeback:
        """When to come back after a stream that ended with a status; says what is wrong."""
        code, details, trailing = grpc.StatusCode.UNKNOWN, str(exc), ()
        if isinstance(exc, grpc.Call):
            code, details = exc.code(), exc.details() or ""
            trailing = exc.trailing_metadata() or ()
        comeback = after_error(code, details, trailing, backoff_s, self._drain_s)
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

    # -- gRPC's thread, one per stream ---------------------------------------------------------

    def _requests(self, stream: _Stream) -> Iterator[bytes]:
        """Serialised frames, as the in-flight window allows; ends the stream by returning."""
        try:
            while not stream.ended:
                stream.changed.clear()
                batch = self._next(stream)
                for frame in batch:
                    self._sent += 1
                    yield stamped(frame.body, time.time_ns() // 1_000_000)
                if not batch and not self._wait(stream):
                    break
        except SpoolFailed as exc:
            self._rarely.warn("spool", "%s", exc)
        # Not in a `finally`: gRPC closes this generator when the collector has ended the stream.
        stream.finished = not stream.ended

    def _next(self, stream: _Stream) -> list[Spooled]:
        positions, backlog, _ = stream.waiting()
        if self._patience.full:
            return []
        leave = [*positions, *self._patience.held()]
        hold = self._hold_s() > 0
        offer = self._spool.offer
        if not stream.answered:
            # A single frame, and not always the same: one that kills the stream must not
            # hold up all others, nor may failed streams touch the whole spool.
            if positions:
                return []
            for recent in (stream.probe_recent, not stream.probe_recent):
                fresh = offer(1, recent=recent, in_flight=leave, without_newest=hold)
                if fresh:
                    break
            stream.add(fresh, backlog=False)
            return fresh
        room = IN_FLIGHT - len(positions)
        fresh = offer(room, recent=True, in_flight=leave, without_newest=hold)
        stream.add(fresh, backlog=False)
        room = min(BACKLOG - backlog, room - len(fresh))
        older = offer(room, recent=False, in_flight=leave)
        stream.add(older, backlog=True)
        return fresh + older

    def _hold_s(self) -> float:
        """How long the newest frame shall still wait, s; one that stops sends at once."""
        return 0.0 if self._stopping.is_set() else self._newest_at_s - time.monotonic()

    def _wait(self, stream: _Stream) -> bool:
        """Wait for something to do. False when this stream has nothing left to send."""
        # First what is pending: one that is acknowledged in between shall not hide another.
        pending = self._spool.pending() if self._stopping.is_set() else None
        positions, _, oldest_s = stream.waiting()
        now_s = time.monotonic()
        if self._credentials.stale():
            return False  # the next stream takes the new files; this one ends once it is answered
        if pending is not None:
            left = pending - len(positions) - len(self._patience.held())
            if now_s >= self._flush_until_s or left <= 0:
                return False
            stream.changed.wait(self._flush_until_s - now_s)
            return True
        if oldest_s is not None and oldest_s + self._ack_timeout_s <= now_s:
            self._rarely.warn(
                "silent",
                "the collector at %s has acknowledged nothing for %.0f s: connecting anew",
                self._target,
                self._ack_timeout_s,
            )
            self._cancel()
            return False
        waits_s = [
            None if oldest_s is None else oldest_s + self._ack_timeout_s - now_s,
            hold_s if (hold_s := self._hold_s()) > 0 else None,
            self._patience.next_due_s(),
        ]
        stream.changed.wait(min((s for s in waits_s if s is not None), default=None))
        return True


def spread_s(node: str, window_ms: int) -> float:
    """How long after its windows' end a node sends, s: the same at every start, below SPREAD_MS."""
    digest = hashlib.sha256(node.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % min(SPREAD_MS, window_ms) / 1000


def address(collector: str, insecure: bool) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises: UplinkRefused when it is malformed, or plaintext would leave this machine unasked.
    """
    host, _, port = collector.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    in_brackets = host == f"[{bare}]"
    if (
        not bare
        or not (in_brackets or bare == host)
        or not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16)
        or in_brackets != (":" in bare)
    ):
        raise UplinkRefused(
            f"collector = {collector!r} is not HOST:PORT; write it like 127.0.0.1:7471 or "
            "[::1]:7471."
        )
    if not insecure and not _is_loopback(bare):
        raise UplinkRefused(
            f"collector = {collector!r} is beyond this machine, and the way there is not "
            "encrypted. Set `tls_ca` under [agent] to the authority that signed the collector's "
            "certificate (`tls = true` for the system's own), or `insecure = true` "
            "(--agent-insecure) if the network is trusted."
        )
    return bare, int(port)


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
