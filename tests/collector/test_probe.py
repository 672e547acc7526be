"""Whether a process can do its work: what those who balance load are told."""

import asyncio
import threading
from collections import Counter

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from joulegram.collector.web.access import HEALTH, Access
from joulegram.collector.web.probe import Need, create_probe


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_however_many_ask_at_once_what_works_is_ready() -> None:
    asked: Counter[str] = Counter()
    may_answer = threading.Event()

    def need(what: str) -> Need:
        def failing() -> str:
            asked[what] += 1
            may_answer.wait(10.0)
            return ""

        return Need(what, failing, "")

    app = create_probe(CollectorRegistry(), Access(), [need("ledger"), need("kafka")])
    async with client_of(app) as client:
        asking = [asyncio.create_task(client.get(HEALTH)) for _ in range(50)]
        async with asyncio.timeout(10.0):
            while len(asked) < 2:
                await asyncio.sleep(0.01)
        asking[0].cancel()  # its look is the others' too
        await asyncio.wait(asking, timeout=0.2)
        may_answer.set()
        answers = await asyncio.gather(*asking[1:])
    assert {one.status_code for one in answers} == {200}
    assert {one.json()["status"] for one in answers} == {"ready"}
    assert max(asked.values()) <= 2


async def test_what_fails_is_told_soon_and_so_is_that_it_works_again() -> None:
    why = ""
    app = create_probe(CollectorRegistry(), Access(), [Need("ledger", lambda: why, "mend it")])
    async with client_of(app) as client:

        async def told(status: int) -> httpx.Response:
            async with asyncio.timeout(5.0):
                while (answer := await client.get(HEALTH)).status_code != status:
                    await asyncio.sleep(0.05)
            return answer

        await told(200)
        why = "it burns"
        found = (await told(503)).json()
        assert found["missing"] == [{"what": "ledger", "why": "it burns", "remedy": "mend it"}]
        why = ""
        await told(200)
