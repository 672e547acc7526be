"""Keeps the `intensity` table filled: the yearly table once, the live feed for ever."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from joulegram.collector.config import GridConfig
from joulegram.collector.ledger.chdb import ChdbLedger


@dataclass(slots=True)
class FeedState:
    """What the page shows of one feed."""

    provider: str
    zone: str
    running: bool = True
    last_good_ms: int = 0  # when it last answered well; 0: never
    last_error: str = ""  # "reason: detail" of the latest failure, "" after a good answer
    failures: int = 0  # in a row


class Feeds:
    """The grid feeds of this collector; `await run()` never raises but when cancelled."""

    def __init__(
        self, ledger: ChdbLedger, config: GridConfig, registry: CollectorRegistry
    ) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Fill and poll until cancelled."""

    def states(self) -> list[FeedState]:
        """One per feed, for the page."""
        raise NotImplementedError
