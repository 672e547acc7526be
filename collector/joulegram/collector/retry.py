"""A stage that is patient with the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from joulegram.collector.checked import Checked
from joulegram.collector.stages import Busy, Refused, Stage


@dataclass(frozen=True, slots=True)
class Retry:
    """Offers a refused batch again, then lets Busy out: the source must feel it."""

    next: Stage
    delays_s: Sequence[float] = (0.1, 0.5, 2.0)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        """Return once the frames, but for the refused, are safe downstream; else raise Busy."""
        for delay_s in self.delays_s:
            try:
                return await self.next.send(frames)
            except Busy:
                await self.sleep(delay_s)
        return await self.next.send(frames)
