"""A slow meter never keeps the tick waiting, and never passes off what is old as new."""

import contextlib
import threading

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.integral import Integral
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


def test_failures_wait_longer_but_never_long_after_a_sound_answer() -> None:
    """An outage shall not cost more windows than it lasts; half of each wait is by chance."""
    meter = Meter(Clock())
    background = asked(meter)
    for outage in range(2):
        meter.says = Sample(1, 1)
        assert background.step() == 5.0
        meter.says = SensorFailed("no")
        waits = [background.step() for _ in range(40)]
        assert 2.5 <= waits[0] <= 5.0, outage
        assert all(5.0 <= wait_s <= 10.0 for wait_s in waits[1:])
        assert len(set(waits)) > 30, "nodes that failed together do not knock together"


def test_one_who_never_answered_is_asked_rarely() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = SensorFailed("it has no meter")
    waits = [background.step() for _ in range(20)]
    for wait_s, most_s in zip(waits, [5.0, 10.0, 20.0, 40.0] + [60.0] * 16, strict=True):
        assert most_s / 2 <= wait_s <= most_s


def test_one_who_says_when_is_asked_then() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    for after_s, waits_s in ((60.0, 60.0), (10**9, LONGEST_WAIT_S)):
        meter.says = Later("busy", after_s)
        assert background.step() == waits_s
    meter.says = Later("busy", 0.0)
    assert 10.0 <= background.step() <= 20.0


def test_one_who_refuses_is_left_alone() -> None:
    """Controllers lock an account after a few wrong passwords."""
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = SensorDenied("wrong password")
    assert background.step() == LONGEST_WAIT_S
    with pytest.raises(SensorDenied, match="wrong password"):
        background.sample()


def test_the_newest_sample_is_told_while_the_next_is_slow() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    meter.says = Sample(214_000_000, meter.clock.mono_ns())
    background.step()
    meter.clock.mono += 20_000_000_000
    assert background.sample() == Sample(214_000_000, meter.clock.mono_ns() - 20_000_000_000)
    meter.clock.mono += 1
    with pytest.raises(SensorFailed, match="nothing new"):
        background.sample()


def test_a_failure_is_told_at_once_so_that_nobody_integrates_over_it() -> None:
    """300 W before, 900 W after: what was between is not 600 W, it is a gap."""
    meter, integral = Meter(Clock()), Integral(0.0, 1.0)
    background = asked(meter)
    energies = []
    for watts in (300, 300, None, 900, 900):
        now_ns = meter.clock.mono_ns()
        meter.says = SensorFailed("500") if watts is None else Sample(watts * 10**6, now_ns)
        background.step()
        for _ in range(5):  # ticks
            try:
                interval = integral.take(meter.clock.mono_ns(), background.sample())
            except SensorFailed:
                integral.failed()
                interval = None
            energies += [interval.energy_uj / 5e6] if interval else []
            meter.clock.mono += 1_000_000_000
    assert energies == [300, 900]


def test_one_who_hangs_is_said_to_hang() -> None:
    meter = Meter(Clock())
    background = asked(meter)
    with pytest.raises(SensorFailed, match="not answered yet"):
        background.sample()
    meter.says = Sample(1, meter.clock.mono_ns())
    background.step()
    meter.clock.mono += 60_000_000_000
    with pytest.raises(SensorFailed, match="nothing new for 20 s"):
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


def test_one_who_was_never_read_ends_with_whoever_asked_it() -> None:
    ended = []
    background = Background("meter", lambda: None, Clock(), end=lambda: ended.append(1))
    background.close()
    assert ended == [1]
    with pytest.raises(SensorFailed):
        background.sample()
    assert not [one for one in threading.enumerate() if one.name == "meter"]


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
