"""The agent's /metrics says what it made, keeps, sent and lost."""

import logging
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from joulegram.agent.errors import BadSetting
from joulegram.agent.metrics import MAX_DEVICES, AgentMetrics
from joulegram.agent.spool.spool import Spool
from joulegram.agent.uplink.uplink import Uplink
from joulegram.v1.telemetry_pb2 import Device, Frame
from tests.agent.made_frames import made_frame
from tests.servers import free_port, need

Sample = tuple[str, frozenset[tuple[str, str]]]


def scraped(url: str) -> dict[Sample, float]:
    text = httpx.get(url).raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def watching(spool: Spool) -> AgentMetrics:
    metrics = AgentMetrics()
    uplink = Uplink(spool, "127.0.0.1:1")
    metrics.watch(spool.stats, uplink.stats, lambda: 3, lambda: 1_767_225_700_000)
    return metrics


def test_every_count_is_there_and_promtool_is_content(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1", max_bytes=5_000_000)
    for seq in (1, 2, 3):
        spool.append(made_frame(seq))
    (first, *_) = spool.offer(3, recent=True)
    spool.ack([(1, first.seq, first.seq)])
    spool.quarantine(1, 2, "sums", "")
    metrics = watching(spool)
    frame = Frame(
        devices=[
            Device(name="cpu0", component="cpu", energy_uj=10**15 + 1, quality="modelled",
                   coverage=0.5)
        ]
    )  # fmt: skip
    metrics.frame(frame)
    metrics.frame(frame)
    metrics.tick(0.002)
    metrics.unwritten(2, 60)
    spool.count_lost(made_frame(9), "disk")
    port = free_port()
    stop = metrics.serve(f"127.0.0.1:{port}")
    found = scraped(f"http://127.0.0.1:{port}/metrics")
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")

    def value(name: str, **labels: str) -> float:
        return found[f"joulegram_agent_{name}", frozenset(labels.items())]

    assert value("frames_made_total") == 2
    assert value("frames_unsound_total") == 3
    assert value("device_energy_joules_total", device="cpu0", component="cpu",
                 quality="modelled") == (2 * 10**15 + 2) / 1e6  # fmt: skip
    assert value("device_coverage_ratio", device="cpu0") == 0.5
    assert [value("spool_frames", state=s) for s in ("pending", "acked", "refused")] == [1, 1, 1]
    assert value("spool_usable") == 1
    assert (value("unwritten_frames"), value("unwritten_limit_frames")) == (2, 60)
    assert value("frames_restamped_total") == 0
    assert value("spool_limit_bytes") == 5_000_000
    assert 0 < value("spool_bytes") < 5_000_000
    assert value("spool_oldest_pending_seconds") == 70
    assert value("dropped_joules_total", reason="disk") > 0
    assert value("uplink_state", state="connecting") == 1
    assert value("tick_lateness_seconds_count") == 1
    assert found["process_cpu_seconds_total", frozenset()] > 0
    lint = subprocess.run(
        [need("promtool"), "check", "metrics"], input=text, text=True, capture_output=True
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")
    spool.close()


def test_labels_are_bounded() -> None:
    metrics = AgentMetrics()
    for name in range(3 * MAX_DEVICES):
        metrics.frame(Frame(devices=[Device(name=f"gpu:{name}", component="gpu", energy_uj=5)]))
    (energy,) = [m for m in metrics.collect() if m.name.endswith("device_energy_joules")]
    assert len(energy.samples) == MAX_DEVICES + 1
    assert round(sum(s.value for s in energy.samples) * 1e6) == 15 * MAX_DEVICES


def test_an_address_in_use_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    stop = AgentMetrics().serve(address)
    with caplog.at_level(logging.WARNING):
        AgentMetrics().serve(address)()
    assert "--agent-http" in caplog.text
    stop()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(BadSetting, match="HOST:PORT"):
        AgentMetrics().serve("7472")
    AgentMetrics().serve("")()


def test_a_spool_that_fails_costs_only_its_own_numbers(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    metrics = watching(spool)
    spool.close()
    names = {metric.name for metric in metrics.collect()}
    assert "joulegram_agent_frames_made" in names
    assert "joulegram_agent_spool_bytes" not in names
