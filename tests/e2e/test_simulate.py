"""`joulegram simulate` as it is shipped: over the wire and into a directory, to the same sums."""

import csv
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from joulegram.cli.main import OWN
from joulegram.collector.ledger.chdb import ChdbLedger
from tests.collector.made import IDLE, Node, Row, workload
from tests.e2e.sending import collector
from tests.servers import chromium, free_port, joulegram, running, wait_until

SITE = ("--nodes", "6", "--hours", "0.5", "--seed", "11", "--json")


def simulate(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        joulegram("simulate", *SITE, *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def ledger_says(data: Path) -> dict[str, Any]:
    ledger = ChdbLedger(data)
    try:
        answers: dict[str, Any] = {}
        for sql in (
            "SELECT sum(cpu_uj + dram_uj + gpu_uj + other_uj) AS rows_uj, "
            "sum(total_uj) AS headers_uj, sum(row = 0) AS frames, sum(row > 0) AS rows FROM rows",
            "SELECT sum(energy_uj) AS devices_uj, min(simulated) AS simulated FROM devices",
            "SELECT sumIf(energy_uj, entry = 'device') AS slots_uj FROM slots FINAL",
        ):
            answers |= ledger.query(sql).to_pylist()[0]
        return answers
    finally:
        ledger.close()


def test_into_a_directory_once_however_often_it_is_run(tmp_path: Path) -> None:
    data = tmp_path / "ledger"
    more = ("--since", "2026-09-28T11:00", "--data", str(data))
    first = json.loads(simulate(tmp_path, *more).stdout)
    again = json.loads(simulate(tmp_path, *more).stdout)
    assert {**again, "took_s": 0} == {**first, "took_s": 0}
    total_uj = first["energy_uj"]
    assert ledger_says(data) == {
        "rows_uj": total_uj,
        "headers_uj": total_uj,
        "devices_uj": total_uj,
        "slots_uj": total_uj,
        "frames": first["frames"],
        "rows": first["rows"],
        "simulated": 1,
    }


def test_over_the_wire_and_it_says_simulated_wherever_it_is_shown(tmp_path: Path) -> None:
    """Both ways store the same integers; report, API, page and /metrics say what they are."""
    rules = subprocess.run(
        joulegram("simulate", "--rules"), capture_output=True, text=True, timeout=30, check=True
    )
    config = tmp_path / "site.toml"
    config.write_text(rules.stdout)
    with collector(tmp_path, "--config", str(config)) as running:
        sent = json.loads(simulate(tmp_path, "--collector", running.agents).stdout)
        told = running.get("/api/v1/report", since=sent["since"], until=sent["until"]).json()
        assert told["simulated"] is True
        assert told["metered_uj"] == told["total"]["energy_uj"] == sent["energy_uj"]
        teams = running.get(
            "/api/v1/report", since=sent["since"], until=sent["until"], by="team"
        ).json()
        drawn = {row["key"]: row["energy_uj"] for row in teams["rows"]}
        drawn["(nobody)"] = drawn.pop("unassigned")
        assert drawn == {team: uj for team, uj in sent["by_team"].items() if uj}
        assert running.get("/api/v1/nodes").json()["nodes"][0]["simulated"] is True
        assert "\njoulegram_simulated_nodes 6.0\n" in running.get("/metrics").text
        said = subprocess.run(
            joulegram("report", "--url", running.url, "--since", sent["since"]),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "SIMULATED" in said.stdout
        with chromium() as browser:
            page = browser.new_page()
            page.goto(running.url)
            for badge in ("today-simulated", "teams-simulated"):
                page.wait_for_selector(f"#{badge}:not([hidden])", timeout=30_000)
    assert ledger_says(tmp_path / "ledger")["rows_uj"] == sent["energy_uj"]


NO_ENERGY = {"/api/v1/intensity", "/api/v1/health"}  # answers that hold none
# The CLI's own commands, and in which ways each shows energy.
SHOWN: dict[str, list[list[str]]] = {
    "report": [[], ["--by", "team"], ["--csv"], ["--json"]],
    "top": [["--once"]],
    "up": [],
    "config": [],
}


def says_simulated(answer: dict[str, Any]) -> bool:
    """Of an answer as a whole, or of each of its nodes."""
    parts = [answer] if "simulated" in answer else answer.get("nodes", [])
    return bool(parts) and all(part.get("simulated") is True for part in parts)


def test_whatever_can_show_made_up_energy_says_so(tmp_path: Path) -> None:
    """A new route or command fails here until somebody has thought of its mark."""
    simulate(tmp_path, "--data", str(tmp_path / "ledger"))
    with collector(tmp_path) as page:
        metrics = page.get("/metrics").text
        assert "joulegram_energy_joules_total{" in metrics
        assert "\njoulegram_simulated_nodes 6.0\n" in metrics, "before a frame has come"
        window_ms = (time.time_ns() // 1_000_000 // 10_000 - 1) * 10_000
        live = Node("sim-live", more={"simulated": True}).frame(
            window_ms, [Row(workload("slurm", "7"), cpu_j=30.0, pid=3, command="a"), Row(IDLE, 9.0)]
        )
        page.send([live])
        assert "\njoulegram_simulated_nodes 7.0\n" in page.get("/metrics").text
        paths = set(page.get("/api/openapi.json").json()["paths"])
        assert paths > NO_ENERGY
        for path in sorted(paths - NO_ENERGY):
            assert says_simulated(page.get(path).json()), path
        assert set(SHOWN) == set(OWN)
        for command, ways in SHOWN.items():
            for words in ways:
                said = subprocess.run(
                    joulegram(command, *words, "--url", page.url),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=True,
                ).stdout
                assert "simulated" in said.lower(), (command, words)
                if "--csv" in words:
                    lines = list(csv.DictReader(said.splitlines()))
                    assert lines and {line["simulated"] for line in lines} == {"true"}
                elif "--json" in words:
                    assert says_simulated(json.loads(said))
        with chromium() as browser:
            shown = browser.new_page()
            shown.goto(page.url)
            for badge in ("simulated", "today-simulated", "power-simulated", "teams-simulated"):
                shown.wait_for_selector(f"#{badge}:not([hidden])", timeout=30_000)


def test_what_a_collector_refuses_is_told_and_fails(tmp_path: Path) -> None:
    with collector(tmp_path, "--raw-days", "1") as running:
        done = simulate(tmp_path, "--since", "2026-01-01", "--collector", running.agents, status=1)
    assert json.loads(done.stdout)["refused"] == 6 * 180
    assert "too_old" in done.stderr and "raw_days" in done.stderr


def test_a_collector_that_does_not_answer_is_named_at_once(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    argv = joulegram("simulate", *SITE, "--collector", nobody)
    with running(argv, tmp_path, name="simulate") as program:
        wait_until(lambda: f"the collector at {nobody} does not answer" in program.said(), "why")


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    said = simulate(tmp_path, "--data", str(file), status=1).stderr
    assert f"cannot keep a ledger in {file}" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nodes", "0"), "at least one node"),
        (("--window", "7"), "divides 300"),
        (("--since", "yesterday"), "2026-03-01"),
        (("--since", "2999-01-01"), "future"),
        (("--data", "x", "--speed", "60"), "--speed"),
        (("--collector", "nowhere"), "HOST:PORT"),
        (("--hours", "0"), "shorter than a window"),
        (("--node-prefix", ""), "--node-prefix"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = simulate(tmp_path, *words, status=2)
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
