"""`joulegram top` beside a shipped collector: right numbers, plain words, a clean end."""

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.collector.made import IDLE, SYSTEM, WINDOW_MS, Node, Row, workload
from tests.e2e.sending import RunningCollector, collector
from tests.servers import free_port, joulegram


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    with collector(tmp_path_factory.mktemp("top"), "--zone", "GB") as started:
        yield started


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        joulegram("top", *arguments), capture_output=True, text=True, timeout=60, check=False
    )


def test_before_the_first_frame_it_says_what_it_waits_for(running: RunningCollector) -> None:
    # First in the file: the collector has no frame yet.
    said = top("--url", running.url)
    assert said.returncode == 0
    assert "waits for its first window" in said.stdout


def test_busy_programs_on_top_and_nobodys_watts_apart(running: RunningCollector) -> None:
    newest = time.time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - WINDOW_MS
    person = workload("user", "1000", user="ann", name="ann\x9b2J[red]")
    web = workload("systemd", "nginx.service", name="nginx.service")
    node = Node("node-a", quality="modelled")
    rows = [
        Row(web, cpu_j=30.0, pid=1, command="nginx"),
        Row(person, cpu_j=420.0, pid=991, command="yes"),
        Row(IDLE, cpu_j=900.0),
        Row(SYSTEM, cpu_j=20.0),
    ]
    running.send([node.frame(newest, rows)])
    said = top("--url", running.url, "--once").stdout
    assert "137.0 W" in said
    assert "MODELLED" in said
    assert "GB" in said
    assert "fallback" in said
    assert "coverage 100.0%" in said
    places = [said.index(name) for name in ("ann", "nginx.service", "idle:", "system:")]
    assert places == sorted(places)
    assert said.index("yes") < said.index("nginx ")
    assert "\x1b" not in said and "\x9b" not in said
    assert "[red]" in said


def test_nobody_there_is_said_with_what_to_start() -> None:
    said = top("--url", f"http://127.0.0.1:{free_port()}")
    assert said.returncode == 1
    assert "joulegram up" in said.stderr
    assert "Traceback" not in said.stderr


def test_something_else_at_the_url_is_said(running: RunningCollector) -> None:
    said = top("--url", running.url + "/static")
    assert said.returncode == 1
    assert "Traceback" not in said.stderr


def test_ctrl_c_ends_the_live_view_well(running: RunningCollector) -> None:
    newest = time.time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - WINDOW_MS
    node = Node("node-a", epoch=2, quality="modelled")
    running.send([node.frame(newest, [Row(IDLE, cpu_j=900.0)])])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        joulegram("top", "--url", running.url),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "30"},
        start_new_session=True,
        # The terminal must be its own for Ctrl-C to reach it.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        seen = read_until(ours, b"node-a")
        assert b"MODELLED" in seen
        os.write(ours, b"\x03")
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        os.close(ours)


def read_until(terminal: int, wanted: bytes, timeout_s: float = 60.0) -> bytes:
    seen = b""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if poll.poll(200):
            seen += os.read(terminal, 65_536)
    return seen
