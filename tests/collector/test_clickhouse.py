"""Servers that are down, restarted, choosy, slow or old, and what a person is told of them."""

import asyncio
import logging
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from joulegram.collector import counters
from joulegram.collector.errors import BadSetting, LedgerFailed, LedgerRefused
from joulegram.collector.ledger.clickhouse import MAX_CONNECTIONS, ClickhouseLedger, substituted
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.migrate import migrate, server_version
from joulegram.collector.rollup import Rollup
from joulegram.collector.stages import Busy
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame
from tests.clickhouse import ClickhouseServer
from tests.collector.made_frames import checked, frame
from tests.collector.test_rollup import EVER, expected, slots
from tests.servers import free_port, joulegram, running, wait_until


@pytest.fixture
def own(tmp_path: Path) -> ClickhouseServer:
    """A server of this test alone, not started yet."""
    return ClickhouseServer(tmp_path / "clickhouse")


@pytest.fixture
def database(clickhouse: ClickhouseServer) -> Iterator[str]:
    with clickhouse.database() as name:
        yield name


def sockets() -> int:
    """How many sockets this process has open."""
    return sum(
        fd.is_symlink() and str(fd.readlink()).startswith("socket:")
        for fd in Path("/proc/self/fd").iterdir()
    )


def in_use() -> float:
    """What the gauge of connections says."""
    (metric,) = counters.LEDGER_CONNECTIONS.collect()
    return metric.samples[0].value


def test_the_next_host_is_asked_when_one_is_down(
    clickhouse: ClickhouseServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    down = f"127.0.0.1:{free_port()}"
    ledger = ClickhouseLedger(clickhouse.config(database, hosts=(down, clickhouse.address)))
    with caplog.at_level(logging.WARNING):
        assert ledger.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]
    ledger.close()
    said = " ".join(record.getMessage() for record in caplog.records)
    assert clickhouse.password not in said


def test_a_host_that_takes_connections_and_says_nothing_is_left(
    clickhouse: ClickhouseServer, database: str
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        hosts = (f"127.0.0.1:{mute.getsockname()[1]}", clickhouse.address)
        ledger = ClickhouseLedger(clickhouse.config(database, hosts=hosts, timeout_s=1.0))
        assert ledger.query("SELECT 1 AS one").num_rows == 1
        ledger.close()


def test_nobody_answers(tmp_path: Path) -> None:
    hosts = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
    with pytest.raises(LedgerFailed, match="no ClickHouse server answers") as failed:
        ClickhouseLedger(ClickhouseConfig(hosts=hosts))
    for host in hosts:
        assert host in str(failed.value)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_comes_back_is_found_again(
    own: ClickhouseServer, how: signal.Signals
) -> None:
    with own.running():
        ledger = ClickhouseLedger(own.config("joules"))
        ledger.execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        ledger.insert("t", {"a": np.arange(10, dtype=np.uint64)})
        assert own.program
        own.program.stop(how, timeout_s=30)
        for _ in range(2):
            with pytest.raises(LedgerFailed):
                ledger.query("SELECT 1")
            with pytest.raises(LedgerFailed):
                ledger.insert("t", {"a": np.arange(10, dtype=np.uint64)})
    with own.running():
        # The first call: the connection from before is known to be dead.
        ledger.insert("t", {"a": np.arange(10, 20, dtype=np.uint64)})
        found = ledger.query("SELECT count() AS n, sum(a) AS s FROM t").to_pylist()
        assert found == [{"n": 20, "s": 190}]
        ledger.close()


async def test_a_server_that_stalls_at_any_moment_loses_and_doubles_nothing(
    own: ClickhouseServer,
) -> None:
    """Our patience ends while it still works: what we gave up may land later, after the retry."""
    rng = random.Random(11)
    with own.running() as program:
        patient = ClickhouseLedger(own.config("joules"))
        migrate(patient)
        ledger = ClickhouseLedger(own.config("joules", timeout_s=0.5, connect_timeout_s=0.5))
        rollup = Rollup(ledger)
        writer = Writer(ledger, group_s=0.0, on_durable=[rollup.touch])
        writing = asyncio.create_task(writer.run())
        frames = [frame(seq, rows=rng.randrange(1, 400)) for seq in range(1, 121)]
        stalls = 0
        for first in range(0, len(frames), 10):
            sending = asyncio.create_task(offer(writer, frames[first : first + 10]))
            await asyncio.sleep(rng.uniform(0.0, 0.03))
            program.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            stalls += not sending.done()
            program.process.send_signal(signal.SIGCONT)
            await asyncio.wait_for(sending, 60)
        assert stalls, "it never stalled while somebody waited; try other pauses"
        writer.close()
        await writing
        ledger.close()
        Rollup(patient).refresh(*EVER)
        assert slots(patient) == expected(frames)
        patient.close()


async def offer(writer: Writer, frames: Sequence[Frame]) -> None:
    """As an agent: again and again until they are durable."""
    while True:
        try:
            assert await writer.send(checked(*frames)) == []
            return
        except Busy:
            await asyncio.sleep(0.05)


def test_all_connections_of_a_dead_server_go_to_the_next_one(
    clickhouse: ClickhouseServer, database: str, tmp_path: Path
) -> None:
    """Its idle ones too: nobody runs into them one by one."""
    own = ClickhouseServer(tmp_path / "clickhouse", password=clickhouse.password)
    ClickhouseLedger(clickhouse.config(database)).close()  # makes the database there
    with own.running():
        ledger = ClickhouseLedger(
            clickhouse.config(database, hosts=(own.address, clickhouse.address))
        )
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ledger.query, ["SELECT sleep(0.2)"] * 4))
    for _ in range(6):
        assert ledger.query("SELECT 1 AS one").num_rows == 1
    ledger.close()


def test_connections_are_bounded_and_given_back(
    clickhouse: ClickhouseServer, database: str
) -> None:
    before = sockets()
    ledger = ClickhouseLedger(clickhouse.config(database))
    asking = [
        threading.Thread(target=ledger.query, args=["SELECT sleep(0.5)"])
        for _ in range(3 * MAX_CONNECTIONS)
    ]
    for thread in asking:
        thread.start()
    wait_until(lambda: in_use() == MAX_CONNECTIONS, "all connections to be in use")
    assert sockets() - before <= MAX_CONNECTIONS
    for thread in asking:
        thread.join()
    assert in_use() == 0
    assert 1 <= sockets() - before <= MAX_CONNECTIONS
    for _ in range(5):
        with pytest.raises(LedgerFailed):
            ledger.query("SELECT nothing")
    assert ledger.close()
    assert sockets() == before


def test_a_wrong_password_is_said_without_it(
    clickhouse: ClickhouseServer, database: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("open sesame\n")
    with pytest.raises(LedgerRefused, match="password_file") as refused:
        ClickhouseLedger(clickhouse.config(database, password_file=str(wrong)))
    assert "'joulegram'" in str(refused.value)
    assert "sesame" not in str(refused.value)
    # It is read at every connection, so it can be set right, or changed, while we run.
    wrong.write_text(clickhouse.password)
    ledger = ClickhouseLedger(clickhouse.config(database, password_file=str(wrong)))
    ledger.close()
    missing = tmp_path / "nowhere"
    with pytest.raises(BadSetting, match=r"clickhouse.password_file = .*nowhere"):
        ClickhouseLedger(clickhouse.config(database, password_file=str(missing)))


def test_a_collector_with_a_wrong_password_ends_and_says_so(
    clickhouse: ClickhouseServer, database: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("open sesame\n")
    config = tmp_path / "joulegram.toml"
    config.write_text(clickhouse.toml(database, password_file=f'"{wrong}"'))
    argv = joulegram(
        *("collector", "--config", config, "--data", tmp_path / "data", "--neso-url", ""),
        *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
    )
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "clickhouse.password_file" in done.stderr.splitlines()[-1]
    assert "sesame" not in done.stderr + done.stdout


def test_a_collector_waits_for_servers_that_are_down(own: ClickhouseServer, tmp_path: Path) -> None:
    with own.running():
        ledger = ClickhouseLedger(own.config("joulegram"))
        migrate(ledger)
        ledger.close()
    config = tmp_path / "joulegram.toml"
    config.write_text(own.toml("joulegram"))
    argv = joulegram(
        *("collector", "--config", config, "--data", tmp_path / "data", "--neso-url", ""),
        *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
    )

    with running(argv, tmp_path) as collector:

        def says(what: str) -> bool:
            assert collector.process.poll() is None, collector.said()
            return what in collector.said()

        wait_until(lambda: says("waiting for its ledger"), "the collector", 30)
        with own.running():
            wait_until(lambda: says("page http://"), "the collector's page", 30)
            arguments = Path(f"/proc/{collector.pid}/cmdline").read_bytes()
            assert own.password.encode() not in arguments
            assert collector.stop(timeout_s=10) == 0
        assert own.password not in collector.said()


def test_tls_is_spoken_and_the_certificate_checked(
    clickhouse: ClickhouseServer, database: str, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{clickhouse.tls_port}"
    config = clickhouse.config(
        database, hosts=(address,), tls=True, ca_file=str(clickhouse.ca_file)
    )
    ledger = ClickhouseLedger(config)
    ledger.execute("CREATE TABLE t (a LowCardinality(String)) ENGINE = MergeTree ORDER BY a")
    ledger.insert("t", {"a": [f"x{i % 7}" for i in range(100_000)]})
    assert ledger.query("SELECT uniq(a) AS n, count() AS c FROM t").to_pylist() == [
        {"n": 7, "c": 100_000}
    ]
    ledger.close()
    with pytest.raises(LedgerFailed, match="CERTIFICATE_VERIFY_FAILED"):
        ClickhouseLedger(clickhouse.config(database, hosts=(address,), tls=True))
    elsewhere = (f"localhost.localdomain:{clickhouse.tls_port}", "127.0.0.1:1")
    with pytest.raises(LedgerFailed):
        ClickhouseLedger(
            clickhouse.config(database, hosts=elsewhere, tls=True, ca_file=str(clickhouse.ca_file))
        )
    # Plain words to a port that speaks TLS, and the other way round: said, not waited for.
    with pytest.raises(LedgerFailed, match=r"clickhouse.tls"):
        ClickhouseLedger(clickhouse.config(database, hosts=(address,), timeout_s=3.0))
    with pytest.raises(LedgerFailed, match=r"clickhouse.tls"):
        ClickhouseLedger(clickhouse.config(database, tls=True, timeout_s=3.0))


def test_questions_are_bounded_in_time_and_memory(
    clickhouse: ClickhouseServer, database: str
) -> None:
    ledger = ClickhouseLedger(
        clickhouse.config(database, query_max_s=1.0, query_max_bytes=20_000_000)
    )
    with pytest.raises(LedgerFailed, match=r"(?i)timeout exceeded"):
        ledger.query("SELECT sum(number) AS s FROM system.numbers")
    with pytest.raises(LedgerFailed, match=r"(?i)memory limit"):
        ledger.query("SELECT uniqExact(number) AS n FROM (SELECT number FROM system.numbers "
                     "LIMIT 5000000)")  # fmt: skip
    assert ledger.query("SELECT 1 AS one").num_rows == 1
    ledger.close()


def test_a_large_question_is_taken(clickhouse: ClickhouseServer, database: str) -> None:
    """Look-ups name thousands of identities; servers' own limits are lower."""
    ledger = ClickhouseLedger(clickhouse.config(database))
    some = ", ".join(f"('node{i}', {i}, {i})" for i in range(20_000))
    found = ledger.query(
        f"SELECT count() AS n FROM system.one WHERE ('node7', dummy, dummy) IN ({some})"
    )
    assert found.to_pylist() == [{"n": 0}]
    ledger.close()


def test_an_old_server_gets_what_it_knows(clickhouse: ClickhouseServer, database: str) -> None:
    """No setting, codec or index that it would refuse; the tables are the same otherwise."""
    ledger = ClickhouseLedger(clickhouse.config(database))
    migrate(ledger)
    if server_version(ledger) < (20, 1):
        found = ledger.query(
            "SELECT create_table_query AS q FROM system.tables WHERE database = currentDatabase()"
        )
        for created in found["q"].to_pylist():
            assert "CODEC" not in created and "INDEX" not in created
    with pytest.raises(LedgerFailed, match="Syntax error"):
        ledger.query("SELECT count() OVER (PARTITION BY window_ms) AS n FROM rows")
    with pytest.raises(TypeError, match="UTC"):
        ledger.query("SELECT toDateTime(0) AS naive")
    ledger.close()


def test_times_are_utc_wherever_the_server_stands(tmp_path: Path) -> None:
    server = ClickhouseServer(tmp_path / "clickhouse", timezone="Asia/Kathmandu")
    with server.running():
        ledger = ClickhouseLedger(server.config("joulegram"))
        ledger.execute("CREATE TABLE t (at DateTime('UTC')) ENGINE = MergeTree PARTITION BY "
                       "toYYYYMMDD(at) ORDER BY at")  # fmt: skip
        ledger.insert("t", {"at": np.array([1_790_035_199, 1_790_035_200], np.uint32)})
        assert ledger.query("SELECT at, toUInt32(at) AS s FROM t ORDER BY at").to_pylist() == [
            {"at": s, "s": s} for s in (1_790_035_199, 1_790_035_200)
        ]
        days = ledger.query("SELECT DISTINCT partition AS p FROM system.parts WHERE active "
                            "AND database = currentDatabase() ORDER BY p")  # fmt: skip
        assert days["p"].to_pylist() == ["20260921", "20260922"]
        ledger.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hosts": ("ch1:port",)}, "ch1:9000"),
        ({"hosts": ("",)}, "HOST:PORT"),
        ({"hosts": ("ch1:0",), "tls": True}, "ch1:9440"),
        ({"database": "a b"}, "clickhouse.database"),
        ({"database": "x; DROP"}, "clickhouse.database"),
        ({"user": ""}, "clickhouse.user"),
        ({"cluster": "a'b"}, "clickhouse.cluster"),
        ({"insert_quorum": 2}, "clickhouse.cluster"),
        ({"ca_file": "ca.pem"}, "clickhouse.tls"),
        ({"timeout_s": 0.0}, "clickhouse.timeout_s"),
        ({"query_max_s": float("inf")}, "clickhouse.query_max_s"),
    ],
)
def test_a_setting_that_cannot_hold_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        ClickhouseConfig(**given)  # type: ignore[arg-type]


def test_hosts_may_leave_the_port_out() -> None:
    hosts = ("a", "b:1", "[::1]:2", "[::1]")
    assert ClickhouseConfig(hosts=hosts).addresses == [
        *(("a", 9000), ("b", 1), ("::1", 2), ("::1", 9000)),
    ]
    assert ClickhouseConfig(hosts=("a",), tls=True).addresses == [("a", 9440)]


def test_a_parameter_is_a_value_and_nothing_else() -> None:
    assert substituted("a = {a:UInt8} AND b = '{a:UInt8}'", {"a": 7}) == (
        "a = toUInt8(7) AND b = '{a:UInt8}'"
    )
    assert substituted("{s:String}", {"s": "' OR '1'='1"}) == "'\\' OR \\'1\\'=\\'1'"
    assert substituted("'it\\'s {s:String}' {s:String}", {"s": "x"}) == "'it\\'s {s:String}' 'x'"
    for params in ({}, {"a": 256}, {"a": -1}, {"a": "7"}, {"a": "7); DROP TABLE rows; --"}):
        with pytest.raises(ValueError, match="a:UInt8"):
            substituted("{a:UInt8}", params)  # type: ignore[arg-type]
