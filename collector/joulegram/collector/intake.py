"""Agents' streams: frames in, acknowledgements out.

What arrives within a moment on all streams is validated together, handed to the stage together,
and acknowledged when the stage says it is durable: one Ack per stream and commit. Reading stops
while `peer_max_bytes` of a peer (or `total_max_bytes` of all) wait for that, and so the agent
keeps the rest in its spool; a stream that finds no room for `patience_s` is sent away for a while.
Streams that were idle until then have a read under way each, which nothing stops: such frames are
taken until the bounds are passed by as much again, and beyond it their streams are sent away.
"""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from joulegram.collector import counters
from joulegram.collector.checked import Checked
from joulegram.collector.packed import PackedFrame, Unreadable, read_frame
from joulegram.collector.security.peers import Peer, Peers
from joulegram.collector.stages import Busy, Stage
from joulegram.collector.validate import MAX_NAME, name_of, validate_all
from joulegram.v1.telemetry_pb2 import DESCRIPTOR, Ack, Frame, Refusal, SeqRange
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceServicer

log = logging.getLogger(__name__)

MESSAGE_MAX_BYTES = 16 * 2**20  # 100,000 rows are about 8 MB
STREAMS_MAX = 20_000
BACK_WITHIN_S = 30.0  # of a drain
# In gRPC's own words, which agents know: nothing is wrong, and they come back at once. A stream
# that ends well says that the collector drains, which agents give time to start again.
AGED = "max connection age: open the next stream at once"

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # Two collectors on one port would share its agents by chance.
    ("grpc.so_reuseport", 0),
    # Thousands of agents may come within a second or two, after a restart say; by default gRPC
    # cancels those beyond the first one to three thousand.
    ("grpc.server.max_pending_requests", STREAMS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 2 * STREAMS_MAX),
    # A node that lost its power says no goodbye.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


# A credential and a node's name: their streams share a budget.
Who: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Stream:
    """What one agent's stream waits for."""

    peer: Peer
    node: str = ""  # of its first frame; the stream speaks for nobody else
    in_flight_frames: int = 0  # read and not yet durable
    durable: list[tuple[int, int]] = field(default_factory=list)  # (epoch, seq), not yet acked
    refused: list[Refusal] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # reasons of refusal that the log has
    busy: bool = False  # the stage took a frame of it not even after some patience
    crowded: bool = False  # it waited in vain for room
    aged: bool = False  # it was open for long enough
    # Set when there is something to acknowledge, or nothing left to wait for.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Read no more; it ends by itself once all that was sent is acknowledged."""
        if self.reader is not None:
            self.reader.cancel()
        self.changed.set()

    def age(self) -> None:
        """End, unless the agent has ended it already."""
        self.aged = self.reader is not None and not self.reader.done()
        self.end()

    @property
    def who(self) -> Who:
        return self.peer.credential, self.node

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


@dataclass(slots=True)
class _Arrived:
    """A frame and where its answer goes."""

    stream: _Stream
    frame: PackedFrame
    packed: bytes
    who: Who = "", ""


class Intake(TelemetryServiceServicer):
    """The gRPC service of a collector."""

    def __init__(
        self,
        stage: Stage,
        *,
        raw_days: float,
        peers: Peers | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        peer_max_bytes: int = 2 * 2**20,
        total_max_bytes: int = 128 * 2**20,
        unsaid_max: int = 10_000,
        linger_s: float = 0.02,
        patience_s: float = 30.0,
        retry_after_s: float = 5.0,
        age_s: float = 1_800.0,
    ) -> None:
        """Args:
        linger_s: how long frames wait for company.
        patience_s: how long a stream waits for room before it is sent away.
        retry_after_s: for how long.
        age_s: a stream ends after so long, give or take a tenth, so that agents spread over
            collectors that came later; they come back at once.
        """
        self._stage = stage
        self._peers = peers or Peers()
        self._raw_days = raw_days
        self._now_ms = now_ms
        self._peer_max_bytes = peer_max_bytes
        self._total_max_bytes = total_max_bytes
        self._unsaid_max = unsaid_max  # answers owed to an agent that does not read them
        self._linger_s = linger_s
        self._patience_s = patience_s
        self._retry_after_ms = round(retry_after_s * 1000)
        self._age_s = age_s
        self._burst: list[_Arrived] = []
        self._in_flight_bytes = 0
        self._of_peer: Counter[Who] = Counter()  # the same bytes
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
        age_s = self._age_s * random.uniform(0.9, 1.1)  # noqa: S311
        aged = asyncio.get_running_loop().call_later(age_s, stream.age)
        try:
            await self._acknowledge(context, stream)
        finally:
            aged.cancel()
            stream.reader.cancel()
            del self._open[id(stream)]
            counters.STREAMS.dec()

    def drain(self) -> None:
        """Read no more. Streams end by themselves once all they sent is acknowledged."""
        self._draining = True
        for stream in self._open.values():
            stream.end()

    def send_away(self) -> None:
        """Wait no longer for what is not durable: its agents offer it again, elsewhere or later."""
        for stream in self._open.values():
            stream.busy = True
            stream.changed.set()

    async def _read(self, context: Any, stream: _Stream) -> None:
        try:
            while True:
                await self._wait_for_room(stream)
                one = await context.read()
                if one is grpc.aio.EOF:
                    return
                if isinstance(one, Unreadable):
                    stream.peer.took_frame("")
                    self._refuse_unreadable(stream, one)
                elif not self._take(_Arrived(stream, *one)):
                    stream.crowded = True
                    return
        except TimeoutError:
            stream.crowded = True
        finally:
            stream.changed.set()

    async def _wait_for_room(self, stream: _Stream) -> None:
        def room() -> bool:
            return (
                stream.unsaid < self._unsaid_max
                and self._of_peer[stream.who] < self._peer_max_bytes
                and self._in_flight_bytes < self._total_max_bytes
            )

        if not room():
            async with asyncio.timeout(self._patience_s), self._freed:
                await self._freed.wait_for(room)

    def _take(self, arrived: _Arrived) -> bool:
        """False where the frame is one too many; its agent keeps it."""
        stream, node = arrived.stream, arrived.frame.node
        stream.peer.took_frame(node)
        if denied := stream.peer.denies(node):
            self._refuse(stream, arrived.frame, "node", denied)
            stream.changed.set()
            return True
        stream.node = stream.node or name_of(arrived.frame)
        arrived.who, size = stream.who, len(arrived.packed)
        if self._in_flight_bytes and (
            self._of_peer[arrived.who] + size > self._peer_max_bytes + MESSAGE_MAX_BYTES
            or self._in_flight_bytes + size > 2 * self._total_max_bytes
        ):
            return False
        stream.in_flight_frames += 1
        self._of_peer[arrived.who] += size
        self._in_flight_bytes += size
        if not self._burst:
            asyncio.get_running_loop().call_later(self._linger_s, self._offer)
        self._burst.append(arrived)
        return True

    def _free(self, arrived: _Arrived) -> None:
        size, who = len(arrived.packed), arrived.who
        arrived.stream.in_flight_frames -= 1
        self._in_flight_bytes -= size
        self._of_peer[who] -= size
        if not self._of_peer[who]:
            del self._of_peer[who]
        arrived.stream.changed.set()

    def _offer(self) -> None:
        burst, self._burst = self._burst, []
        counters.RECEIVED.inc(sum(len(one.packed) for one in burst))
        counters.IN_FLIGHT.set(self._in_flight_bytes)
        # Not awaited: a commit takes the frames of many bursts. Frames of a stream that breaks
        # go on, and the agent hears of it when it offers them again.
        send = asyncio.create_task(self._send(burst))
        self._sends.add(send)
        send.add_done_callback(self._sends.discard)

    async def _send(self, burst: Sequence[_Arrived]) -> None:
        try:
            await self._pass_on(self._validated(burst))
        except BaseException as failed:
            # Whatever it is, an agent must not wait for an answer that nobody will give.
            for one in burst:
                one.stream.busy = True
            if not isinstance(failed, Exception):
                raise
            log.exception("%d frames were not kept; their agents offer them again", len(burst))
        finally:
            for one in burst:
                self._free(one)
            counters.IN_FLIGHT.set(self._in_flight_bytes)
            async with self._freed:
                self._freed.notify_all()

    def _validated(self, burst: Sequence[_Arrived]) -> dict[Checked, _Stream]:
        frames = [(one.frame, one.packed, one.who[1]) for one in burst]
        sound = {}
        answers = validate_all(frames, self._now_ms(), self._raw_days)
        for one, answer in zip(burst, answers, strict=True):
            if isinstance(answer, Checked):
                sound[answer] = one.stream
            else:
                self._refuse(one.stream, one.frame, *answer)
        return sound

    async def _pass_on(self, sound: Mapping[Checked, _Stream]) -> None:
        if not sound:
            return
        try:
            refused = await self._stage.send(list(sound))
        except Busy:
            for stream in sound.values():
                stream.busy = True
            return
        why = {one.frame: one for one in refused}
        for checked, stream in sound.items():
            no = why.get(checked)
            if no is None:
                stream.durable.append(checked.identity[1:])
            else:
                self._refuse(stream, checked.frame, no.reason, no.detail)

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
                await self._send_away(context, grpc.StatusCode.UNAVAILABLE, "takes nothing")
            if stream.crowded:
                await self._send_away(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "is behind")
            if stream.reader.done() and not stream.in_flight_frames and not stream.unsaid:
                if not stream.reader.cancelled() and (failed := stream.reader.exception()):
                    raise failed
                if stream.aged and not self._draining:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, AGED)
                return

    async def _send_away(self, context: Any, code: grpc.StatusCode, why: str) -> None:
        after_ms = self._retry_after_ms
        if self._draining:  # everybody goes at once, and shall not come back so
            after_ms = round(random.uniform(0, BACK_WITHIN_S) * 1000)  # noqa: S311
        await context.abort(
            code,
            f"the ledger {why}; offer what is not acknowledged again later",
            (("retry-after-ms", str(after_ms)),),
        )


def add_intake(intake: Intake, server: grpc.aio.Server) -> None:
    """Serve `intake`; unlike the stubs' own way, a frame that cannot be read costs only itself."""
    report = grpc.stream_stream_rpc_method_handler(
        intake.Report, request_deserializer=read_frame, response_serializer=Ack.SerializeToString
    )
    name = DESCRIPTOR.services_by_name["TelemetryService"].full_name
    handler = grpc.method_handlers_generic_handler(name, {"Report": report})
    server.add_generic_rpc_handlers((handler,))


def seq_ranges(durable: Sequence[tuple[int, int]]) -> list[SeqRange]:
    """(epoch, seq) pairs as the fewest ranges."""
    if len(durable) == 1:
        ((epoch, seq),) = durable
        return [SeqRange(epoch=epoch, first_seq=seq, last_seq=seq)]
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
