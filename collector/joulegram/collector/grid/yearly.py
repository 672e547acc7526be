"""Grid intensity that always answers: yearly values by zone, shipped with the program.

Values of grid/zones.py's table (Electricity Maps, ODbL 1.0; see the notice beside it)
Basis  average, lifecycle, production. Quality: always `fallback`.
"""

from datetime import UTC, datetime

from joulegram.collector.grid.table import IntensityRow
from joulegram.collector.grid.zones import (
    BASIS,
    WORLD,
    WORLD_G_PER_KWH,
    check_zone,
    yearly_values,
)

PROVIDER = "electricity-maps-yearly"
WORLD_PROVIDER = "iea-world-2019"

# A DateTime ends in 2106; a year's row ends where the next begins, and the last one here.
END_OF_TIME_S = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())


def rows(zone: str, known_at_ms: int) -> list[IntensityRow]:
    """The zone's values for all time, as intervals without a gap.

    A year before the table has its first value, a year after it its last. The last interval
    stays open: it answers for years nobody has published yet, and a newer table's rows, known
    later, outrank it. Raises: UnknownZone.
    """
    check_zone(zone)
    if zone == WORLD:
        return [_row(zone, 0, END_OF_TIME_S, WORLD_G_PER_KWH, WORLD_PROVIDER, known_at_ms)]
    values = sorted(yearly_values()[zone][1].items())
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
