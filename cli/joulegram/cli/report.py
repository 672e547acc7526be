"""`joulegram report`: energy and grams of a past time, by workload, user or team."""

import argparse
import contextlib
import csv
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from joulegram.cli import api
from joulegram.cli.flags import Parser, whole_number

HELP = "energy and grams of a past time, by workload, user or team"
BY = ("workload", "user", "team", "node", "component", "kind", "day")
IDLE_POLICIES = ("separate", "by_active", "by_reservation")
TIMES = "90s, 30m, 1h, 7d, 2w ago, or ISO 8601 2026-03-01 or 2026-03-01T14:00:00Z (UTC, or --tz)"
MICROJOULES_PER_KWH = 3_600_000_000_000

# Of what one unit is worth, and its name; the greatest that the total reaches is used.
ENERGY_UJ = ((1e6, "J"), (3.6e9, "Wh"), (3.6e12, "kWh"), (3.6e15, "MWh"))
GRAMS = ((1e-3, "mg"), (1.0, "g"), (1e3, "kg"), (1e6, "t"))
IDLE_MEANING = {
    "separate": "idle energy shown apart",
    "by_active": "idle energy shared by active energy",
    "by_reservation": "idle energy shared by what is reserved",
}
CSV_COLUMNS = (
    "key", "team", "energy_uj", "energy_kwh", "g_co2e", "share", "coverage", "quality",
    "held_idle_uj", "scope", "kind", "id", "name", "user", "project",
    "simulated",
)  # fmt: skip

Answer = Mapping[str, Any]


def run(argv: list[str]) -> int:
    """Ask the collector and print its answer; the exit status."""
    asked = _arguments(argv)
    params = {
        "since": asked.since,
        "until": asked.until,
        "by": asked.by,
        "idle_policy": asked.idle_policy,
        "as_of": asked.as_of,
        "basis": asked.basis,
        "components": asked.components,
        "tz": asked.tz,
    }
    given = {name: value for name, value in params.items() if value is not None}
    answer = api.get(api.chosen(asked), "/api/v1/report", given)
    # Names are anybody's: a terminal or locale that cannot show one shows `?` instead.
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if asked.json:
        print(json.dumps(answer, indent=2))
    elif asked.csv:
        write_csv(answer, sys.stdout)
    else:
        console = Console()
        console.print(draw(answer, asked.rows, console.width))
    return 0


def write_csv(answer: Answer, out: TextIO) -> None:
    """One line per row: integers and plain decimals, never an exponent or a thousands separator.

    `simulated` is of the whole answer: some of it was made by a simulator.
    """
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(CSV_COLUMNS)
    for row in answer["rows"]:
        cells = dict(
            row,
            energy_kwh=row["energy_uj"] / MICROJOULES_PER_KWH,
            simulated="true" if answer["simulated"] else "false",
        )
        lines.writerow([_cell(cells.get(column)) for column in CSV_COLUMNS])


def draw(answer: Answer, rows: int, width: int = 100) -> RenderableType:
    """The answer for people: a table of at most `rows` rows and what the numbers mean."""
    if not answer["rows"]:
        some = answer["components"]
        which = "" if len(some) == 4 else f" of {', '.join(some)}"
        return Text(
            f"No energy{which} from {answer['since']} to {answer['until']}, as known at "
            f"{answer['as_of']}. Look further back with --since 1d; `joulegram top` shows whether "
            "an agent reports now, and `joulegram check` on a node what its sensors lack."
        )
    return Group(_table(answer, rows, width), Text(), *_meaning(answer))


def _table(answer: Answer, rows: int, width: int) -> Table:
    total = answer["total"]
    energy_unit, energy_name = _unit(total["energy_uj"], ENERGY_UJ)
    gram_unit, gram_name = _unit(total["g_co2e"] or 0.0, GRAMS)
    whole_uj = total["energy_uj"] or 1
    # A number cut short is a wrong number: a narrow terminal gets fewer columns instead.
    columns = [  # a heading, and from how many characters on it is shown
        (answer["by"], 0),
        ("team", 80 if answer["by"] in ("workload", "user") else math.inf),
        (energy_name, 0),
        ("share", 40),
        (f"{gram_name} CO2e", 0),
        ("coverage", 55),
        ("quality", 65),
    ]
    kept = [at_least <= width for _, at_least in columns]
    table = Table(box=None, pad_edge=False, header_style="bold underline")
    for (heading, _), keep in zip(columns, kept, strict=True):
        if keep and heading in (answer["by"], "team"):
            table.add_column(heading, overflow="fold")
        elif keep:
            justify: Any = "left" if heading == "quality" else "right"
            table.add_column(heading, justify=justify, no_wrap=True)

    def add(key: Text, team: Text, row: Mapping[str, Any], style: str = "") -> None:
        cells: tuple[RenderableType, ...] = (
            key,
            team,
            number(row["energy_uj"] / energy_unit),
            f"{row['energy_uj'] / whole_uj:.1%}",
            "unknown" if row["g_co2e"] is None else number(row["g_co2e"] / gram_unit),
            "" if row.get("coverage") is None else _percent(row["coverage"]),
            str(row.get("quality", "")),
        )
        table.add_row(*(c for c, keep in zip(cells, kept, strict=True) if keep), style=style)

    shown = answer["rows"][:rows] if rows else answer["rows"]
    for row in shown:
        team = "several" if row["team"] is None else row["team"]
        add(_label(row, answer["by"]), _plain(team), row)
    if rest := answer["rows"][len(shown) :]:
        grams = [row["g_co2e"] for row in rest]
        together = {
            "energy_uj": sum(row["energy_uj"] for row in rest),
            "g_co2e": None if None in grams else math.fsum(grams),
        }
        add(Text(f"{len(rest)} more (--rows 0: all)"), Text(), together, "dim")
    table.add_section()
    add(Text("total"), Text(), total, "bold")
    return table


def _meaning(answer: Answer) -> list[Text]:
    """What the numbers stand on, a line each."""
    since, until = answer["since"], answer["until"]
    if answer.get("tz", "UTC") != "UTC":
        since, until = answer["since_local"], f"{answer['until_local']} ({answer['tz']})"
    lines = [Text(f"{since} to {until}, as known at {answer['as_of']}")]
    if older := answer.get("totals_until"):
        lines.append(Text(f"before {older} only energy by team is kept", "yellow"))
    if answer.get("energy_as_of") == "latest":
        lines.append(Text("energy as it is known today: the older records are gone", "yellow"))
    mean = answer.get("g_per_kwh")
    intensity = "intensity unknown" if mean is None else f"{number(mean)} g/kWh by energy"
    zones = ", ".join(answer.get("zones") or [answer.get("zone", "")])
    lines.append(Text(f"grid {zones}: {intensity}, {_shares(answer['intensity'])}"))
    basis = f"basis {_words(answer['basis'])}"
    others = {
        _words(name): share
        for name, share in answer.get("basis_share", {}).items()
        if name not in (answer["basis"], "unknown")
    }
    lines.append(Text(basis + (f"; filled in from {_shares(others)}" if others else "")))
    idle = IDLE_MEANING.get(answer["idle_policy"], answer["idle_policy"])
    lines.append(Text(f"operational, location-based; PUE {answer['pue']:g}; {idle}"))
    if len(answer["components"]) < 4:
        lines.append(Text(f"only {', '.join(answer['components'])}", "yellow"))
    quality = answer["total"].get("quality")
    if quality == "modelled":
        lines.append(Text("MODELLED: some energy is estimated, not measured", "yellow"))
    if answer.get("simulated"):
        lines.append(Text("SIMULATED: some of it was made by a simulator", "yellow"))
    if answer.get("credits"):
        lines.append(Text(f"grid data: {'; '.join(answer['credits'])}", "dim"))
    return lines


def _label(row: Mapping[str, Any], by: str) -> Text:
    """The key, and a job's own name where the key does not hold it."""
    label = _plain(row["key"])
    name = row.get("name") or ""
    if by == "workload" and name and name not in row["key"]:
        label.append_text(Text(" ")).append_text(Text(_plain(name).plain, style="dim"))
    return label


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    fitting = [unit for unit in units if abs(value) >= unit[0]]
    return fitting[-1] if fitting else units[0]


def number(value: float) -> str:
    """Three decimals below 10, fewer above; what is not zero never looks like zero."""
    if 0 < abs(value) < 0.001:
        return "<0.001"
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:,.{decimals}f}"


def _percent(share: float) -> str:
    # 99.96 % is not all of it.
    return "100%" if share >= 1 else f"{math.floor(share * 1000) / 10:.1f}%"


def _shares(shares: Mapping[str, float]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" if share < 0.995 else name for name, share in ordered)


def _words(basis: str) -> str:
    return basis.replace("-", " ")


def _plain(name: Any) -> Text:
    """A name as text that can neither style nor move the cursor of somebody's terminal."""
    return Text("".join(c if c.isprintable() else "?" for c in str(name)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    text = str(value)
    # A name that begins like a formula is run by a spreadsheet that opens it.
    return f"'{text}" if isinstance(value, str) and text[:1] in "=+-@\t\r" and text else text


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="joulegram report",
        description="Energy and grams of a past time. Times are widened to whole 5-minute slots.",
        epilog=f"TIME: {TIMES}.",
        allow_abbrev=False,
    )
    parser.add_argument("--since", default="1h", metavar="TIME", help="from when (default: 1h ago)")
    parser.add_argument("--until", metavar="TIME", help="to when (default: now)")
    parser.add_argument(
        "--by", choices=BY, default="workload", help="what a row is (default: workload)"
    )
    parser.add_argument(
        "--idle-policy",
        choices=IDLE_POLICIES,
        help="who answers for energy drawn even when nothing runs (default: separate)",
    )
    parser.add_argument(
        "--tz",
        metavar="ZONE",
        help="whose clocks dates and days are read on, such as Europe/London, +05:45 or -03:30 "
        "(default: UTC)",
    )
    parser.add_argument("--as-of", metavar="TIME", help="answer as it was known then")
    parser.add_argument(
        "--basis",
        choices=("lifecycle", "direct"),
        help="what a gram of the grid counts (default: the site's)",
    )
    parser.add_argument(
        "--components", metavar="LIST", help="of cpu,dram,gpu,other (default: all of them)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="for a spreadsheet: every row")
    shape.add_argument("--json", action="store_true", help="the API's own answer")
    parser.add_argument(
        "--rows",
        type=whole_number(0, 10_000),
        default=40,
        metavar="0..10000",
        help="rows of the table (default 40; 0: all)",
    )
    api.add_flags(parser)
    return parser.parse(_offsets_joined(argv))


def _offsets_joined(argv: Sequence[str]) -> list[str]:
    """`--tz -03:30` as `--tz=-03:30`: argparse takes what begins with - for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--tz" and re.match(r"-\d", word):
            joined[-1] = f"--tz={word}"
        else:
            joined.append(word)
    return joined


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
