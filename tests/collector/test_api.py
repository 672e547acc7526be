"""The API on a real ledger: shapes, units, refusals, and what the browser is told."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from joulegram.collector import sites
from joulegram.collector.config import GridConfig
from joulegram.collector.grid.feeds import Feeds
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.live import Live
from joulegram.collector.metrics import CollectorMetrics
from joulegram.collector.rollup import Rollup
from joulegram.collector.standing import Standing
from joulegram.collector.totals import EnergyTotals, TeamGrams
from joulegram.collector.web import questions, routes
from joulegram.collector.web.api import create_app
from joulegram.collector.web.threads import Threads, TooBusy
from joulegram.collector.writer import Store
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made import IDLE, WINDOW_MS, Node, Row, workload
from tests.collector.made_frames import checked
from tests.servers import free_port, wait_until

T0 = 1_790_000_100_000  # the start of a slot
NOW_MS = T0 + 31 * WINDOW_MS
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
JOB = workload("slurm", "42", user="ann", name="train")


def frames() -> list[Frame]:
    node = Node("n1")
    rows = [Row(JOB, cpu_j=30.0, dram_j=5.0, pid=7, command="python"), Row(IDLE, cpu_j=10.0)]
    return [node.frame(T0 + i * WINDOW_MS, rows) for i in range(30)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A collector's web side with five minutes of one node; its clock stands at NOW."""
    ledger = ChdbLedger(tmp_path_factory.mktemp("api"))
    migrate(ledger)
    config = GridConfig(zone="DE", pue=1.5, neso_url="")
    sites.record_site(ledger, sites.site_of(config), NOW_MS)
    rollup = Rollup(ledger)
    live = Live(now_ms=lambda: NOW_MS)
    energy = EnergyTotals()
    standing = Standing(ledger, rollup, TeamGrams(ledger), now=lambda: NOW)
    registry = CollectorRegistry()
    registry.register(CollectorMetrics(live, energy, standing))
    feeds = Feeds(ledger, config, registry)
    stored = Store(ledger, lambda: NOW_MS).keep(checked(*frames())).stored
    for hook in (rollup.touch, live.on_durable, energy.on_durable):
        hook([one.frame for one in stored])
    app = create_app(
        ledger=ledger,
        rollup=rollup,
        live=live,
        standing=standing,
        feeds=feeds,
        registry=registry,
        clock=lambda: NOW,
    )
    with served(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client
    ledger.close()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a port of loopback, until the block is left."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the application")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def get(client: httpx.Client, path: str, **params: str | int) -> Any:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_now(client: httpx.Client) -> None:
    now = get(client, "/api/v1/now")
    assert now["state"] == "live"
    assert now["power_w"] == pytest.approx(4.5)
    assert now["components_w"] == pytest.approx({"cpu": 4.0, "dram": 0.5})
    assert now["coverage"] == 1.0
    assert now["nodes"] == {"reporting": 1, "silent": 0, "silent_names": []}
    (job,) = now["workloads"]
    assert (job["name"], job["user"], job["power_w"]) == ("train", "ann", pytest.approx(3.5))
    assert job["share"] == pytest.approx(3.5 / 4.5)
    assert [w["kind"] for w in now["reserved"]] == ["idle"]
    assert now["processes"][0]["command"] == "python"


def test_report_accounts_for_every_microjoule(client: httpx.Client) -> None:
    for policy in ("separate", "by_active", "by_reservation"):
        report = get(client, "/api/v1/report", since="1h", by="workload", idle_policy=policy)
        assert report["metered_uj"] == 30 * 45_000_000
        assert report["total"]["energy_uj"] == report["metered_uj"]
        assert sum(row["energy_uj"] for row in report["rows"]) == report["metered_uj"]


def test_power_over_time(client: httpx.Client) -> None:
    series = get(client, "/api/v1/power", since="10m")
    assert series["step_s"] == 10
    assert {len(series[key]) for key in ("t", "cpu", "dram", "gpu", "other")} == {60}
    measured = [watts for watts in series["cpu"] if watts is not None]
    assert measured == pytest.approx([4.0] * 30)


def test_nodes_and_health(client: httpx.Client) -> None:
    nodes = get(client, "/api/v1/nodes")
    assert [(n["node"], n["silent"]) for n in nodes["nodes"]] == [("n1", False)]
    health = get(client, "/api/v1/health")
    assert health["status"] in ("ready", "degraded")
    assert all(m["why"] and m["remedy"] for m in health["missing"])


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/v1/report?by=pet", 422, "'team'"),
        ("/api/v1/report?idle_policy=none", 422, "'separate'"),
        ("/api/v1/report?componets=cpu", 422, "no parameter componets"),
        ("/api/v1/report?components=cpu,disk", 422, "components"),
        ("/api/v1/report?since=yesterday", 400, "ISO 8601"),
        ("/api/v1/report?since=99999w", 400, "since"),
        ("/api/v1/report?since=1h&until=2h", 400, "until"),
        ("/api/v1/power?since=400d", 400, "31 days"),
        ("/api/v1/now?top=0", 422, "greater than or equal to 1"),
        ("/api/v1/nowhere", 404, "/api/openapi.json"),
        ("/static/../api.py", 404, "the page is at /"),
        ("/static/nothing.js", 404, "the page is at /"),
    ],
)
def test_a_refusal_says_what_is_accepted(
    client: httpx.Client, path: str, status: int, said: str
) -> None:
    answer = client.get(path)
    body = answer.json()
    assert answer.status_code == status, body
    assert set(body) == {"error", "remedy"}
    assert said in body["error"] + " " + body["remedy"]


def test_the_schema_knows_every_route_and_no_page_loads_from_elsewhere(
    client: httpx.Client,
) -> None:
    schema = get(client, "/api/openapi.json")
    assert set(schema["paths"]) == {
        f"/api/v1/{name}" for name in ("now", "nodes", "power", "intensity", "report", "health")
    }
    assert (
        "W" in schema["components"]["schemas"]["Workload"]["properties"]["power_w"]["description"]
    )
    for gone in ("/docs", "/redoc"):
        assert client.get(gone).status_code == 404


def test_the_browser_is_told_to_load_from_here_alone(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/v1/now").headers["cache-control"] == "no-store"


def test_plotly_is_compressed_and_kept(client: httpx.Client) -> None:
    url = next(
        part
        for part in client.get("/").text.split('"')
        if part.startswith("/static/plotly.min.js?")
    )
    with client.stream("GET", url, headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    assert b"plotly.js" in gzip.decompress(raw)[:200]
    etag = answer.headers["etag"]
    again = client.get("/static/plotly.min.js", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" not in again.headers["cache-control"]


def test_metrics_by_what_the_scraper_accepts(client: httpx.Client) -> None:
    text = client.get("/metrics", headers={"accept": "text/plain"})
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert 'joulegram_energy_joules_total{component="cpu",node="n1"} 1200.0' in text.text
    openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


@given(st.text(max_size=40))
def test_any_time_is_a_moment_or_a_plain_refusal(text: str) -> None:
    try:
        moment = questions.parse_time(text, NOW)
    except questions.BadTime as refused:
        assert "accepted:" in str(refused)
    else:
        assert moment.tzinfo is not None


def test_times_as_people_write_them() -> None:
    def at(text: str) -> float:
        return (questions.parse_time(text, NOW) - NOW).total_seconds()

    assert at("now") == 0
    assert at("90s") == -90
    assert at("2h") == -7200
    same = questions.parse_time("2026-03-01T15:00:00+01:00", NOW)
    for text in ("2026-03-01T14:00:00Z", "2026-03-01T14:00:00", "2026-03-01T15:00:00 01:00"):
        assert questions.parse_time(text, NOW) == same


@given(st.floats(1, 31 * 86_400), st.sampled_from([0, 1, 10, 60, 300]))
def test_a_chart_has_at_most_360_steps_of_whole_windows(span_s: float, window_s: float) -> None:
    step_s = routes.step_for(span_s, window_s)
    assert span_s / step_s <= routes.MOST_POINTS
    assert step_s % max(10, window_s) == 0


async def test_a_full_queue_refuses_at_once() -> None:
    threads = Threads(workers=1, max_waiting=1)
    gate = threading.Event()
    running = [asyncio.create_task(threads.run(gate.wait, 10.0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooBusy):
        await threads.run(gate.wait, 10.0)
    gate.set()
    assert await asyncio.gather(*running) == [True, True]
    assert await threads.run(gate.wait, 10.0)
    await threads.close()


def test_the_page_is_in_the_package() -> None:
    static = Path(routes.__file__).parent / "static"
    assert {path.name for path in static.iterdir()} == {"index.html", "style.css", "app.js"}
