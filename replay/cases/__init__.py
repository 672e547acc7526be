"""The golden cases, in their order."""

from collections.abc import Sequence

from replay.case import Case
from replay.cases import counters, gpus, names, processes, sites

CASES: Sequence[Case] = sorted(
    [*counters.CASES, *processes.CASES, *gpus.CASES, *names.CASES, *sites.CASES],
    key=lambda case: case.number,
)
