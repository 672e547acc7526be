"""A stream's end is told in the collector's words, whatever a write met."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest

from joulegram.agent.uplink.ending import FAILED_WRITE, Call, Ending, Status

FAILED = Status(grpc.StatusCode.INTERNAL, FAILED_WRITE)
BUSY = Status(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", (("retry-after-ms", "1500"),))
CLOSED = Status(grpc.StatusCode.OK)


class PlayedCall:
    """Tells one status after the other, as grpc.aio's calls do."""

    def __init__(self) -> None:
        self._told = CLOSED
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def tell(self, status: Status) -> None:
        self._told = status
        for callback in self._callbacks:
            callback(self)

    async def code(self) -> grpc.StatusCode:
        return self._told.code

    async def details(self) -> str | None:
        return self._told.details or None

    async def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        return self._told.trailing or None


@pytest.mark.parametrize("told", [BUSY, CLOSED])
@pytest.mark.parametrize("write_fails", ["never", "before", "after", "long before"])
def test_the_collectors_word_counts(told: Status, write_fails: str) -> None:
    async def ended() -> Status:
        call = PlayedCall()
        ending = Ending(cast(Call, call))
        if write_fails == "long before":
            call.tell(FAILED)
            asyncio.get_running_loop().call_later(0.05, call.tell, told)
            return await ending.status()
        if write_fails == "before":
            call.tell(FAILED)
        call.tell(told)
        if write_fails == "after":
            call.tell(FAILED)
        return await ending.status()

    assert asyncio.run(ended()) == told


def test_a_call_that_only_says_that_a_write_failed_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joulegram.agent.uplink.ending.TOLD_WITHIN_S", 0.05)

    async def ended() -> Status:
        call = PlayedCall()
        ending = Ending(cast(Call, call))
        call.tell(FAILED)
        return await ending.status()

    assert asyncio.run(ended()) == FAILED
