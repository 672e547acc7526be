"""Replicas on real servers: killed, lagging, short of a quorum, and every joule is there once."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from joulegram.collector import counters, schema_command
from joulegram.collector.config import CollectorConfig
from joulegram.collector.errors import LedgerFailed
from joulegram.collector.ledger import cluster as clusters
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.lease import lease
from joulegram.collector.ledger.migrate import SCHEMA, migrate
from joulegram.collector.ledger.partitions import drop_partition, partitions
from joulegram.collector.rollup import Rollup
from joulegram.collector.stored_totals import StoredTotals
from joulegram.collector.writer import Store
from joulegram.v1.telemetry_pb2 import Frame
from tests.clickhouse import ClickhouseServer
from tests.cluster import Cluster, made, takes_ddl, zookeeper
from tests.collector.ledgers import Unreliable
from tests.collector.made_frames import checked, energy_uj, frame
from tests.collector.test_rollup import EVER, expected, slots
from tests.servers import Program, wait_until


class Running:
    """The cluster of a test, of which servers come and go."""

    def __init__(self, both: Cluster) -> None:
        self.both = both
        self.programs: dict[int, object] = {}
        self.database = ""

    def start(self, number: int) -> Program:
        context = self.both.servers[number].running()
        program = context.__enter__()
        self.programs[number] = context
        server = self.both.servers[number]
        wait_until(lambda: takes_ddl(server), "distributed DDL", 60.0)
        return program

    def kill(self, number: int) -> None:
        """As a power cut would: SIGKILL."""
        self.programs.pop(number).__exit__(None, None, None)  # type: ignore[attr-defined]

    def ledger(self, first: int = 0, **more: object) -> ClickhouseLedger:
        return ClickhouseLedger(self.both.config(self.database, first, **more))

    def ask(self, number: int, sql: str) -> list[tuple[object, ...]]:
        """What one server itself has."""
        server: ClickhouseServer = self.both.servers[number]
        with server.client(clusters.local(self.database)) as client:
            return list(client.execute(sql))

    def sync(self) -> None:
        """Until both servers hold the same."""

        def same() -> bool:
            return all(
                self.ask(n, "SELECT sum(queue_size) FROM system.replicas WHERE database LIKE 'r%'")
                == [(0,)]
                for n in (0, 1)
            ) and self.held(0) == self.held(1)

        wait_until(same, "replicas that hold the same", 60.0)

    def held(self, number: int) -> object:
        """(frames, uJ) that one server holds, each frame once."""
        return self.ask(
            number,
            "SELECT count(), sum(uj) FROM (SELECT node, epoch, seq, max(total_uj) AS uj FROM rows "
            "WHERE row = 0 GROUP BY node, epoch, seq)",
        )


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cluster")
    with zookeeper(folder / "zookeeper") as port:
        running = Running(made(folder, port, shards=1))
        try:
            for number in (0, 1):
                running.start(number)
            yield running
        finally:
            for number in list(running.programs):
                running.kill(number)


@pytest.fixture
def empty(replicas: Running, request: pytest.FixtureRequest) -> Running:
    """The same servers with a database of the test's own, of the newest schema."""
    for number in {0, 1} - replicas.programs.keys():
        replicas.start(number)
    replicas.database = f"r{abs(hash(request.node.name)):x}"
    ledger = replicas.ledger()
    for statement in clusters.databases(ledger.cluster, replicas.database):
        ledger.execute(statement)
    with lease(ledger) as renew:
        migrate(ledger, on_step=lambda step: renew())
    ledger.close()
    return replicas


def offer(store: Store, frames: Sequence[Frame]) -> list[Frame]:
    """Those that were not taken."""
    offered = checked(*frames)
    try:
        busy = store.keep(offered).busy
    except Exception as failed:  # what the writer makes of a look-up that failed
        logging.getLogger(__name__).warning("look-up failed: %s", failed)
        store.forget()
        return list(frames)
    return [frame for frame, one in zip(frames, offered, strict=True) if one in busy]


def store_of(ledger: ClickhouseLedger) -> Store:
    return Store(ledger, now_ms=lambda: 1_790_000_400_000)


class Blind(Unreliable):
    """Looks frames up before the other shard's writer has inserted them."""

    def query(self, sql: str) -> Any:
        return super().query(sql).slice(0, 0)


def total(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    return [(len(frames), energy_uj(frames))]


def test_what_one_server_took_both_have_and_answer(empty: Running) -> None:
    one, other = empty.ledger(0), empty.ledger(1)
    frames = [frame(seq, gpu=True) for seq in range(1, 50)]
    assert offer(store_of(one), frames) == []
    empty.sync()
    assert empty.held(0) == empty.held(1) == total(frames)
    Rollup(other).refresh(*EVER)
    empty.sync()
    for ledger in (one, other):
        wait_until(lambda ledger=ledger: slots(ledger) == expected(frames), "slots")  # type: ignore[misc]
    (day,) = partitions(one, "rows")
    drop_partition(one, "rows", day)
    assert empty.held(1) == empty.held(0) == [(0, 0)]
    one.close()
    other.close()


def test_a_server_killed_under_load_comes_back_to_the_same_joules(empty: Running) -> None:
    ledger = empty.ledger(0)
    store = store_of(ledger)
    sent: list[Frame] = []
    waiting: list[Frame] = []
    for batch in range(30):
        if batch == 10:
            empty.kill(0)
        if batch == 20:
            empty.start(0)
        frames = [frame(batch * 5 + n + 1) for n in range(5)]
        sent += frames
        waiting = offer(store, [*waiting, *frames])
    for _ in range(100):
        if not waiting:
            break
        waiting = offer(store, waiting)
    assert waiting == []
    empty.sync()
    assert empty.held(0) == empty.held(1) == total(sent)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected(sent)
    ledger.close()


def test_a_replica_that_lags_makes_nothing_less_and_nothing_double(empty: Running) -> None:
    one, late = empty.ledger(0), empty.ledger(1)
    frames = [frame(seq) for seq in range(1, 21)]
    assert offer(store_of(one), frames[:10]) == []
    empty.sync()
    for table in ("rows", "devices", "reservations"):
        empty.ask(1, f"SYSTEM STOP FETCHES {clusters.local(empty.database)}.{table}")
    assert offer(store_of(one), frames[10:]) == []
    Rollup(one).refresh(*EVER)
    assert slots(one) == expected(frames)
    # The writer fails over to the replica that has not seen the last frames, which come again.
    again = Rollup(late)
    again.refresh(*EVER)
    assert offer(store_of(late), frames) == []
    again.refresh(*EVER)
    for table in ("rows", "devices", "reservations"):
        empty.ask(1, f"SYSTEM START FETCHES {clusters.local(empty.database)}.{table}")
    empty.sync()
    for ledger in (one, late):
        Rollup(ledger).refresh(*EVER)
        wait_until(lambda ledger=ledger: slots(ledger) == expected(frames), "slots")  # type: ignore[misc]
    assert empty.held(0) == empty.held(1) == total(frames)
    one.close()
    late.close()


def test_without_its_quorum_nothing_is_taken_and_later_all_is_there_once(empty: Running) -> None:
    ledger = empty.ledger(0, insert_quorum=2, timeout_s=6.0)
    registry = CollectorRegistry()
    counters.register(registry)
    assert registry.get_sample_value("joulegram_ledger_insert_quorum") == 2
    store = store_of(ledger)
    first, second = [frame(n) for n in range(1, 6)], [frame(n) for n in range(6, 11)]
    assert offer(store, first) == []
    empty.kill(1)
    assert offer(store, second) == second
    assert offer(store, second) == second
    empty.start(1)
    waiting = second

    def taken() -> bool:
        nonlocal waiting
        waiting = offer(store, waiting)
        return not waiting

    wait_until(taken, "the quorum", 90.0)
    empty.sync()
    assert empty.held(0) == empty.held(1) == total([*first, *second])
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected([*first, *second])
    totals = StoredTotals(ledger, Rollup(ledger))
    totals.refresh()
    assert sum(uj for _, _, uj in totals.items()) == energy_uj([*first, *second])
    ledger.close()
    empty.ledger(0).close()
    assert registry.get_sample_value("joulegram_ledger_insert_quorum") == 0


def test_an_insert_of_unknown_outcome_is_looked_up(empty: Running) -> None:
    ledger = empty.ledger(0)
    frames = [frame(seq) for seq in range(1, 6)]
    faults = [("rows", "after"), ("rows", "after")]
    broken = Unreliable(ledger, faults, exclusive=False, cluster=ledger.cluster)
    assert offer(Store(broken, now_ms=lambda: 1), frames) == []  # type: ignore[arg-type]
    empty.sync()
    found = empty.ask(0, "SELECT count() FROM rows WHERE row = 0")
    assert found == [(len(frames),)]
    ledger.close()


def test_a_server_that_was_down_gets_the_schema_when_it_is_back(
    replicas: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in {0, 1} - replicas.programs.keys():
        replicas.start(number)
    replicas.kill(1)
    servers = replicas.both.config("r_down", timeout_s=5.0)
    with pytest.raises(LedgerFailed, match="start every server"):
        schema_command.run("apply", CollectorConfig(), servers)
    replicas.start(1)
    servers = replicas.both.config("r_down")
    assert schema_command.run("apply", CollectorConfig(), servers) == 0
    newest = max(int(file.name[:4]) for file in SCHEMA.glob("*.sql"))
    for first in (0, 1):
        capsys.readouterr()
        servers = replicas.both.config("r_down", first)
        schema_command.run("show", CollectorConfig(), servers)
        assert f"schema version {newest} of {newest}" in capsys.readouterr().out


def test_a_cluster_that_servers_do_not_know_is_named_with_its_key(empty: Running) -> None:
    ledger = empty.ledger(cluster="elsewhere")
    with pytest.raises(LedgerFailed, match=r"'elsewhere'.*clickhouse\.cluster.*<remote_servers>"):
        ledger.execute(clusters.databases(ledger.cluster, empty.database)[0])
    ledger.close()


def test_two_shards_answer_as_one(tmp_path: Path) -> None:
    """Writers of two shards; one frame came to both, as when a partition changes hands."""
    with zookeeper(tmp_path / "zookeeper") as port:
        running = Running(made(tmp_path, port, shards=2))
        try:
            for number in (0, 1):
                running.start(number)
            running.database = "shards"
            one, other = running.ledger(0), running.ledger(1)
            for statement in clusters.databases(one.cluster, running.database):
                one.execute(statement)
            migrate(one)
            left = [frame(seq, node="n1") for seq in range(1, 8)]
            right = [frame(seq, node="n2") for seq in range(1, 5)]
            assert offer(store_of(one), left) == []
            zombie = [frame(1, node="n1")]
            blind = Blind(other, exclusive=False, cluster=other.cluster)
            store = Store(blind, now_ms=lambda: 1)  # type: ignore[arg-type]
            assert offer(store, [*right, *zombie]) == []
            assert running.held(0) == total(left)
            assert running.held(1) == total([*right, *zombie])
            Rollup(one).refresh(*EVER)
            assert slots(one) == slots(other) == expected([*left, *right])
        finally:
            for number in list(running.programs):
                running.kill(number)
