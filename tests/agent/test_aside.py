"""Questions to a device that may hang: others go on, and no thread outlives who asked."""

import gc
import threading

import pytest

from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.aside import Aside


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_an_answer_or_what_was_raised_comes_back():
    aside = Aside("answers")
    assert aside.ask(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        aside.ask(lambda: 1 // 0, 5.0)


def test_a_device_that_hangs_fails_at_once_until_it_answers():
    aside, go = Aside("hangs"), threading.Event()
    with pytest.raises(SensorFailed, match="hangs"):
        aside.ask(lambda: go.wait(20), 0.01)
    with pytest.raises(SensorFailed):
        aside.ask(lambda: 1, 20.0)
    go.set()
    while True:
        try:
            aside.settled()
            break
        except SensorFailed:
            go.wait(0.01)
    assert aside.ask(lambda: 8, 5.0) == 8


def test_its_thread_ends_with_whoever_asked():
    aside = Aside("ends with it")
    aside.ask(lambda: 1, 5.0)
    (thread,) = threads("ends with it")
    del aside
    gc.collect()
    thread.join(5.0)
    assert not thread.is_alive()
