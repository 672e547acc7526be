"""`joulegram up`: collector and agent on this machine, kept running until Ctrl-C.

A child that ends before both have answered ends `up`; one that ends later is started again,
after 1, 2, 4 ... 30 s. All that they say is passed on. Stopping takes the agent first, so that
the collector still acknowledges its last frames, and at most 4.5 s in all.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joulegram.cli import parts
from joulegram.cli.children import Child
from joulegram.cli.errors import CliError, UsageError
from joulegram.cli.settings import Given, Settings

HELP = "Meter this machine: start collector and agent, keep them running, show where the page is."

COLLECTOR_TABLES = ("collector", "grid", "teams", "clickhouse", "security", "kafka")
AGENT_STOPS_S = 3.0  # it gives itself 2 s, and one more to end
COLLECTOR_STOPS_S = 2.0
ANSWERS_WITHIN_S = 60.0  # a first start migrates the ledger and compiles nothing; be patient
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
STEADY_S = 60.0  # a child that lived this long starts its back-off anew


def run(argv: Sequence[str]) -> int:
    tables = parts.tables()
    settings = parts.parse("up", HELP, tables, argv)
    _refuse_what_is_read_once(settings.file)
    for table, cls in tables.items():
        settings.build(table, cls)
    return asyncio.run(_Up(settings).run())


class _Up:
    """One run of `joulegram up`."""

    def __init__(self, settings: Settings) -> None:
        said = {one.key.id: one for one in settings.given}
        self.page = _address(said["collector.http"])
        self.usual_page = said["collector.http"].value == said["collector.http"].key.default
        self.grpc = _address(said["collector.listen"])
        self.own = _address(said["agent.http"]) if said["agent.http"].value else None
        if said["security.tls_cert"].value or said["security.read_tokens"].value:
            raise UsageError(
                "joulegram up is for one machine that talks to itself, without tls_cert and "
                "read_tokens in [security]; with them start `joulegram collector` and `joulegram "
                "agent` each by itself"
            )
        self.settings = settings
        self.stopping = asyncio.Event()
        to_agent = _arguments(settings, ("agent",))
        if said["agent.collector"].origin == "default":
            to_agent.append(f"--collector={_reachable(self.grpc)}")
        to_collector = _arguments(settings, COLLECTOR_TABLES)
        self.collector = Child("collector", _command("collector", to_collector))
        self.agent = Child("agent", _command("agent", to_agent))

    async def run(self) -> int:
        self._refuse_taken_ports()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)
        keeping: list[asyncio.Task[None]] = []
        try:
            page = f"http://{_reachable(self.page)}/"
            # Both at once, since each takes a second or more.
            _say("starting; the agent keeps trying until the collector listens")
            await self.collector.start()
            await self.agent.start()
            for child, at in ((self.collector, self.page), (self.agent, self.own)):
                if not await self._answered(child, at):
                    return 0
            self._welcome(page)
            keeping = [
                asyncio.create_task(self._keep(self.collector)),
                asyncio.create_task(self._keep(self.agent)),
                asyncio.create_task(self._say_how_measured()),
            ]
            await self.stopping.wait()
            return 0
        finally:
            for task in keeping:
                task.cancel()
            await self._end()

    def _refuse_taken_ports(self) -> None:
        wanted = [
            ("the page", self.page, "--http"),
            ("agents", self.grpc, "--listen"),
            *([("the agent's /metrics", self.own, "--agent-http")] if self.own else []),
        ]
        for what, (host, port), flag in wanted:
            try:
                _try_to_bind(host, port)
            except OSError as taken:
                raise CliError(
                    f"cannot listen on {host}:{port} for {what}: {taken.strerror}. If another "
                    f"`joulegram up` runs, use it or stop it; else choose {flag} HOST:PORT"
                ) from taken

    async def _answered(self, child: Child, at: tuple[str, int] | None) -> bool:
        """Wait for its first answer; False when we are to stop. Raises CliError if it ends."""
        ended = asyncio.create_task(child.ended())
        stopping = asyncio.create_task(self.stopping.wait())
        answered = asyncio.create_task(_answers(at))
        tasks = {ended, stopping, answered}
        await asyncio.wait(tasks, timeout=ANSWERS_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        done = {task for task in tasks if task.done()}
        for task in tasks - done:
            task.cancel()
        if ended in done:
            failed = UsageError if ended.result() == UsageError.exit_status else CliError
            raise failed(f"the {child.name} {_how(ended.result())}; it says why above")
        if not done:
            raise CliError(f"the {child.name} did not answer within {ANSWERS_WITHIN_S:g} s")
        return stopping not in done

    def _welcome(self, page: str) -> None:
        command = _as_typed()
        # They look at the usual address unless they are told.
        there = "" if self.usual_page else f" --url {page.rstrip('/')}"
        print(
            f"joulegram is up. The page:  {page}\n"
            f"In another terminal:        {command} top{there}, "
            f"{command} report{there} --since 10m\n"
            "Stop with Ctrl-C; nothing measured is lost.",
            flush=True,
        )

    async def _say_how_measured(self) -> None:
        """Once the first window is in: are these numbers measured or modelled?"""
        while True:
            now = await _get(self.page, "/api/v1/now")
            by_quality = now.get("quality_w") if isinstance(now, dict) else None
            if by_quality:
                break
            await asyncio.sleep(1.0)
        if "modelled" in by_quality:
            print(
                "No energy sensor can be read here: the numbers are MODELLED from CPU load, and "
                f"marked so everywhere. Why, and what to do: {_as_typed()} check",
                flush=True,
            )

    async def _keep(self, child: Child) -> None:
        """Start the child again whenever it ends."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started_s = loop.time()
            status = await child.ended()
            if loop.time() - started_s > STEADY_S:
                failures = 0
            wait_s = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
            failures += 1
            _say(
                f"the {child.name} {_how(status)}; starting it again in {wait_s:g} s. "
                f"Its last line: {child.last_line}"
            )
            await asyncio.sleep(wait_s)
            await child.start()

    def _stop(self) -> None:
        if self.stopping.is_set():  # a second Ctrl-C: now
            self.agent.kill()
            self.collector.kill()
        self.stopping.set()

    async def _end(self) -> None:
        if self.agent.alive or self.collector.alive:
            _say("stopping")
        for child, patience_s in ((self.agent, AGENT_STOPS_S), (self.collector, COLLECTOR_STOPS_S)):
            if not await child.stop(patience_s):
                _say(f"the {child.name} was killed: it did not stop within {patience_s:g} s")


def _command(part: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "joulegram.cli.main", part, *arguments]


def _arguments(settings: Settings, tables: Sequence[str]) -> list[str]:
    """The flags that were given to us and belong to these tables; the file goes along."""
    flags = [text for one in settings.given if one.key.table in tables for text in one.words]
    return [*([f"--config={settings.file}"] if settings.file else []), *flags]


def _refuse_what_is_read_once(file: Path | None) -> None:
    if file is not None and file.is_fifo():
        raise UsageError(
            f"up: --config {file}: is a pipe, and three programs read it; write it to a file"
        )


def _address(given: Given) -> tuple[str, int]:
    host, colon, port = str(given.value).rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"{given.key.id} = {given.value} ({given.origin}): takes HOST:PORT, such as "
            f"{given.key.default}"
        )
    return host.strip("[]"), int(port)


def _reachable(address: tuple[str, int]) -> str:
    """Where to reach, from this machine, what listens there."""
    host, port = address
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _try_to_bind(host: str, port: int) -> None:
    """Raises OSError when nothing could listen there."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do; without it a port just left is refused for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()


async def _get(address: tuple[str, int], path: str) -> Any:
    """GET over plain HTTP: the body, read as JSON if it is; None unless it answers 200."""
    host, _, port = _reachable(address).rpartition(":")
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    except (OSError, TimeoutError):
        return None
    if head.split(b" ", 2)[1:2] != [b"200"]:
        return None
    with contextlib.suppress(ValueError):
        return json.loads(body)
    return body.decode(errors="replace")


async def _answers(at: tuple[str, int] | None) -> None:
    """Return once /metrics is served there."""
    while at and not await _get(at, "/metrics"):
        await asyncio.sleep(0.05)


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _as_typed() -> str:
    """How a person in this directory starts the same joulegram."""
    script = Path(sys.argv[0])
    found = shutil.which("joulegram")
    if script.name != "joulegram" or (found and script.exists() and script.samefile(found)):
        return "joulegram"
    return str(script)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"joulegram up: {text}", file=sys.stderr, flush=True)
