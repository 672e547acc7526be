"""A shipped collector, and agents that only send: what several benches start from."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from joulegram.v1.telemetry_pb2 import Ack

REPORT = "/joulegram.v1.TelemetryService/Report"


def started(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """A `joulegram collector` in `folder`, and HOST:PORT for agents."""
    argv = [sys.executable, "-m", "joulegram.cli.main", "collector", *flags, "--neso-url", ""]
    argv += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    program = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert program.stderr is not None
    said = ""
    for said in program.stderr:
        if "agents on " in said:
            break
    _pass_on(program.stderr)
    return program, said.split("agents on ")[1].split(",")[0]


def _pass_on(lines: Iterable[str]) -> None:
    """Pass on what a program says, so that its pipe never fills."""

    def pump() -> None:
        for line in lines:
            sys.stderr.write(line)

    threading.Thread(target=pump, daemon=True).start()


@contextlib.contextmanager
def collector(folder: Path, *flags: str, stop_s: float = 20.0) -> Iterator[tuple[int, str]]:
    """The pid of a `joulegram collector` in `folder`, and HOST:PORT for agents."""
    program, address = started(folder, *flags)
    with program:
        try:
            yield program.pid, address
        finally:
            program.terminate()
            program.wait(stop_s)


async def send_all(address: str, streams: Sequence[Sequence[bytes]]) -> None:
    """Return once every frame of every stream is acknowledged; a connection per stream."""
    await asyncio.gather(*(_send(address, frames) for frames in streams))


async def _send(address: str, frames: Sequence[bytes]) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        call: Any = channel.stream_stream(REPORT, None, Ack.FromString)()

        async def write() -> None:
            for frame in frames:
                await call.write(frame)
            await call.done_writing()

        writing = asyncio.create_task(write())
        acknowledged = 0
        while (ack := await call.read()) is not grpc.aio.EOF:
            assert not ack.refused, ack.refused
            acknowledged += sum(r.last_seq - r.first_seq + 1 for r in ack.durable)
        await writing
        assert acknowledged == len(frames)
