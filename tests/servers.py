"""Real programs for the tests: found, started on loopback, awaited, and ended by their pid.

A missing binary skips its test with a reason on a laptop and fails it under CI=true.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DEBIAN_PACKAGE = {
    "promtool": "prometheus",
    "npx": "npm",
    "node": "nodejs",
    "systemd-analyze": "systemd",
    "setpriv": "util-linux",
}

# For what must come some time: a loaded machine takes its time. What must come soon says how soon.
PATIENCE_S = 60.0

# Chromium's own background requests would look like leaks of the page.
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def need(binary: str) -> str:
    """Path of a program; where it is missing, skip the test, or fail it under CI=true."""
    path = shutil.which(binary)
    if path is not None:
        return path
    reason = f"{binary} is missing: apt-get install {DEBIAN_PACKAGE.get(binary, binary)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Poll until `holds()`; a connection error counts as not yet. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError, OSError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s} s still waiting for {what}")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether `url` answers 200."""
    return httpx.get(url, timeout=10.0).status_code == 200


@dataclass(frozen=True, slots=True)
class Program:
    """A child of ours, with its stdout and stderr in files."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """All that it wrote so far, stdout first."""
        return self.stdout.read_text() + self.stderr.read_text()

    def await_answer(self, url: str, timeout_s: float = PATIENCE_S) -> None:
        """Return once `url` answers 200; raise AssertionError when the program ends before."""

        def holds() -> bool:
            assert self.process.poll() is None, f"ended early:\n{self.said()}"
            return answers(url)

        try:
            wait_until(holds, url, timeout_s)
        except TimeoutError as late:
            raise TimeoutError(f"{late}; it said:\n{self.said()}") from None

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signal it and return its exit status (minus the signal's number if that ended it)."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path],
    folder: Path,
    *,
    name: str = "program",
    env: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Start a program in `folder` (made if missing); end it by its pid when the block is left.

    Args:
        env: added to our own environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with out.open("ab") as stdout, err.open("ab") as stderr:
        process = subprocess.Popen(
            list(map(str, argv)),
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Program(process, out, err)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)


def joulegram(*arguments: str | Path) -> list[str]:
    """argv of our own command line, in this interpreter's environment."""
    return [sys.executable, "-m", "joulegram.cli.main", *map(str, arguments)]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A real Prometheus server that scrapes once a second what `watch` names."""

    url: str
    targets: Path
    watched: list[str] = field(default_factory=list)

    def watch(self, address: str) -> None:
        """Scrape http://ADDRESS/metrics, and return once a scrape of it has succeeded."""
        self.watched.append(address)
        # Prometheus may look between open and write: put the whole file in place at once.
        draft = self.targets.with_suffix(".draft")
        draft.write_text(json.dumps([{"targets": self.watched}]))
        draft.rename(self.targets)
        up = f'up{{instance="{address}"}}'
        wait_until(lambda: [v for _, v in self.query(up)] == [1.0], f"{up} == 1")

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's vector: (labels, value) pairs."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": promql}, timeout=20.0)
        body: dict[str, Any] = answer.json()
        assert body["status"] == "success", body
        return [(r["metric"], float(r["value"][1])) for r in body["data"]["result"]]


@contextlib.contextmanager
def prometheus_server(folder: Path) -> Iterator[Prometheus]:
    """Start a Prometheus with its state in `folder`."""
    binary = need("prometheus")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: joulegram, file_sd_configs: [{{files: ['{targets}']}}]}}\n"
    )
    argv = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(argv, folder, name="prometheus") as program:
        url = f"http://127.0.0.1:{port}"
        program.await_answer(f"{url}/-/ready")
        yield Prometheus(url, targets)


def check_metrics(exposition: str) -> None:
    """Run `promtool check metrics` over Prometheus text; any complaint fails the test."""
    done = subprocess.run(
        [need("promtool"), "check", "metrics"],
        input=exposition,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    complaints = done.stdout + done.stderr
    assert done.returncode == 0 and not complaints.strip(), complaints


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless Chromium (Playwright's synchronous API, so for tests that are not coroutines).

    Not a session fixture on purpose: while Playwright's loop is open in this thread, no
    asyncio test can run in it.
    """
    executable = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=list(CHROMIUM_ARGS), timeout=60_000
        )
        try:
            yield browser
        finally:
            browser.close()
