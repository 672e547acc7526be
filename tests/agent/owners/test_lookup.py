"""Questions that may hang, asked by threads of their own."""

import threading
import time
from functools import partial

import pytest

from joulegram.agent.owners.asking import LONGEST_DELAY_S, Asking, backoff_s
from joulegram.agent.owners.lookup import (
    PENDING_MAX,
    REMEMBERED,
    THREADS_MAX,
    WAIT_S,
    Later,
    Lookup,
)
from joulegram.agent.owners.users import login_names
from tests.servers import wait_until


def _as_many(found: list[int], many: int) -> bool:
    return len(found) == many


def test_the_first_who_asks_gets_the_answer():
    assert Lookup(str).get(7) == "7"


def test_one_question_is_asked_once():
    asked: list[int] = []

    def find(n: int) -> str:
        asked.append(n)
        return str(n)

    lookup = Lookup(find)
    for _ in range(3):
        assert lookup.get(7) == "7"
    assert asked == [7]


def test_an_old_answer_stands_while_it_is_asked_for_again():
    now = [0.0]
    answers = iter("ab")
    lookup: Lookup[int, str] = Lookup(lambda n: next(answers), 10.0, lambda: now[0])
    assert lookup.get(7) == "a"
    now[0] = 11.0
    assert lookup.get(7) == "a"
    wait_until(lambda: lookup.get(7) == "b", "the new answer")


def test_who_asks_what_hangs_waits_a_moment_and_nobody_after():
    free = threading.Event()
    lookup: Lookup[int, str] = Lookup(lambda n: f"{n}{free.wait(30.0)}")
    began = time.monotonic()
    for n in range(PENDING_MAX + 10):
        assert lookup.get(n) is None
    # Creating the threads takes its time, too: far from what one wait each would be.
    assert time.monotonic() - began < PENDING_MAX * WAIT_S / 3
    assert threading.active_count() < 100
    free.set()
    wait_until(lambda: lookup.get(PENDING_MAX - 1) is not None, "the last answer")
    assert lookup.get(PENDING_MAX + 5) is not None


def test_what_hangs_stands_in_nobodys_way():
    free = threading.Event()
    now = [0.0]
    lookup: Lookup[int, str] = Lookup(
        lambda n: str(n) if n else str(free.wait(30.0)), clock=lambda: now[0]
    )
    assert lookup.get(0) is None
    now[0] += 2.0  # it is given up on
    lookup.get(1)
    wait_until(lambda: lookup.get(1) == "1", "the other answer")
    free.set()


def test_who_waits_for_what_began_to_hang_is_answered_by_another_thread():
    """No new question has to come for that."""
    free = threading.Event()
    now = [0.0]
    lookup: Lookup[int, str] = Lookup(
        lambda n: str(n) if n else str(free.wait(30.0)), clock=lambda: now[0]
    )
    assert lookup.get(0) is None
    assert lookup.get(1) is None  # asked before the first one was given up on
    now[0] += 2.0
    wait_until(lambda: lookup.get(1) == "1", "the other answer", timeout_s=10)
    free.set()


def test_only_so_many_threads_hang():
    free = threading.Event()
    hanging: list[int] = []
    now = [0.0]

    def find(n: int) -> bool:
        hanging.append(n)
        return free.wait(30.0)

    lookup = Lookup(find, clock=lambda: now[0])
    for n in range(20):
        now[0] += 2.0  # each is given up on
        lookup.get(n)
        many = min(n + 1, THREADS_MAX)
        wait_until(partial(_as_many, hanging, many), "threads that hang")
    free.set()


def test_what_raises_has_no_answer():
    lookup: Lookup[int, int] = Lookup(lambda n: 1 // n)
    assert lookup.get(0) is None
    assert lookup.get(1) == 1


def test_what_is_to_be_asked_for_later_is_asked_for_again():
    asked: list[int] = []

    def find(n: int) -> str:
        asked.append(n)
        if len(asked) < 3:
            raise Later
        return str(n)

    lookup = Lookup(find)
    wait_until(lambda: lookup.get(7) == "7", "the third answer")
    assert asked == [7, 7, 7]


def test_as_many_are_remembered_as_are_bounded():
    lookup: Lookup[int, str] = Lookup(str)
    for n in range(REMEMBERED + 50):
        while lookup.get(n) is None:
            pass
    assert len(lookup) == REMEMBERED


def test_names_of_users():
    names = login_names()
    assert names.get(0) == "root"
    assert names.get(3_999_999_999) == ""
    assert names.get(10**30) == ""


@pytest.mark.parametrize("failures", [1, 2, 5, 9, 50, 10_000])
def test_back_off_grows_and_has_an_end(failures):
    least, most = backoff_s(failures, 2.0, 0.0), backoff_s(failures, 2.0, 1.0)
    assert 2.0 <= least <= most <= LONGEST_DELAY_S
    assert most == 2 * least
    assert backoff_s(failures + 1, 2.0, 0.5) >= backoff_s(failures, 2.0, 0.5)


def test_a_defect_in_asking_does_not_end_the_thread():
    rounds: list[int] = []

    def ask() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise ZeroDivisionError

    asking = Asking("test", ask, every_s=60.0, gap_s=0.0)
    asking.wake()
    wait_until(lambda: len(rounds) == 2 and asking.trouble == "", "the second round")
    asking.close()


def test_woken_while_it_asks_it_asks_again():
    rounds: list[int] = []
    free = threading.Event()

    def ask() -> None:
        rounds.append(1)
        free.wait(30.0)

    asking = Asking("test", ask, every_s=60.0, gap_s=0.0)
    asking.wake()
    wait_until(lambda: len(rounds) == 1, "the first round")
    asking.wake()
    free.set()
    wait_until(lambda: len(rounds) == 2, "the second round")
    asking.close()


def test_no_thread_before_it_is_needed_and_none_after():
    asking = Asking("quiet", lambda: None, every_s=60.0)
    names = {thread.name for thread in threading.enumerate()}
    assert "ask-quiet" not in names
    asking.close()
    asking.wake()
    assert "ask-quiet" not in {thread.name for thread in threading.enumerate()}
