"""A collector as it is shipped, and an agent's side of the stream, made by hand."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from joulegram.v1.telemetry_pb2 import Ack, Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.servers import Program, free_port, joulegram, running


@dataclass(frozen=True)
class RunningCollector:
    """A collector on loopback; `url` is its page, `agents` takes frames."""

    program: Program
    url: str
    agents: str

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def send(self, frames: Sequence[Frame]) -> None:
        """Return once every frame is durable; AssertionError when one is refused."""
        for node in dict.fromkeys(frame.node for frame in frames):
            self._send([frame for frame in frames if frame.node == node])

    def _send(self, frames: Sequence[Frame]) -> None:
        waiting = {(frame.epoch, frame.seq) for frame in frames}
        with grpc.insecure_channel(self.agents) as channel:
            stub = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
            answers: Iterator[Ack] = stub.Report(_sent_now(frames), timeout=30)
            for ack in answers:
                assert not ack.refused, ack
                for span in ack.durable:
                    waiting -= {
                        (span.epoch, seq) for seq in range(span.first_seq, span.last_seq + 1)
                    }
                if not waiting:
                    return
        raise AssertionError(f"not acknowledged: {waiting}")

    def get(self, path: str, **params: str | int) -> httpx.Response:
        return httpx.get(self.url + path, params=params, timeout=30)


def _sent_now(frames: Sequence[Frame]) -> Iterator[Frame]:
    for frame in frames:
        frame.sent_at_ms = time.time_ns() // 1_000_000
        yield frame


@contextlib.contextmanager
def collector(folder: Path, *arguments: str) -> Iterator[RunningCollector]:
    """Start `joulegram collector` with its ledger in `folder`; it asks no feed."""
    http, agents = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    argv = joulegram(
        "collector", "--data", folder / "ledger", "--http", http, "--listen", agents,
        "--neso-url", "", *arguments,
    )  # fmt: skip
    with running(argv, folder, name="collector") as program:
        program.await_answer(f"http://{http}/api/v1/health")
        yield RunningCollector(program, f"http://{http}", agents)
