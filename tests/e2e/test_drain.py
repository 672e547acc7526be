"""A collector that is stopped in peace says so; its agents come back, each at a time of its own."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from joulegram.agent.spool.home import ACKED
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.clickhouse import ClickhouseServer
from tests.collector.made_frames import frame
from tests.e2e.test_agent_program import fed
from tests.e2e.test_kill_collector import ready
from tests.e2e.test_resend import Site, states
from tests.servers import free_port, joulegram, running, wait_until


@pytest.mark.timeout(240)
def test_an_agent_comes_back_after_a_drain_and_nothing_is_lost(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with fed(site.machine), site.metering() as agent:
        with site.collecting():
            wait_until(lambda: site.acknowledged(3), "frames in the ledger")
        wait_until(lambda: "drains: back in" in agent.said(), "it knows why the stream ended")
        before = states(site.state).count(ACKED)
        with site.collecting():
            wait_until(lambda: site.acknowledged(before + 3), "it is back", 120)
            assert agent.stop() == 0
            wait_until(site.all_is_there, "every joule in the ledger")


async def test_a_drain_waits_for_an_insert_that_takes_its_time(tmp_path: Path) -> None:
    """The last acknowledgements, then OK: not a stream cut off while its frames are stored."""
    server = ClickhouseServer(tmp_path / "clickhouse")
    port = free_port()
    config = tmp_path / "joulegram.toml"
    config.write_text(server.toml("joules"))
    argv = joulegram(
        *("collector", "--config", config, "--data", tmp_path / "data", "--neso-url", ""),
        *("--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0"),
    )
    with server.running() as clickhouse:
        ledger = ClickhouseLedger(server.config("joules"))
        migrate(ledger)
        ledger.close()
        with running(argv, tmp_path, name="collector") as program:
            await asyncio.to_thread(ready, program)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub: Any = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
                stream = stub.Report()
                # Sent once alone, so that what follows waits for nothing but its insert.
                await stream.write(fresh(1))
                assert seqs_of(await stream.read()) == [1]
                clickhouse.process.send_signal(signal.SIGSTOP)
                for seq in range(2, 10):
                    await stream.write(fresh(seq))
                await asyncio.sleep(0.7)
                program.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(4.0)
                clickhouse.process.send_signal(signal.SIGCONT)
                said = []
                while (ack := await stream.read()) is not grpc.aio.EOF:
                    said += seqs_of(ack)
                assert sorted(said) == [*range(2, 10)]
                assert await stream.code() is grpc.StatusCode.OK
            assert await asyncio.to_thread(program.process.wait, 15) == 0


def fresh(seq: int) -> Any:
    made = frame(seq, start_ms=int(time.time()) // 10 * 10_000 - 200_000)
    made.sent_at_ms = time.time_ns() // 1_000_000
    return made


def seqs_of(ack: Any) -> list[int]:
    assert not ack.refused
    return [seq for span in ack.durable for seq in range(span.first_seq, span.last_seq + 1)]
