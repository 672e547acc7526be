"""How busy things are in time: shapes of load between 0 and 1."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.simulate.programs import Stay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_S, HOUR_S = 86_400, 3_600


def _steady(age_s: Ints, clock_s: Ints, salt: int) -> Floats:
    """Loads its data, then computes."""
    return np.where(age_s < 20 + salt % 60, 0.15, 0.97)


def _epochs(age_s: Ints, clock_s: Ints, salt: int) -> Floats:
    """Trains; between epochs it validates and writes a checkpoint."""
    length_s = 400 + salt % 1_100
    busy = np.where((age_s + salt) % length_s < 0.88 * length_s, 0.94, 0.3)
    return np.where(age_s < 60 + salt % 180, 0.02, busy)


def _daily(age_s: Ints, clock_s: Ints, salt: int) -> Floats:
    """Serves people: most in the early afternoon, less at weekends. 14:00 UTC is the top."""
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (clock_s % DAY_S - 14 * HOUR_S) / DAY_S)
    return (0.15 + 0.75 * wave) * np.where(_weekend(clock_s), 0.6, 1.0)


def _office(age_s: Ints, clock_s: Ints, salt: int) -> Floats:
    """Somebody at work: bursts between thoughts, hardly anything at night."""
    hour = clock_s % DAY_S // HOUR_S
    by_day = (hour >= 7) & (hour < 19) & ~_weekend(clock_s)
    burst = (clock_s // 90 * 2_654_435_761 + salt) % 10 < 3
    return np.where(burst, 0.8, 0.03) * np.where(by_day, 1.0, 0.1)


def _held(age_s: Ints, clock_s: Ints, salt: int) -> Floats:
    """A notebook left open: a cell runs now and then."""
    return np.where((clock_s // 300 * 2_654_435_761 + salt) % 25 == 0, 0.7, 0.0)


def _weekend(clock_s: Ints) -> NDArray[np.bool_]:
    day = clock_s // DAY_S % 7  # 1970-01-01 was a Thursday
    weekend: NDArray[np.bool_] = (day == 2) | (day == 3)
    return weekend


SHAPES: Mapping[str, Callable[[Ints, Ints, int], Floats]] = {
    "steady": _steady,
    "epochs": _epochs,
    "daily": _daily,
    "office": _office,
    "held": _held,
}


def activity(shape: str, stay: Stay, at_s: Ints, since_s: int) -> Floats:
    """How busy a stay is, 0 to 1, at times in s since the start of the run."""
    return SHAPES[shape](at_s - stay.start_s, at_s + since_s, stay.pid)
