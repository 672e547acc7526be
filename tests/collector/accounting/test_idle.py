"""Idle energy is shared as the reader chose, and no microjoule is made or lost by it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from joulegram.collector.accounting.idle import share_idle, split_uj

IDS = st.integers(1, 2**64 - 1)
UJ = st.integers(0, 10**15)


@given(UJ, st.dictionaries(IDS, UJ, min_size=1))
def test_a_split_conserves_energy(energy_uj: int, weights: dict[int, int]) -> None:
    assume(sum(weights.values()) > 0)
    shares = split_uj(energy_uj, weights)
    assert sum(shares.values()) == energy_uj
    total = sum(weights.values())
    for owner, weight in weights.items():
        assert abs(shares[owner] - energy_uj * weight / total) <= 1 + energy_uj * 1e-12
        assert weight or not shares[owner]


@given(UJ, st.dictionaries(IDS, UJ, min_size=1))
def test_a_split_does_not_depend_on_dict_order(energy_uj: int, weights: dict[int, int]) -> None:
    assume(sum(weights.values()) > 0)
    backwards = dict(reversed(list(weights.items())))
    assert split_uj(energy_uj, weights) == split_uj(energy_uj, backwards)


def test_nonsense_is_refused() -> None:
    for energy_uj, weights in ((-1, {1: 1}), (1, {1: 0}), (1, {1: 2, 2: -1})):
        with pytest.raises(ValueError):
            split_uj(energy_uj, weights)
    with pytest.raises(ValueError):
        share_idle("separate", {0: 1}, {}, {})


@given(
    st.sampled_from(["by_active", "by_reservation"]),
    st.dictionaries(st.integers(0, 5), UJ),
    st.dictionaries(st.integers(1, 9), UJ),
    st.dictionaries(st.integers(1, 9), UJ),
)
def test_every_policy_keeps_the_total(
    policy: str, idle_uj: dict[int, int], active_uj: dict[int, int], reserved: dict[int, int]
) -> None:
    taken, left = share_idle(policy, idle_uj, active_uj, reserved)
    assert sum(taken.values()) + left == sum(idle_uj.values())


def test_idle_with_no_taker_stays_idle() -> None:
    assert share_idle("by_active", {0: 70}, {1: 0}, {1: 5}) == ({}, 70)
    assert share_idle("by_reservation", {0: 70}, {1: 3}, {}) == ({}, 70)


def test_by_active_shares_125_w_of_idle_in_proportion() -> None:
    """Golden: package 200 W, floor 125 W; A 50, B 12.5, system 12.5 become 133.3, 33.3, 33.3."""
    active_uj = {1: 50_000_000, 2: 12_500_000, 3: 12_500_000}
    taken, left = share_idle("by_active", {0: 125_000_000}, active_uj, {})
    assert left == 0
    together = {w: round((uj + taken[w]) / 1e6, 1) for w, uj in active_uj.items()}
    assert together == {1: 133.3, 2: 33.3, 3: 33.3}


def test_by_reservation_gives_a_held_gpu_to_its_holder_and_the_rest_to_nobody() -> None:
    """Golden: of a 70 W floor, one slice of seven holds 10 W; 60 W are held by nobody."""
    assert share_idle("by_reservation", {7: 10, 0: 60}, {7: 330}, {}) == ({7: 10}, 60)


def test_by_reservation_goes_by_reserved_cpus_not_by_use() -> None:
    taken, left = share_idle("by_reservation", {0: 100}, {1: 99, 2: 1}, {1: 1, 2: 3})
    assert (taken, left) == ({1: 25, 2: 75}, 0)
