"""The parts of a site as programs: started, ended, held and let go, each by its own pid."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.clickhouse import ClickhouseServer
from tests.kafka import Broker
from tests.servers import Program, free_port, running, wait_until

ROOT = Path(__file__).resolve().parent.parent
START_S = 150.0  # how long a part may take to be ready: the machine may be busy
AGAIN_S = 1.0


class Part(Protocol):
    """A program that can be hurt."""

    starts: int

    @property
    def program(self) -> Program | None:
        """What runs, None when it was ended."""

    def start(self) -> None:
        """Return once it is ready. Raises: TimeoutError."""

    def end(self, how: signal.Signals) -> None:
        """End it with a signal, and wait until it is gone."""


def hold(part: Part) -> None:
    """It keeps its connections and does nothing (SIGSTOP)."""
    if part.program is not None:
        part.program.process.send_signal(signal.SIGSTOP)


def let_go(part: Part) -> None:
    if part.program is not None:
        part.program.process.send_signal(signal.SIGCONT)


def alive(part: Part) -> bool:
    return part.program is not None and part.program.process.poll() is None


def _again_and_again(once: Callable[[], None]) -> None:
    """Start a server that ends early where its disk takes nothing, until that takes something."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            return once()
        except AssertionError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(AGAIN_S)


@dataclass
class Ours:
    """A program of ours, ready once its stderr holds `line`; begun again should it end first.

    As systemd or Kubernetes would: what stands behind it may not be there yet.
    """

    name: str
    argv: Sequence[str | Path]
    folder: Path
    line: str = ""
    stop_s: float = 60.0
    starts: int = 0
    program: Program | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            self.starts += 1
            name = f"{self.name}.{self.starts}"
            self._open = contextlib.ExitStack()
            env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            program = self._open.enter_context(running(self.argv, self.folder, name=name, env=env))
            self.program = program
            while time.monotonic() < deadline_s and program.process.poll() is None:
                if not self.line or self.line in program.stderr.read_text(errors="replace"):
                    return
                time.sleep(0.05)
            time.sleep(AGAIN_S)
        raise TimeoutError(
            f"{self.name} is not ready after {START_S:g} s; it said:\n{self.said()[-1000:]}"
        )

    def end(self, how: signal.Signals) -> None:
        if self.program is None:
            return
        program, self.program = self.program, None
        program.stop(how, self.stop_s)
        self._open.close()

    def said(self) -> str:
        """What it said, in all its lives."""
        logs = sorted(self.folder.glob(f"{self.name}.*.err"), key=lambda p: p.stat().st_mtime)
        return "".join(path.read_text(errors="replace") for path in logs)


@dataclass
class KafkaBroker:
    """A broker that names itself by a proxy's address, so that all its links go through it."""

    broker: Broker
    starts: int = 0

    @property
    def program(self) -> Program | None:
        return self.broker.program

    def start(self) -> None:
        def once() -> None:
            self.starts += 1
            self.broker.stop(signal.SIGKILL)  # what is left of one that ended early
            self.broker.start(START_S)

        _again_and_again(once)

    def end(self, how: signal.Signals) -> None:
        self.broker.stop(how)


@dataclass
class BehindProxy(Broker):
    """A broker that tells its clients to come through a proxy."""

    advertised: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")

    def _properties(self) -> Path:
        path = super()._properties()
        with path.open("a") as file:
            file.write(f"advertised.listeners=PLAINTEXT://{self.advertised}\n")
        return path


@dataclass
class Clickhouse:
    """A ClickHouse server."""

    server: ClickhouseServer
    starts: int = 0
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def program(self) -> Program | None:
        return self.server.program

    def start(self) -> None:
        def once() -> None:
            self.starts += 1
            self._open = contextlib.ExitStack()
            self._open.enter_context(self.server.running())

        _again_and_again(once)

    def end(self, how: signal.Signals) -> None:
        if self.server.program is not None:
            self.server.program.stop(how, 60.0)
        self._open.close()


@dataclass
class Agent:
    """A simulated agent: its program, its folder, and what it said of frames that it lost."""

    node: str
    folder: Path
    collector: str
    base_ms: int
    pace_s: float
    rows: int = 3  # of a frame, at least
    spool_mb: float = 1024.0
    part: Ours = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "chaos.agent", self.node, str(self.folder), self.collector]
        argv += map(str, (self.base_ms, self.pace_s, self.rows, self.spool_mb))
        self.part = Ours(self.node, argv, self.folder)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def spool(self) -> Path:
        return self.state / "spool" / "frames.db"

    @property
    def made(self) -> Path:
        return self.folder / "made"

    def clock_off(self, seconds: float) -> None:
        draft = self.folder / "clock.draft"
        draft.write_text(f"{seconds:g}")
        draft.rename(self.folder / "clock")

    def hush(self, on: bool) -> None:
        """Make no frames for a while."""
        if on:
            (self.folder / "hush").touch()
        else:
            (self.folder / "hush").unlink(missing_ok=True)

    def await_looking(self) -> None:
        """Return once it has opened its spool, and looked in vain for the collector."""
        looked = "no way to the collector"
        program = self.part.program
        assert program is not None
        wait_until(lambda: looked in program.stderr.read_text(), f"{self.node}: {looked}", 60.0)

    def enough(self) -> None:
        """Make no more frames; send what there is."""
        (self.folder / "enough").touch()
