"""Which intensity counts for a slot, of all that was known. Pure.

At every instant of a slot the best value that was known wins, in this order:
1. basis: the wanted one; else the nearest, and never a marginal one for an average;
2. a value made for that instant, before the last value held on, before a fallback;
3. providers in the configured order, then by quality;
4. of one provider, values before forecasts, then the newest knowledge.
A slot's value is the time-weighted mean over its instants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SLOT_S = 300
QUALITIES = ("measured", "estimated", "forecast", "fallback")  # best first
UNKNOWN = "unknown"


class Valued(Protocol):
    """What is read of an intensity row (grid.table.IntensityRow)."""

    @property
    def basis(self) -> str: ...
    @property
    def valid_from_s(self) -> int: ...
    @property
    def valid_to_s(self) -> int: ...
    @property
    def provider(self) -> str: ...
    @property
    def known_at_ms(self) -> int: ...
    @property
    def g_per_kwh(self) -> float: ...
    @property
    def quality(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """Intensity of n slots.

    g_per_kwh: gCO2e/kWh, shape (n,); nan where nothing at all was known.
    quality, basis, provider: {name: share of the slot's time that it answers for}, each of
        shape (n,); what nobody answers for is under UNKNOWN, so that shares sum to 1.
    """

    g_per_kwh: NDArray[np.float64]
    quality: Mapping[str, NDArray[np.float64]]
    basis: Mapping[str, NDArray[np.float64]]
    provider: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one provider says in one basis, at one step of the order, over all segments."""

    g_per_kwh: NDArray[np.float64]  # nan: nothing
    quality: NDArray[np.int64]  # index into QUALITIES
    basis: str
    provider: str
    rank: tuple[int, int, int]  # nearness of basis, step, place of provider; greater is better


def choose(
    rows: Sequence[Valued],
    slots_s: Sequence[int] | NDArray[np.int64],
    *,
    wanted_basis: str,
    as_of_ms: int,
    providers: Sequence[str] = (),
    hold_s: Mapping[str, int] | None = None,
) -> Chosen:
    """Pick the intensity of slots as it was known at a time.

    Args:
        rows: values of one zone.
        slots_s: starts of slots of SLOT_S, epoch seconds, ascending, without repeats.
        wanted_basis: such as average-direct-consumption.
        as_of_ms: only rows known by then count.
        providers: preferred first; those not named come after them, equal.
        hold_s: {provider: how long its last value stands in for ones that never came}.
    """
    starts = np.asarray(slots_s, dtype=np.int64)
    if len(starts) == 0:
        return Chosen(np.zeros(0), {}, {}, {})
    end_s = int(starts[-1]) + SLOT_S
    rows = [
        row
        for row in rows
        if row.known_at_ms <= as_of_ms and _nearness(row.basis, wanted_basis) >= 0
    ]
    spans = _spans(rows, hold_s or {})
    edges = _edges(starts, [(a, b) for a, b, _, _ in spans], end_s)
    layers = _layers(spans, edges, wanted_basis, providers)
    return _combine(layers, edges, starts)


def _nearness(basis: str, wanted: str) -> int:
    """Greater: nearer to the wanted basis; -1: must never stand in for it.

    Lifecycle against direct weighs most (a factor of 3 to 4 in a low-carbon zone), then
    production against consumption.
    """
    have, want = basis.split("-"), wanted.split("-")
    if have[0] != want[0]:
        return -1
    return 2 * (have[1:2] == want[1:2]) + (have[2:] == want[2:])


_FALLBACK, _HELD, _MADE_FOR_IT = 0, 1, 2


def _spans(rows: Sequence[Valued], hold_s: Mapping[str, int]) -> list[tuple[int, int, int, Valued]]:
    """(from, to, step, row): each row where it is valid, and where it is held on."""
    spans = []
    for row in rows:
        step = _FALLBACK if row.quality == "fallback" else _MADE_FOR_IT
        spans.append((row.valid_from_s, row.valid_to_s, step, row))
        hold = hold_s.get(row.provider, 0)
        # A forecast is not held on: nobody has seen that it came true.
        if hold and row.quality not in ("fallback", "forecast"):
            spans.append((row.valid_to_s, row.valid_to_s + hold, _HELD, row))
    return spans


def _edges(
    starts: NDArray[np.int64], spans: Sequence[tuple[int, int]], end_s: int
) -> NDArray[np.int64]:
    """Instants at which the answer may change; every slot begins and ends on one."""
    inner = np.array(spans, dtype=np.int64).reshape(-1)
    inner = inner[(inner > starts[0]) & (inner < end_s)]
    return np.unique(np.concatenate([starts, starts + SLOT_S, inner]))


def _layers(
    spans: Sequence[tuple[int, int, int, Valued]],
    edges: NDArray[np.int64],
    wanted: str,
    providers: Sequence[str],
) -> list[_Layer]:
    layers: dict[tuple[str, str, int], _Layer] = {}
    # Paint from worst to best, so that what is painted last is what holds.
    for start, end, step, row in sorted(spans, key=_paint_order):
        key = (row.basis, row.provider, step)
        if key not in layers:
            place = providers.index(row.provider) if row.provider in providers else len(providers)
            layers[key] = _Layer(
                np.full(len(edges) - 1, np.nan),
                np.zeros(len(edges) - 1, dtype=np.int64),
                row.basis,
                row.provider,
                (_nearness(row.basis, wanted), step, -place),
            )
        first, last = np.searchsorted(edges, (start, end))
        layers[key].g_per_kwh[first:last] = row.g_per_kwh
        # A value held on beyond its own interval is a fallback, whatever it was before.
        quality = "fallback" if step == _HELD else row.quality
        layers[key].quality[first:last] = QUALITIES.index(quality)
    return list(layers.values())


def _paint_order(span: tuple[int, int, int, Valued]) -> tuple[int, bool, int, int]:
    start, _, step, row = span
    # Of values held on, the latest one counts, however late an earlier one came to be known.
    held_from = start if step == _HELD else 0
    return (held_from, row.quality != "forecast", row.known_at_ms, start)


def _combine(
    layers: Sequence[_Layer], edges: NDArray[np.int64], starts: NDArray[np.int64]
) -> Chosen:
    n = len(edges) - 1
    value, quality = np.full(n, np.nan), np.full(n, -1)
    source = np.full(n, -1)
    ordered = sorted(layers, key=lambda layer: (layer.rank, layer.provider), reverse=True)
    for index, layer in enumerate(ordered):
        better = np.isnan(value)
        if index and layer.rank == ordered[index - 1].rank:
            # Providers of equal place: the better quality wins.
            same = np.array([i >= 0 and ordered[i].rank == layer.rank for i in source])
            better |= same & (layer.quality < quality)
        better &= ~np.isnan(layer.g_per_kwh)
        value[better] = layer.g_per_kwh[better]
        quality[better] = layer.quality[better]
        source[better] = index

    # Segments between slots belong to none; the others lie in the slot that begins before them.
    slot = np.searchsorted(starts, edges[:-1], side="right") - 1
    length = np.where(edges[:-1] < starts[slot] + SLOT_S, np.diff(edges), 0).astype(np.float64)
    known = ~np.isnan(value)

    def per_slot(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(slot, weights, minlength=len(starts)).astype(np.float64)

    known_s = per_slot(length * known)
    total = per_slot(np.where(known, value, 0.0) * length)
    mean = np.divide(total, known_s, out=np.full(len(starts), np.nan), where=known_s > 0)

    def shares(names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """{name: share of each slot}, of the name of every segment."""
        labels = np.array(names)
        found = {name: per_slot(length * (labels == name)) / SLOT_S for name in set(names)}
        return {name: share for name, share in sorted(found.items()) if share.any()}

    return Chosen(
        mean,
        shares([QUALITIES[q] if q >= 0 else UNKNOWN for q in quality]),
        shares([ordered[i].basis if i >= 0 else UNKNOWN for i in source]),
        shares([ordered[i].provider if i >= 0 else UNKNOWN for i in source]),
    )
