"""How a stream ended, in the collector's words."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TypeVar

import grpc

T = TypeVar("T")
Call = grpc.aio.StreamStreamCall[bytes, bytes]
FAILED_WRITE = "Internal error from Core"
TOLD_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Status:
    """A gRPC status."""

    code: grpc.StatusCode
    details: str = ""
    trailing: tuple[tuple[str, str | bytes], ...] = ()


class Ending:
    """Hears how one call ends.

    A write that meets the end is to grpc.aio an error of its own; it tells that in place of the
    collector's status, be it before that came or after. So every status it tells is heard:
    https://github.com/grpc/grpc/blob/master/src/python/grpcio/grpc/_cython/_cygrpc/aio/call.pyx.pxi
    """

    def __init__(self, call: Call) -> None:
        self._told: asyncio.Queue[Status] = asyncio.Queue()
        call.add_done_callback(self._hear)

    async def status(self) -> Status:
        """The first status that is not about a write; after TOLD_WITHIN_S whatever there is."""
        status = Status(grpc.StatusCode.UNKNOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOLD_WITHIN_S):
                status = await self._told.get()
                while status.details == FAILED_WRITE:
                    status = await self._told.get()
        return status

    def _hear(self, call: Call) -> None:
        trailing = _known(call.trailing_metadata())
        details = _known(call.details()) or ""
        self._told.put_nowait(Status(_known(call.code()), details, tuple(trailing or ())))


def _known(told: Coroutine[object, None, T]) -> T:
    """What a call that is over says of itself: without a wait, for it could say otherwise then."""
    try:
        told.send(None)
    except StopIteration as said:
        value: T = said.value
        return value
    told.close()
    raise RuntimeError("a gRPC call that is over did not know its status")
