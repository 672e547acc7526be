"""Joules in /metrics are the ledger's, where several write to it or the page writes none."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kafka import KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.v1.telemetry_pb2 import Frame, FrameBatch
from tests.clickhouse import ClickhouseServer
from tests.collector.made_frames import WINDOW_MS, energy_uj, frame
from tests.e2e.sending import RunningCollector
from tests.kafka import Broker, Names, kafka_broker
from tests.servers import free_port, joulegram, running, wait_until

FRESH_S = 4.0  # what docs/metrics.md promises of a small site, with room for a busy machine:
PATIENCE_S = 60.0
MADE_BY_WRITERS_S = 120.0  # of frames that nobody here saw

Joules = dict[str, float]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


class Site:
    """Collectors of one database, and of one topic where there is a broker."""

    def __init__(self, folder: Path, config: str, clickhouse: ClickhouseServer, name: str) -> None:
        self.folder = folder
        self.ledger = ClickhouseLedger(clickhouse.config(name))
        migrate(self.ledger)
        self.config = folder / "joulegram.toml"
        self.config.write_text(clickhouse.toml(name) + config)

    @contextlib.contextmanager
    def collector(self, name: str, role: str = "") -> Iterator[RunningCollector]:
        http, agents = (f"127.0.0.1:{free_port()}" for _ in range(2))
        argv = joulegram(
            "collector", "--config", self.config, "--http", http, "--listen", agents,
            "--neso-url", "", *(("--role", role) if role else ()),
        )  # fmt: skip
        with running(argv, self.folder, name=name) as program:
            program.await_answer(f"http://{http}/metrics")
            yield RunningCollector(program, f"http://{http}", agents)

    def stored(self) -> Joules:
        """J by node, of headers, each once."""
        found = self.ledger.query(
            "SELECT node, sum(uj) AS all_uj FROM (SELECT node, max(total_uj) AS uj FROM rows "
            "WHERE row = 0 GROUP BY node, epoch, seq) GROUP BY node"
        )
        return {row["node"]: row["all_uj"] / 1e6 for row in found.to_pylist()}


def shown(page: RunningCollector) -> Joules:
    """J by node, as /metrics has them."""
    joules: Joules = {}
    for family in text_string_to_metric_families(page.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "joulegram_energy_joules_total":
                node = sample.labels["node"]
                joules[node] = joules.get(node, 0.0) + sample.value
    return joules


def become(page: RunningCollector, expected: Joules, timeout_s: float = PATIENCE_S) -> None:
    """Wait until /metrics shows this."""
    try:
        wait_until(lambda: shown(page) == pytest.approx(expected), "the totals", timeout_s)
    except TimeoutError:
        assert shown(page) == pytest.approx(expected)


def frames_of(node: str, seqs: Sequence[int], epoch: int = 1) -> list[Frame]:
    start_ms = (time.time_ns() // 1_000_000 // 300_000 - 2) * 300_000
    return [frame(seq, node=node, epoch=epoch, start_ms=start_ms) for seq in seqs]


@pytest.fixture
def apart(tmp_path: Path, broker: Broker, clickhouse: ClickhouseServer) -> Iterator[Site]:
    names: Names = broker.names()
    config = f"""
[kafka]
brokers = ["{broker.address}"]
topic = "{names.topic}"
dead_letter_topic = "{names.dead_letters}"
group = "{names.group}"
partitions = 3
replication_factor = 1
min_insync_replicas = 1
linger_s = 0.05
session_timeout_s = 4.0
"""
    with clickhouse.database() as name:
        yield Site(tmp_path, config, clickhouse, name)


def test_a_page_apart_shows_what_is_in_the_ledger_and_not_what_is_in_the_topic(
    apart: Site, broker: Broker
) -> None:
    topic = apart.config.read_text().partition('topic = "')[2].partition('"')[0]
    with apart.collector("intake", "intake") as intake, apart.collector("web", "grid,web") as web:
        # Frames that came before any writer.
        early = frames_of("early", range(1, 6))
        intake.send(early)
        time.sleep(FRESH_S)
        assert shown(web) == {}
        with apart.collector("writer", "writer"):
            become(web, {"early": energy_uj(early) / 1e6}, MADE_BY_WRITERS_S)
            ours = frames_of("n1", range(1, 4))
            intake.send(ours)
            expected = {node: energy_uj(of) / 1e6 for node, of in (("early", early), ("n1", ours))}
            sent_s = time.monotonic()
            become(web, expected)
            print(f"in /metrics {time.monotonic() - sent_s:.1f} s after the acknowledgement")
            # Never stored: other content of a known frame, and one whose sums do not hold.
            other = frame(
                1, node="n1", epoch=1, seed=9, start_ms=ours[0].window_start_ms - WINDOW_MS
            )
            wrong = frames_of("bad", [1])[0]
            wrong.devices[0].energy_uj += 7_000_000
            producer = KafkaProducer(bootstrap_servers=broker.address, acks="all")
            for one in (other, wrong):
                producer.send(topic, FrameBatch(frames=[one]).SerializeToString()).get(10)
            producer.close()
            time.sleep(2 * FRESH_S)
            assert apart.stored() == pytest.approx(expected)
            assert shown(web) == pytest.approx(expected)
            with apart.collector("web2", "grid,web") as again:
                become(again, expected)
                intake.send(ours)  # an acknowledgement was lost
                time.sleep(2 * FRESH_S)
                assert apart.stored() == pytest.approx(expected)
                assert shown(again) == pytest.approx(expected)


def test_two_collectors_of_one_ledger_both_show_all_of_it(
    tmp_path: Path, clickhouse: ClickhouseServer
) -> None:
    with clickhouse.database() as name:
        site = Site(tmp_path, "", clickhouse, name)
        with site.collector("one") as one, site.collector("two") as two:
            first, second = frames_of("n1", range(1, 6)), frames_of("n2", range(1, 6))
            one.send(first)
            two.send(second)
            expected = {"n1": energy_uj(first) / 1e6, "n2": energy_uj(second) / 1e6}
            for page in (one, two):
                become(page, expected)
            two.send(first)  # the agent was moved to the other one
            time.sleep(2 * FRESH_S)
            assert site.stored() == pytest.approx(expected)
            for page in (one, two):
                assert shown(page) == pytest.approx(expected)
        with site.collector("one again") as one:
            assert shown(one) == pytest.approx(expected), "from the first scrape on"
