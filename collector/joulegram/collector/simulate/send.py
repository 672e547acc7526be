"""Frames over the wire, as so many agents would send them: a stream per node, Acks awaited."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import grpc

from joulegram.collector.simulate.errors import NotSent
from joulegram.collector.simulate.fleet import Fleet
from joulegram.collector.simulate.frames import CHUNK, Made, Maker
from joulegram.collector.simulate.totals import TEAM_NAMES, Totals
from joulegram.v1.telemetry_pb2 import Ack, Frame

REPORT = "/joulegram.v1.TelemetryService/Report"
IN_FLIGHT = 8  # frames of a node sent and not acknowledged
CHANNELS_MAX = 64  # beyond it nodes share connections
GIVE_UP_S = 60.0  # without an acknowledgement, nor a connection
SPREAD_S = 2.0  # agents do not all send at the window's end: hash(node) mod this
MESSAGE_MAX_BYTES = 16 * 2**20
PERMANENT = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


@dataclass(slots=True)
class Sender:
    """Carries a fleet's frames to a collector.

    Args:
        speed: simulated seconds per second; 0: as fast as they are acknowledged.
        progress: told how many windows of a node are done each time.
    """

    fleet: Fleet
    collector: str  # HOST:PORT
    speed: float
    progress: Callable[[int], None]
    tell: Callable[[str], None]  # why nothing moves, once
    give_up_s: float = GIVE_UP_S
    totals: Totals = field(default_factory=Totals)
    reasons: dict[str, str] = field(default_factory=dict)  # refused: reason -> a detail
    _began_s: float = 0.0
    _told: bool = False

    async def run(self) -> Totals:
        """Return once every frame is durable or refused. Raises NotSent."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
        ]
        channels = [
            grpc.aio.insecure_channel(self.collector, options)
            for _ in range(min(CHANNELS_MAX, len(self.fleet.nodes)))
        ]
        self._began_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for i, node in enumerate(self.fleet.nodes):
                    maker = Maker(self.fleet, node, TEAM_NAMES)
                    group.create_task(self._node(maker, channels[i % len(channels)], node.name))
        except* NotSent as failed:
            raise failed.exceptions[0] from None
        finally:
            for channel in channels:
                await channel.close()
        return self.totals

    async def _node(self, maker: Maker, channel: grpc.aio.Channel, name: str) -> None:
        stream = _NodeStream(self, maker, name)
        heard_s = time.monotonic()
        delay_s = 0.2
        while not stream.done:
            acknowledged = stream.settled
            try:
                await stream.run(channel.stream_stream(REPORT, None, Ack.FromString)())
            except grpc.aio.AioRpcError as exc:
                if stream.settled > acknowledged:
                    heard_s, delay_s = time.monotonic(), 0.2
                waited_s = time.monotonic() - heard_s
                if exc.code() in PERMANENT or waited_s > self.give_up_s:
                    raise NotSent(
                        f"the collector at {self.collector} does not take frames of {name}: "
                        f"{exc.code().name}: {exc.details()}. Start one (joulegram collector), or "
                        "name its gRPC port with --collector HOST:PORT (7471, not the page's 7470)."
                    ) from exc
                if not self._told:
                    self._told = True
                    self.tell(
                        f"the collector at {self.collector} does not answer "
                        f"({exc.code().name}: {exc.details()}); trying for {self.give_up_s:g} s"
                    )
                await asyncio.sleep(delay_s)
                delay_s = min(5.0, 2 * delay_s)

    def due_in_s(self, name: str, window: int) -> float:
        """How long until a node may send its frame of a window, by our clock."""
        if not self.speed:
            return 0.0
        spread = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little") / 2**32
        window_s = self.fleet.plan.window_s
        at_s = ((window + 1) * window_s + spread * min(SPREAD_S, window_s)) / self.speed
        return self._began_s + at_s - time.monotonic()


@dataclass(slots=True)
class _NodeStream:
    """One node's frames: made, offered, acknowledged; offered again on the next stream."""

    sender: Sender
    maker: Maker
    name: str
    done: bool = False
    settled: int = 0  # frames that have their answer
    _made: Iterator[Made] | None = None
    _unanswered: "OrderedDict[int, Made]" = field(default_factory=OrderedDict)  # by seq
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IN_FLIGHT))

    async def run(self, call: Any) -> None:
        """Use one stream until all is answered. Raises AioRpcError when it breaks."""
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(self._write(call))
        try:
            # A stream that ends while we still write has its status in the reader.
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_EXCEPTION)
            if writing.done() and writing.exception() and not reading.done():
                await asyncio.wait({reading}, timeout=5)
            for task in (reading, writing):
                if task.done() and (failed := task.exception()):
                    raise failed
            self.done = True
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            call.cancel()

    async def _write(self, call: Any) -> None:
        for made in list(self._unanswered.values()):
            await call.write(_stamped(made))
        if self._made is None:
            self._made = self._frames()
        for made in self._made:
            await self._room.acquire()
            self._unanswered[made.seq] = made
            wait_s = self.sender.due_in_s(self.name, made.window)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await call.write(_stamped(made))
        await call.done_writing()

    async def _read(self, call: Any) -> None:
        while (ack := await call.read()) is not grpc.aio.EOF:
            for span in ack.durable:
                for seq in range(span.first_seq, span.last_seq + 1):
                    if made := self._settle(seq):
                        self.sender.totals.add(made)
            for refusal in ack.refused:
                if self._settle(refusal.seq):
                    self.sender.totals.refused += 1
                    self.sender.reasons.setdefault(refusal.reason, refusal.detail)
        status = await call.code()
        if status != grpc.StatusCode.OK or self._unanswered:
            raise grpc.aio.AioRpcError(
                status,
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details() or "the stream ended early",
            )

    def _frames(self) -> Iterator[Made]:
        windows = self.sender.fleet.plan.windows
        for first in range(0, windows, CHUNK):
            yield from self.maker.chunk(first)
            self.sender.progress(min(CHUNK, windows - first))

    def _settle(self, seq: int) -> Made | None:
        made = self._unanswered.pop(seq, None)
        if made is not None:
            self.settled += 1
            self._room.release()
        return made


def _stamped(made: Made) -> bytes:
    """The frame with its time of sending: once more a half after the other."""
    return made.packed + Frame(sent_at_ms=time.time_ns() // 1_000_000).SerializeToString()
