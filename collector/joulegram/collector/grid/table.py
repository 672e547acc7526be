"""The `intensity` table: what a grid emitted per kWh in an interval, as somebody knew it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from joulegram.collector.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class IntensityRow:
    """One value over [valid_from_s, valid_to_s), epoch seconds; fields as in the schema."""

    zone: str
    basis: str
    valid_from_s: int
    valid_to_s: int
    provider: str
    known_at_ms: int
    updated_at_ms: int
    g_per_kwh: float
    quality: str  # measured, estimated, forecast, fallback


_COLUMNS = {
    "zone": np.str_,
    "basis": np.str_,
    "valid_from": np.uint32,
    "valid_to": np.uint32,
    "provider": np.str_,
    "known_at_ms": np.uint64,
    "updated_at_ms": np.uint64,
    "g_per_kwh": np.float64,
    "quality": np.str_,
}


def read(
    ledger: Ledger, zone: str, since_s: int, until_s: int, as_of_ms: int
) -> list[IntensityRow]:
    """The rows of a zone that touch [since_s, until_s) and could still answer as of a time.

    Of one provider and interval that is the newest forecast and the newest other value: no
    older one can win (accounting.choose), and forecasts are revised a hundred times over.
    """
    table = ledger.query(
        "SELECT zone, basis, toUInt32(valid_from) AS valid_from_s, toUInt32(valid_to) AS "
        "valid_to_s, provider, max(known_at_ms) AS known_at, argMax(updated_at_ms, known_at_ms) "
        "AS updated_at, argMax(g_per_kwh, known_at_ms) AS value, argMax(quality, known_at_ms) AS "
        "newest_quality FROM intensity WHERE zone = {zone:String} AND known_at_ms <= "
        "{as_of:UInt64} AND valid_from < toDateTime({until:UInt32}, 'UTC') "
        "AND valid_to > toDateTime({since:UInt32}, 'UTC') GROUP BY zone, basis, valid_from, "
        "valid_to, provider, quality = 'forecast' ORDER BY basis, provider, valid_from, known_at",
        {"zone": zone, "as_of": as_of_ms, "since": max(0, since_s), "until": until_s},
    )
    return [IntensityRow(*row.values()) for row in table.to_pylist()]


def newest_end_s(ledger: Ledger, zone: str, provider: str) -> int:
    """Where a provider's values that are no forecast end, epoch seconds; 0: it has none."""
    table = ledger.query(
        "SELECT toUInt32(max(valid_to)) AS end_s FROM intensity WHERE zone = {zone:String} "
        "AND provider = {provider:String} AND quality != 'forecast'",
        {"zone": zone, "provider": provider},
    )
    return int(table["end_s"][0].as_py())


def append_new(ledger: Ledger, rows: Sequence[IntensityRow]) -> int:
    """Store those of one zone that say something new; returns how many.

    A value that the ledger already has as the newest of its provider, interval and sort
    (forecast or not) is not stored again.
    """
    if not rows:
        return 0
    since_s = min(row.valid_from_s for row in rows)
    until_s = max(row.valid_to_s for row in rows)
    stored = {
        _place(row): (row.g_per_kwh, row.quality)
        for row in read(ledger, rows[0].zone, since_s, until_s, max(r.known_at_ms for r in rows))
    }
    new = [row for row in rows if stored.get(_place(row)) != (row.g_per_kwh, row.quality)]
    if new:
        columns = zip(*map(astuple, new), strict=True)
        ledger.insert(
            "intensity",
            {
                name: np.array(column, dtype=dtype)
                for (name, dtype), column in zip(_COLUMNS.items(), columns, strict=True)
            },
        )
    return len(new)


def _place(row: IntensityRow) -> tuple[str, str, int, int, str, bool]:
    forecast = row.quality == "forecast"
    return (row.zone, row.basis, row.valid_from_s, row.valid_to_s, row.provider, forecast)
