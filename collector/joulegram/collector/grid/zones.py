"""The grid zones that are known, by the names that Electricity Maps gives them.

Reads  data/zone-annual-intensity.csv (Electricity Maps, ODbL 1.0; see the notice beside it)
Imports Python's own library alone: the configuration is checked here, before any part runs.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from joulegram.collector.errors import UnknownZone

WORLD = "WORLD"
BASIS = "average-lifecycle-production"

# gCO2/kWh: world average of 2018, IEA, Global Energy & CO2 Status Report 2019; the same value
# is CodeCarbon's world average. The IEA counts combustion only, so as a lifecycle value it is
# a little low.
WORLD_G_PER_KWH = 475.0
WORLD_YEAR = 2018

TABLE_CREDIT = "Electricity Maps yearly data, ODbL 1.0"
WORLD_CREDIT = "IEA, Global Energy & CO2 Status Report 2019"


@dataclass(frozen=True, slots=True)
class YearlyValue:
    """One zone's mean intensity over a year, and who said it."""

    zone: str
    name: str
    year: int
    g_per_kwh: float
    basis: str
    credit: str


@cache
def yearly_values() -> Mapping[str, tuple[str, Mapping[int, float]]]:
    """{zone: (its name, {year: gCO2e/kWh})}"""
    text = files("joulegram.collector.grid").joinpath("data/zone-annual-intensity.csv")
    zones: dict[str, tuple[str, dict[int, float]]] = {}
    with text.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            _, years = zones.setdefault(row["zone"], (row["zone_name"], {}))
            years[int(row["year"])] = float(row["gco2e_per_kwh_lifecycle"])
    return zones


def value_in(zone: str, year: int) -> YearlyValue:
    """The zone's value of that year, or of the nearest that the table has. Raises: UnknownZone."""
    check_zone(zone)
    if zone == WORLD:
        return YearlyValue(WORLD, "the world", WORLD_YEAR, WORLD_G_PER_KWH, BASIS, WORLD_CREDIT)
    name, values = yearly_values()[zone]
    nearest = max((y for y in values if y <= year), default=min(values))
    return YearlyValue(zone, name, nearest, values[nearest], BASIS, TABLE_CREDIT)


def check_zone(zone: str) -> None:
    """Raises: UnknownZone with the nearest names; a zone is never guessed."""
    if zone == WORLD or zone in yearly_values():
        return
    names = [f"{key} ({yearly_values()[key][0]})" for key in _near(zone)]
    raise UnknownZone(
        f"grid.zone = {zone!r} is no zone of the shipped table. "
        + (f"Near it: {', '.join(names)}. " if names else "")
        + f"Zones are named as on app.electricitymaps.com; {WORLD} is the world's average."
    )


def _near(zone: str) -> list[str]:
    """Up to five keys that may be meant: by prefix, else by the spelling of key or name."""
    asked = zone.strip().casefold()
    asked = {"uk": "gb", "el": "gr"}.get(asked, asked)  # the two codes that are not ISO's own
    if len(asked) >= 2 and (
        found := [k for k in yearly_values() if k.casefold().startswith(asked)]
    ):
        return found[:5]
    # "germany": people know the country's name better than its key.
    spellings = {key.casefold(): key for key in yearly_values()}
    spellings |= {name.casefold(): key for key, (name, _) in yearly_values().items()}
    near = get_close_matches(asked, spellings, n=5, cutoff=0.5)
    return list(dict.fromkeys(spellings[spelling] for spelling in near))
