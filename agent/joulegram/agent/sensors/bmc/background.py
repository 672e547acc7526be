"""A slow power meter, asked in a thread of its own; whoever reads is answered from memory.

A management controller may take seconds, or never answer. The loop of ticks waits for nobody.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.sensor import Sample

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 300.0
NEVER_ANSWERED_WAIT_S = 60.0
JOIN_S = 2.0


class Later(SensorFailed):
    """It did not answer, and says when to ask again."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class Background:
    """Asks every `every_s`, keeps the newest sample and the last trouble; starts when first read.

    After a failure it waits twice as long each time, up to two `every_s`: more would lose more
    windows than the outage did, and one question in that time is what a sound controller is asked.
    One that never answered may have no meter at all, and is left alone for up to
    NEVER_ANSWERED_WAIT_S. After a refusal it waits LONGEST_WAIT_S, since controllers lock accounts
    that knock too often.

    Args:
        name: in messages and of the thread.
        ask: blocks; has a time limit of its own. None: nothing new was measured.
        stale_s: a sample older than this is told no more.
        end: what the thread does last; it may block, and has a time limit of its own.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Sample | None],
        clock: Clock,
        every_s: float = 5.0,
        stale_s: float = 20.0,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._ask = ask
        self._clock = clock
        self._every_s = every_s
        self._stale_s = stale_s
        self._end = end
        self._newest: Sample | None = None
        # Class and text: an exception that is raised over and over gathers tracebacks.
        self._trouble: tuple[type[SensorDenied | SensorFailed], str] | None = None
        self._failures = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> Sample:
        """The newest sample, at once; none while the last question failed, however new it is.

        Whoever integrates has to learn that there is a gap.

        Raises: SensorDenied, SensorFailed.
        """
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        newest, trouble = self._newest, self._trouble
        if trouble:
            kind, text = trouble
            raise kind(text)
        age_s = (self._clock.mono_ns() - newest.at_ns) / 1e9 if newest else 0.0
        if newest and age_s <= self._stale_s:
            return newest
        if newest:
            raise SensorFailed(
                f"{self._name}: nothing new for {self._stale_s:g} s, and no error either; the "
                "management controller may hang. The agent goes on asking."
            )
        raise SensorFailed(f"{self._name}: asked, and not answered yet. Wait a few seconds.")

    def step(self) -> float:
        """Ask once. Returns: how long to wait before the next time, s."""
        before_ns = self._clock.mono_ns()
        try:
            sample = self._ask()
        except SensorDenied as exc:
            self._trouble = SensorDenied, str(exc)
            return LONGEST_WAIT_S
        except SensorFailed as exc:
            return self._failed(str(exc), exc.after_s if isinstance(exc, Later) else 0.0)
        except Exception as exc:  # a defect of ours must not end the thread unseen
            log.exception("%s", self._name)
            return self._failed(f"{self._name}: {type(exc).__name__}: {exc}", 0.0)
        if sample is not None:
            self._newest = sample
        self._failures, self._trouble = 0, None
        took_s = (self._clock.mono_ns() - before_ns) / 1e9
        return max(self._every_s - took_s, self._every_s / 5)

    def close(self, within_s: float = JOIN_S) -> None:
        """End the thread; waits for it, though not for an answer that does not come.

        Where nobody read, whoever asked by itself did so in this thread, and it ends here.
        """
        self._stop.set()
        if self._thread is None:
            self._ended()
        else:
            self._thread.join(within_s)

    def _failed(self, text: str, after_s: float) -> float:
        self._trouble = SensorFailed, text
        self._failures = min(self._failures + 1, 16)
        most_s = 2 * self._every_s if self._newest else NEVER_ANSWERED_WAIT_S
        wait_s = min(self._every_s * 2.0 ** (self._failures - 1), most_s)
        # Nodes whose controllers failed together shall not all come back at once.
        wait_s *= random.uniform(0.5, 1.0)  # noqa: S311 - to spread, not to hide
        return min(max(wait_s, after_s), LONGEST_WAIT_S)

    def _run(self) -> None:
        try:
            while not self._clock.wait(self._stop, self.step()):
                pass
        finally:
            self._ended()

    def _ended(self) -> None:
        with contextlib.suppress(Exception):
            self._end()


@dataclass(slots=True)
class SlowPlatform:
    """The power of the whole node, from whoever is slow to tell it. Asks nobody before `sample`.

    Args:
        ask: asks now; blocks for some seconds. In place of `sample`, never beside it: one thread
            speaks to the controller. Raises SensorDenied, SensorFailed.
    """

    background: Background
    ask: Callable[[], Sample]
    device: str = field(default="platform", init=False)
    component: str = field(default="other", init=False)
    max_power_w: float = field(default=0.0, init=False)
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="derived", init=False)
    averaged_s: float = field(default=0.0, init=False)

    def sample(self) -> Sample:
        """From memory. Raises: SensorDenied, SensorFailed."""
        return self.background.sample()

    def close(self) -> None:
        """End the thread, and what it holds open."""
        self.background.close()
