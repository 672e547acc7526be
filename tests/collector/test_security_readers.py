"""Who may read: a real collector over TLS, asked by operators, teams, scrapers and strangers."""

import contextlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from joulegram.v1.telemetry_pb2 import Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.certificates import Authority, token_file
from tests.collector.made import IDLE, Node, Row, workload
from tests.servers import Program, free_port, joulegram, running, wait_until

OPERATOR, BLUE, RED, SCRAPER, IDLE_TEAM = (
    f"token-of-{who}-0123456789" for who in ("ops", "blue", "red", "p", "idle")
)
ENTRIES = [
    (OPERATOR, 'sees = "everything"'),
    (BLUE, 'team = "blue"'),
    (RED, 'team = "crimson"'),
    (IDLE_TEAM, 'team = "on-holiday"'),
    (SCRAPER, 'sees = "metrics"'),
]
RULES = """
[[teams.rules]]
team = "blue"
user = "ada"
[[teams.rules]]
team = "crimson"
user = "rosa"
"""
# Part of every name that belongs to the other team alone; never in an answer to blue.
OF_RED = ("crimson", "rosa")
WINDOWS, WINDOW_MS = 4, 300_000  # long ones, so that no node falls silent meanwhile


@dataclass
class Served:
    program: Program
    authority: Authority
    url: str
    folder: Path
    blue_uj: int
    red_uj: int
    idle_uj: int

    def get(self, path: str, token: str = "", **params: str | int) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.get(
            self.url + path,
            params=params,
            headers=headers,
            verify=self.authority.context(),
            timeout=30,
        )


def frames() -> list[Frame]:
    """One node that both teams use, one of red alone, and a guest on it."""
    blue = workload("slurm", "bluejob", user="ada", project="p", name="b", scope="s")
    red = workload(
        "slurm", "crimson-job", user="rosa", project="crimson-project", name="crimson-name",
        scope="crimson-scope", attributes={"app": "crimson-label"},
    )  # fmt: skip
    start_ms = (time.time_ns() // 1_000_000 // WINDOW_MS - WINDOWS) * WINDOW_MS
    shared, own = Node("bothnode"), Node("crimson-node")
    guest = Node("guestnode", more={"host_node": "crimson-node"})
    made = []
    for at in range(start_ms, start_ms + WINDOWS * WINDOW_MS, WINDOW_MS):
        both = [
            Row(blue, cpu_j=30, dram_j=5, pid=7, command="bluecmd"),
            Row(red, cpu_j=50, pid=8, command="crimson-cmd"),
            Row(IDLE, cpu_j=10),
        ]
        made.append(shared.frame(at, both, WINDOW_MS))
        made.append(own.frame(at, [Row(red, cpu_j=90, pid=9, command="crimson-cmd")], WINDOW_MS))
        made.append(guest.frame(at, [Row(blue, cpu_j=1, pid=7, command="bluecmd")], WINDOW_MS))
    return made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("readers")
    with started(folder) as collector:
        yield collector


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Served]:
    authority = Authority(folder)
    pair = authority.issue("collector", "localhost", "127.0.0.1")
    agents, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    (folder / "joulegram.toml").write_text(RULES)
    tokens = token_file(folder / "readers.toml", ENTRIES)
    argv = joulegram(
        "collector", "--data", folder / "ledger", "--http", http, "--listen", agents,
        "--neso-url", "", "--zone", "DE", "--tls-cert", pair.cert, "--tls-key", pair.key,
        "--read-tokens", tokens, "--config", folder / "joulegram.toml",
    )  # fmt: skip
    with running(argv, folder, name="collector") as program:

        def ready() -> bool:
            assert program.process.poll() is None, program.said()
            return "page https://" in program.said()

        wait_until(ready, "the collector", 60)
        for node in ("bothnode", "crimson-node", "guestnode"):
            send(agents, authority, [frame for frame in frames() if frame.node == node])
        yield Served(
            program, authority, f"https://{http}", folder,
            blue_uj=WINDOWS * 35_000_000, red_uj=WINDOWS * 140_000_000,
            idle_uj=WINDOWS * 10_000_000,
        )  # fmt: skip


def send(address: str, authority: Authority, frames: list[Frame]) -> None:
    with grpc.secure_channel(address, authority.channel_credentials()) as channel:
        stub: Any = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
        for ack in stub.Report(sent_now(frames), timeout=60):
            assert not ack.refused, ack


def sent_now(frames: list[Frame]) -> Iterator[Frame]:
    for frame in frames:
        frame.sent_at_ms = time.time_ns() // 1_000_000
        yield frame


def paths(served: Served) -> list[str]:
    """Every question that the API takes, the ones that come later too."""
    shapes = served.get("/api/openapi.json").json()["paths"]
    return [path for path, methods in shapes.items() if "get" in methods and "{" not in path]


def test_a_stranger_learns_nothing(served: Served) -> None:
    asked = [*paths(served), "/metrics", "/api/v1/none", "/none"]
    assert "/api/v1/report" in asked
    for path in asked:
        for token in ("", "not-a-token", BLUE + "x"):
            answer = served.get(path, token)
            if path == "/api/v1/health" and not token:
                assert answer.json() == {"status": "degraded", "version": "", "missing": []} or (
                    answer.json()["status"] == "ready"
                )
                continue
            assert answer.status_code == 401, (path, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "--token-file" in answer.json()["remedy"]
            assert not token or token not in answer.text
    page = served.get("/")
    assert page.status_code == 200 and not [word for word in OF_RED if word in page.text]


def test_no_answer_to_a_team_holds_anything_of_another(served: Served) -> None:
    for path in [*paths(served), "/metrics"]:
        answers = [served.get(path, BLUE)]
        if path == "/api/v1/report":
            for by in ("workload", "user", "team", "node", "component", "kind"):
                answers += [
                    served.get(path, BLUE, since="2h", by=by, idle_policy=policy)
                    for policy in ("separate", "by_active", "by_reservation")
                ]
        for answer in answers:
            assert answer.status_code in (200, 403), answer.text
            found = [word for word in OF_RED if word in answer.text]
            assert not found, (path, found, answer.text)
    assert served.get("/metrics", BLUE).status_code == 403


def test_an_operator_sees_all_and_a_scraper_its_metrics(served: Served) -> None:
    for path in (*paths(served), "/metrics"):
        assert served.get(path, OPERATOR).status_code == 200
    assert "crimson-node" in served.get("/api/v1/nodes", OPERATOR).text
    assert served.get("/metrics", SCRAPER).status_code == 200
    for path in paths(served):
        assert served.get(path, SCRAPER).status_code == 403


def test_a_teams_report_has_its_own_to_the_microjoule(served: Served) -> None:
    whole = served.get("/api/v1/report", OPERATOR, since="2h", by="team").json()
    of_team = {row["key"]: row for row in whole["rows"]}
    assert of_team["blue"]["energy_uj"] == served.blue_uj
    assert whole["metered_uj"] == served.blue_uj + served.red_uj + served.idle_uj
    for token, team, energy_uj in ((BLUE, "blue", served.blue_uj), (RED, "crimson", served.red_uj)):
        for by in ("workload", "user", "team", "node", "component", "kind"):
            own = served.get("/api/v1/report", token, since="2h", by=by).json()
            assert own["metered_uj"] == own["total"]["energy_uj"] == energy_uj
            assert sum(row["energy_uj"] for row in own["rows"]) == energy_uj
            assert {row["team"] for row in own["rows"]} == {team}
            assert own["total"]["g_co2e"] == pytest.approx(of_team[team]["g_co2e"])
    shared = served.get("/api/v1/report", BLUE, since="2h", idle_policy="by_active").json()
    assert shared["metered_uj"] == shared["total"]["energy_uj"] > served.blue_uj


def test_a_teams_now_is_its_own_watts(served: Served) -> None:
    now = served.get("/api/v1/now", BLUE).json()
    assert now["power_w"] == pytest.approx(35 / 300)
    assert [one["name"] for one in now["workloads"]] == ["b"] and now["reserved"] == []
    assert {one["node"] for one in now["processes"]} == {"bothnode"}
    nodes = served.get("/api/v1/nodes", BLUE).json()["nodes"]
    assert {node["node"]: node["host_node"] for node in nodes} == {
        "bothnode": "",
        "guestnode": "",
    }
    assert next(n for n in nodes if n["node"] == "bothnode")["power_w"] == pytest.approx(35 / 300)


def test_a_team_that_runs_nothing_waits_for_no_agent(served: Served) -> None:
    now = served.get("/api/v1/now", IDLE_TEAM).json()
    assert now["state"] == "nothing" and now["power_w"] == 0.0 and now["workloads"] == []


def test_the_command_line_sends_its_token(served: Served) -> None:
    mine = served.folder / "mine"
    mine.touch(0o600)
    mine.write_text(BLUE + "\n")

    def report(*flags: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            joulegram("report", "--since", "2h", "--json", "--url", served.url, *map(str, flags)),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = report("--token-file", mine, "--ca", served.authority.cert)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metered_uj"] == served.blue_uj
    unknown = report("--token-file", mine)
    assert unknown.returncode == 1 and "--ca FILE" in unknown.stderr
    without = report("--ca", served.authority.cert)
    assert without.returncode == 1 and "--token-file" in without.stderr
    mine.chmod(0o644)
    loose = report("--token-file", mine, "--ca", served.authority.cert)
    assert loose.returncode == 2 and "chmod 0600" in loose.stderr
    mine.chmod(0o600)
    clear = subprocess.run(
        joulegram("report", "--url", "http://collector.example:7470", "--token-file", str(mine)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert clear.returncode == 2 and "https" in clear.stderr
    for said in (done, unknown, without, loose, clear):
        assert BLUE not in said.stdout + said.stderr


def test_a_changed_file_of_tokens_is_taken_and_a_bad_one_is_not(served: Served) -> None:
    path = served.folder / "readers.toml"
    token_file(path, [entry for entry in ENTRIES if entry[0] != RED])
    wait_until(lambda: served.get("/api/v1/now", RED).status_code == 401, "red's end")
    assert served.get("/api/v1/now", BLUE).status_code == 200
    path.write_text("")  # nobody may read: that is what an empty file says
    wait_until(lambda: served.get("/api/v1/now", BLUE).status_code == 401, "everybody's end")
    path.write_text("[[token]]\nname = 'x'\nsha256 = 'oops'\nsees = 'everything'")
    wait_until(lambda: "64 hexadecimal digits" in served.program.said(), "the complaint")
    token_file(path, ENTRIES)
    wait_until(lambda: served.get("/api/v1/now", RED).status_code == 200, "the good file")


def test_names_of_elsewhere_are_not_answered(served: Served) -> None:
    """A page of another site can have its own name point at this machine."""
    for host in ("evil.example", "evil.example:7470", "127.0.0.1.evil.example", ""):
        answer = httpx.get(
            served.url + "/api/v1/now",
            headers={"host": host, "authorization": f"Bearer {OPERATOR}"},
            verify=served.authority.context(),
        )
        assert answer.status_code == 421, host
        assert "`hosts`" in answer.json()["remedy"]
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:7470", "[::1]:7470"):
        answer = httpx.get(
            served.url + "/api/v1/now",
            headers={"host": host, "authorization": f"Bearer {OPERATOR}"},
            verify=served.authority.context(),
        )
        assert answer.status_code == 200, host


def test_plain_http_gets_nothing_on_the_tls_port(served: Served) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(served.url.replace("https", "http") + "/api/v1/now", timeout=20)


def test_old_tls_is_refused(served: Served) -> None:
    context = served.authority.context()
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)), connected(served) as plain:
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_who_asks_too_slowly_is_hung_up_on(served: Served) -> None:
    """Nothing, half a head, and half a head after a whole request."""
    context = served.authority.context()
    rude = []
    with contextlib.ExitStack() as stack:
        for said in (
            b"",
            b"GET / HTTP/1.1\r\nHost: 127",
            b"GET /static/app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT",
        ):
            plain = stack.enter_context(connected(served))
            connection = stack.enter_context(
                context.wrap_socket(plain, server_hostname="127.0.0.1")
            )
            connection.sendall(said)
            connection.settimeout(90)
            rude.append(connection)
        for connection in rude:
            with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
                while connection.recv(65_536):
                    pass  # until the collector closes
    assert served.get("/", OPERATOR).status_code == 200


def connected(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("https://").split(":")
    return socket.create_connection((host, int(port)), 10)
