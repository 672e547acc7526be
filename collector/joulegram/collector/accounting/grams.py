"""Energy times intensity: operational emissions, location-based. Pure."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MICROJOULES_PER_KWH = 3_600_000_000_000
# 1 lb = 453.59237 g exactly (international pound, 1959); 1 MWh = 1000 kWh.
G_PER_KWH_PER_LB_PER_MWH = 0.45359237
HOURS_PER_YEAR = 8760


def slot_grams(
    energy_uj: NDArray[np.uint64], pue: NDArray[np.float64], g_per_kwh: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Operational emissions of each of n slots, gCO2e, shape (n,).

    Args:
        energy_uj: IT energy, uJ. pue: facility energy / IT energy, >= 1.
        g_per_kwh: grid intensity, gCO2e/kWh; nan where unknown, which makes the grams unknown
            unless there was no energy.
    Source: GHG Protocol Scope 2 Guidance (2015), location-based method.
    """
    return np.where(energy_uj > 0, energy_uj / MICROJOULES_PER_KWH * pue * g_per_kwh, 0.0)


def grams_co2e(energy_uj: Sequence[int], pue: float, g_per_kwh: Sequence[float]) -> float:
    """Emissions of energy drawn over n slots with one PUE, gCO2e; arguments as `slot_grams`.

    Raises: ValueError when the lengths differ or the PUE is below 1.
    """
    if not pue >= 1 or len(energy_uj) != len(g_per_kwh):
        raise ValueError(f"out of range: {pue=}, {len(energy_uj)} energies, {len(g_per_kwh)} rates")
    grams = slot_grams(
        np.array(energy_uj, dtype=np.uint64),
        np.full(len(energy_uj), pue),
        np.array(g_per_kwh, dtype=np.float64),
    )
    return math.fsum(grams.tolist())


def relative_uncertainty(*parts: float) -> float:
    """Of a product whose factors err independently; parts and result as fractions.

    Source: JCGM 100:2008 (GUM), 5.1.6.
    """
    return math.hypot(*parts)


def embodied_grams(
    total_kg: float, lifetime_years: float, hours: float, share: float = 1.0
) -> float:
    """Embodied emissions of a reservation: total x time share x resource share, gCO2e.

    Source: Green Software Foundation, SCI specification 1.1 (ISO/IEC 21031:2024), M = TE x TS x RS.
    Raises: ValueError when a quantity is outside its range.
    """
    if total_kg < 0 or lifetime_years <= 0 or hours < 0 or not 0 <= share <= 1:
        raise ValueError(f"out of range: {total_kg=} {lifetime_years=} {hours=} {share=}")
    return total_kg * 1000 * hours / (lifetime_years * HOURS_PER_YEAR) * share
