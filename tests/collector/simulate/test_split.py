"""Many windows at once are split as one window would be, with Python's integers."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector.simulate.split import MAX_WEIGHT, split_uj

WEIGHTS = st.lists(st.integers(0, 10**8), min_size=1, max_size=12).filter(any)


def by_hand(energy_uj: int, weights: list[int]) -> list[int]:
    exact = [Fraction(energy_uj * weight, sum(weights)) for weight in weights]
    shares = [int(share) for share in exact]
    first = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in first[: energy_uj - sum(shares)]:
        shares[i] += 1
    return shares


@given(st.integers(0, 10**13), WEIGHTS)
def test_largest_remainder_to_the_last_microjoule(energy_uj: int, weights: list[int]) -> None:
    got = split_uj(np.array([energy_uj, 7]), np.array([weights, weights]))
    assert got.tolist() == [by_hand(energy_uj, weights), by_hand(7, weights)]
    assert got.sum(axis=1).tolist() == [energy_uj, 7]


def test_the_largest_weights_do_not_overflow() -> None:
    weights = [MAX_WEIGHT - 3, 1, 1]
    assert split_uj(np.array([2 * 10**12]), np.array([weights])).tolist() == [
        by_hand(2 * 10**12, weights)
    ]
