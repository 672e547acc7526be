"""What an operator may say to a collector: tables [collector], [grid] and [teams].

A value that cannot hold is refused when its table is made, so that `joulegram config` and
`joulegram up` refuse what the collector would. Imports Python's own library alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulegram.collector.errors import BadSetting
from joulegram.collector.grid.zones import check_zone
from joulegram.collector.roles import roles_of
from joulegram.collector.rules import check_rules

BASES = {
    "lifecycle": "average-lifecycle-production",
    "direct": "average-direct-consumption",
}
# ISO/IEC 30134-2: facility energy / IT energy, so never below 1. Site averages above 3 are
# rare (Uptime Institute's survey of 2023 has a mean of 1.58); above it a per cent is likelier.
PUE_MAX = 3.0


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """Table [collector]."""

    data: Path = field(
        default=Path("~/.local/share/joulegram/collector"),
        metadata={"help": "the ledger's directory"},
    )
    listen: str = field(default="127.0.0.1:7471", metadata={"help": "HOST:PORT for agents (gRPC)"})
    http: str = field(
        default="127.0.0.1:7470", metadata={"help": "HOST:PORT of the page, API and /metrics"}
    )
    insecure: bool = field(
        default=False, metadata={"help": "listen beyond loopback without TLS all the same"}
    )
    role: str = field(
        default="all",
        metadata={
            "help": "what this process does: all, or some of intake,writer,grid,web (writer apart "
            "from intake takes [kafka]; any apart from writer takes [clickhouse])"
        },
    )
    raw_days: float = field(
        default=90.0,
        metadata={"help": "days that rows of processes are kept; older frames are refused"},
    )
    slot_months: int = field(
        default=13,
        metadata={
            "help": "whole months before this one whose 5-minute slots are kept; of older ones "
            "what each team drew stays"
        },
    )
    retired: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "a node that is gone for good and since when, such as n7=2026-11-01; until "
            "then its silence lowers coverage (repeatable)"
        },
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting for a value that cannot hold."""
        roles_of(self.role)
        if not 1.0 <= self.raw_days < math.inf:
            raise BadSetting(
                f"collector.raw_days = {self.raw_days:g}: write 1 or more days, and more than "
                "agents' spools can hold: an older frame is refused."
            )
        if self.slot_months < 1 or self.slot_months * 28 < self.raw_days + 1:
            raise BadSetting(
                f"collector.slot_months = {self.slot_months}: write months, more than raw_days = "
                f"{self.raw_days:g} days: slots are made from raw rows and outlive them."
            )


@dataclass(frozen=True, slots=True)
class GridConfig:
    """Table [grid]."""

    zone: str = field(
        default="WORLD",
        metadata={"help": "grid zone of this site, named as Electricity Maps does, such as GB"},
    )
    pue: float = field(
        default=1.0, metadata={"help": "power usage effectiveness: facility / IT energy"}
    )
    basis: str = field(
        default="auto",
        metadata={"help": "lifecycle or direct; auto takes what the zone's live feed counts"},
    )
    neso_url: str = field(
        default="https://api.carbonintensity.org.uk",
        metadata={"help": "where the GB feed answers; empty: do not ask it"},
    )
    neso_poll_s: float = field(default=600.0, metadata={"help": "seconds between two polls"})

    def __post_init__(self) -> None:
        """Raises: UnknownZone; BadSetting for a value that cannot hold."""
        check_zone(self.zone)
        if not (math.isfinite(self.pue) and 1.0 <= self.pue <= PUE_MAX):
            raise BadSetting(
                f"grid.pue = {self.pue:g}: PUE is facility energy / IT energy, from 1 to "
                f"{PUE_MAX:g}. Write 1.2, not 120 %; 1.0 when it is not known."
            )
        if self.basis not in ("auto", *BASES):
            raise BadSetting(
                f"grid.basis = {self.basis!r}: write lifecycle, direct, or auto for what the "
                "zone's live feed counts."
            )
        if not (math.isfinite(self.neso_poll_s) and self.neso_poll_s > 0):
            raise BadSetting(
                f"grid.neso_poll_s = {self.neso_poll_s:g}: seconds between two polls, above 0; "
                "NESO publishes every 30 minutes, so 600 is often enough."
            )
        if self.neso_url and not self.neso_url.startswith(("http://", "https://")):
            raise BadSetting(
                f"grid.neso_url = {self.neso_url!r}: write http:// or https:// and the host, or "
                "leave it empty to ask nobody."
            )


@dataclass(frozen=True, slots=True)
class TeamsConfig:
    """Table [teams]: `[[teams.rules]]`, first match wins, unmatched goes to `unassigned`."""

    rules: Sequence[dict[str, Any]] = field(
        default=(),
        metadata={
            "help": "tables with `team` and any of user, project, unit, kind, name, label.<name> "
            "(shell patterns), and `since` (a date; default: always)",
            "flag": None,
        },
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting naming the rule."""
        check_rules(self.rules)
