"""Where the machines stand: grid zone, PUE and wanted basis, with valid and knowledge time."""

from collections.abc import Mapping
from dataclasses import dataclass

from joulegram.collector.config import GridConfig
from joulegram.collector.ledger.chdb import ChdbLedger


@dataclass(frozen=True, slots=True)
class Site:
    zone: str
    pue: float
    basis: str  # average-direct-consumption or average-lifecycle-production


def site_of(config: GridConfig) -> Site:
    """Check [grid] and resolve `basis = "auto"`.

    Raises: UnknownZone; BadSetting for a PUE or basis out of range.
    """
    raise NotImplementedError


def record_site(ledger: ChdbLedger, site: Site, now_ms: int) -> bool:
    """Append the site when it differs from what the ledger knows. At start, before serving."""
    raise NotImplementedError
