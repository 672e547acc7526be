"""`joulegram top`: who draws the watts now, in the terminal."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from joulegram.cli import api
from joulegram.cli.errors import CliError
from joulegram.cli.flags import Parser, whole_number

HELP = "live in the terminal: who draws the watts now"
EVERY_S = 2.0
RESERVED_MEANING = {
    "idle": "drawn even when nothing runs",
    "system": "kernel and unowned processes",
    "unattributed": "nobody could be named",
}
ROWS_WITHOUT_TERMINAL = 15

Now = Mapping[str, Any]


def run(argv: list[str]) -> int:
    """Show now until Ctrl-C; with --once, or into a pipe, show it once. The exit status."""
    asked = _arguments(argv)
    collector = api.chosen(asked)
    console = Console()
    if asked.once or not console.is_terminal:
        now = api.get(collector, "/api/v1/now", {"top": asked.rows})
        console.print(draw(now, collector.url, asked.rows, console.width))
        return 0
    # Whoever asks for a live view wants to leave it by Ctrl-C: that is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        watch(console, collector)
    return 0


def watch(
    console: Console, collector: api.Collector, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Draw for ever. A collector missing at the start is an error; later it is waited for."""
    url = collector.url
    now = api.get(collector, "/api/v1/now", {"top": 100}, timeout_s=10)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        problem = ""
        while True:
            shown: list[RenderableType] = [
                draw(now, url, _rows_that_fit(console, now), console.width)
            ]
            if problem:
                shown.insert(0, Text(problem, style="bold red"))
            live.update(Group(*shown), refresh=True)
            sleep(EVERY_S)
            try:
                now = api.get(collector, "/api/v1/now", {"top": 100}, timeout_s=10)
                problem = ""
            except CliError:
                problem = f"{url} stopped answering; these numbers are of {now['at']}."


def draw(now: Now, url: str, rows: int, width: int = 80) -> RenderableType:
    """One frame of the display: at most `rows` workloads and as many processes."""
    if now["state"] == "waiting":
        return Text(
            f"{url} waits for its first window (up to 20 s). If none arrives: does an agent run "
            "(`joulegram agent`, or `joulegram up` for both)? `joulegram check` says what a node's "
            "sensors lack."
        )
    if now["state"] == "nothing":
        return Text(
            "Nothing of your team runs now. `joulegram report --since 7d` tells what ran before."
        )
    parts: list[RenderableType] = [_header(now)]
    if now["state"] == "silent":
        parts.append(
            Text(
                f"No node has reported since {now['window_end']}: what is drawn now is not known. "
                "Are the agents running?",
                style="bold red",
            )
        )
    parts += [Text(), _workloads(now, rows, width)]
    if not now["workloads"] and now["state"] != "silent":
        parts.append(Text("nothing runs in a unit, session or job of its own", style="dim"))
    return Group(*parts, Text(), _processes(now, rows, width))


def _header(now: Now) -> RenderableType:
    first = Text()
    watts = "?" if now["state"] == "silent" else _number(now["power_w"])
    first.append(f"{watts} W", style="bold")
    for component, watts in now["components_w"].items():
        first.append(f"   {component} {_number(watts)}")
    if now["modelled_share"] > 0:
        first.append("   ")
        first.append(" MODELLED ", style="black on yellow")
        share = now["modelled_share"]
        what = "estimated" if share > 0.995 else f"{share:.0%} estimated"
        first.append(f" {what}, not measured")
    if now["simulated"]:
        first.append("   ")
        first.append(" SIMULATED ", style="black on yellow")

    second = Text()
    if now["g_per_hour"] is not None:
        second.append(f"{_number(now['g_per_hour'])} g CO2e/h", style="bold green")
    grid = now["intensity"]
    if grid is None or grid["g_per_kwh"] is None:
        second.append("grid intensity unknown")
    else:
        pue = "" if grid["pue"] == 1 else f", PUE {grid['pue']:g}"
        second.append(f"   {grid['zone']} {_number(grid['g_per_kwh'])} g/kWh ")
        second.append(
            f"({grid['quality']}, {grid['basis'].replace('-', ' ')}, {grid['provider']}{pue})",
            style="dim" if grid["quality"] == "measured" else "yellow",
        )

    third = Text()
    coverage = now["coverage"]
    nodes = now["nodes"]
    third.append(f"coverage {'unknown' if coverage is None else f'{coverage:.1%}'}")
    third.append(f"   {nodes['reporting']} of {nodes['reporting'] + nodes['silent']} nodes report")
    if nodes["silent"]:
        third.append(f" (silent: {_printable(', '.join(nodes['silent_names']))})", style="red")
    third.append(f"   window to {now['window_end']}", style="dim")
    return Group(first, second, third)


def _workloads(now: Now, rows: int, width: int) -> Table:
    # A number cut short is a wrong number: a narrow terminal gets fewer columns instead.
    roomy = width >= 70
    names = {"workload": 5, "kind": 2, "user": 2, "team": 2} if roomy else {"workload": 1}
    table = _table(names, ("W", "share", "g/h"))
    shown = now["workloads"][:rows]
    for workload in shown:
        said = (workload["name"], workload["kind"], workload["user"], workload["team"])
        table.add_row(*map(_plain, said[: len(names)]), *_numbers(workload))
    # Apart, and last: a busy program must not have to outrun the idle floor to be seen.
    if shown:
        table.add_row()
    for workload in now["reserved"]:
        name = f"{workload['kind']}: {RESERVED_MEANING.get(workload['kind'], '')}"
        blank = [""] * (len(names) - 1)
        table.add_row(name, *blank, *_numbers(workload), style="dim")
    return table


def _processes(now: Now, rows: int, width: int) -> Table:
    names = {"process": 3, "workload": 4, "node": 3} if width >= 60 else {"process": 1}
    table = _table(names, ("pid", "W"))
    for process in now["processes"][:rows]:
        said = (process["command"], process["workload"], process["node"])
        table.add_row(
            *map(_plain, said[: len(names)]), str(process["pid"]), _number(process["power_w"])
        )
    return table


def _table(names: Mapping[str, int], numbers: Sequence[str]) -> Table:
    """Columns of names with their share of the width, then columns of numbers."""
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold underline")
    for heading, ratio in names.items():
        table.add_column(heading, no_wrap=True, overflow="ellipsis", ratio=ratio)
    for heading in numbers:
        # As wide as they get, so that nothing jumps.
        table.add_column(heading, justify="right", no_wrap=True, min_width=7)
    return table


def _numbers(workload: Mapping[str, Any]) -> tuple[str, str, str]:
    grams = workload["g_per_hour"]
    return (
        _number(workload["power_w"]),
        f"{workload['share']:.1%}",
        "" if grams is None else _number(grams),
    )


def _number(value: float) -> str:
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def _plain(name: str) -> Text:
    """A name as text that can neither style nor move the cursor of somebody's terminal."""
    return Text(_printable(name))


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _rows_that_fit(console: Console, now: Now) -> int:
    # Header, two table headings, blank lines and the reserved kinds take the rest. The header
    # has three lines where the terminal is wide enough for them.
    header = (
        3 if now["state"] in ("waiting", "nothing") else len(console.render_lines(_header(now)))
    )
    taken = header + 1 + 1 + 1 + len(now["reserved"]) + 1 + 1 + 1
    return max(1, (console.height - taken) // 2)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="joulegram top", description=HELP, epilog="Ctrl-C ends it.", allow_abbrev=False
    )
    api.add_flags(parser)
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument(
        "--rows",
        type=whole_number(1, 200),
        default=ROWS_WITHOUT_TERMINAL,
        metavar="1..200",
        help=f"rows of a table with --once (default {ROWS_WITHOUT_TERMINAL})",
    )
    return parser.parse(argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
