"""A slow meter never keeps the tick waiting, and never passes off what is old as new."""

import contextlib
import threading

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.bmc.background import LONGEST_WAIT_S, Background, Later
from joulegram.agent.sensors.sensor import Sample
from tests.agent.played import Clock

WAIT_S = 10.0  # for another thread, at most


class Meter:
    """Answers with what it is told to, and takes its time about it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.says: Sample | Exception | None = None
        self.takes_s = 0.0

    def ask(self) -> Sample | None:
        self.clock.mono += round(self.takes_s * 1e9)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Hand(Clock):
    """A clock whose sleepers wake when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = threading.Event()
        self.wake = threading.Event()

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        self.asleep.set()
        while not stop.is_set() and not self.wake.wait(0.01):
            pass
        self.wake.clear()
        return stop.is_set()


def asked(meter: Meter) -> Background:
    """Stepped by the test; `sample` would start the thread."""
    background = Background("meter", meter.ask, meter.clock, every_s=5.0, stale_s=20.0)
    background._thread = threading.current_thread()
    return background


def test_it_is_asked_at_a_steady_pace_and_rests_when_slow() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    waits = []
    for meter.takes_s in (0.0, 2.0, 4.9, 30.0):
        waits.append(background.step())
    assert waits == [5.0, 3.0, 1.0, 1.0]


def test_failures_wait_longer_each_time_and_success_ends_it() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = SensorFailed("no")
    waits = [background.step() for _ in range(20)]
    assert waits[:4] == [5.0, 10.0, 20.0, 40.0] and waits[-1] == LONGEST_WAIT_S
    meter.says = Sample(1, 1)
    assert background.step() == 5.0
    meter.says = SensorFailed("no")
    assert background.step() == 5.0


def test_one_who_says_when_is_asked_then() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    for after_s, waits_s in ((60.0, 60.0), (10**9, LONGEST_WAIT_S), (0.0, 20.0)):
        meter.says = Later("busy", after_s)
        assert background.step() == waits_s


def test_one_who_refuses_is_left_alone() -> None:
    """Controllers lock an account after a few wrong passwords."""
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = SensorDenied("wrong password")
    assert background.step() == LONGEST_WAIT_S
    with pytest.raises(SensorDenied, match="wrong password"):
        background.sample()


def test_the_newest_sample_is_told_until_it_is_stale() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = Sample(214_000_000, meter.clock.mono_ns())
    background.step()
    meter.says = SensorFailed("gone")
    background.step()
    meter.clock.mono += 20_000_000_000
    assert background.sample() == Sample(214_000_000, meter.clock.mono_ns() - 20_000_000_000)
    meter.clock.mono += 1
    with pytest.raises(SensorFailed, match="gone"):
        background.sample()


def test_one_who_hangs_is_said_to_hang() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    with pytest.raises(SensorFailed, match="not answered yet"):
        background.sample()
    meter.says = Sample(1, meter.clock.mono_ns())
    background.step()
    meter.clock.mono += 60_000_000_000
    with pytest.raises(SensorFailed, match="nothing new for 60 s"):
        background.sample()


def test_a_defect_ends_no_thread() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = ZeroDivisionError("oops")
    background.step()
    with pytest.raises(SensorFailed, match="ZeroDivisionError: oops"):
        background.sample()


def test_the_thread_starts_when_read_and_ends_when_closed() -> None:
    clock, ended = Hand(), threading.Event()
    meter = Meter(clock)
    meter.says = Sample(7, clock.mono_ns())
    background = Background("meter", meter.ask, clock, end=ended.set)
    assert not clock.asleep.wait(0.05), "nobody was asked before somebody wanted to know"
    with contextlib.suppress(SensorFailed):
        background.sample()
    assert clock.asleep.wait(WAIT_S)
    assert background.sample() == Sample(7, clock.mono_ns())
    clock.asleep.clear()
    meter.says = Sample(8, clock.mono_ns())
    clock.wake.set()
    assert clock.asleep.wait(WAIT_S)
    assert background.sample().power_uw == 8
    background.close()
    assert ended.is_set()
    assert not [one for one in threading.enumerate() if one.name == "meter"]
    assert background.sample().power_uw == 8, "read after the end: no new thread"


def test_reading_and_closing_never_wait_for_an_answer() -> None:
    release, asked_once = threading.Event(), threading.Event()

    def hang() -> Sample:
        asked_once.set()
        release.wait(WAIT_S)
        raise SensorFailed("late")

    background = Background("meter", hang, SystemClock())
    with pytest.raises(SensorFailed):
        background.sample()
    assert asked_once.wait(WAIT_S)
    with pytest.raises(SensorFailed, match="not answered yet"):
        background.sample()
    assert not release.is_set()
    background.close(within_s=0.05)
    release.set()
