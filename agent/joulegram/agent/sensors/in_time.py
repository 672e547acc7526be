"""Calls that may hang in the kernel, such as a driver's that waits for a lock.

The loop of ticks waits a moment and goes on without; nothing else is asked until it came back.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from joulegram.agent.errors import SensorFailed

T = TypeVar("T")

WITHIN_S = 0.2


class InTime:
    """Makes one call at a time, each in a thread of its own.

    Args:
        what: is asked for, in messages.
    """

    def __init__(self, what: str, within_s: float = WITHIN_S) -> None:
        self._what = what
        self._within_s = within_s
        self._thread: threading.Thread | None = None

    def settled(self) -> None:
        """Raises: SensorFailed while an earlier call has not come back."""
        if self._thread is not None and self._thread.is_alive():
            raise SensorFailed(
                f"{self._what}: the kernel has not answered yet. If this stays, a driver hangs: "
                "see the kernel log."
            )

    def __call__(self, call: Callable[[], T]) -> T:
        """Raises: SensorFailed when it does not come back in time, else what it raises.

        A call that is late goes on; what it returns then is lost, what it did is not.
        """
        self.settled()
        done: list[T] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                done.append(call())
            except Exception as exc:
                failed.append(exc)

        self._thread = threading.Thread(target=run, name=self._what, daemon=True)
        self._thread.start()
        self._thread.join(self._within_s)
        self.settled()
        if failed:
            raise failed[0]
        return done[0]
