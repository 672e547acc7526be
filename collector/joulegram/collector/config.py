"""What an operator may say to a collector: tables [collector], [grid] and [teams]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    raw_days: float = field(
        default=90.0,
        metadata={"help": "days that rows of processes are kept; older frames are refused"},
    )
    retired: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "a node that is gone for good and since when, such as n7=2026-11-01; until "
            "then its silence lowers coverage (repeatable)"
        },
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
