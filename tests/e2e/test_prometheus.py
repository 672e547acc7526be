"""A real Prometheus scrapes a shipped collector, and its queries give the right numbers."""

from pathlib import Path
from time import time_ns

import httpx
import pytest

from tests.collector.made import IDLE, WINDOW_MS, Node, Row, workload
from tests.e2e.sending import collector
from tests.servers import Prometheus, check_metrics, wait_until


def test_prometheus_reads_joules_watts_and_grams(tmp_path: Path, prometheus: Prometheus) -> None:
    newest = time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - WINDOW_MS
    job = workload("slurm", "42", user="ann", name='a "quoted" \\name')
    node = Node("n1")
    frames = [
        node.frame(newest - i * WINDOW_MS, [Row(job, cpu_j=30.0, dram_j=5.0), Row(IDLE, cpu_j=10)])
        for i in reversed(range(10))
    ]
    with collector(tmp_path, "--zone", "DE") as started:
        started.send(frames)
        prometheus.watch(started.address)

        def ask(promql: str) -> list[float]:
            return [value for _, value in prometheus.query(promql)]

        wait_until(lambda: ask("sum(joulegram_energy_joules_total)") == [450.0], "450 J")
        assert ask('joulegram_energy_joules_total{node="n1", component="cpu"}') == [400.0]
        assert ask("sum(joulegram_node_power_watts)") == pytest.approx([4.5])
        assert ask('joulegram_workload_power_watts{id="42"}') == pytest.approx([3.5])
        intensity = ask('joulegram_grid_intensity_grams_per_kwh{zone="DE"}')
        assert len(intensity) == 1
        wait_until(
            lambda: sum(ask("sum(joulegram_team_co2e_grams_total)")) > 0, "grams by team", 60
        )
        grams = ask("sum(joulegram_team_co2e_grams_total)")
        assert grams == pytest.approx([450 / 3.6e6 * intensity[0]])

        check_metrics(httpx.get(f"{started.url}/metrics").text)

    # It starts again on the same ledger: the counters go on, they do not start from zero.
    with collector(tmp_path, "--zone", "DE") as again:
        again.send([Node("n1", epoch=8).frame(newest + WINDOW_MS, [Row(IDLE, cpu_j=50.0)])])
        prometheus.watch(again.address)
        total = f'sum(joulegram_energy_joules_total{{instance="{again.address}"}})'
        wait_until(lambda: [v for _, v in prometheus.query(total)] == [500.0], "500 J")
