"""A collector that does as a test says: a real gRPC server that records the bytes it is sent."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from joulegram.v1.telemetry_pb2 import Ack, Frame, Refusal, SeqRange
from tests.servers import PATIENCE_S, free_port

SENT_AT_TAG = b"\xf8\x7f"


@dataclass(frozen=True)
class Received:
    epoch: int
    seq: int
    body: bytes  # as the spool held it
    sent_at_ms: int
    stream: int


class Drop(Exception):
    """Raised by a test's behaviour: end the stream with this status; OK is a clean end."""

    def __init__(
        self,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        details: str = "as the test says",
        trailing: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(code)
        self.code = code
        self.details = details
        self.trailing = trailing


def acknowledge(frame: Received) -> Ack | None:
    return Ack(durable=[SeqRange(epoch=frame.epoch, first_seq=frame.seq, last_seq=frame.seq)])


def refuse(frame: Received, reason: str, detail: str = "made up") -> Ack:
    refusal = Refusal(epoch=frame.epoch, seq=frame.seq, reason=reason, detail=detail)
    return Ack(refused=[refusal])


@dataclass
class PlayedCollector:
    """`answer` says what becomes of each frame: an Ack, None for silence, or raises Drop."""

    answer: Callable[[Received], Ack | None] = acknowledge
    port: int = field(default_factory=free_port)
    received: list[Received] = field(default_factory=list)
    acked: Counter[tuple[int, int]] = field(default_factory=Counter)
    streams: int = 0
    options: tuple[tuple[str, int], ...] = ()
    changed: threading.Condition = field(default_factory=threading.Condition)
    server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = grpc.server(
            ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), *self.options]
        )
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._report, request_deserializer=None, response_serializer=Ack.SerializeToString
        )
        self.server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "joulegram.v1.TelemetryService", {"Report": handler}
                )
            ]
        )
        assert self.server.add_insecure_port(self.address) == self.port
        self.server.start()

    def stop(self) -> None:
        """At once: streams break."""
        self.server.stop(None).wait()

    def wait_for(self, holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, timeout_s), f"after {timeout_s} s still not so"

    def _report(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Ack]:
        with self.changed:
            self.streams += 1
            stream = self.streams
        for raw in requests:
            frame = Frame.FromString(raw)
            body = raw.rpartition(SENT_AT_TAG)[0]
            one = Received(frame.epoch, frame.seq, body, frame.sent_at_ms, stream)
            try:
                ack = self.answer(one)
            except Drop as drop:
                with self.changed:
                    self.received.append(one)
                    self.changed.notify_all()
                context.set_trailing_metadata(drop.trailing)
                if drop.code is grpc.StatusCode.OK:
                    return
                context.abort(drop.code, drop.details)
            with self.changed:
                self.received.append(one)
                for durable in ack.durable if ack else ():
                    for seq in range(durable.first_seq, durable.last_seq + 1):
                        self.acked[durable.epoch, seq] += 1
                self.changed.notify_all()
            if ack is not None:
                yield ack


@contextlib.contextmanager
def playing(collector: PlayedCollector) -> Iterator[PlayedCollector]:
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()
