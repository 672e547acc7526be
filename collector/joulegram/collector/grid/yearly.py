"""Grid intensity that always answers: yearly values by zone, shipped with the program.

Reads  data/zone-annual-intensity.csv (Electricity Maps, ODbL 1.0; see the notice beside it)
Basis  average, lifecycle, production. Quality: always `fallback`.
"""

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from joulegram.collector.errors import UnknownZone
from joulegram.collector.grid.table import IntensityRow

PROVIDER = "electricity-maps-yearly"
BASIS = "average-lifecycle-production"

WORLD = "WORLD"
# gCO2/kWh: world average of 2018, IEA, Global Energy & CO2 Status Report 2019; the same value
# is CodeCarbon's world average. The IEA counts combustion only, so as a lifecycle value it is
# a little low.
WORLD_G_PER_KWH = 475.0
WORLD_PROVIDER = "iea-world-2019"

# A DateTime ends in 2106; a year's row ends where the next begins, and the last one here.
END_OF_TIME_S = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())


@cache
def _table() -> Mapping[str, tuple[str, Mapping[int, float]]]:
    """{zone: (its name, {year: gCO2e/kWh})}"""
    text = files("joulegram.collector.grid").joinpath("data/zone-annual-intensity.csv")
    zones: dict[str, tuple[str, dict[int, float]]] = {}
    with text.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            _, years = zones.setdefault(row["zone"], (row["zone_name"], {}))
            years[int(row["year"])] = float(row["gco2e_per_kwh_lifecycle"])
    return zones


def check_zone(zone: str) -> None:
    """Raises: UnknownZone with the nearest names; a zone is never guessed."""
    if zone == WORLD or zone in _table():
        return
    names = [f"{key} ({_table()[key][0]})" for key in _near(zone)]
    raise UnknownZone(
        f"grid.zone = {zone!r} is no zone of the shipped table. "
        + (f"Near it: {', '.join(names)}. " if names else "")
        + f"Zones are named as on app.electricitymaps.com; {WORLD} is the world's average."
    )


def _near(zone: str) -> list[str]:
    """Up to five keys that may be meant: by prefix, else by the spelling of key or name."""
    asked = zone.strip().casefold()
    asked = {"uk": "gb", "el": "gr"}.get(asked, asked)  # the two codes that are not ISO's own
    if len(asked) >= 2 and (found := [k for k in _table() if k.casefold().startswith(asked)]):
        return found[:5]
    # "germany": people know the country's name better than its key.
    spellings = {key.casefold(): key for key in _table()}
    spellings |= {name.casefold(): key for key, (name, _) in _table().items()}
    near = get_close_matches(asked, spellings, n=5, cutoff=0.5)
    return list(dict.fromkeys(spellings[spelling] for spelling in near))


def rows(zone: str, known_at_ms: int) -> list[IntensityRow]:
    """The zone's values for all time, as intervals without a gap.

    A year before the table has its first value, a year after it its last. The last interval
    stays open: it answers for years nobody has published yet, and a newer table's rows, known
    later, outrank it. Raises: UnknownZone.
    """
    check_zone(zone)
    if zone == WORLD:
        return [_row(zone, 0, END_OF_TIME_S, WORLD_G_PER_KWH, WORLD_PROVIDER, known_at_ms)]
    values = sorted(_table()[zone][1].items())
    starts = [0, *(_new_year_s(year) for year, _ in values[1:])]
    ends = [*starts[1:], END_OF_TIME_S]
    return [
        _row(zone, start, end, value, PROVIDER, known_at_ms)
        for start, end, (_, value) in zip(starts, ends, values, strict=True)
    ]


def _row(
    zone: str, start_s: int, end_s: int, g_per_kwh: float, provider: str, known_at_ms: int
) -> IntensityRow:
    return IntensityRow(
        zone, BASIS, start_s, end_s, provider, known_at_ms, 0, g_per_kwh, "fallback"
    )


def _new_year_s(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
