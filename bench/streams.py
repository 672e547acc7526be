"""Very many agents at once: a connection each, few rows each, 10 s windows, one collector.

    python -m bench.streams --streams 10000 --minutes 5

The shipped collector runs in a process of its own; the agents share a few processes. A gRPC
channel costs a client more than a collector has for a stream, so they speak HTTP/2 themselves:
one request, never ended, whose answers are read for their Acks alone. Every agent sends at its
window's end + up to 2 s, as real ones do. Measured after everybody has connected and sent once.
"""

import argparse
import asyncio
import functools
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench._sending import started
from joulegram.v1.telemetry_pb2 import Ack, Device, Frame, Rows, Workload

WINDOW_S = 10
AT_REST_S = 3.0  # after its start a collector has 20 MB to come, without any agent
SPREAD_S = 2.0  # after the window's end
ROWS = 8
PROCESSES = 4
CONNECTS_PER_S = 85  # of each process: as after a drain, all within 30 s
SHORT = 500, 0.5  # in `make bench`: streams, minutes

# The promise for 10,000 streams.
CORES, RSS_BYTES, ACK_P99_S = 1.0, 1.5e9, 2.0

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BIN_S = 0.01  # of the histogram of waits
BINS = 3_000  # the last: longer


def run() -> list[dict[str, Any]]:
    """The short form; entries of build/bench.json."""
    return entries(measure(*SHORT))


def entries(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found against what is promised; cost is held to the share of 10,000 streams."""
    share = found["streams"] / 10_000
    base_bytes = found["rss_before"]
    each = [
        ("streams_cpu", found["cores"], max(0.1, CORES * share), "cores"),
        ("streams_rss", found["rss_end"] / 1e6,
         (base_bytes + (RSS_BYTES - base_bytes) * max(0.1, share)) / 1e6, "MB"),
        ("streams_ack_p99", found["p99_s"], ACK_P99_S, "s"),
    ]  # fmt: skip
    return [
        {
            "name": name,
            "ratio": round(ours / reference, 3),
            "limit": 1.0,
            "ours": round(ours, 3),
            "reference": round(reference, 3),
            "unit": f"{unit}, {found['streams']:,} streams",
        }
        for name, ours, reference, unit in each
    ] + [
        {
            "name": "streams_lost",
            "ratio": found["lost"],
            "limit": 0.0,
            "ours": found["lost"],
            "reference": 0,
            "unit": f"of {found['streams']:,} streams",
        }
    ]


def measure(streams: int, minutes: float) -> dict[str, Any]:
    """Run a collector and so many agents. Energies are in the ledger at the end, or it raises."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < streams + 500:
        raise RuntimeError(f"{streams} connections need as many open files; ulimit -n is {hard}")
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as folder:
        collector, address = started(Path(folder), "--data", folder + "/data")
        with collector:
            clients: list[subprocess.Popen[str]] = []
            try:
                time.sleep(AT_REST_S)
                rss_before = _rss_bytes(collector.pid)
                measured_s = everybody_is_there_s(streams)
                end_s = measured_s + minutes * 60
                clients = clients_of(address, streams, measured_s, end_s)
                found = _watch(collector.pid, measured_s, end_s)
                told = [json.loads(client.communicate(timeout=60)[0]) for client in clients]
            finally:
                for client in clients:
                    if client.poll() is None:
                        client.kill()
                stop_s = _stop(collector)
        stored = _stored(Path(folder) / "data")
    waits = np.sum([one["waits"] for one in told], axis=0)
    sent_uj = sum(one["acked_uj"] for one in told)
    assert stored >= sent_uj, f"acknowledged {sent_uj} uJ, stored {stored} uJ"
    return {
        "streams": streams,
        "minutes": minutes,
        **found,
        "rss_before": rss_before,
        "frames": sum(one["frames"] for one in told),
        "unanswered": sum(one["unanswered"] for one in told),
        "refused": sum(one["refused"] for one in told),
        "connected": sum(one["connected"] for one in told),
        "turned_away": sum(one["turned_away"] for one in told),
        "lost": streams - sum(one["alive"] for one in told),
        "why": sorted({why for one in told for why in one["why"]})[:5],
        "p50_s": quantile(waits, 0.5),
        "p99_s": quantile(waits, 0.99),
        "max_s": quantile(waits, 1.0),
        "stop_s": stop_s,
        "client_cores": sum(one["cpu_s"] for one in told) / (minutes * 60),
    }


def everybody_is_there_s(streams: int) -> int:
    """When agents that begin now have all connected and sent twice, epoch s: a window closes."""
    begin_s = time.time() + streams / (CONNECTS_PER_S * PROCESSES) + 2
    return (int(begin_s) // WINDOW_S + 3) * WINDOW_S


def _stop(collector: subprocess.Popen[bytes]) -> float:
    """End it; how long that took, s. After two minutes it is killed."""
    begun_s = time.monotonic()
    collector.terminate()
    try:
        collector.wait(120)
    except subprocess.TimeoutExpired:
        collector.kill()
    return round(time.monotonic() - begun_s, 1)


def clients_of(
    address: str, streams: int, measured_s: float, end_s: float
) -> list[subprocess.Popen[str]]:
    """So many agents, in a few processes; each prints what it saw as JSON and ends soon after."""
    return [_client(address, streams, index, measured_s, end_s) for index in range(PROCESSES)]


def _client(
    address: str, streams: int, index: int, measured_s: float, end_s: float
) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "bench.streams", "--client", address]
    argv += ["--streams", str(streams), "--index", str(index)]
    argv += ["--measured", str(measured_s), "--end", str(end_s)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def _watch(pid: int, measured_s: float, end_s: float) -> dict[str, Any]:
    time.sleep(max(0.0, measured_s - time.time()))
    before_s, at_s = _cpu_s(pid), time.time()
    rss = [(0, _rss_bytes(pid))]
    while time.time() < end_s:
        time.sleep(min(5.0, max(0.01, end_s - time.time())))
        rss.append((round(time.time() - at_s), _rss_bytes(pid)))
    return {
        "cores": (_cpu_s(pid) - before_s) / (time.time() - at_s),
        "rss_begin": rss[0][1],
        "rss_end": rss[-1][1],
        "rss_peak": max(size for _, size in rss),
        "rss_by_30_s": [round(size / 1e6) for s, size in rss if s % 30 < 5],
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _rss_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


def _stored(data: Path) -> int:
    program = (
        "import sys; from pathlib import Path;"
        "from joulegram.collector.ledger.chdb import ChdbLedger;"
        "ledger = ChdbLedger(Path(sys.argv[1]));"
        "print(ledger.query('SELECT sum(cpu_uj) AS uj FROM rows')['uj'][0].as_py())"
    )
    argv = [sys.executable, "-c", program, str(data)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return int(done.stdout)


def quantile(histogram: Any, share: float) -> float:
    """Of counts per BIN_S, in s."""
    if not histogram.sum():
        return float("nan")
    reached = np.searchsorted(np.cumsum(histogram), share * histogram.sum())
    return round((min(int(reached), BINS - 1) + 1) * BIN_S, 3)


# ---- the agents' side

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK_FLAG, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
WINDOW = 65_535  # HTTP/2's initial flow-control window, both ways
STREAM = 1


def _h2(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
    return head + payload


def _headers(authority: str) -> bytes:
    """HPACK without its dynamic table or Huffman: static entries and plain literals."""

    def literal(text: str) -> bytes:
        return bytes((len(text),)) + text.encode()

    path = "/joulegram.v1.TelemetryService/Report"
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + literal(path),
            b"\x01" + literal(authority),
            b"\x0f\x10" + literal("application/grpc"),  # content-type
            b"\x00" + literal("te") + literal("trailers"),
        )
    )


@dataclass(slots=True, eq=False)
class Agent(asyncio.Protocol):
    """One node: a connection with one stream on it."""

    name: str
    authority: str
    tally: "Tally"
    template: bytes = b""
    epoch: int = 0
    seq: int = 0
    transport: Any = None
    room: int = WINDOW  # what we may send, the smaller of connection and stream
    stream_room: int = WINDOW
    unsaid: int = 0  # bytes read, for which no room was given back yet
    buffer: bytes = b""
    message: bytes = b""
    # Of each seq not yet answered: when it was sent (monotonic) and when its window closed (epoch).
    sent_at_s: dict[int, tuple[float, int]] = field(default_factory=dict)
    alive: bool = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.alive = True
        self.tally.connected += 1
        transport.write(
            PREFACE
            + _h2(SETTINGS, 0, 0)
            + _h2(HEADERS, END_HEADERS, STREAM, _headers(self.authority))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if self.alive:
            self._lost(f"connection lost: {exc}")

    def _lost(self, why: str) -> None:
        self.alive = False
        self.transport.close()
        if not self.seq and not self.tally.over:
            # gRPC turns calls away that its server has not taken up in time; agents come again.
            self.tally.turned_away += 1
            self.tally.again.append(self)
        elif not self.tally.over:
            self.tally.why.add(f"{why} after {self.seq} frames")

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        at = 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._frame(kind, flags, stream, data[at + 9 : at + 9 + size])
            at += 9 + size
        self.buffer = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self._answer(payload)
        elif kind == SETTINGS and not flags & ACK_FLAG:
            self.transport.write(_h2(SETTINGS, ACK_FLAG, 0))
        elif kind == PING and not flags & ACK_FLAG:
            self.transport.write(_h2(PING, ACK_FLAG, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream:
                self.stream_room += more
            else:
                self.room += more
        elif kind == GOAWAY:
            self._lost(f"GOAWAY {payload[8:80]!r}")
        elif kind == RST_STREAM:
            self._lost(f"RST_STREAM {int.from_bytes(payload, 'big')}")
        elif kind == HEADERS and flags & END_STREAM:
            self._lost(f"stream ended: {payload[:80]!r}")

    def _answer(self, payload: bytes) -> None:
        self.message += payload
        while len(self.message) >= 5:
            size = int.from_bytes(self.message[1:5], "big")
            if len(self.message) < 5 + size:
                break
            self.tally.answered(self, Ack.FromString(self.message[5 : 5 + size]))
            self.message = self.message[5 + size :]
        self.unsaid += len(payload)
        if self.unsaid > WINDOW // 2:
            more = struct.pack(">I", self.unsaid)
            self.transport.write(
                _h2(WINDOW_UPDATE, 0, 0, more) + _h2(WINDOW_UPDATE, 0, STREAM, more)
            )
            self.unsaid = 0

    def send(self, window_start_s: int, cpu_uj: bytes) -> None:
        """Offer the frame of a window."""
        self.seq += 1
        own = Frame(
            epoch=self.epoch,
            seq=self.seq,
            window_start_ms=window_start_s * 1000,
            sent_at_ms=int(time.time() * 1000),
            rows=Rows(cpu_uj=cpu_uj),
        )
        packed = self.template + own.SerializeToString()
        message = b"\0" + struct.pack(">I", len(packed)) + packed
        if len(message) > min(self.room, self.stream_room):
            self.seq -= 1  # the collector does not read; an agent would keep it in its spool
            self.tally.held_back += 1
            return
        self.room -= len(message)
        self.stream_room -= len(message)
        self.sent_at_s[self.seq] = time.monotonic(), window_start_s + WINDOW_S
        self.transport.write(_h2(DATA, 0, STREAM, message))


@dataclass(slots=True, eq=False)
class Tally:
    """What the agents of one process saw."""

    connected: int = 0
    frames: int = 0
    refused: int = 0
    held_back: int = 0
    turned_away: int = 0
    again: list[Agent] = field(default_factory=list)
    acked_uj: int = 0
    measuring: bool = False
    over: bool = False
    why: set[str] = field(default_factory=set)
    waits: list[int] = field(default_factory=lambda: [0] * BINS)  # since sending
    ages: list[int] = field(default_factory=lambda: [0] * BINS)  # since the window closed

    def answered(self, agent: Agent, ack: Ack) -> None:
        now_s, at_s = time.monotonic(), time.time()
        for refusal in ack.refused:
            agent.sent_at_s.pop(refusal.seq, None)
            self.refused += 1
            self.why.add(f"refused: {refusal.reason}: {refusal.detail}")
        for span in ack.durable:
            for seq in range(span.first_seq, span.last_seq + 1):
                sent = agent.sent_at_s.pop(seq, None)
                if sent is None:
                    continue
                self.frames += 1
                self.acked_uj += ENERGY_UJ
                if self.measuring:
                    self.waits[min(BINS - 1, int((now_s - sent[0]) / BIN_S))] += 1
                    self.ages[min(BINS - 1, int((at_s - sent[1]) / BIN_S))] += 1


CPU_UJ = np.arange(1, ROWS + 1, dtype="<u8") * 3_000_017
ENERGY_UJ = int(CPU_UJ.sum())


def _template(node: str) -> bytes:
    workloads = [Workload(scope=node, kind="idle"), Workload(scope=node, kind="system")]
    workloads += [
        Workload(
            scope="bench", kind="slurm", id=str(int(node[-5:]) % 900), user="ada", project="p"
        ),
        Workload(scope=node, kind="systemd", id="web.service", name="web.service"),
    ]
    return Frame(
        node=node,
        window_ms=WINDOW_S * 1000,
        devices=[
            Device(
                name="cpu0",
                component="cpu",
                energy_uj=ENERGY_UJ,
                idle_uj=int(CPU_UJ[0]),
                raw_uj=ENERGY_UJ,
                quality="measured",
                coverage=1.0,
            )
        ],
        workloads=workloads,
        rows=Rows(
            workload=np.array([0, 1, *[2] * (ROWS - 3), 3], "<u4").tobytes(),
            pid=np.array([0, 0, *range(100, 98 + ROWS)], "<u4").tobytes(),
            start_ticks=np.arange(ROWS, dtype="<u8").tobytes(),
            command=["", "", *["python"] * (ROWS - 3), "nginx"],
            cpu_ns=(CPU_UJ * 30).tobytes(),
        ),
        boot_id="bench",
        simulated=True,
    ).SerializeToString()


async def _connect(agent: Agent, host: str, port: int) -> None:
    agent.room = agent.stream_room = WINDOW
    agent.buffer = agent.message = b""
    try:
        await asyncio.get_running_loop().create_connection(
            functools.partial(_itself, agent), host, port
        )
    except OSError as exc:
        agent.tally.why.add(f"no connection: {exc}")


def _itself(agent: Agent) -> Agent:
    return agent


async def _agents(
    address: str, streams: int, index: int, measured_s: float, end_s: float
) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    tally = Tally()
    rng = random.Random(index)  # noqa: S311
    agents = []
    for i in range(index, streams, PROCESSES):
        name = f"bench-{i:05d}"
        agents.append(Agent(name, address, tally, _template(name), rng.getrandbits(63) | 1))
    rng.shuffle(agents)
    begun_s = time.monotonic()
    for i, agent in enumerate(agents):
        await asyncio.sleep(max(0.0, begun_s + i / CONNECTS_PER_S - time.monotonic()))
        await _connect(agent, host, int(port))
    cpu = CPU_UJ.tobytes()
    used_s = 0.0
    window_s = int(time.time()) // WINDOW_S * WINDOW_S
    while window_s + WINDOW_S < end_s:
        if not tally.measuring and window_s + WINDOW_S >= measured_s:
            tally.measuring, used_s = True, time.process_time()
        closes_s = window_s + WINDOW_S
        again, tally.again = tally.again, []
        for agent in again:
            await _connect(agent, host, int(port))
        for i, agent in enumerate(agents):
            wait_s = closes_s + SPREAD_S * i / len(agents) - time.time()
            if wait_s > 0.002:
                await asyncio.sleep(wait_s)
            if agent.alive:
                agent.send(window_s, cpu)
        window_s = closes_s
    await asyncio.sleep(max(0.0, end_s - time.time()))
    tally.over = True
    alive = sum(agent.alive for agent in agents)
    for agent in agents:
        if agent.transport is not None:
            agent.transport.close()
    return {
        "connected": tally.connected,
        "turned_away": tally.turned_away,
        "alive": alive,
        "frames": tally.frames,
        "refused": tally.refused,
        "unanswered": sum(len(agent.sent_at_s) for agent in agents),
        "acked_uj": tally.acked_uj,
        "waits": tally.waits,
        "ages": tally.ages,
        "why": sorted(tally.why) + ([f"held back {tally.held_back}"] if tally.held_back else []),
        "cpu_s": time.process_time() - used_s,
    }


def main(argv: Sequence[str]) -> int:
    """By hand, or a child of `measure`."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams")
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    for name in ("--index", "--measured", "--end"):
        parser.add_argument(name, type=float, help=argparse.SUPPRESS)
    told = parser.parse_args(argv)
    if told.client:
        found = asyncio.run(
            _agents(told.client, told.streams, int(told.index), told.measured, told.end)
        )
    else:
        found = measure(told.streams, told.minutes)
    print(json.dumps(found, indent=None if told.client else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
