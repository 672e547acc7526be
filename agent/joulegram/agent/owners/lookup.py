"""Questions to the host that may hang: a user database over the network, a process's memory.

They are asked by threads of their own. The first to ask waits a moment, since nearly all are
answered in well under a millisecond; nobody waits for one that hangs.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

WAIT_S = 0.05
CREDIT_S = 0.1  # the most that is waited at a stretch,
CREDIT_RATE = 0.05  # and in the long run, of the time that passes
THREADS_MAX = 4  # so many may hang at once; then answers end until one comes back
LATE_S = 1.0  # a thread that has been busy for so long is no longer counted on
IDLE_S = 5.0  # then it ends
PENDING_MAX = 1024
REMEMBERED = 4096


class Later(Exception):
    """Raised by what finds answers: this one is to be asked for again."""


class Lookup(Generic[K, V]):
    """Remembers what `find` said.

    Args:
        find: may block; what it raises counts as no answer, Later as none yet.
        fresh_s: an answer older than this is asked for again, and stands meanwhile.
    """

    def __init__(
        self,
        find: Callable[[K], V | None],
        fresh_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        *,
        threads_max: int = THREADS_MAX,
    ) -> None:
        self._find = find
        self._fresh_s = fresh_s
        self._clock = clock
        self._threads_max = threads_max
        self._answers: OrderedDict[K, tuple[V | None, float]] = OrderedDict()
        self._pending: dict[K, threading.Event] = {}
        self._queue: deque[K] = deque()
        self._asked = threading.Condition()
        self._busy: dict[threading.Thread, float] = {}  # since when; inf: it waits for a question
        self._credit_s, self._credited_at = CREDIT_S, clock()

    def get(self, key: K) -> V | None:
        """The answer, or None where there is none, or none yet."""
        found = self._answers.get(key)
        if found is not None and self._clock() - found[1] < self._fresh_s:
            return found[0]
        done = self._ask(key)
        if found is not None:
            return found[0]
        if done is not None:
            self._wait(done)
        return self._answers.get(key, (None, 0.0))[0]

    def forget(self, key: K) -> None:
        """Ask anew when somebody wants it again."""
        with self._asked:
            self._answers.pop(key, None)

    def __len__(self) -> int:
        return len(self._answers)

    def _ask(self, key: K) -> threading.Event | None:
        """Queue the question; its event, if nobody asked before and none is in the way."""
        with self._asked:
            new, alone = key not in self._pending, not self._pending
            if new:
                if len(self._pending) >= PENDING_MAX:
                    return None
                self._pending[key] = threading.Event()
                self._queue.append(key)
            # Also for who asked before: what is in the way may have begun to hang since.
            if self._queue and len(self._busy) < self._threads_max:
                now = self._clock()
                if all(now - since > LATE_S for since in self._busy.values()):
                    thread = threading.Thread(target=self._work, name="lookup", daemon=True)
                    self._busy[thread] = float("inf")
                    thread.start()
            self._asked.notify()
            return self._pending[key] if new and alone else None

    def _wait(self, done: threading.Event) -> None:
        began = self._clock()
        self._credit_s = min(CREDIT_S, self._credit_s + (began - self._credited_at) * CREDIT_RATE)
        done.wait(min(WAIT_S, max(0.0, self._credit_s)))
        self._credited_at = self._clock()
        self._credit_s -= self._credited_at - began

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._asked:
                self._busy[me] = float("inf")
                while not self._queue:
                    if not self._asked.wait(IDLE_S) and not self._queue:
                        del self._busy[me]
                        return
                key = self._queue.popleft()
                self._busy[me] = self._clock()
            try:
                value = self._find(key)
            except Later:
                with self._asked:
                    self._pending.pop(key).set()
                continue
            except Exception:  # the host's modules may raise anything
                value = None
            with self._asked:
                self._answers[key] = value, self._clock()
                if len(self._answers) > REMEMBERED:
                    self._answers.popitem(last=False)
                self._pending.pop(key).set()
