"""A shipped collector, and agents that only send: what several benches start from."""

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from joulegram.v1.telemetry_pb2 import Ack

REPORT = "/joulegram.v1.TelemetryService/Report"


def started(folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], str]:
    """A `joulegram collector` in `folder`, where its log is, and HOST:PORT for agents."""
    argv = [sys.executable, "-m", "joulegram.cli.main", "collector", *flags, "--neso-url", ""]
    argv += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False) as said:
        program = subprocess.Popen(argv, stderr=said, cwd=folder)
    log = Path(said.name)
    try:
        while (listening := re.search(r"agents on ([^,]+),", log.read_text())) is None:
            if program.poll() is not None:
                raise RuntimeError(f"no collector: {log.read_text()}")
            time.sleep(0.05)
    except BaseException:
        program.kill()
        program.wait()
        raise
    return program, listening[1]


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
