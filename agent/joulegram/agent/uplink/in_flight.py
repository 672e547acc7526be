"""Frames that one stream has sent and that are not acknowledged, and which may join them now."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from joulegram.agent.spool.spool import Spool, Spooled
from joulegram.agent.uplink.patience import Patience

IN_FLIGHT = 8  # frames sent and not acknowledged
BACKLOG = IN_FLIGHT // 2


@dataclass(slots=True)
class _Sent:
    frame: Spooled
    backlog: bool
    at_s: float  # monotonic


class InFlight:
    """The frames of one stream. Of one thread."""

    def __init__(self, spool: Spool, patience: Patience, *, probe_recent: bool) -> None:
        """`probe_recent`: the stream's first frame is of the newest; else of those before them."""
        self._spool = spool
        self._patience = patience
        self._probe_recent = probe_recent
        self._sent: dict[int, _Sent] = {}  # by position in the spool
        # The spool gave less than it was asked for: it had no more, but perhaps the newest frame.
        self._exhausted = False
        self.answered = False  # by the collector, whatever it said
        self.closed = False  # by us: nothing more is sent
        self.due_s: float | None = None  # monotonic: when one of those that wait may leave

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of those in flight was sent, monotonic; None where none is."""
        return min((one.at_s for one in self._sent.values()), default=None)

    def take(self, *, news: bool, hold_newest: bool) -> list[Spooled]:
        """The frames to send now; from here on they are in flight.

        A single frame before the first answer, and not always the same: one that kills the stream
        must not hold up all others, nor may failed streams touch the whole spool.

        Args:
            news: the spool may hold more than when it was asked last; else it is asked again only
                where it was not asked for all it had.
            hold_newest: the newest frame's time has not come.
        """
        if news:
            self._exhausted = False
        wait_s = self._patience.next_due_s()
        self.due_s = None if wait_s is None else time.monotonic() + wait_s
        if self._exhausted or self._patience.full:
            return []
        held = self._patience.held()
        leave = [*self._sent, *held]
        offer = self._spool.offer
        if not self.answered:
            if self._sent:
                return []
            for recent in (self._probe_recent, not self._probe_recent):
                fresh = offer(1, recent=recent, in_flight=leave, without_newest=hold_newest)
                if fresh:
                    break
            self._add(fresh, backlog=False)
            return fresh
        room = IN_FLIGHT - len(self._sent)
        fresh = offer(room, recent=True, in_flight=leave, without_newest=hold_newest)
        backlog = sum(one.backlog for one in self._sent.values())
        room_for_older = min(BACKLOG - backlog, room - len(fresh))
        older = offer(room_for_older, recent=False, in_flight=leave)
        self._exhausted = len(fresh) < room and len(older) < room_for_older and not held
        self._add(fresh, backlog=False)
        self._add(older, backlog=True)
        return fresh + older

    def positions(self, ranges: Iterable[tuple[int, int, int]]) -> list[int]:
        """Positions of those in flight among these (epoch, first seq, last seq)."""
        return [
            position
            for epoch, first, last in ranges
            for position, sent in self._sent.items()
            if sent.frame.epoch == epoch and first <= sent.frame.seq <= last
        ]

    def settle(self, positions: Iterable[int]) -> None:
        """These are in flight no more."""
        for position in positions:
            self._sent.pop(position, None)

    def ask_again(self) -> None:
        """A frame that was answered is to be sent once more."""
        self._exhausted = False

    def _add(self, frames: list[Spooled], backlog: bool) -> None:
        now_s = time.monotonic()
        for frame in frames:
            self._sent[frame.position] = _Sent(frame, backlog, now_s)
