"""Where the machines stand: grid zone, PUE and wanted basis, with valid and knowledge time."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from joulegram.collector.config import GridConfig
from joulegram.collector.errors import BadSetting
from joulegram.collector.grid import neso, yearly
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.settings import Statement, in_force, known, record

BASES = {
    "lifecycle": "average-lifecycle-production",
    "direct": "average-direct-consumption",
}
# ISO/IEC 30134-2: facility energy / IT energy, so never below 1. Site averages above 3 are
# rare (Uptime Institute's survey of 2023 has a mean of 1.58); above it a per cent is likelier.
PUE_MAX = 3.0


@dataclass(frozen=True, slots=True)
class Site:
    """One grid zone as Electricity Maps names it, its PUE, and the basis answers shall have."""

    zone: str
    pue: float
    basis: str  # a value of BASES


def site_of(config: GridConfig) -> Site:
    """Check [grid] and resolve `basis = "auto"`: what the zone's live feed counts, if any.

    Raises: UnknownZone; BadSetting for a value that cannot hold.
    """
    yearly.check_zone(config.zone)
    if not (math.isfinite(config.pue) and 1.0 <= config.pue <= PUE_MAX):
        raise BadSetting(
            f"grid.pue = {config.pue:g}: PUE is facility energy / IT energy, from 1 to "
            f"{PUE_MAX:g}. Write 1.2, not 120 %; 1.0 when it is not known."
        )
    if config.basis not in ("auto", *BASES):
        raise BadSetting(
            f"grid.basis = {config.basis!r}: write lifecycle, direct, or auto for what the "
            "zone's live feed counts."
        )
    if not (math.isfinite(config.neso_poll_s) and config.neso_poll_s > 0):
        raise BadSetting(
            f"grid.neso_poll_s = {config.neso_poll_s:g}: seconds between two polls, above 0; NESO "
            "publishes every 30 minutes, so 600 is often enough."
        )
    if config.neso_url and not config.neso_url.startswith(("http://", "https://")):
        raise BadSetting(
            f"grid.neso_url = {config.neso_url!r}: write http:// or https:// and the host, or "
            "leave it empty to ask nobody."
        )
    if config.basis != "auto":
        return Site(config.zone, config.pue, BASES[config.basis])
    live = config.zone == neso.ZONE and config.neso_url
    return Site(config.zone, config.pue, neso.BASIS if live else BASES["lifecycle"])


def record_site(ledger: ChdbLedger, site: Site, now_ms: int) -> bool:
    """Append the site when it differs from what the ledger knows. At start, before serving.

    It holds for all time: a corrected zone or PUE corrects past answers too, and an answer
    as of an earlier date still has the earlier one. True: it was appended.
    """
    return record(ledger, "site", asdict(site), now_ms=now_ms)


def sites(ledger: ChdbLedger, as_of_ms: int) -> list[Statement]:
    """What was known of the site by then; `site_at` reads it."""
    return known(ledger, "site", as_of_ms)


def site_at(statements: Sequence[Statement], at_s: int) -> Site:
    """The site at a time (epoch seconds)."""
    statement = in_force(statements, at_s)
    if statement is None:
        # Asked as of a date before the site was configured: what is still right is that
        # nothing was known of it.
        return Site(yearly.WORLD, 1.0, BASES["lifecycle"])
    return Site(**statement.value)
