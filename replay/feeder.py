"""Lets time pass on a machine, in real time, and rewrites its files every few hundredths of s.

What happens when is exact: an event finds the machine as it was at that very moment, however
late the feeder wakes. What may be late is the writing; `stale_s` says by how much at most. A sum
over windows feels it where the windows begin and end and where something changes, and only there.
"""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from replay.case import Stage
from replay.tree import Machine

Event = Callable[[], object]

STEP_S = 0.05
NEAR_S = 0.5  # a reading for a moment is made so near to it
REMEMBERED = 20_000  # writings


class Feeder:
    """Runs while the context lasts."""

    def __init__(self, machine: Machine, stage: Stage) -> None:
        self.machine = machine
        self._age_s = stage.age_s
        self._tears = stage.tears
        self._events: list[tuple[float, int, Event]] = []
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._done = False
        self._failure: BaseException | None = None
        self._now_s = time.monotonic()
        self._began_s = self._now_s  # the last writing
        # (what a file said as of, when it was replaced at the latest), monotonic; torn for
        self._writings: deque[tuple[float, float, float]] = deque(maxlen=REMEMBERED)
        self._changes: list[float] = []
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def at(self, moment_s: float, event: Event) -> None:
        """Let something happen at a monotonic time."""
        with self._lock:
            heapq.heappush(self._events, (moment_s, next(self._count), event))
        self._wake.set()

    def stale_s(self, moments_s: Iterable[float]) -> float:
        """How old a file was at most, s, around these moments and those of all events."""
        near = [*moments_s, *self._changes]
        ages = [
            until_s - as_of_s
            for as_of_s, until_s, _ in list(self._writings)
            if any(as_of_s - NEAR_S < moment_s < until_s + NEAR_S for moment_s in near)
        ]
        return max(ages, default=0.0) + self._age_s

    def torn_s(self, begin_s: float, end_s: float) -> float:
        """How long a file was torn at most, s, between two moments."""
        torn = [t for _, until_s, t in list(self._writings) if begin_s < until_s < end_s]
        return max(torn, default=0.0)

    def __enter__(self) -> Self:
        self.machine.write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done = True
        self._wake.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._done:
                self._wake.clear()
                self._wake.wait(max(0.0, self._next_s() - time.monotonic()))
                self._step(time.monotonic())
        except BaseException as failure:
            self._failure = failure

    def _next_s(self) -> float:
        due_s = self._began_s + STEP_S
        with self._lock:
            return min(due_s, self._events[0][0]) if self._events else due_s

    def _step(self, now_s: float) -> None:
        while (event := self._due(now_s)) is not None:
            moment_s, happen = event
            self._pass_to(moment_s)
            happen()
            self._changes.append(moment_s)
        self._pass_to(now_s)
        torn_s = self.machine.write(age_s=self._age_s, tear=self._tears)
        self._writings.append((self._began_s, time.monotonic(), torn_s))
        self._began_s = now_s

    def _due(self, now_s: float) -> tuple[float, Event] | None:
        with self._lock:
            if not self._events or self._events[0][0] > now_s:
                return None
            moment_s, _, event = heapq.heappop(self._events)
            return moment_s, event

    def _pass_to(self, moment_s: float) -> None:
        if moment_s > self._now_s:
            self.machine.pass_time(moment_s - self._now_s)
            self._now_s = moment_s
