"""Frames refused for a clock: sound, perhaps, and worth offering again with a new time of sending.

A frame that lay in a socket for minutes bears an old time; a node's or a collector's clock may be
put right. So each such frame is tried again a few times over a quarter of an hour. Bounded: at
MOST frames nothing else is sent until one of them is due.
"""

import threading
import time
from collections.abc import Callable, Sequence

AFTER_S = (0.0, 30.0, 120.0, 600.0)  # waits before the second, third... offer
MOST = 50


class Patience:
    """Who waits, by position in the spool, and until when. Any thread may call."""

    def __init__(
        self,
        after_s: Sequence[float] = AFTER_S,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._after_s = after_s
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, float]] = {}  # position: (refusals, due)

    def refused(self, position: int) -> bool:
        """A frame was refused. Whether it is to be offered again later; else its time is up."""
        with self._lock:
            now_s = self._clock()
            times, _ = self._waiting.pop(position, (0, 0.0))
            if len(self._waiting) >= 2 * self._most:  # some may have left the spool since
                long_ago_s = now_s - max(self._after_s)
                self._waiting = {p: one for p, one in self._waiting.items() if one[1] > long_ago_s}
            if times >= len(self._after_s) or len(self._waiting) >= 2 * self._most:
                return False
            self._waiting[position] = (times + 1, now_s + self._after_s[times])
            return True

    def settled(self, positions: Sequence[int]) -> None:
        """These wait no more."""
        with self._lock:
            for position in positions:
                self._waiting.pop(position, None)

    def held(self) -> list[int]:
        """Positions that are not due yet."""
        now_s = self._clock()
        with self._lock:
            return [position for position, (_, due_s) in self._waiting.items() if due_s > now_s]

    @property
    def full(self) -> bool:
        """Whether so many wait that nothing else should be sent."""
        return len(self.held()) >= self._most

    def next_due_s(self) -> float | None:
        """Time until the first of those that wait is due, s."""
        now_s = self._clock()
        with self._lock:
            left = [due_s - now_s for _, due_s in self._waiting.values() if due_s > now_s]
        return min(left, default=None)
