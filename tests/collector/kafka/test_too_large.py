"""Poison that is too large to be parked as it is stops nobody."""

import asyncio
import contextlib
import random
from dataclasses import replace
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from prometheus_client import Gauge

from joulegram.collector.kafka import counters
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.consumer import PARKING_S, RECORDS_PER_POLL
from joulegram.collector.kafka.letters import CUT_BYTES, DeadLetters, Letter
from joulegram.collector.kafka.producer import Producer
from joulegram.collector.kafka.records import pack
from joulegram.collector.kafka.topics import check_topics
from joulegram.collector.ledger.ledger import Ledger
from tests.collector.kafka.passing import (
    Stored,
    committed,
    eventually,
    letters,
    producing,
    raw_record,
    writing,
    written,
)
from tests.collector.kafka.test_operating import deadletter, toml
from tests.collector.made_frames import NOW_MS, energy_uj, frame

ZEROS = bytes(40 * 2**20)


def gauge(metric: Gauge) -> float:
    return next(iter(metric.collect())).samples[0].value


async def compressed(settings: KafkaConfig, value: bytes, partition: int) -> None:
    """A record that its sender compressed; the broker asks how large that is."""
    client = KafkaProducer(
        bootstrap_servers=list(settings.brokers),
        compression_type="gzip",
        max_request_size=len(value) + 1_000,
    )
    with contextlib.closing(client):
        sent = client.send(settings.topic, value, partition=partition)
        await asyncio.to_thread(sent.get, 30)


async def test_what_is_too_large_is_parked_and_the_frames_behind_it_are_stored(
    settings: KafkaConfig, ledger: Ledger, tmp_path: Path
) -> None:
    check_topics(settings)
    frames = [frame(1, node=f"n{n}") for n in range(4)]
    long_name = frame(1, node="N" * (4 * 2**20))  # in it four times
    # It fits its own topic to the byte, with not a header.
    garbage = b"\x00" + random.Random(1).randbytes(RECORD_MOST_BYTES - 76)
    async with producing(settings) as producer:
        await compressed(settings, ZEROS, 0)
        await raw_record(producer, settings, garbage, 1)
        await raw_record(producer, settings, pack([long_name.SerializeToString()]), 2)
        for partition, one in enumerate(frames):
            await raw_record(producer, settings, pack([one.SerializeToString()]), partition)
        async with writing(settings, ledger):
            await eventually(lambda: committed(settings) == written(settings), "all of it")
    assert Stored(ledger).energy_uj() == energy_uj(frames)
    parked = {one.source.split(":")[1]: one for one in letters(settings)}
    assert len(parked) == 3
    assert (parked["0"].what, parked["0"].value) == ("record", ZEROS)
    assert (parked["2"].what, parked["2"].reason) == ("frame", "node")
    assert len(parked["2"].node) == 255
    cut = parked["1"]
    assert (cut.what, cut.reason, cut.value) == ("cut", "too_large", garbage[:CUT_BYTES])
    assert str(len(garbage)) in cut.detail and "begins no frame" in cut.detail
    config = toml(settings, tmp_path)
    listed = deadletter(config, "list", "--reason", "too_large").stdout
    assert f"--topic {settings.topic} --partition 1 --offset 0" in listed
    again = deadletter(config, "replay", "--reason", "too_large")
    assert again.returncode == 1 and "only its beginning" in again.stderr


async def test_a_topic_that_was_made_too_small_gets_the_beginnings(settings: KafkaConfig) -> None:
    check_topics(settings)
    admin = KafkaAdminClient(bootstrap_servers=list(settings.brokers))
    small = {"max.message.bytes": "20000", "min.insync.replicas": "1"}
    topic = ConfigResource(ConfigResourceType.TOPIC, settings.dead_letter_topic, small)
    admin.alter_configs([topic])
    admin.close()
    # It was checked before that.
    producer = Producer(settings, prepare=lambda _: None)
    producer.start()
    await eventually(lambda: producer.ready, "a producer")
    short = Letter("record", bytes(10_000), "bytes", "", "frames:0:0", NOW_MS)
    long = Letter("record", bytes(100_000), "bytes", "", "frames:0:1", NOW_MS)
    async with asyncio.timeout(30):
        await DeadLetters(settings, producer).park([long, short])
    await producer.close()
    found = {one.source: one for one in letters(settings)}
    assert found["frames:0:0"].what == "record"
    assert (found["frames:0:1"].what, len(found["frames:0:1"].value)) == ("cut", CUT_BYTES)


async def test_dead_letters_that_nobody_takes_hold_up_no_other_partition(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    """What waits for their topic is more than a writer may hold."""
    check_topics(settings)
    frames = [frame(n, node="n1") for n in range(1, 9)]
    async with producing(settings) as producer:
        await compressed(settings, ZEROS, 0)
        async with writing(settings, ledger, parks=False) as made:
            await eventually(lambda: bool(made.reader._stuck()), "the poison to be stuck")
            for one in frames:
                await raw_record(producer, settings, pack([one.SerializeToString()]), 1)
            await eventually(lambda: committed(settings) == 8, "the other partition")
        assert Stored(ledger).energy_uj() == energy_uj(frames)


async def test_what_waits_for_the_dead_letter_topic_is_bounded(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    """However many partitions have poison."""
    most = 2**20
    settings = replace(settings, partitions=8, fetch_max_bytes=most)
    check_topics(settings)
    poison = bytes(64 * 2**10)
    async with producing(settings) as producer:
        for partition in range(8):
            for _ in range(32):
                await raw_record(producer, settings, poison, partition)
        async with writing(settings, ledger, parks=False) as made:
            reader = made.reader
            await eventually(lambda: reader._in_flight >= 4 * most, "it to be full")
            assert gauge(counters.IN_FLIGHT_LIMIT) <= 4 * most
            await asyncio.sleep(3 * PARKING_S)
            # Beside the bound what one poll brings.
            assert reader._in_flight < 4 * most + RECORDS_PER_POLL * len(poison)
            assert gauge(counters.IN_FLIGHT) == reader._in_flight
            assert gauge(counters.IN_FLIGHT_LIMIT) == 4 * most
