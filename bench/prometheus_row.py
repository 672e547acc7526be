"""The same energy per process twice: scraped as text by a real Prometheus, and our way.

A simulated site, two hours in 10 s windows. A *sample* is one number of one process in one window:
its energy per component (cpu, dram, gpu, other, where the node meters it) and its CPU time.

Prometheus: one target per node, which serves text rendered before; CPU of the server per sample
scraped, without what it uses idle. Its bytes are those of the block that promtool makes of the
same samples at their own times, index included. Client: rendering the text with f-strings alone.
joulegram: CPU of the shipped collector from gRPC bytes to durable, everything it does meanwhile
included, without what it uses idle; its bytes are those of `rows`, merged. Client: packing and
serialising the frame. Network, and reading the sensors, are on neither side.
"""

import asyncio
import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench._sending import collector, send_all
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.simulate.fleet import Fleet, Plan
from joulegram.collector.simulate.frames import Maker
from joulegram.collector.simulate.totals import TEAM_NAMES
from joulegram.v1.telemetry_pb2 import Frame, Rows

NODES, WINDOW_S, WINDOWS, SEED = 12, 10, 720, 5
SINCE_S = int(time.time()) // 86_400 * 86_400 - 86_400 + 8 * 3600  # yesterday morning
SCRAPES = 80  # of each node
SCRAPE_EVERY_S = 0.5
IDLE_S = 5.0
SETTLE_S = 3.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NUMBERS = ("cpu_uj", "dram_uj", "gpu_uj", "other_uj", "cpu_ns")
METRIC = "joulegram_process_energy_joules_total"
TIME_METRIC = "joulegram_process_cpu_seconds_total"


@dataclass(slots=True)
class Series:
    """The counters that a node's exporter would have, one per process and number."""

    totals: dict[str, int] = field(default_factory=dict)  # series -> uJ or ns
    samples: int = 0

    def add(self, frame: Frame) -> list[tuple[str, int]]:
        """(series, its value) of everything in a frame."""
        told = []
        for series, value in _numbers(frame):
            self.totals[series] = total = self.totals.get(series, 0) + value
            told.append((series, total))
        self.samples += len(told)
        return told


def run() -> list[dict[str, Any]]:
    """Measure; three entries of build/bench.json."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        raise RuntimeError("prometheus and promtool are missing: apt-get install prometheus")
    frames = _frames()
    counted = [(frame, list(_numbers(frame))) for of_node in frames for frame in of_node]
    samples = sum(len(numbers) for _, numbers in counted)
    rows = sum(len(frame.rows.workload) // 4 for frame, _ in counted)
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as made:
        folder = Path(made)
        their_bytes = _block_bytes(frames, folder) / samples
        their_cpu_us, their_client_us = _scraped(frames, folder)
        our_cpu_s, our_bytes = _collected(folder, frames)
    our_client_us = _packed_us([frame for frame, _ in counted]) / samples
    print(
        f"{rows:,} process rows, {samples:,} samples ({samples / rows:.2f} a row). Per row: "
        f"{our_bytes / rows:.2f} bytes, {our_cpu_s / rows * 1e6:.2f} us CPU of the collector",
        file=sys.stderr,
    )
    return [
        _entry("prometheus_bytes", our_bytes / samples, their_bytes, "bytes on disk/sample"),
        _entry(
            "prometheus_server", our_cpu_s / samples * 1e6, their_cpu_us, "us server CPU/sample"
        ),
        _entry("prometheus_client", our_client_us, their_client_us, "us client CPU/sample"),
    ]


def _entry(name: str, ours: float, reference: float, unit: str) -> dict[str, Any]:
    return {
        "name": name,
        "ratio": round(ours / reference, 3),
        "limit": 1.0,
        "ours": round(ours, 3),
        "reference": round(reference, 3),
        "unit": unit,
    }


def _plan() -> Plan:
    return Plan(NODES, 0, SINCE_S, WINDOWS, WINDOW_S, SEED, "sim")


def _frames() -> list[list[Frame]]:
    """By node, in order."""
    fleet = Fleet(_plan())
    return [
        [Frame.FromString(made.packed) for made in Maker(fleet, node, TEAM_NAMES).frames()]
        for node in fleet.nodes
    ]


def _numbers(frame: Frame) -> Iterator[tuple[str, int]]:
    """(series, value) of every number of every process of a frame."""
    rows = frame.rows
    workload = np.frombuffer(rows.workload, "<u4").tolist()
    pid = np.frombuffer(rows.pid, "<u4").tolist()
    start = np.frombuffer(rows.start_ticks, "<u8").tolist()
    gpu = np.frombuffer(rows.gpu_device, "<i4").tolist() or [-1] * len(workload)
    of = [
        f'node="{frame.node}",workload="{w.kind}/{w.id}",user="{w.user}",project="{w.project}"'
        for w in frame.workloads
    ]
    labels = [
        f'{of[w]},pid="{p}",start="{s}",command="{c}",gpu="{g}"'
        for w, p, s, c, g in zip(workload, pid, start, rows.command, gpu, strict=True)
    ]
    for name in NUMBERS:
        if column := getattr(rows, name):
            component = name.partition("_")[0]
            for label, value in zip(labels, np.frombuffer(column, "<u8").tolist(), strict=True):
                if name == "cpu_ns":
                    yield f"{TIME_METRIC}{{{label}}}", value
                else:
                    yield f'{METRIC}{{{label},component="{component}"}}', value


def _value(series: str, total: int) -> str:
    return f"{series} {total / (1e9 if series.startswith(TIME_METRIC) else 1e6):.17g}"


def _block_bytes(frames: Sequence[Sequence[Frame]], folder: Path) -> int:
    """Size of the blocks that promtool makes of all samples."""
    of_metric: dict[str, list[str]] = {METRIC: [], TIME_METRIC: []}
    for of_node in frames:
        series = Series()
        for frame in of_node:
            at_s = (frame.window_start_ms + frame.window_ms) // 1000
            for name, total in series.add(frame):
                of_metric[name.partition("{")[0]].append(f"{_value(name, total)} {at_s}\n")
    with (folder / "samples.om").open("w") as text:
        for metric, lines in of_metric.items():
            text.write(f"# TYPE {metric.removesuffix('_total')} counter\n")
            text.writelines(lines)
        text.write("# EOF\n")
    blocks = folder / "blocks"
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", text.name, str(blocks)],
        stdout=subprocess.DEVNULL,
        timeout=300,
        check=True,
    )
    return sum(file.stat().st_size for file in blocks.rglob("*") if file.is_file())


def _scraped(frames: Sequence[Sequence[Frame]], folder: Path) -> tuple[float, float]:
    """CPU per sample in us of a Prometheus that scrapes, and of rendering what it scrapes."""
    pages: list[list[bytes]] = []
    samples, rendering_s = 0, 0.0
    for of_node in frames:
        series, of_page = Series(), []
        for frame in of_node[:SCRAPES]:
            told = series.add(frame)
            before_s = time.process_time()
            page = "\n".join([_value(name, total) for name, total in told])
            of_page.append(f"# TYPE {METRIC} counter\n{page}\n".encode())
            rendering_s += time.process_time() - before_s
        pages.append(of_page)
        samples += series.samples
    served = [0] * len(pages)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            node = int(self.path.rpartition("/")[2])
            page = pages[node][min(served[node], len(pages[node]) - 1)]
            served[node] += 1
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a scrape that came too late for its timeout

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {SCRAPE_EVERY_S * 1000:.0f}ms, scrape_timeout: "
        f"{SCRAPE_EVERY_S * 1000:.0f}ms}}\n"
        "scrape_configs:\n"
        "- job_name: nodes\n"
        f"  file_sd_configs: [{{files: ['{targets}'], refresh_interval: 1s}}]\n"
        "  relabel_configs:\n"
        "  - {source_labels: [page], target_label: __metrics_path__}\n"
    )
    port = _free_port()
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(argv, cwd=folder) as prometheus:
        try:
            _await(f"http://127.0.0.1:{port}/-/ready")
            time.sleep(2)
            idle = _used_s(prometheus.pid, IDLE_S) / IDLE_S
            before_s, begun_s = _cpu_s(prometheus.pid), time.monotonic()
            address = f"127.0.0.1:{server.server_port}"
            groups = [
                {"targets": [address], "labels": {"page": f"/{node}"}} for node in range(len(pages))
            ]
            targets.with_suffix(".draft").write_text(json.dumps(groups))
            targets.with_suffix(".draft").rename(targets)
            while min(served) < SCRAPES:
                time.sleep(0.1)
            used_s = _cpu_s(prometheus.pid) - before_s - idle * (time.monotonic() - begun_s)
            done = httpx.get(
                f"http://127.0.0.1:{port}/api/v1/query",
                params={"query": f"count({{__name__=~'{METRIC}|{TIME_METRIC}'}})"},
            ).json()
            assert done["data"]["result"], "Prometheus stored nothing"
        finally:
            prometheus.terminate()
            prometheus.wait(20)
            server.shutdown()
    # Nodes that were ahead have served their last page again: those samples count too.
    last = [page.count(b"\n") - 1 for page in (of_page[-1] for of_page in pages)]
    scraped = samples + sum(max(0, s - SCRAPES) * n for s, n in zip(served, last, strict=True))
    return used_s / scraped * 1e6, rendering_s / samples * 1e6


def _collected(folder: Path, frames: Sequence[Sequence[Frame]]) -> tuple[float, int]:
    """(CPU of the shipped collector for all frames in s, bytes of `rows`, merged)."""
    data = folder / "ledger"
    packed = [[frame.SerializeToString() for frame in of_node] for of_node in frames]
    with collector(folder, "--data", str(data)) as (pid, address):
        time.sleep(2)
        idle = _used_s(pid, IDLE_S) / IDLE_S
        before_s, begun_s = _cpu_s(pid), time.monotonic()
        asyncio.run(send_all(address, packed))
        time.sleep(SETTLE_S)
        used_s = _cpu_s(pid) - before_s - idle * (time.monotonic() - begun_s)
    ledger = ChdbLedger(data)
    ledger.execute("OPTIMIZE TABLE rows FINAL")
    size: int = ledger.query(
        "SELECT sum(bytes_on_disk) AS size FROM system.parts WHERE active AND table = 'rows' "
        "AND database = currentDatabase()"
    )["size"][0].as_py()
    ledger.close()
    return used_s, size


def _packed_us(frames: Sequence[Frame]) -> float:
    """CPU of packing all frames from lists of numbers, as an agent does, in us."""
    used_s = 0.0
    for frame in frames:
        columns = {
            name: np.frombuffer(getattr(frame.rows, name), f"<u{width}").tolist()
            for name, width in (("workload", 4), ("pid", 4), ("start_ticks", 8))
        }
        columns |= {n: np.frombuffer(getattr(frame.rows, n), "<u8").tolist() for n in NUMBERS}
        commands = list(frame.rows.command)
        devices, workloads = list(frame.devices), list(frame.workloads)
        before_s = time.process_time()
        packed = {
            name: struct.pack(
                f"<{len(values)}{'I' if name in ('workload', 'pid') else 'Q'}", *values
            )
            for name, values in columns.items()
        }
        Frame(
            node=frame.node,
            devices=devices,
            workloads=workloads,
            rows=Rows(command=commands, **packed),
        ).SerializeToString()
        used_s += time.process_time() - before_s
    return used_s * 1e6


def _used_s(pid: int, for_s: float) -> float:
    before_s = _cpu_s(pid)
    time.sleep(for_s)
    return _cpu_s(pid) - before_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _await(url: str) -> None:
    for _ in range(200):
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def _free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as probe:
        return probe.server_port


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
