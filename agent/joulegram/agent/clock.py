"""Time as an argument, so that a day of windows can be played in a test."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the agent knows of time."""

    def wall_ns(self) -> int:
        """UTC since 1970, ns; may step."""

    def mono_ns(self) -> int:
        """Monotonic, ns; stands still during suspend."""

    def asleep_ns(self) -> int:
        """How long the machine was suspended since it booted, ns."""

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        """Sleep; returns early, and True, when `stop` is set."""


class SystemClock:
    """This machine's clocks."""

    wall_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)

    def asleep_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        return stop.wait(for_s)
