"""Kill -9 of the ClickHouse server and of the collector under load: nothing lost or doubled."""

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from tests.clickhouse import ClickhouseServer
from tests.collector.made_frames import WINDOW_MS, energy_uj, frame
from tests.e2e.test_kill_collector import Agent, ready, sending, stored_in
from tests.servers import free_port, joulegram, running

COLLECTORS = 2
KILLS_EACH = 2
NODES = ("n1", "n2", "n3")
FRAMES_PER_ROUND = 60
SEED = 20_261_122


async def test_no_joule_is_lost_or_doubled_when_the_server_dies(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    server = ClickhouseServer(tmp_path / "clickhouse")
    grpc_port, http_port = free_port(), free_port()
    config = tmp_path / "joulegram.toml"
    config.write_text(server.toml("joules", connect_timeout_s="1.0", timeout_s="5.0"))
    argv = joulegram(
        *("collector", "--config", config, "--data", tmp_path / "data", "--neso-url", ""),
        *("--zone", "GB", "--listen", f"127.0.0.1:{grpc_port}", "--http", f"127.0.0.1:{http_port}"),
    )
    total = FRAMES_PER_ROUND * (COLLECTORS * KILLS_EACH + 1)
    start_ms = int(time.time() * 1000) // 300_000 * 300_000 - total * WINDOW_MS - 300_000
    sent = {
        node: [
            frame(seq, node=node, start_ms=start_ms, rows=rng.randrange(1, 120), gpu=seq % 3 == 0)
            for seq in range(1, total + 1)
        ]
        for node in NODES
    }
    joules = {node: energy_uj(sent[node]) for node in NODES}
    agents = [Agent(node, sent[node], f"127.0.0.1:{grpc_port}") for node in NODES]
    with server.running():
        ledger = ClickhouseLedger(server.config("joules"))
        migrate(ledger)
        ledger.close()
    async with sending(agents) as tasks:
        for number in range(COLLECTORS):
            with running(argv, tmp_path, name=f"collector{number}") as collector:
                # It lives through the death of its server, and dies soon after the second one.
                for _ in range(KILLS_EACH):
                    with server.running() as clickhouse:
                        await asyncio.to_thread(ready, collector)
                        for agent in agents:
                            agent.release(FRAMES_PER_ROUND)
                        await asyncio.sleep(rng.uniform(0.2, 1.6))
                        clickhouse.stop(signal.SIGKILL)
                    await asyncio.sleep(rng.uniform(0.0, 1.0))
                collector.stop(signal.SIGKILL)
        with server.running(), running(argv, tmp_path, name="collector-last") as collector:
            await asyncio.to_thread(ready, collector)
            for agent in agents:
                agent.release(FRAMES_PER_ROUND)
            await asyncio.wait_for(asyncio.gather(*tasks), 100)
            # All of it once more, as after a restore: acknowledged, and nothing counts twice.
            again = [Agent(node, sent[node], f"127.0.0.1:{grpc_port}") for node in NODES]
            for agent in again:
                agent.release(total)
            await asyncio.wait_for(asyncio.gather(*(agent.run() for agent in again)), 100)
            answer = await asyncio.to_thread(report, http_port)
            assert answer["metered_uj"] == answer["total"]["energy_uj"] == sum(joules.values())
            assert {row["key"]: row["energy_uj"] for row in answer["rows"]} == joules
            assert collector.stop(signal.SIGTERM, timeout_s=10.0) == 0, collector.said()
            found = await asyncio.to_thread(stored, server)
    # Each row lies there once: an insert whose outcome was unknown was looked up, not repeated.
    rows = {node: sum(len(f.rows.workload) // 4 + 1 for f in sent[node]) for node in NODES}
    assert found == (rows, joules, joules, joules)


def report(http_port: int) -> dict[str, Any]:
    asked = httpx.get(
        f"http://127.0.0.1:{http_port}/api/v1/report",
        params={"since": "1d", "by": "node"},
        timeout=30,
    )
    assert asked.status_code == 200, asked.text
    answer: dict[str, Any] = asked.json()
    return answer


def stored(server: ClickhouseServer) -> tuple[dict[str, int], ...]:
    ledger: Ledger = ClickhouseLedger(server.config("joules"))
    try:
        return stored_in(ledger)
    finally:
        ledger.close()
