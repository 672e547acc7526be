"""Laws of integrated power: the trapezoid to the microjoule, and gaps that stay gaps."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.integral import Integral
from joulegram.agent.sensors.sensor import Sample

S = 1_000_000_000


def total_uj(integral, samples):
    found = [integral.take(at_ns, Sample(uw, at_ns)) for at_ns, uw in samples]
    return sum(interval.energy_uj for interval in found if interval is not None)


def test_samples_of_100_300_300_w_in_20_s_are_5000_j():
    samples = [(0, 100_000_000), (10 * S, 300_000_000), (20 * S, 300_000_000)]
    assert total_uj(Integral(0.0, 10.0), samples) == 5_000_000_000


def test_a_mean_over_the_time_before_counts_for_that_time():
    samples = [(0, 100_000_000), (10 * S, 300_000_000)]
    assert total_uj(Integral(10.0, 10.0), samples) == 3_000_000_000
    assert total_uj(Integral(4.0, 10.0), samples) == (4 * 300 + 6 * 200) * 1_000_000


@given(st.lists(st.tuples(st.integers(1, 2 * S), st.integers(0, 10**9)), min_size=2, max_size=40))
def test_nothing_below_a_microjoule_is_lost_on_the_way(steps):
    """The integral of many samples is the sum of their trapezoids, cut to a whole number once."""
    at_ns, samples = 0, []
    for elapsed_ns, uw in steps:
        at_ns += elapsed_ns
        samples.append((at_ns, uw))
    twice = sum((b - a) * (v + w) for (a, v), (b, w) in pairwise(samples))
    assert total_uj(Integral(0.0, 1.5), samples) == twice // (2 * S)


def test_the_same_sample_again_is_neither_energy_nor_a_gap():
    integral = Integral(0.0, 1.0)
    first, second = Sample(10_000_000, 0), Sample(10_000_000, 5 * S)
    assert [integral.take(n * S, first) for n in range(5)] == [None] * 5
    interval = integral.take(5 * S, second)
    assert interval is not None and interval.energy_uj == 50_000_000


def test_a_failed_reading_or_a_stalled_reader_is_a_gap():
    integral = Integral(0.0, 1.0)
    integral.take(0, Sample(1_000_000, 0))
    integral.failed()
    assert integral.take(2 * S, Sample(1_000_000, 2 * S)) is None
    assert integral.take(3 * S, Sample(1_000_000, 3 * S)) is not None
    assert integral.take(9 * S, Sample(1_000_000, 9 * S)) is None


def test_the_same_sample_after_a_failure_begins_nothing():
    """A counter that has not moved, asked again after an outage: its old value is no new one."""
    integral = Integral(0.0, 1.0)
    integral.take(0, Sample(1_000_000, 0))
    integral.failed()
    assert integral.take(1 * S, Sample(1_000_000, 0)) is None
    assert integral.take(2 * S, Sample(1_000_000, 2 * S)) is None
    assert integral.take(3 * S, Sample(1_000_000, 3 * S)) is not None


def test_the_growth_of_a_count_is_itself_and_bridges_a_failure():
    integral = Integral(0.0, 1.0)
    integral.take(5 * S, Sample(620_000_000, 5 * S, 0, 3_100_000_000))
    after = integral.take(6 * S, Sample(800_000_000, 6 * S, 0, 3_900_000_000))
    assert after is not None and (after.energy_uj, after.bridged) == (800_000_000, False)
    integral.failed()
    after = integral.take(16 * S, Sample(380_000_000, 16 * S, 0, 7_700_000_000))
    assert after is not None and (after.energy_uj, after.bridged) == (3_800_000_000, True)


def test_nothing_is_known_of_the_time_before_a_count_began():
    integral = Integral(0.0, 10.0)
    integral.take(0, Sample(100_000_000, 0, -5 * S, 500_000_000))
    assert integral.take(10 * S, Sample(300_000_000, 10 * S, 5 * S, 1_500_000_000)) is None
    after = integral.take(15 * S, Sample(200_000_000, 15 * S, 5 * S, 2_500_000_000))
    assert after is not None and after.energy_uj == 1_000_000_000
    assert integral.take(20 * S, Sample(1, 20 * S)) is not None, "power after an energy"
    assert integral.take(25 * S, Sample(1, 25 * S, 5 * S, 9_000_000_000)) is None


def test_a_count_that_is_looked_at_less_often_than_it_is_asked_loses_nothing():
    """100 W and 500 W by turns, told every 5 s and taken every 10 s."""
    integral = Integral(0.0, 10.0)
    grown_j, taken = 0, []
    for n in range(1, 7):
        watts = 100 if n % 2 == 0 else 500
        grown_j += 5 * watts
        if n % 2 == 0:
            sample = Sample(watts * 10**6, 5 * n * S, 0, grown_j * 10**6)
            taken.append(integral.take(5 * n * S, sample))
    assert [one and (one.energy_uj, one.bridged) for one in taken] == [
        None,
        (3_000_000_000, False),
        (3_000_000_000, False),
    ]
