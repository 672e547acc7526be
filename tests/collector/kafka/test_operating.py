"""What an operator does and sees: dead letters, lag, roles, brokers that are not there."""

import asyncio
import json
import subprocess
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from joulegram.collector.config import CollectorConfig
from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka import lag
from joulegram.collector.kafka.config import KafkaConfig, check_retention
from joulegram.collector.kafka.follow import Follower
from joulegram.collector.kafka.letters import DeadLetters, Letter, now_ms
from joulegram.collector.kafka.producer import Record
from joulegram.collector.kafka.records import pack
from joulegram.collector.kafka.topics import check_topics
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.roles import ROLES, check_roles, roles_of
from joulegram.collector.writer import Store
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.kafka.passing import (
    Stored,
    committed,
    eventually,
    letters,
    producing,
    put,
    raw_record,
    to_kafka,
    writing,
    written,
)
from tests.collector.made_frames import NOW_MS, START_MS, checked, energy_uj, frame
from tests.kafka import Broker
from tests.servers import free_port, joulegram, running, wait_until

HOUR_MS = 3_600_000


def toml(settings: KafkaConfig, folder: Path) -> Path:
    path = folder / "joulegram.toml"
    said = {
        "brokers": list(settings.brokers),
        "topic": settings.topic,
        "dead_letter_topic": settings.dead_letter_topic,
        "group": settings.group,
        "partitions": settings.partitions,
        "replication_factor": 1,
        "min_insync_replicas": 1,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in said.items()]
    path.write_text("[kafka]\n" + "\n".join(lines) + "\n")
    return path


def command(*words: str, config: Path) -> subprocess.CompletedProcess[str]:
    argv = joulegram(*words, "--config", config)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def deadletter(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command("deadletter", *words, config=config)


async def test_dead_letters_are_listed_and_replayed(
    settings: KafkaConfig, ledger: Ledger, tmp_path: Path
) -> None:
    """What was too old for this ledger is stored once it keeps rows for longer; once, not twice."""
    old = [frame(n, node="n1", start_ms=START_MS - 2 * 86_400_000) for n in (1, 2, 3)]
    config = toml(settings, tmp_path)
    async with producing(settings) as producer:
        await put(to_kafka(settings, producer), old)
        await raw_record(producer, settings, b"not a record")
        # As writers parked it that took nothing of a broken record.
        whole = frame(4, node="n1").SerializeToString()
        earlier = Letter("record", pack([whole]) + b"\xff", "bytes", "byte 9", "frames:0:0", 0)
        async with writing(settings, ledger, raw_days=1.0):
            await eventually(lambda: len(letters(settings)) == 4, "four letters")
        await DeadLetters(settings, producer).park([earlier])
        listed = deadletter(config, "list", "--json")
        found = [json.loads(line) for line in listed.stdout.splitlines()]
        assert sorted(one["reason"] for one in found) == ["bytes"] * 2 + ["too_old"] * 3
        assert {one["node"] for one in found} == {"", "n1"}
        assert any("raw_days" in one["detail"] for one in found)
        assert "5 dead letters: 2 bytes, 3 too_old" in deadletter(config, "list").stdout
        # Asked for by its reason, twice.
        for _ in range(2):
            again = deadletter(config, "replay", "--reason", "too_old")
            assert again.returncode == 0, again.stderr
            assert "3 frames sent" in again.stdout
        unreadable = deadletter(config, "replay", "--reason", "bytes")
        assert unreadable.returncode == 1 and "1 frames sent" in unreadable.stdout
        assert "its end cannot be read" in unreadable.stderr
        assert unreadable.stderr.count("cannot be read") == 2
        async with writing(settings, ledger):
            await eventually(lambda: committed(settings) == written(settings), "the replay")
    stored = Stored(ledger)
    assert stored.frames() == stored.inserted_headers() == 4
    assert stored.energy_uj() == energy_uj([*old, frame(4, node="n1")])


async def test_letters_that_no_writer_parked_hide_none_that_one_did(
    settings: KafkaConfig, tmp_path: Path
) -> None:
    check_topics(settings)
    whole = frame(1, node="n1").SerializeToString()
    ours = Letter("frame", whole, "too_old", "", "frames:0:0", NOW_MS, "n1")
    far_off = [("encoding", b"deflate"), ("parked_at_ms", b"9" * 5_000)]
    values = (b"not deflated", zlib.compress(bytes(99))[:-1], zlib.compress(bytes(2**28)))
    async with producing(settings) as producer:
        for value in values:
            await producer.put([Record(settings.dead_letter_topic, 0, value, far_off)])
        await DeadLetters(settings, producer).park([ours])
    config = toml(settings, tmp_path)
    listed = deadletter(config, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    found = [json.loads(line) for line in listed.stdout.splitlines()]
    # As they are: what they would unpack to is no letter, or has no end.
    assert [one["bytes"] for one in found] == [*map(len, values), len(whole)]
    again = deadletter(config, "replay")
    assert again.returncode == 1 and "1 frames sent" in again.stdout, again.stderr
    assert again.stderr.count("left where it is") == 3


def test_a_command_without_kafka_says_so(tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("")
    said = deadletter(tmp_path / "none.toml", "list")
    assert said.returncode == 2 and "[kafka]" in said.stderr and said.stderr.count("\n") <= 2
    gone = tmp_path / "gone.toml"
    gone.write_text(f'[kafka]\nbrokers = ["127.0.0.1:{free_port()}"]\n')
    said = deadletter(gone, "list")
    assert said.returncode == 1 and "did not answer" in said.stderr
    assert "Traceback" not in said.stderr


async def test_lag_tells_how_long_until_frames_are_lost(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    settings = replace(settings, retention_days=2.0)
    check_topics(settings)
    assert lag.measure(settings) == lag.Lag(0, 0.0, 172_800.0, 0)
    async with producing(settings) as producer:
        await raw_record(producer, settings, pack([frame(1).SerializeToString()]))
        await raw_record(producer, settings, pack([frame(2).SerializeToString()]))
    found = lag.measure(settings)
    assert found.records == 2
    assert 0.0 < found.oldest_s <= 600.0
    later = lag.measure(settings, now=lambda: now_ms() + 10 * HOUR_MS)
    assert 10 * 3600 <= later.oldest_s <= 86_400
    assert later.to_loss_s == 172_800 - later.oldest_s
    # Nobody read for as long as records are kept: not a second is left.
    late = lag.measure(settings, now=lambda: now_ms() + 49 * HOUR_MS)
    assert late.to_loss_s == 0.0
    async with writing(settings, ledger):
        await eventually(lambda: lag.measure(settings).records == 0, "the writer")
    assert lag.measure(settings).oldest_s == 0.0


def test_the_ledger_outlives_what_waits_in_kafka() -> None:
    kafka = KafkaConfig(brokers=("k:1",), retention_days=7.0, dead_letter_days=30.0)
    check_retention(KafkaConfig(brokers=("k:1",)), CollectorConfig().raw_days)
    # 30 days in a spool, 7 in the topic, 30 as a dead letter.
    check_retention(kafka, 67.5)
    for days in (37.0, 38.0, 67.0):
        with pytest.raises(BadSetting, match=r"not above 67: .*kafka\.retention_days"):
            check_retention(kafka, days)
    check_retention(replace(kafka, brokers=()), 37.0)


def test_roles_that_cannot_work_are_refused() -> None:
    assert roles_of("all") == set(ROLES) == roles_of("web, grid,writer,intake")
    for none in ("", "reader", "all,intake"):
        with pytest.raises(BadSetting, match=r"collector\.role"):
            roles_of(none)
    everything = roles_of("all")
    for kafka in (True, False):
        for embedded in (True, False):
            check_roles(everything, kafka=kafka, embedded=embedded)
    check_roles(roles_of("intake"), kafka=True, embedded=True)
    check_roles(roles_of("writer,grid,web"), kafka=True, embedded=True)
    for alone in ROLES:
        check_roles(roles_of(alone), kafka=True, embedded=False)
    for alone in ("intake", "writer"):
        with pytest.raises(BadSetting, match="Kafka"):
            check_roles(roles_of(alone), kafka=False, embedded=False)
    for parted in ("writer", "web", "grid", "writer,web", "intake,writer"):
        with pytest.raises(BadSetting, match="embedded"):
            check_roles(roles_of(parted), kafka=True, embedded=True)


def test_an_intake_alone_has_no_ledger_and_a_writer_no_port_for_agents(
    broker: Broker, settings: KafkaConfig, tmp_path: Path
) -> None:
    config = toml(settings, tmp_path)
    listen, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    start = ("collector", "--config", config, "--data", tmp_path / "data", "--neso-url", "")
    intake = joulegram(*start, "--role", "intake", "--listen", listen, "--http", http)
    with running(intake, tmp_path, name="intake") as program:
        program.await_answer(f"http://{http}/api/v1/health")
        wait_until(lambda: f"agents on {listen}" in program.said(), "its port")
        text = httpx.get(f"http://{http}/metrics").text
        assert "joulegram_kafka_seconds_to_loss" in text and "joulegram_node" not in text
        assert not (tmp_path / "data").exists()
        rest = joulegram(
            *start, "--role", "writer,grid,web", "--listen", listen, "--http", "127.0.0.1:0"
        )
        with running(rest, tmp_path, name="writer") as writer:
            # It minds nobody at the agents' port.
            wait_until(lambda: "page http://" in writer.said(), "the writer")
            assert "agents on" not in writer.said()
            assert writer.stop(timeout_s=30.0) == 0, writer.said()
        assert program.stop() == 0, program.said()


def test_a_wrong_topic_ends_a_collector_and_absent_brokers_do_not(
    settings: KafkaConfig, tmp_path: Path
) -> None:
    check_topics(settings)
    config = toml(replace(settings, partitions=5), tmp_path)
    start = ("collector", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--role", "intake")
    done = subprocess.run(
        joulegram(*start, "--config", config), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "has 4 partitions, kafka.partitions says 5" in done.stderr
    assert "Traceback" not in done.stderr
    gone = toml(replace(settings, brokers=(f"127.0.0.1:{free_port()}",)), tmp_path)
    with running(joulegram(*start, "--config", gone), tmp_path, name="waits") as program:
        wait_until(lambda: "metrics http://" in program.said(), "it to run", 60.0)
        assert "does not answer yet" in program.said()
        assert program.stop(timeout_s=30.0) == 0, program.said()
        assert "Traceback" not in program.said()


async def test_after_a_restore_kafka_is_rewound_and_every_joule_is_there_again(
    settings: KafkaConfig, ledger: Ledger, tmp_path: Path
) -> None:
    """Frames that a restored ledger lacks come back; those that it has stay what they were."""
    before = [frame(n, node=f"n{n % 5}") for n in range(1, 21)]
    after = [frame(n, node=f"n{n % 5}") for n in range(21, 41)]
    config = toml(settings, tmp_path)
    async with producing(settings) as producer:
        stage = to_kafka(settings, producer)
        await put(stage, before)
        async with writing(settings, ledger):
            await eventually(lambda: committed(settings) == written(settings), "the first half")
        backup_at = datetime.now(UTC)
        await asyncio.sleep(0.1)
        await put(stage, after)
        async with writing(settings, ledger):
            await eventually(lambda: committed(settings) == written(settings), "the second half")
            since = backup_at.isoformat(timespec="milliseconds")
            refused = await asyncio.to_thread(command, "rewind", "--since", since, config=config)
            assert refused.returncode == 1 and "still runs" in refused.stderr
    stored = Stored(ledger)
    assert stored.frames() == 40
    # The restore: nothing of what came after the backup is there.
    for table in ("rows", "devices"):
        ledger.execute(f"TRUNCATE TABLE {table}")
    store = Store(ledger, lambda: NOW_MS)
    store.keep(checked(*before))
    assert stored.frames() == 20
    done = command("rewind", "--since", since, config=config)
    assert done.returncode == 0, done.stderr
    again = written(settings) - committed(settings)
    assert again > 0 and f"{again} records since" in done.stdout
    async with writing(settings, ledger):
        await eventually(lambda: committed(settings) == written(settings), "the rewound half")
    assert stored.frames() == stored.inserted_headers() == 40
    assert stored.energy_uj() == stored.rows_uj() == energy_uj([*before, *after])


def test_a_rewind_says_what_it_takes(settings: KafkaConfig, tmp_path: Path) -> None:
    config = toml(settings, tmp_path)
    said = command("rewind", "--since", "yesterday", config=config)
    assert said.returncode == 2 and "accepted" in said.stderr
    # A file of another site: nothing was rewound, and "0 records" would sound like success.
    said = command("rewind", "--since", "1h", config=config)
    assert said.returncode == 1 and f"no topic {settings.topic}" in said.stderr, said
    assert said.stdout == ""


async def test_a_rewind_counts_what_a_group_reads_that_committed_nothing(
    settings: KafkaConfig, tmp_path: Path
) -> None:
    check_topics(settings)
    async with producing(settings) as producer:
        await raw_record(producer, settings, pack([frame(1).SerializeToString()]))
    said = command("rewind", "--since", "1h", config=toml(settings, tmp_path))
    assert said.returncode == 0 and "1 records since" in said.stdout, said


async def test_a_list_whose_reader_has_seen_enough_is_no_failure_of_kafka(
    settings: KafkaConfig, tmp_path: Path
) -> None:
    """`joulegram deadletter list | head`."""
    check_topics(settings)
    config = toml(settings, tmp_path)
    detail = "x" * 2_000  # a hundred of them are more than a pipe holds
    letter = Letter("record", b"poison", "bytes", detail, "frames:0:0", NOW_MS)
    async with producing(settings) as producer:
        await DeadLetters(settings, producer).park([letter] * 100)
    listing = subprocess.Popen(
        joulegram("deadletter", "list", "--config", config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listing.stdout is not None and listing.stderr is not None
    assert listing.stdout.readline()
    listing.stdout.close()
    with listing.stderr as stderr:
        said = stderr.read()
    assert listing.wait(60) == 141, said
    assert "Kafka" not in said


async def test_a_page_apart_from_the_writers_sees_every_frame_once(settings: KafkaConfig) -> None:
    seen: list[Frame] = []
    check_topics(settings)
    async with producing(settings) as producer:
        stage = to_kafka(settings, producer)
        await put(stage, [frame(1, node="before")])
        following = asyncio.create_task(Follower(settings, [seen.extend]).run())
        tried = 0
        async with asyncio.timeout(120):
            while not seen:  # it follows from where the topic ends when it gets there
                tried += 1
                await put(stage, [frame(tried, node="try")])
                await asyncio.sleep(0.5)
        for _ in range(2):
            await put(stage, [frame(n, node=f"n{n}") for n in range(1, 9)])
        await raw_record(producer, settings, b"poison")
        await put(stage, [frame(1, node="last")])
        await eventually(lambda: any(one.node == "last" for one in seen), "the last frame")
        following.cancel()
    nodes = [one.node for one in seen if one.node not in ("before", "try", "last")]
    assert sorted(nodes) == [f"n{n}" for n in range(1, 9)]


async def test_a_page_apart_hears_of_frames_again_once_they_are_stored(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    """A report that asked in between must look again, and soon."""
    seen: list[Frame] = []
    durable: list[Frame] = []
    check_topics(settings)
    following = asyncio.create_task(Follower(settings, [seen.extend], durable.extend).run())
    async with producing(settings) as producer:
        stage = to_kafka(settings, producer)
        tried = 0
        async with asyncio.timeout(120):
            while not seen:
                tried += 1
                await put(stage, [frame(tried, node="try")])
                await asyncio.sleep(0.5)
        await put(stage, [frame(n, node=f"n{n}") for n in range(1, 9)])
        await eventually(lambda: len({one.node for one in seen}) == 9, "all frames")
        await asyncio.sleep(2.0)
        assert durable == []
        async with writing(settings, ledger):
            await eventually(lambda: len({one.node for one in durable}) == 9, "all stored", 8.0)
            assert Stored(ledger).frames() >= 9
    following.cancel()
    assert {one.window_start_ms for one in durable} <= {one.window_start_ms for one in seen}
