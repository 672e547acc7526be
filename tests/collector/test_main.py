"""The collector as a process: what it refuses at the start, and how it ends."""

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from joulegram.collector.addresses import Address
from joulegram.collector.errors import BadSetting
from joulegram.v1.telemetry_pb2 import Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.servers import Program, free_port, joulegram, running, wait_until


def test_beyond_loopback_only_when_asked_for() -> None:
    for local in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        assert Address.parse("listen", local, insecure=False).port == 1
    for wide in ("0.0.0.0:1", "[::]:1", "192.0.2.7:1", "collector.example:1"):
        with pytest.raises(BadSetting, match="--insecure"):
            Address.parse("listen", wide, insecure=False)
        assert Address.parse("listen", wide, insecure=True).port == 1
    for none in ("7471", ":7471", "host:", "host:port", "host:70000"):
        with pytest.raises(BadSetting, match="HOST:PORT"):
            Address.parse("http", none, insecure=True)


def start(folder: Path, *arguments: str) -> list[str]:
    common = ("collector", "--data", str(folder / "data"), "--neso-url", "")
    return joulegram(*common, *arguments)


def refused(argv: list[str], folder: Path) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_taken_port_and_a_held_ledger_are_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag, other in (("--listen", "--http"), ("--http", "--listen")):
            said = refused(start(tmp_path, flag, address, other, "127.0.0.1:0"), tmp_path)
            assert address in said and flag in said
            assert said.count("\n") == 1
            assert not (tmp_path / "data" / "chdb").exists(), (
                "settings are not written by who cannot serve"
            )
    both = f"127.0.0.1:{free_port()}"
    said = refused(start(tmp_path, "--listen", both, "--http", both), tmp_path)
    assert said.count("\n") == 1 and "collector.listen and collector.http are both" in said
    done = subprocess.run(
        joulegram("config", "--role", "writr"), cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no role 'writr'" in done.stderr
    (tmp_path / "file").touch()
    argv = joulegram("collector", "--data", str(tmp_path / "file"), "--listen", "127.0.0.1:0")
    said = refused(argv, tmp_path)
    assert said.count("\n") == 1 and f"cannot keep a ledger in {tmp_path / 'file'}" in said
    free = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with running(start(tmp_path, *free), tmp_path) as first:
        wait_until(lambda: "page http://" in first.said(), "the first collector")
        said = refused(start(tmp_path, *free), tmp_path)
        assert f"in use by process {first.pid}" in said and "--data" in said
        assert first.stop(signal.SIGINT, timeout_s=5.0) == 0


@pytest.mark.parametrize(("raw_days", "warns"), [("30", True), ("31", False)])
def test_it_says_when_spools_may_outlive_raw_rows(
    tmp_path: Path, raw_days: str, warns: bool
) -> None:
    both = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--raw-days", raw_days)
    with running(start(tmp_path, *both), tmp_path) as collector:
        wait_until(lambda: "agents on " in collector.said(), "it serves")
        assert ("spool_max_days" in collector.said()) == warns


def test_the_first_answer_knows_the_grid(tmp_path: Path) -> None:
    http = f"127.0.0.1:{free_port()}"
    argv = start(tmp_path, "--listen", "127.0.0.1:0", "--http", http, "--zone", "DE")
    with running(argv, tmp_path) as collector:
        first: list[httpx.Response] = []

        def answered() -> bool:
            assert collector.process.poll() is None, collector.said()
            first.append(httpx.get(f"http://{http}/api/v1/now", timeout=20.0))
            return True

        wait_until(answered, "the first answer")
        grid = first[0].json()["intensity"]
        assert (grid["zone"], grid["quality"]) == ("DE", "fallback")
        assert grid["g_per_kwh"] > 0


def test_it_ends_well_with_a_stream_open(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    argv = start(tmp_path, "--listen", listen, "--http", "127.0.0.1:0")
    with running(argv, tmp_path) as collector, grpc.insecure_channel(listen) as channel:
        wait_until(lambda: "page http://" in collector.said(), "the collector")
        # An agent that waits for its next window keeps its half open.
        window_ends = threading.Event()
        answers = TelemetryServiceStub(channel).Report(silent(window_ends))
        wait_until(lambda: "joulegram_intake_streams 1.0" in metrics(collector), "the stream")
        assert collector.stop(signal.SIGTERM, timeout_s=5.0) == 0
        assert list(answers) == []
        assert answers.code() == grpc.StatusCode.OK
        window_ends.set()


def silent(until: threading.Event) -> Iterator[Frame]:
    until.wait()
    yield from ()


def metrics(collector: Program) -> str:
    page = collector.said().rpartition("page ")[2].strip()
    return httpx.get(f"{page}/metrics", timeout=20.0).text
