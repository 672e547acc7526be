"""Where the machines stand: grid zone, PUE and wanted basis, with valid and knowledge time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from joulegram.collector.config import BASES, GridConfig
from joulegram.collector.grid import neso
from joulegram.collector.grid.zones import WORLD
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.settings import Statement, in_force, known, record


@dataclass(frozen=True, slots=True)
class Site:
    """One grid zone as Electricity Maps names it, its PUE, and the basis answers shall have."""

    zone: str
    pue: float
    basis: str  # a value of BASES


def site_of(config: GridConfig) -> Site:
    """[grid] with `basis = "auto"` resolved: what the zone's live feed counts, if any."""
    if config.basis != "auto":
        return Site(config.zone, config.pue, BASES[config.basis])
    live = config.zone == neso.ZONE and config.neso_url
    return Site(config.zone, config.pue, neso.BASIS if live else BASES["lifecycle"])


def record_site(ledger: Ledger, site: Site, now_ms: int) -> bool:
    """Append the site when it differs from what the ledger knows. At start, before serving.

    It holds for all time: a corrected zone or PUE corrects past answers too, and an answer
    as of an earlier date still has the earlier one. True: it was appended.
    """
    return record(ledger, "site", asdict(site), now_ms=now_ms)


def sites(ledger: Ledger, as_of_ms: int) -> list[Statement]:
    """What was known of the site by then; `site_at` reads it."""
    return known(ledger, "site", as_of_ms)


def site_at(statements: Sequence[Statement], at_s: int) -> Site:
    """The site at a time (epoch seconds)."""
    statement = in_force(statements, at_s)
    if statement is None:
        # Asked as of a date before the site was configured: what is still right is that
        # nothing was known of it.
        return Site(WORLD, 1.0, BASES["lifecycle"])
    return Site(**statement.value)
