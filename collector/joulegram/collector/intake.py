"""Agents' streams: frames in, acknowledgements out.

A frame is validated, handed to the stage, and acknowledged when the stage says it is durable:
one Ack per stream and commit. Reading stops while `stream_max_bytes` of a stream (or
`total_max_bytes` of all) wait for that, and so the agent keeps the rest in its spool.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from joulegram.collector import counters
from joulegram.collector.packed import Unreadable, read_frame
from joulegram.collector.security.peers import Peer, Peers
from joulegram.collector.stages import Busy, Stage
from joulegram.collector.validate import MAX_NAME, validate
from joulegram.v1.telemetry_pb2 import DESCRIPTOR, Ack, Frame, Refusal, SeqRange
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceServicer

log = logging.getLogger(__name__)

MESSAGE_MAX_BYTES = 16 * 2**20  # 100,000 rows are about 8 MB
STREAMS_MAX = 10_000

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # Two collectors on one port would share its agents by chance.
    ("grpc.so_reuseport", 0),
    # A node that lost its power says no goodbye.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


@dataclass(slots=True)
class _Stream:
    """What one agent's stream waits for."""

    peer: Peer
    node: str = ""  # of its first frame; the stream speaks for nobody else
    waiting: list[Frame] = field(default_factory=list)  # read a moment ago
    waiting_bytes: int = 0
    in_flight_bytes: int = 0  # read, `waiting` included, and not yet durable
    in_flight_frames: int = 0
    durable: list[tuple[int, int]] = field(default_factory=list)  # (epoch, seq), not yet acked
    refused: list[Refusal] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # reasons of refusal that the log has
    busy: bool = False
    # Set when there is something to acknowledge, or nothing left to wait for.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Read no more; it ends by itself once all that was sent is acknowledged."""
        if self.reader is not None:
            self.reader.cancel()
        self.changed.set()

    @property
    def unsaid(self) -> int:
        return len(self.durable) + len(self.refused)

    def take_ack(self) -> Ack | None:
        """All that is known and was not said."""
        if not self.unsaid:
            return None
        ack = Ack(durable=seq_ranges(self.durable), refused=self.refused)
        self.durable, self.refused = [], []
        return ack


class Intake(TelemetryServiceServicer):
    """The gRPC service of a collector."""

    def __init__(
        self,
        stage: Stage,
        *,
        raw_days: float,
        peers: Peers | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        stream_max_bytes: int = 2 * 2**20,
        total_max_bytes: int = 256 * 2**20,
        unsaid_max: int = 10_000,
        linger_s: float = 0.02,
    ) -> None:
        self._stage = stage
        self._peers = peers or Peers()
        self._raw_days = raw_days
        self._now_ms = now_ms
        self._stream_max_bytes = stream_max_bytes
        self._total_max_bytes = total_max_bytes
        self._unsaid_max = unsaid_max  # answers owed to an agent that does not read them
        self._linger_s = linger_s  # frames that come together go on together
        self._in_flight_bytes = 0
        self._freed = asyncio.Condition()
        self._open: dict[int, _Stream] = {}
        self._sends: set[asyncio.Task[None]] = set()
        self._draining = False

    # The stubs know only generators; grpc.aio also takes a coroutine that reads and writes.
    async def Report(  # type: ignore[override]
        self, request_iterator: AsyncIterator[Frame], context: Any
    ) -> None:
        """Serve one agent until it closes the stream, or until `drain`."""
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        async with self._peers.admit(context) as peer:
            await self._serve(context, _Stream(peer))

    async def _serve(self, context: Any, stream: _Stream) -> None:
        stream.peer.end = stream.end
        self._open[id(stream)] = stream
        counters.STREAMS.inc()
        stream.reader = asyncio.create_task(self._read(context, stream))
        try:
            await self._acknowledge(context, stream)
        finally:
            stream.reader.cancel()
            del self._open[id(stream)]
            counters.STREAMS.dec()

    def drain(self) -> None:
        """Read no more. Streams end by themselves once all they sent is acknowledged."""
        self._draining = True
        for stream in self._open.values():
            stream.end()

    async def _read(self, context: Any, stream: _Stream) -> None:
        try:
            while True:
                await self._wait_for_room(stream)
                frame = await context.read()
                if frame is grpc.aio.EOF:
                    return
                if isinstance(frame, Unreadable):
                    self._refuse_unreadable(stream, frame)
                else:
                    self._take(stream, frame)
        finally:
            stream.changed.set()

    async def _wait_for_room(self, stream: _Stream) -> None:
        def room() -> bool:
            return (
                stream.unsaid < self._unsaid_max
                and stream.in_flight_bytes < self._stream_max_bytes
                and self._in_flight_bytes < self._total_max_bytes
            )

        if not room():
            async with self._freed:
                await self._freed.wait_for(room)

    def _take(self, stream: _Stream, frame: Frame) -> None:
        if denied := stream.peer.denies(frame.node):
            self._refuse(stream, frame, "node", denied)
            stream.changed.set()
            return
        stream.peer.took_frame(frame.node)
        wrong = validate(frame, stream.node or frame.node, self._now_ms(), self._raw_days)
        if wrong is not None:
            self._refuse(stream, frame, *wrong)
            stream.changed.set()
            return
        size = frame.ByteSize()
        stream.node = frame.node
        stream.in_flight_frames += 1
        stream.in_flight_bytes += size
        self._in_flight_bytes += size
        if not stream.waiting:
            asyncio.get_running_loop().call_later(self._linger_s, self._offer, stream)
        stream.waiting.append(frame)
        stream.waiting_bytes += size

    def _offer(self, stream: _Stream) -> None:
        frames, stream.waiting = stream.waiting, []
        size, stream.waiting_bytes = stream.waiting_bytes, 0
        # Not awaited: a commit takes the frames of many such sends. If the stream breaks they
        # go on, and the agent hears of it when it offers them again.
        send = asyncio.create_task(self._send(stream, frames, size))
        self._sends.add(send)
        send.add_done_callback(self._sends.discard)

    async def _send(self, stream: _Stream, frames: Sequence[Frame], size: int) -> None:
        counters.RECEIVED.inc(size)
        counters.IN_FLIGHT.inc(size)
        try:
            refused = await self._stage.send(frames)
        except Busy:
            stream.busy = True
        else:
            for one in refused:
                self._refuse(stream, one.frame, one.reason, one.detail)
            gone = {id(one.frame) for one in refused}
            stream.durable += [(f.epoch, f.seq) for f in frames if id(f) not in gone]
        finally:
            stream.in_flight_frames -= len(frames)
            stream.in_flight_bytes -= size
            self._in_flight_bytes -= size
            counters.IN_FLIGHT.dec(size)
            stream.changed.set()
            async with self._freed:
                self._freed.notify_all()

    def _refuse_unreadable(self, stream: _Stream, frame: Unreadable) -> None:
        detail = (
            f"the frame cannot be read ({frame.why}); text must be UTF-8, and nothing on the way "
            "may change the bytes"
        )
        self._say_no(stream, frame.epoch, frame.seq, "shape", detail)
        stream.changed.set()

    def _refuse(self, stream: _Stream, frame: Frame, reason: str, detail: str) -> None:
        self._say_no(stream, frame.epoch, frame.seq, reason, detail, frame.node)

    def _say_no(
        self, stream: _Stream, epoch: int, seq: int, reason: str, detail: str, node: str = ""
    ) -> None:
        counters.FRAMES.labels("refused").inc()
        counters.REFUSED.labels(reason).inc()
        # An agent that is wrong is wrong every few seconds: the counters have the others.
        if reason not in stream.told:
            stream.told.add(reason)
            node = (node or stream.node)[:MAX_NAME]
            log.warning("refused frame %d of %r: %s: %s", seq, node, reason, detail)
        stream.refused.append(Refusal(epoch=epoch, seq=seq, reason=reason, detail=detail))

    async def _acknowledge(self, context: Any, stream: _Stream) -> None:
        assert stream.reader is not None
        while True:
            await stream.changed.wait()
            stream.changed.clear()
            full = stream.unsaid >= self._unsaid_max
            ack = stream.take_ack()
            if full:
                async with self._freed:
                    self._freed.notify_all()
            if ack is not None:
                await context.write(ack)
            if stream.busy:
                await context.abort(
                    grpc.StatusCode.UNAVAILABLE,
                    "the ledger does not keep up; offer what is not acknowledged again later",
                )
            if stream.reader.done() and not stream.in_flight_frames and not stream.unsaid:
                if not stream.reader.cancelled() and (failed := stream.reader.exception()):
                    raise failed
                return


def add_intake(intake: Intake, server: grpc.aio.Server) -> None:
    """Serve `intake`; unlike the stubs' own way, a frame that cannot be read costs only itself."""
    report = grpc.stream_stream_rpc_method_handler(
        intake.Report, request_deserializer=read_frame, response_serializer=Ack.SerializeToString
    )
    name = DESCRIPTOR.services_by_name["TelemetryService"].full_name
    handler = grpc.method_handlers_generic_handler(name, {"Report": report})
    server.add_generic_rpc_handlers((handler,))


def seq_ranges(durable: Iterable[tuple[int, int]]) -> list[SeqRange]:
    """(epoch, seq) pairs as the fewest ranges."""
    of_epoch: dict[int, list[int]] = defaultdict(list)
    for epoch, seq in durable:
        of_epoch[epoch].append(seq)
    ranges: list[SeqRange] = []
    for epoch, seqs in of_epoch.items():
        for seq in sorted(set(seqs)):
            if ranges and ranges[-1].epoch == epoch and ranges[-1].last_seq + 1 == seq:
                ranges[-1].last_seq = seq
            else:
                ranges.append(SeqRange(epoch=epoch, first_seq=seq, last_seq=seq))
    return ranges
