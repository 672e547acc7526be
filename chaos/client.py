"""An agent of our own making, by the .proto alone: it repeats, shuffles and misdates frames."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from chaos.agent import windows
from chaos.count import Made
from joulegram.v1.telemetry_pb2 import Ack, Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.collector.made_frames import energy_uj

REPEATED, MISDATED = "repeated and shuffled frames", "time of sending off"
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
AHEAD = 40  # frames made and not acknowledged: no more are made
BATCH_S = 20.0


@dataclass
class Client:
    """One node, `run` in a thread; every frame goes again and again until it is acknowledged."""

    node: str
    address: str
    base_ms: int
    pace_s: float
    rng: random.Random
    made: list[Made] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=lambda: {REPEATED: 0, MISDATED: 0})
    complaints: list[str] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)
    _frames: dict[int, Frame] = field(default_factory=dict)
    _acked: set[int] = field(default_factory=set)
    _misdated: set[int] = field(default_factory=set)

    @property
    def pending(self) -> int:
        return len(self._frames) - len(self._acked)

    def run(self) -> None:
        epoch = self.rng.getrandbits(64) | 1
        while not (self.enough.is_set() and not self.pending):
            if not self.enough.is_set() and self.pending < AHEAD:
                self._make(epoch, self.rng.randrange(1, 9))
            batch = self._batch()
            # Broken streams are what the others are for; here they cost a repeat.
            with contextlib.suppress(grpc.RpcError):
                if self.rng.random() < 0.2:
                    self._twice(batch)
                else:
                    self._send(batch)
            self.enough.wait(self.pace_s)

    def _make(self, epoch: int, count: int) -> None:
        for _ in range(count):
            seq = len(self._frames) + 1
            one = windows(self.node, epoch, seq, seq, self.base_ms)
            self._frames[seq] = one
            fault = REPEATED
            if self.rng.random() < 0.05:
                self._misdated.add(seq)
                fault = MISDATED
            key = (self.node, epoch, seq)
            self.made.append(Made(key, energy_uj([one]), time.time(), kept=True, fault=fault))

    def _batch(self) -> list[Frame]:
        """What is owed, some of what is not, in any order, some of it twice."""
        owed = [one for seq, one in self._frames.items() if seq not in self._acked]
        old = self.rng.sample(sorted(self._acked), min(len(self._acked), self.rng.randrange(6)))
        again = [one for one in owed if self.rng.random() < 0.3]
        self.times[REPEATED] += len(old) + len(again)
        batch = owed + again + [self._frames[seq] for seq in old]
        self.rng.shuffle(batch)
        return batch

    def _twice(self, batch: Sequence[Frame]) -> None:
        """The same frames on two streams at once."""
        self.times[REPEATED] += len(batch)

        def also() -> None:
            with contextlib.suppress(grpc.RpcError):
                self._send(batch)

        other = threading.Thread(target=also, daemon=True)
        other.start()
        try:
            self._send(batch)
        finally:
            other.join(2 * BATCH_S)

    def _send(self, batch: Sequence[Frame]) -> None:
        waiting = {one.seq for one in batch}
        with grpc.insecure_channel(self.address, OPTIONS) as channel:
            stub = TelemetryServiceStub(channel)
            answers: Iterator[Ack] = stub.Report(self._stamped(batch), timeout=BATCH_S)
            for ack in answers:
                for span in ack.durable:
                    seqs = set(range(span.first_seq, span.last_seq + 1))
                    self._acked |= seqs
                    waiting -= seqs
                for no in ack.refused:
                    waiting.discard(no.seq)
                    if no.reason != "clock":
                        self.complaints.append(
                            f"{self.node}: frame {no.seq} refused: {no.reason}: {no.detail}"
                        )
                if not waiting:
                    return

    def _stamped(self, batch: Sequence[Frame]) -> Iterator[Frame]:
        for one in batch:
            off_ms = 0
            if one.seq in self._misdated:
                # Refused for its clock; the next time it bears the right one.
                self._misdated.discard(one.seq)
                self.times[MISDATED] += 1
                off_ms = 900_000 if one.seq % 2 else -900_000
            stamped = Frame()
            stamped.CopyFrom(one)
            stamped.sent_at_ms = time.time_ns() // 1_000_000 + off_ms
            yield stamped
