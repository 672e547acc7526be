"""The picture in the README: an hour of two made-up nodes on the shipped collector.

`python -m tests.e2e.sample_hour docs/page.png` takes it in Chromium.
"""

import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made import IDLE, SYSTEM, WINDOW_MS, Node, Row, workload
from tests.e2e.sending import collector
from tests.neso_server import NesoServer
from tests.servers import chromium

HOUR = 360  # windows
CONFIG = """
[[teams.rules]]
team = "vision"
project = "vision"

[[teams.rules]]
team = "climate"
user = "amira"

[[teams.rules]]
team = "platform"
unit = "*.service"
"""
TRAIN = workload("slurm", "48213", scope="hpc", user="grace", project="vision", name="train-vit")
MODEL = workload("slurm", "48240", scope="hpc", user="amira", project="ocean", name="nemo-025")
BUILD = workload("user", "1004", user="tomas", name="tomas")
LIVE_GRID = "() => !document.getElementById('grid-quality').textContent.includes('fallback')"
DATABASE = workload("systemd", "postgresql.service", name="postgresql.service")


def frames(newest_ms: int, chance: random.Random) -> list[Frame]:
    """An hour: a training in epochs, a model that starts half-way, bursts of compiling."""
    sent = []
    gpu, cpu = Node("gpu-01", epoch=1), Node("cpu-07", epoch=2)
    for i in range(HOUR):
        start_ms = newest_ms - (HOUR - 1 - i) * WINDOW_MS
        wave = chance.uniform(0.94, 1.06)
        training = 620.0 if (i + 10) % 45 < 38 else 190.0  # between epochs it writes and validates
        training *= wave
        ocean = 0.0 if i < 150 else min(1.0, (i - 150) / 6) * chance.uniform(205, 225)
        compiling = 95.0 * wave if math.sin(i / 17) > 0.55 else 4.0
        queries = 22.0 + 9.0 * math.sin(i / 40) + chance.uniform(0, 4)
        seconds = WINDOW_MS / 1000
        sent += [
            gpu.frame(start_ms, [
                Row(TRAIN, cpu_j=0.16 * training * seconds, dram_j=0.05 * training * seconds,
                    gpu_j=training * seconds, pid=4021, command="python"),
                Row(TRAIN, cpu_j=0.04 * training * seconds, pid=4038, command="pt_data_worker"),
                Row(TRAIN, cpu_j=0.03 * training * seconds, pid=4039, command="pt_data_worker"),
                Row(BUILD, cpu_j=compiling * seconds, dram_j=2 * seconds, pid=9120,
                    command="cc1plus"),
                Row(IDLE, cpu_j=48 * seconds, dram_j=9 * seconds, gpu_j=62 * seconds),
                Row(SYSTEM, cpu_j=6 * seconds),
            ]),
            cpu.frame(start_ms, [
                Row(MODEL, cpu_j=ocean * seconds, dram_j=0.2 * ocean * seconds, pid=771,
                    command="nemo.exe"),
                Row(DATABASE, cpu_j=queries * seconds, dram_j=5 * seconds, pid=1188,
                    command="postgres"),
                Row(IDLE, cpu_j=55 * seconds, dram_j=12 * seconds),
                Row(SYSTEM, cpu_j=5 * seconds),
            ]),
        ]  # fmt: skip
    return sent


def main(picture: Path) -> None:
    grid = NesoServer()
    day = 2 * math.pi / 86_400
    # Low in the windy night, highest in the early evening.
    grid.actual = lambda start_s: round(150 + 55 * math.sin(day * (start_s % 86_400) - 2.9))
    grid.forecast = grid.actual
    threading.Thread(target=grid.serve, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "sample.toml")
        config.write_text(CONFIG)
        flags = ("--config", str(config), "--zone", "GB", "--pue", "1.3", "--neso-url", grid.url)
        with collector(Path(folder), *flags) as running, chromium() as browser:
            newest_ms = time.time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - WINDOW_MS
            running.send(frames(newest_ms, random.Random(7)))
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            page.goto(running.url)
            for chart in ("power", "intensity"):
                page.wait_for_selector(f"#{chart}-chart .main-svg")
            page.wait_for_selector("#team-rows tr:nth-child(3)")
            page.wait_for_function(LIVE_GRID, timeout=90_000)
            page.screenshot(path=picture, full_page=True)
    grid.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
