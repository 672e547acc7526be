"""`joulegram report` renders what the API answers: for people, spreadsheets and programs."""

import csv
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from joulegram.cli import report
from joulegram.cli.errors import UsageError


def row(key: str, energy_uj: int, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "team": "ml",
        "energy_uj": energy_uj,
        "g_co2e": energy_uj / 3.6e12 * 200,
        "coverage": 1.0,
        "quality": "measured",
    } | more


def answer(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    energy_uj = sum(r["energy_uj"] for r in rows)
    return {
        "since": "2026-03-01T12:00:00Z",
        "until": "2026-03-01T13:00:00Z",
        "as_of": "2026-03-01T13:02:00Z",
        "energy_as_of": "2026-03-01T13:02:00Z",
        "by": "workload",
        "idle_policy": "separate",
        "zone": "GB",
        "zones": ["GB"],
        "pue": 1.2,
        "basis": "average-direct-consumption",
        "basis_share": {"average-direct-consumption": 0.6, "average-lifecycle-production": 0.4},
        "intensity": {"estimated": 0.6, "fallback": 0.4},
        "g_per_kwh": 166.7,
        "credits": ["NESO Carbon Intensity API, CC BY 4.0"],
        "components": ["cpu", "dram", "gpu", "other"],
        "rows": list(rows),
        "total": {
            "energy_uj": energy_uj,
            "g_co2e": energy_uj / 3.6e12 * 200,
            "coverage": 0.9996,
            "quality": "modelled",
        },
        "metered_uj": energy_uj,
        "simulated": False,
    } | more


TWO = answer(row("slurm/42", 3_000_000_000, name="train"), row("idle", 600_000_000, team="-"))


def shown(some: dict[str, Any], width: int = 100, rows: int = 40) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(report.draw(some, rows, width))
    return out.getvalue()


def test_the_table_says_what_its_numbers_stand_on() -> None:
    text = shown(TWO)
    assert "slurm/42 train" in text and "83.3%" in text
    assert " Wh" in text and "0.833" in text  # 3 kJ
    assert " mg CO2e" in text and "166.7" in text  # 0.1667 g
    assert "99.9%" in text, "99.96 % is not all of it"
    for fact in (
        "grid GB: 166.7 g/kWh by energy, estimated 60%, fallback 40%",
        "basis average direct consumption; filled in from average lifecycle production 40%",
        "PUE 1.2",
        "idle energy shown apart",
        "as known at 2026-03-01T13:02:00Z",
        "MODELLED",
        "NESO",
    ):
        assert fact in text


def test_nothing_to_show_says_what_to_do() -> None:
    text = shown(answer())
    assert "No energy from" in text and "--since 1d" in text and "joulegram top" in text
    # The reason may lie in what was asked.
    text = shown(answer(components=["gpu"], as_of="2020-01-01T00:00:00Z"), width=300)
    assert "No energy of gpu from" in text and "as known at 2020-01-01T00:00:00Z" in text


@pytest.mark.parametrize("width", [1, 2, 5, 12, 30, 40, 60, 79, 80, 300])
def test_no_width_crashes_or_cuts_a_number_short(width: int) -> None:
    text = shown(TWO, width)
    if width >= 30:
        assert "0.833" in text and "166.7" in text and "…" not in text


@pytest.mark.parametrize("by", report.BY)
@pytest.mark.parametrize("width", [30, 80, 200])
def test_whatever_a_row_is_the_table_shows_it(by: str, width: int) -> None:
    lines = shown(answer(row("vision", 7_200_000_000), by=by), width).splitlines()
    assert lines[0].split()[0] == by and lines[0].split().count("team") <= 1
    assert "2.000" in next(line for line in lines if line.startswith("vision"))


def test_more_rows_than_asked_for_are_summed_not_dropped() -> None:
    many = answer(*(row(f"slurm/{i}", 1_000_000) for i in range(50)))
    text = shown(many, rows=10)
    assert "40 more" in text and "40.00" in text
    assert "slurm/49" in shown(many, rows=0)


def test_what_is_unknown_is_said() -> None:
    text = shown(
        answer(row("slurm/1", 5, g_co2e=None, team=None), g_per_kwh=None)
        | {"total": {"energy_uj": 5, "g_co2e": None}, "energy_as_of": "latest", "simulated": True}
    )
    assert "unknown" in text and "several" in text and "SIMULATED" in text
    assert "older records are gone" in text


def test_names_can_neither_style_nor_move_the_cursor() -> None:
    text = shown(answer(row("systemd/\x1b[2J[red]x", 5)))
    assert "\x1b[2J" not in text and "[red]x" in text


def test_csv_is_integers_and_plain_decimals() -> None:
    out = io.StringIO()
    tiny = row("=cmd()", 1, g_co2e=None, coverage=0.5)
    report.write_csv(answer(row("slurm/42", 10**17, user='a,"b"'), tiny), out)
    first, second = csv.DictReader(io.StringIO(out.getvalue()))
    assert first["energy_uj"] == "100000000000000000" and first["user"] == 'a,"b"'
    assert float(first["energy_kwh"]) == pytest.approx(27777.78)
    assert float(second["energy_kwh"]) == 1 / 3.6e12 and second["g_co2e"] == ""
    assert not set("eE,") & set(first["energy_kwh"] + second["energy_kwh"] + second["coverage"])
    assert second["key"] == "'=cmd()", "a spreadsheet must not run a name"


def test_every_line_of_the_csv_says_whether_some_of_it_is_made_up() -> None:
    for simulated in (True, False):
        out = io.StringIO()
        report.write_csv(answer(row("a", 1), row("b", 2), simulated=simulated), out)
        lines = list(csv.DictReader(io.StringIO(out.getvalue())))
        assert [line["simulated"] for line in lines] == [str(simulated).lower()] * 2


class Api:
    """A collector's answer on loopback, and what was asked of it."""

    def __init__(self) -> None:
        self.body: Any = TWO
        self.status = 200
        self.asked: dict[str, list[str]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked = parse_qs(urlsplit(self.path).query)
                body = json.dumps(outer.body).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(5)


def test_json_is_the_apis_own_answer(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--since 2026-03-01T12:00:00+01:00 --by team --idle-policy by_active --as-of 1h --json"
    assert report.run([*words.split(), "--url", api.url]) == 0
    assert json.loads(capsys.readouterr().out) == TWO
    assert api.asked == {
        "since": ["2026-03-01T12:00:00+01:00"],
        "by": ["team"],
        "idle_policy": ["by_active"],
        "as_of": ["1h"],
    }


def test_by_default_it_is_the_last_hour_by_workload(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.run(["--url", api.url]) == 0
    assert "slurm/42" in capsys.readouterr().out
    assert api.asked == {"since": ["1h"], "by": ["workload"]}


@pytest.mark.parametrize("words", [["--tz", "-03:30"], ["--tz=-03:30"]])
def test_an_offset_west_of_greenwich_is_no_flag(
    api: Api, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert report.run([*words, "--url", api.url]) == 0
    assert api.asked == {"since": ["1h"], "by": ["workload"], "tz": ["-03:30"]}
    with pytest.raises(UsageError):
        report.run(["--tz", "--csv", "--url", api.url])


def test_a_refusal_is_passed_on_with_its_remedy(api: Api) -> None:
    api.status, api.body = 400, {"error": "'x' is no time", "remedy": "accepted: 1h"}
    with pytest.raises(UsageError, match="accepted: 1h"):
        report.run(["--since", "x", "--url", api.url])


@pytest.mark.parametrize("argv", [["--by", "job"], ["--csv", "--json"], ["--rows", "-1"]])
def test_wrong_words_are_told_what_is_accepted(argv: list[str]) -> None:
    with pytest.raises(UsageError) as failed:
        report.run(argv)
    said = str(failed.value)
    assert any(word in said for word in ("choose from", "from 0 to 10000", "not allowed with"))
    assert len(said) < 200 and "\n" not in said
