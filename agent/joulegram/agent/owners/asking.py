"""A thread that asks somebody outside every so often, and backs off while that fails."""

import logging
import random
import threading
import time
from collections.abc import Callable

from joulegram.agent.errors import SourceFailed
from joulegram.agent.rarely import Rarely

log = logging.getLogger(__name__)

LONGEST_DELAY_S = 300.0
CLOSE_WITHIN_S = 0.5


class Asking:
    """Calls `ask` from its own thread.

    Args:
        ask: raises SourceFailed when it got no answer.
        every_s: so often while it goes well.
        gap_s: at least so long between two, however often it is woken; failures double it.
    """

    def __init__(
        self, name: str, ask: Callable[[], None], every_s: float, gap_s: float = 2.0
    ) -> None:
        self.trouble = ""  # why there was no answer the last time; "": there was one
        self.answers = 0  # so far
        self._ask = ask
        self._every_s = every_s
        self._gap_s = gap_s
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._rarely = Rarely(log)
        self._name = name
        self._chance = random.Random()  # noqa: S311
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Something is to be known. The first call starts the thread; none shortens a back-off."""
        if self._woken and self._thread is not None:
            return
        with self._changed:
            if self._closed:
                return
            self._woken = True  # before the thread that forgets it: else it would ask twice
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"ask-{self._name}", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_WITHIN_S)

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            self._woken = False
            try:
                self._ask()
            except SourceFailed as exc:
                failures += 1
                self.trouble = str(exc)
                self._rarely.warn("source", "%s", exc)
            except Exception:  # names may be lost, the thread may not
                failures += 1
                self.trouble = "a defect of the agent; its log says more"
                log.exception("asking for owners of workloads")
            else:
                failures = 0
                self.trouble = ""
                self.answers += 1
            if failures:
                self._pause(backoff_s(failures, self._gap_s, self._chance.random()), False)
            else:
                self._pause(self._gap_s, False)
                self._pause(self._every_s * (0.9 + 0.2 * self._chance.random()), True)

    def _pause(self, for_s: float, until_woken: bool) -> None:
        until = time.monotonic() + for_s
        with self._changed:
            while not self._closed and not (until_woken and self._woken):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)


def backoff_s(failures: int, first_s: float, chance: float) -> float:
    """How long to leave somebody alone after so many failures in a row.

    Args:
        chance: 0..1; agents that failed together shall not come back together.
    """
    longest_s = min(LONGEST_DELAY_S, first_s * 2.0 ** min(failures, 20))
    return longest_s * (0.5 + 0.5 * chance)
