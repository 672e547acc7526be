"""`joulegram collector` with agents that report to it: page, /metrics, reports, spools."""

import contextlib
import json
import multiprocessing
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics

from joulegram.agent.frames import as_json
from joulegram.agent.spool.home import ACKED
from joulegram.v1.telemetry_pb2 import Frame
from replay.agent import Frame as JsonFrame
from replay.agent import bare, roots
from replay.case import Stage
from replay.tree import Machine
from tests.servers import Program, free_port, joulegram, running, wait_until

# Embedded ledgers at a time: each is some hundred MB of memory. Cases are processes that fork.
COLLECTORS = multiprocessing.get_context("fork").BoundedSemaphore(2)
READY_S = 60.0
READ: Callable[[str], Iterable[Metric]] = parser.text_string_to_metric_families
READ_STRICTLY: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass
class Site:
    """A collector, ended and begun again at will."""

    folder: Path
    flags: Sequence[str] = ()
    listen: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    page: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    _starts: int = 0
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _program: Program | None = None

    @property
    def url(self) -> str:
        return f"http://{self.page}"

    def start(self) -> None:
        self._starts += 1
        argv = joulegram(
            *("collector", f"--data={self.folder / 'ledger'}"),
            *(f"--listen={self.listen}", f"--http={self.page}", *self.flags),
        )
        self._program = self._open.enter_context(
            running(argv, self.folder, name=f"collector{self._starts}")
        )
        self._program.await_answer(f"{self.url}/api/v1/health", READY_S)

    def kill(self) -> None:
        assert self._program is not None
        self._program.stop(signal.SIGKILL)

    def end(self) -> None:
        self._open.close()

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", timeout=20)
        assert answer.status_code == 200, f"{path} answered {answer.status_code}"
        return answer.json()

    def metrics(self) -> list[Metric]:
        return metrics(self.page)

    def report(self, *flags: str) -> dict[str, Any]:
        """What `joulegram report --json` prints."""
        argv = joulegram("report", "--json", "--since=1h", f"--url={self.url}", *flags)
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, env=bare(), cwd=self.folder
        )
        assert done.returncode == 0, f"joulegram report: {done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def await_ledger(self, energy_uj: int) -> None:
        """Return once the ledger holds so much; what it holds then is the case's to judge."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.report()["metered_uj"] >= energy_uj, "the ledger", 20)


def metrics(address: str) -> list[Metric]:
    """What is at /metrics, read as Prometheus reads it, in both of its formats."""
    url = f"http://{address}/metrics"
    strict = httpx.get(url, timeout=20, headers={"Accept": OPENMETRICS})
    if "openmetrics" in strict.headers["content-type"]:
        list(READ_STRICTLY(strict.text))
    return list(READ(httpx.get(url, timeout=20, headers={"Accept": "text/plain"}).text))


def samples(families: Sequence[Metric], name: str, **labels: str) -> list[float]:
    """Values of the series of a name with these labels."""
    return [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


@contextlib.contextmanager
def collector(stage: Stage, *flags: str) -> Iterator[Site]:
    with COLLECTORS:
        site = Site(stage.folder / "site", flags)
        try:
            site.start()
            yield site
        finally:
            site.end()


@dataclass
class Reporter:
    """An agent that reports to a site."""

    program: Program
    state: Path
    http: str

    def finish(self, site: Site) -> list[JsonFrame]:
        """End it, as a service is ended, once nothing waits to be sent but its last frame.

        Returns: the frames that were acknowledged, as --print shows them, all in the ledger by
            now if they ever will be.
        """
        wait_until(lambda: self.waiting() <= 1, "the spool to be sent", READY_S)
        code = self.program.stop()
        assert code == 0 and "Traceback" not in self.program.said(), self.program.said()
        frames = self.frames()
        site.await_ledger(drawn_uj(frames))
        return frames

    def frames(self) -> list[JsonFrame]:
        bodies = self._ask("SELECT body FROM frames WHERE state = ? ORDER BY seq")
        return [json.loads(as_json(Frame.FromString(body))) for (body,) in bodies]

    def waiting(self) -> int:
        """Frames not yet acknowledged."""
        return len(self._ask("SELECT seq FROM frames WHERE state < ?"))

    def _ask(self, sql: str) -> list[Any]:
        path = self.state / "spool" / "frames.db"
        with contextlib.closing(sqlite3.connect(path)) as spool:
            return spool.execute(sql, (ACKED,)).fetchall()

    def await_frames(self, count: int) -> None:
        """Return once so many are acknowledged."""

        def has() -> bool:
            with contextlib.suppress(sqlite3.Error):  # not made yet
                return len(self.frames()) >= count
            return False

        wait_until(has, f"{count} frames", READY_S)


@contextlib.contextmanager
def reporting(stage: Stage, machine: Machine, site: Site, *flags: str) -> Iterator[Reporter]:
    state, http = stage.folder / "state", f"127.0.0.1:{free_port()}"
    argv = joulegram(
        *("agent", "--node=played", *roots(machine), "--tick=0.2", "--window=1", "--ipmi=off"),
        *(f"--state={state}", f"--collector={site.listen}", f"--agent-http={http}", *flags),
    )
    with running(argv, stage.folder, name="reporter") as program:
        yield Reporter(program, state, http)


def drawn_uj(frames: Sequence[JsonFrame]) -> int:
    return sum(int(d["energy_uj"]) for frame in frames for d in frame["devices"])


def of_key(report: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The report's row of a workload, by its id or its reserved kind."""
    for row in report["rows"]:
        if re.search(rf"(^|[/ :]){re.escape(wanted)}$", str(row["key"])):
            found: dict[str, Any] = row
            return found
    keys = ", ".join(str(row["key"]) for row in report["rows"])
    raise AssertionError(f"no row {wanted} in the report; it has {keys}")
