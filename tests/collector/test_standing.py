"""Numbers that cost a query are refreshed behind, and never stand in the way of a stop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from joulegram.collector.standing import Standing
from joulegram.collector.stored_totals import StoredTotals
from joulegram.collector.totals import TeamGrams
from tests.collector.carbon import Place


class Energy:
    """Totals whose refresh does as told."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        self.refresh = refresh


def standing(site: Place, refresh: Callable[[], None]) -> Standing:
    energy = cast(StoredTotals, Energy(refresh))
    return Standing(site.ledger, site.rollup, TeamGrams(site.ledger), energy)


@contextlib.asynccontextmanager
async def running(what: Standing) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(what.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_a_stop_does_not_wait_for_a_refresh(site: Place, caplog: pytest.LogCaptureFixture) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def stop() -> float:
        loop = asyncio.get_running_loop()

        def long() -> None:
            loop.call_soon_threadsafe(began.set)
            time.sleep(2.0)
            loop.call_soon_threadsafe(ended.set)
            raise OSError("the ledger is closed")

        async with running(standing(site, long)) as task:
            await asyncio.wait_for(began.wait(), 30)
            cancelled_s = time.monotonic()
            task.cancel()
            await asyncio.wait({task})
            took_s = time.monotonic() - cancelled_s
            assert task.cancelled()
        await asyncio.wait_for(ended.wait(), 30)
        return took_s

    assert asyncio.run(stop()) < 1.0
    assert caplog.messages == []  # who stops need not hear of it


def test_a_failure_is_said_once_and_the_rest_goes_on(
    site: Place, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [OSError("no answer"), OSError("still none"), None]

    def refresh() -> None:
        if failure := answers.pop(0):
            raise failure

    async def watch() -> None:
        what = standing(site, refresh)
        async with running(what):
            await what.first_try(30)
            assert what.failing == {"energy": "OSError: no answer"}
            assert what.grid is not None
            async with asyncio.timeout(30):
                while what.failing:
                    await asyncio.sleep(0.05)

    asyncio.run(watch())
    assert caplog.messages == ["energy cannot be refreshed: OSError: no answer"]
