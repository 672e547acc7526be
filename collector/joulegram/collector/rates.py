"""The site's PUE and grid intensity over a range of slots, as they were known at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulegram.collector import sites
from joulegram.collector.accounting.choose import SLOT_S, Chosen, choose
from joulegram.collector.accounting.grams import slot_grams
from joulegram.collector.config import BASES
from joulegram.collector.grid import neso, table, yearly, zones
from joulegram.collector.ledger.ledger import Ledger

# How long the last good value stands in for one that never came: as long as the feed counts
# as fresh. Half hours of NESO are published up to an hour late.
HOLD_S = {neso.PROVIDER: 90 * 60}
CREDITS = {
    neso.PROVIDER: "NESO Carbon Intensity API, CC BY 4.0",
    yearly.PROVIDER: zones.TABLE_CREDIT,
    yearly.WORLD_PROVIDER: zones.WORLD_CREDIT,
}


@dataclass(frozen=True, slots=True)
class Rates:
    """What a microjoule in each slot stands for; arrays have one value per slot."""

    slots_s: NDArray[np.int64]
    sites: Sequence[sites.Site]  # distinct
    site: NDArray[np.int64]  # index into `sites`
    wanted: Sequence[str]  # basis, per site
    chosen: Sequence[Chosen]  # per site, over its own slots
    pue: NDArray[np.float64]
    g_per_kwh: NDArray[np.float64]  # nan: unknown

    def grams(self, slot: NDArray[np.int64], uj: NDArray[np.uint64]) -> NDArray[np.float64]:
        """gCO2e of energies in slots (indices); nan where the intensity is unknown."""
        return slot_grams(uj, self.pue[slot], self.g_per_kwh[slot])

    def summary(self, slot_uj: NDArray[np.uint64]) -> dict[str, Any]:
        """What an answer says of the grid; shares and means are weighted by energy."""
        weights = slot_uj.astype(np.float64) if slot_uj.any() else np.ones(len(slot_uj))
        weights = weights / weights.sum()
        shares: dict[str, dict[str, float]] = {"quality": {}, "basis": {}, "provider": {}}
        for index, chosen in enumerate(self.chosen):
            own = weights[self.site == index]
            for sort, found in shares.items():
                for name, share in getattr(chosen, sort).items():
                    found[name] = found.get(name, 0.0) + math.fsum(share * own)
        shares = {sort: _positive(found) for sort, found in shares.items()}
        known = ~np.isnan(self.g_per_kwh)
        weight = weights[known].sum()
        one_pue = len({site.pue for site in self.sites}) == 1
        last = int(self.site[-1])
        return {
            "zone": self.sites[last].zone,
            "zones": sorted({site.zone for site in self.sites}),
            "pue": self.sites[0].pue if one_pue else float(np.dot(self.pue, weights)),
            "basis": self.wanted[last],
            "basis_share": shares["basis"],
            "intensity": shares["quality"],
            "provider_share": shares["provider"],
            "g_per_kwh": (
                float(np.dot(self.g_per_kwh[known], weights[known]) / weight) if weight else None
            ),
            "credits": [CREDITS[p] for p in shares["provider"] if p in CREDITS],
        }


def rates(
    ledger: Ledger, since_s: int, until_s: int, as_of_ms: int, basis: str | None = None
) -> Rates:
    """The rates of the slots in [since_s, until_s).

    Args:
        basis: `lifecycle` or `direct`; None: the one each site wants.
    """
    slots_s = np.arange(since_s, until_s, SLOT_S, dtype=np.int64)
    statements = sites.sites(ledger, as_of_ms)
    changes = {s.valid_from_s for s in statements if since_s < s.valid_from_s < until_s}
    distinct: list[sites.Site] = []
    site = np.zeros(len(slots_s), dtype=np.int64)
    for start in sorted({since_s, *changes}):
        place = sites.site_at(statements, start)
        if place not in distinct:
            distinct.append(place)
        site[slots_s >= start] = distinct.index(place)
    wanted = [BASES[basis] if basis else place.basis for place in distinct]
    g_per_kwh = np.full(len(slots_s), np.nan)
    chosen = []
    for index, place in enumerate(distinct):
        own = site == index
        rows = table.read(ledger, place.zone, since_s - max(HOLD_S.values()), until_s, as_of_ms)
        picked = choose(
            rows, slots_s[own], wanted_basis=wanted[index], as_of_ms=as_of_ms, hold_s=HOLD_S
        )
        g_per_kwh[own] = picked.g_per_kwh
        chosen.append(picked)
    pue = np.array([place.pue for place in distinct])[site]
    return Rates(slots_s, distinct, site, wanted, chosen, pue, g_per_kwh)


def _positive(found: dict[str, float]) -> dict[str, float]:
    return {name: share for name, share in found.items() if share > 0}
