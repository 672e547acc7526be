"""A few threads for the ledger's blocking calls, and a bound on who waits for them."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

WORKERS = 3  # each holds a session of the ledger
MAX_WAITING = 32


class TooBusy(Exception):
    """Every thread is taken and the queue is full: ask again later."""


class Threads:
    """Runs blocking calls; at most `workers` at once and `max_waiting` in the queue."""

    def __init__(self, workers: int = WORKERS, max_waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ledger-reader")
        self._most = workers + max_waiting
        self._taken = 0

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Raises: TooBusy at once when the queue is full; what `call` raises."""
        if self._taken >= self._most:
            raise TooBusy
        self._taken += 1
        # A caller that goes away leaves its call running: the slot is free when the call ends.
        future = self._pool.submit(partial(call, *args, **kwargs))
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._leave(loop))
        return await asyncio.wrap_future(future)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        # From a worker's thread; at shutdown the loop may be closed already.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._left)

    def _left(self) -> None:
        self._taken -= 1

    async def close(self, patience_s: float = 3.0) -> None:
        """Let what runs end, so that the ledger can be closed; what waits is dropped."""
        ending = asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending, patience_s)
