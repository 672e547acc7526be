"""How far off the agent's load model is, beside CodeCarbon's two ways of load estimation.

Absolute percentage error of RAPL package watts on the rows of measured_load_power.csv. Each
machine's rows are judged with numbers that were fitted without it: leave-one-out for the two
machines that the shipped numbers are fitted to, the shipped ones for the others. A machine's
error is the median over its rows; the result is the median over machines.

CodeCarbon is told the true TDP. Its own code runs where it can be imported (`pip install
codecarbon`; not needed for anything else), otherwise its formulas of 3.3.2 do.

    python -m bench.load_model          # prints the tables of docs/load-model.md
"""

import csv
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from joulegram.agent.sensors.load.cpuinfo import key_of
from joulegram.agent.sensors.load.model import (
    LEVEL,
    PACE_AT_REST,
    PACE_PER_LOAD,
    likely_pace,
    share_of_tdp,
)

ROWS = Path(__file__).with_name("measured_load_power.csv")
FITTED = ("AMD EPYC 8024P 8-Core Processor", "Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz")
BANDS = ((0, 25), (25, 50), (50, 75), (75, 101))  # % of load
# "At most half of its machine mode, and below its linear process mode."
LIMIT_MACHINE, LIMIT_PROCESS = 0.5, 0.99


@dataclass(frozen=True, slots=True)
class Row:
    """One measured load on one machine."""

    cpu: str
    packages: int
    cpus: int
    tdp_w: float
    load: float  # 0..1
    pace: float  # mean clock / greatest clock
    measured_w: float
    recorded_w: float  # CodeCarbon's estimate at the time


Estimate = Callable[[Row], float]


def rows() -> dict[str, list[Row]]:
    """{machine: its rows}."""
    machines: dict[str, list[Row]] = {}
    with ROWS.open(newline="") as file:
        for line in csv.DictReader(file):
            row = Row(
                cpu=line["cpu"],
                packages=int(line["packages"]),
                cpus=int(line["cpus"]),
                tdp_w=float(line["tdp_w"]),
                load=float(line["load_percent"]) / 100,
                pace=min(1.0, float(line["mean_mhz"]) / float(line["max_mhz"])),
                measured_w=float(line["rapl_w"]),
                recorded_w=float(line["codecarbon_w"]),
            )
            machines.setdefault(row.cpu, []).append(row)
    return machines


def fitted_level(machines: Sequence[Sequence[Row]]) -> float:
    """The level of the least error as it is reported: the median over a machine's rows.

    The mean over machines, since a median over two is one. By trial: a median has many minima.
    """
    wanted = [
        [row.measured_w / row.tdp_w / share_of_tdp(row.load, row.pace, 1.0) for row in machine]
        for machine in machines
    ]

    def loss(level: float) -> float:
        return statistics.fmean(
            statistics.median(abs(level / w - 1) for w in machine) for machine in wanted
        )

    return min((level / 1000 for level in range(300, 1501)), key=loss)


def fitted_pace(machines: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """(at rest, per load) of a clock nobody shows: between these machines' and the greatest."""
    lines = [
        statistics.linear_regression([r.load for r in machine], [r.pace for r in machine])
        for machine in machines
    ]
    at_rest = statistics.fmean(line.intercept for line in lines)
    per_load = statistics.fmean(line.slope for line in lines)
    return (1 + at_rest) / 2, per_load / 2


def error(row: Row, estimated_w: float) -> float:
    return abs(estimated_w - row.measured_w) / row.measured_w


def ours(machines: Mapping[str, Sequence[Row]], *, clock: bool) -> dict[str, list[float]]:
    """{machine: the errors of its rows}, each by numbers that have not seen it."""
    errors = {}
    for name, machine in machines.items():
        seen = [machines[other] for other in FITTED if other != name]
        level, (at_rest, per_load) = fitted_level(seen), fitted_pace(seen)
        errors[name] = [
            error(
                row,
                row.tdp_w
                * share_of_tdp(
                    row.load,
                    row.pace if clock else likely_pace(row.load, at_rest, per_load),
                    level,
                ),
            )
            for row in machine
        ]
    return errors


def theirs(machines: Mapping[str, Sequence[Row]], estimate: Estimate) -> dict[str, list[float]]:
    return {
        name: [error(row, estimate(row)) for row in machine] for name, machine in machines.items()
    }


def over_machines(errors: Mapping[str, Sequence[float]]) -> float:
    """Median over machines of the median over rows."""
    return statistics.median(statistics.median(machine) for machine in errors.values())


def codecarbon() -> tuple[str, Estimate, Estimate]:
    """(which, machine mode, process mode), both in its load mode and with the TDP known."""
    try:
        import codecarbon  # type: ignore[import-not-found]
        from codecarbon.external.hardware import CPU  # type: ignore[import-not-found]
    except ImportError:
        return (
            "formulas of 3.3.2 (the package is not installed)",
            lambda row: row.tdp_w * (0.1 + 0.9 * row.load**3),
            lambda row: row.tdp_w * row.load,
        )

    def machine(row: Row) -> float:
        cpu = CPU("", "cpu_load", row.cpu, row.tdp_w, tracking_mode="machine")
        cpu._cpu_load_meter.percent = lambda *_: row.load * 100
        return float(cpu._get_power_from_cpu_load().W)

    def process(row: Row) -> float:
        cpu = CPU("", "cpu_load", row.cpu, row.tdp_w, tracking_mode="process")
        elapsed_s = 1e6  # so long that the microseconds of this call do not count
        cpu._cpu_count, cpu._last_cpu_times = row.cpus, {1: 0.0}
        cpu._last_measurement_time = time.time() - elapsed_s
        cpu._get_process_cpu_times = lambda: {1: row.load * row.cpus * elapsed_s}
        return float(cpu._get_power_from_cpu_load().W)

    return f"package {codecarbon.__version__}, its own code", machine, process


def run() -> list[dict[str, Any]]:
    """Judge; four entries of build/bench.json. Prints the tables to stderr."""
    machines = rows()
    which, machine_mode, process_mode = codecarbon()
    columns = {
        "joulegram, clock read": ours(machines, clock=True),
        "joulegram, no clock": ours(machines, clock=False),
        "CodeCarbon machine": theirs(machines, machine_mode),
        "CodeCarbon process": theirs(machines, process_mode),
    }
    show(machines, columns, which)
    read, blind, machine, process = map(over_machines, columns.values())
    return [
        _entry("load_model_ape_machine", read, machine, LIMIT_MACHINE),
        _entry("load_model_ape_process", read, process, LIMIT_PROCESS),
        _entry("load_model_ape_machine_no_clock", blind, machine, LIMIT_MACHINE),
        _entry("load_model_ape_process_no_clock", blind, process, LIMIT_PROCESS),
    ]


def _entry(name: str, mine: float, reference: float, limit: float) -> dict[str, Any]:
    return {
        "name": name,
        "ratio": mine / reference,
        "limit": limit,
        "ours": 100 * mine,
        "reference": 100 * reference,
        "unit": "% of W",
    }


def show(
    machines: Mapping[str, Sequence[Row]],
    columns: Mapping[str, Mapping[str, Sequence[float]]],
    which: str,
) -> None:
    console = Console(stderr=True, width=110)
    seen = [machines[name] for name in FITTED]
    at_rest, per_load = fitted_pace(seen)
    console.print(
        f"fitted to {len(FITTED)} machines: level {fitted_level(seen):.3f} (shipped: {LEVEL}), "
        f"unknown clock {at_rest:.2f} + {per_load:.2f} x load "
        f"(shipped: {PACE_AT_REST} + {PACE_PER_LOAD})\nCodeCarbon: {which}",
        highlight=False,
    )
    table = Table(title="absolute percentage error, median over a machine's rows", box=SIMPLE)
    bands = Table(title="the same by load, median over machines", box=SIMPLE)
    table.add_column("each judged by numbers that never saw it", no_wrap=True)
    bands.add_column("load", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
        bands.add_column(heading, justify="right")
    for name in machines:
        fitted = "leave-one-out" if name in FITTED else "never fitted"
        medians = (statistics.median(errors[name]) for errors in columns.values())
        table.add_row(f"{key_of(name)} ({fitted})", *(f"{100 * m:.1f}" for m in medians))
    table.add_section()
    table.add_row(
        "median over machines", *(f"{100 * over_machines(e):.1f}" for e in columns.values())
    )
    for low, high in BANDS:
        inside = {
            name: [i for i, row in enumerate(machine) if low <= 100 * row.load < high]
            for name, machine in machines.items()
        }
        medians = (
            over_machines({name: [errors[name][i] for i in chosen] for name, chosen in
                           inside.items() if chosen})
            for errors in columns.values()
        )  # fmt: skip
        count = sum(map(len, inside.values()))
        bands.add_row(
            f"{low} to {min(high, 100)} % ({count} rows)", *(f"{100 * m:.1f}" for m in medians)
        )
    console.print(table, bands)


if __name__ == "__main__":
    for entry in run():
        print(f"{entry['name']}: ratio {entry['ratio']:.2f}, limit {entry['limit']:g}")
    sys.exit(0)
