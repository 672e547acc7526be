"""Figures with known right answers; each names where it is published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector.accounting.grams import (
    G_PER_KWH_PER_LB_PER_MWH,
    MICROJOULES_PER_KWH,
    embodied_grams,
    grams_co2e,
    relative_uncertainty,
)

KWH = MICROJOULES_PER_KWH


def test_grams_follow_the_hour_not_the_mean() -> None:
    """Four hours at 1, 1, 0.5 and 2 kW; the mean intensity would give 1125, the last 900."""
    energy_uj, g_per_kwh = [KWH, KWH, KWH // 2, 2 * KWH], [400.0, 300.0, 100.0, 200.0]
    assert grams_co2e(energy_uj, 1.0, g_per_kwh) == pytest.approx(1150)
    assert grams_co2e(energy_uj, 1.2, g_per_kwh) == pytest.approx(1380)
    g_per_kwh[2] = 160.0
    assert grams_co2e(energy_uj, 1.2, g_per_kwh) == pytest.approx(1416)


def test_published_footprints() -> None:
    # BLOOM, arXiv 2211.02001: 1,082,990 GPU-h at 400 W; 57 g/kWh; PUE 1.
    dynamic_uj = 1_082_990 * 400 * 3600 * 1_000_000
    assert dynamic_uj / KWH == pytest.approx(433_196)
    assert grams_co2e([dynamic_uj], 1.0, [57.0]) / 1e6 == pytest.approx(24.69, abs=0.005)
    assert grams_co2e([256_646 * KWH], 1.0, [57.0]) / 1e6 == pytest.approx(14.6, abs=0.05)
    # ML CO2 calculator, arXiv 1910.09700: A100 PCIe, 250 W for 100 h, 367.8 g/kWh.
    assert grams_co2e([25 * KWH], 1.0, [367.8]) == pytest.approx(9195)
    # Strubell et al. 2019, arXiv 1906.02243: NAS, 0.954 lb/kWh, PUE 1.58.
    grams = grams_co2e([round(274_120 * 1515.43 * 3.6e9)], 1.58, [954 * G_PER_KWH_PER_LB_PER_MWH])
    assert grams / 453.59237 == pytest.approx(626_155, rel=1e-5)


def test_a_pound_per_megawatt_hour() -> None:
    assert G_PER_KWH_PER_LB_PER_MWH == 0.45359237


def test_independent_errors_add_in_squares() -> None:
    """Energy 5 %, PUE 3 %, intensity 10 %."""
    assert relative_uncertainty(0.05, 0.03, 0.10) == pytest.approx(0.1158, abs=5e-5)


def test_embodied() -> None:
    """A server of 1000 kg and 4 years, reserved whole for an hour."""
    assert embodied_grams(1000, 4, 1) == pytest.approx(28.54, abs=0.005)
    assert embodied_grams(1000, 4, 1, 0.25) == pytest.approx(28.54 / 4, abs=0.005)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError):
        grams_co2e([1], 0.9, [1.0])
    with pytest.raises(ValueError):
        grams_co2e([1], 1.0, [])
    with pytest.raises(ValueError):
        embodied_grams(1000, 4, 1, 1.1)


@given(st.lists(st.tuples(st.integers(0, 10**15), st.floats(0, 900)), max_size=50))
def test_the_order_of_slots_does_not_change_the_sum(slots: list[tuple[int, float]]) -> None:
    def sum_of(some: list[tuple[int, float]]) -> float:
        return grams_co2e([uj for uj, _ in some], 1.1, [g for _, g in some])

    assert sum_of(slots) == sum_of(slots[::-1])
