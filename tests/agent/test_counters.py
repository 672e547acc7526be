"""Laws of counters: what is cut adds up again; wraps and resets are told apart."""

from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.counters import Counter, Interval, cut

S = 1_000_000_000


@given(
    st.integers(0, 10**15),
    st.integers(0, 10**12),
    st.integers(1, 10**12),
    st.lists(st.floats(0, 1), max_size=6),
)
def test_what_is_cut_adds_up_again(amount, start, length, places):
    edges = sorted(start + int(place * length) for place in places)
    parts = cut(amount, start, start + length, edges)
    assert sum(parts) == amount
    assert len(parts) == len(edges) + 1
    assert all(part >= 0 for part in parts)


@given(st.lists(st.integers(0, 300_000_000), min_size=1, max_size=60))
def test_no_joule_is_lost_over_any_number_of_wraps(steps):
    """Below the greatest power every step is known, however often the counter wraps."""
    counter, truth, value = Counter(700_000_000, 400.0, 1.0), 0, 0
    total = 0
    counter.read(0, 0)
    for n, step in enumerate(steps, start=1):
        truth += step
        value = truth % 700_000_000
        interval = counter.read(n * S, value)
        assert interval is not None
        total += interval.energy_uj
    assert total == truth


def test_the_first_reading_says_nothing():
    assert Counter(0, 1000.0, 1.0).read(5 * S, 12345) is None


def test_a_missed_reading_is_bridged():
    counter = Counter(10**12, 1000.0, 1.0)
    counter.read(0, 0)
    counter.failed()
    assert counter.read(2 * S, 50) == Interval(0, 2 * S, 50, True)
    assert counter.read(3 * S, 75) == Interval(2 * S, 3 * S, 25, False)


def test_a_suspend_is_a_gap_and_gets_its_part_by_time():
    counter = Counter(10**12, 1000.0, 1.0)
    counter.read(0, 0, 7 * S)
    assert counter.read(S, 200, 10 * S) == Interval(0, S, 200, True, asleep_uj=150)
    assert counter.read(2 * S, 250, 10 * S) == Interval(S, 2 * S, 50, False)
    # Two clocks, read one after the other, differ a little.
    assert counter.read(3 * S, 300, 10 * S + 1_000_000) == Interval(2 * S, 3 * S, 50, False)


def test_a_counter_that_may_have_wrapped_asleep_says_nothing():
    counter = Counter(262_143_328_850, 300.0, 1.0)
    counter.read(0, 0, 0)
    assert counter.read(S, 50_000_000, 3600 * S) is None


def test_a_forward_jump_no_hardware_can_draw_is_a_reset():
    counter = Counter(262_143_328_850, 300.0, 1.0)
    counter.read(0, 1_000_000)
    assert counter.read(S, 100_000_000_000) is None
    assert counter.read(2 * S, 100_100_000_000) == Interval(S, 2 * S, 100_000_000, False)


def test_a_counter_that_moves_in_steps_is_judged_over_its_step():
    """250 W through a counter that is written twice a second and read ten times."""
    counter = Counter(262_143_328_850, 280.0, 0.1)
    counter.read(0, 262_143_300_000)
    for n in range(1, 5):
        assert counter.read(n * S // 10, 262_143_300_000) is not None
    assert counter.read(S // 2, 124_971_150) is not None  # wrapped: 125 J since the last step
