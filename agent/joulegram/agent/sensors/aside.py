"""Questions to a device that may hang, asked in a thread of its own.

A driver in trouble can hold whoever calls it for minutes, or for good. Then its answers are
missing; everything else is metered on time.
"""

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from joulegram.agent.errors import SensorFailed

T = TypeVar("T")

PATIENCE_S = 0.5  # of a tick; a healthy driver answers within milliseconds


Question: TypeAlias = tuple[Future[Any], Callable[[], Any]] | None


@dataclass(slots=True, weakref_slot=True)
class Aside:
    """One thread, one question at a time. The thread ends with whoever asks.

    Args:
        who: named in errors, and in the list of threads.
    """

    who: str
    _asked: SimpleQueue[Question] = field(default_factory=SimpleQueue, init=False)
    _last: Future[Any] | None = field(default=None, init=False)
    _since_s: float = field(default=0.0, init=False)
    _started: bool = field(default=False, init=False)

    def ask(self, what: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """What `what` returns or raises; it runs in the other thread.

        An answer that comes late is thrown away, what the question did is not. Until it has
        come nothing else is asked.

        Raises: SensorFailed when there is no answer in time.
        """
        self.settled()
        answer: Future[T] = Future()
        self._last, self._since_s = answer, time.monotonic()
        if not self._started:
            self._started = True
            threading.Thread(target=_work, args=[self._asked], name=self.who, daemon=True).start()
            weakref.finalize(self, self._asked.put, None)
        self._asked.put((answer, what))
        try:
            return answer.result(patience_s)
        except TimeoutError:
            if answer.done():
                raise  # the question's own
            raise self._late() from None

    def settled(self) -> None:
        """Raises: SensorFailed while an earlier question has no answer."""
        if self._last is not None and not self._last.done():
            raise self._late()

    def _late(self) -> SensorFailed:
        for_s = time.monotonic() - self._since_s
        return SensorFailed(
            f"{self.who} has not answered for {for_s:.1f} s; its driver hangs: see dmesg"
        )


def _work(asked: SimpleQueue[Question]) -> None:
    while (question := asked.get()) is not None:
        answer, what = question
        try:
            answer.set_result(what())
        except BaseException as exc:
            answer.set_exception(exc)
        # Else it would hold whoever asked until the next question comes.
        del question, answer, what
