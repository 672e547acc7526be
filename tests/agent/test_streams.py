"""A stream's end is not always an accident, and a frame does not always leave at once."""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from joulegram.agent.spool.spool import Spool
from joulegram.agent.uplink.patience import Patience
from joulegram.agent.uplink.uplink import Uplink
from joulegram.v1.telemetry_pb2 import Ack
from tests.agent.made_frames import made_frame, serialised
from tests.agent.played_collector import (
    Drop,
    PlayedCollector,
    Received,
    acknowledge,
    playing,
    refuse,
)
from tests.servers import wait_until

OK, GONE, FULL = (
    grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
)  # fmt: skip


@contextlib.contextmanager
def linked(spool: Spool, address: str, **options: Any) -> Iterator[Uplink]:
    options = {"first_backoff_s": 0.02, "max_backoff_s": 0.2, "drain_s": 0.1, **options}
    uplink = Uplink(spool, address, **options)
    uplink.start()
    try:
        yield uplink
    finally:
        uplink.stop(2.0)


def fill(spool: Spool, count: int, epoch: int = 1) -> None:
    for seq in range(1, count + 1):
        spool.append(made_frame(seq, epoch, processes=10))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("how", [Drop(OK), Drop(GONE, "draining")], ids=["closed", "unavailable"])
def test_a_collector_that_drains_is_no_accident(
    spool: Spool, caplog: pytest.LogCaptureFixture, how: Drop
) -> None:
    fill(spool, 20)

    def draining(frame: Received) -> Ack | None:
        if frame.stream < 4 and frame.seq % 4 == 0:
            raise how
        return acknowledge(frame)

    with (
        playing(PlayedCollector(draining)) as collector,
        linked(spool, collector.address) as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert uplink.stats().ends == {"drained": 3}
    assert not warnings(caplog)
    assert len(collector.acked) == 20


def test_one_that_drains_is_left_alone_for_a_while(spool: Spool) -> None:
    """The wait is drawn from 0 to `drain_s`: a long one shows; a stop sends what there is first."""
    fill(spool, 3)

    def gone_once(frame: Received) -> Ack | None:
        if frame.stream == 1:
            raise Drop(OK)
        return acknowledge(frame)

    with playing(PlayedCollector(gone_once)) as collector:
        with linked(spool, collector.address, drain_s=100_000.0) as uplink:
            wait_until(lambda: uplink.stats().ends == {"drained": 1}, "the end of a stream")
            wait_until(lambda: uplink.stats().state == "waiting", "it waits")
            assert collector.streams == 1
        assert collector.streams == 2
    assert spool.pending() == 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Drop(OK), "drained"),
        (Drop(GONE, "draining"), "drained"),
        (Drop(FULL, "busy", (("retry-after-ms", "20"),)), "resource_exhausted"),
    ],
    ids=["closed", "drained", "busy"],
)
def test_an_end_that_meets_a_write_is_told_by_the_collector_and_answers_before_it_count(
    spool: Spool, how: Drop, reason: str
) -> None:
    """While a back-fill goes on, frames are being written all the time."""
    fill(spool, 200)
    seen: dict[int, int] = {}

    def five_then_gone(frame: Received) -> Ack | None:
        seen[frame.stream] = seen.get(frame.stream, 0) + 1
        if seen[frame.stream] > 5:
            raise how
        return acknowledge(frame)

    with (
        playing(PlayedCollector(five_then_gone)) as collector,
        linked(spool, collector.address, drain_s=0.01) as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert set(uplink.stats().ends) == {reason}
    assert set(collector.acked.values()) == {1}


def test_a_collector_that_leaves_our_end_unanswered_is_left(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewed certificate ends the stream, and the collector hangs."""
    fill(spool, 3)
    hangs = True

    def silent(frame: Received) -> Ack | None:
        while hangs and frame.stream == 1:
            time.sleep(0.01)
        return acknowledge(frame)

    with playing(PlayedCollector(silent)) as collector:
        with linked(spool, collector.address, ack_timeout_s=1.0) as uplink:
            wait_until(lambda: collector.streams == 1, "a stream")
            monkeypatch.setattr(uplink._credentials, "_seen", [(1,)])
            uplink.wake()
            wait_until(lambda: spool.pending() == 0, "all acknowledged")
            assert collector.streams == 2
        hangs = False


def test_an_empty_answer_is_an_answer(spool: Spool) -> None:
    fill(spool, 20)

    def hesitant(frame: Received) -> Ack | None:
        return acknowledge(frame) if len(collector.received) > 3 else Ack()

    with (
        playing(PlayedCollector(hesitant)) as collector,
        linked(spool, collector.address, ack_timeout_s=5.0),
    ):
        collector.wait_for(lambda: len(collector.received) > 5, 3.0)
        assert collector.streams == 1


def test_a_frame_whose_time_comes_between_two_looks_is_not_forgotten(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        playing(PlayedCollector()) as collector,
        linked(spool, collector.address) as uplink,
    ):
        stale = uplink._credentials.stale

        def slow() -> bool:
            time.sleep(0.03)
            return stale()

        monkeypatch.setattr(uplink._credentials, "stale", slow)
        for seq in range(1, 6):
            spool.append(made_frame(seq))
            uplink.wake(0.03)
            time.sleep(0.02)
            uplink._soon(uplink._changed.set)
            collector.wait_for(lambda seq=seq: (1, seq) in collector.acked, 2.0)  # type: ignore[misc]


def test_a_held_frame_that_a_newer_one_overtakes_leaves_at_once(spool: Spool) -> None:
    with playing(PlayedCollector()) as collector, linked(spool, collector.address) as uplink:
        spool.append(made_frame(1))
        uplink.wake()
        collector.wait_for(lambda: (1, 1) in collector.acked)
        for seq in range(2, 6):
            spool.append(made_frame(seq))
            uplink.wake(3600.0)
            if seq > 2:
                collector.wait_for(lambda seq=seq: (1, seq - 1) in collector.acked, 5.0)  # type: ignore[misc]
        wait_until(lambda: spool.pending() == 1, "all but the newest acknowledged")


def test_a_connection_that_is_old_is_replaced_without_a_word(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC's own limit of age, as a collector behind a balancer sets it."""
    old = (("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 100))
    with (
        playing(PlayedCollector(options=old)) as collector,
        linked(spool, collector.address) as uplink,
    ):
        seq = 0
        while uplink.stats().ends.get("aged", 0) < 2:
            seq += 1
            spool.append(made_frame(seq, processes=10))
            uplink.wake()
            time.sleep(0.01)
            assert seq < 3000
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
    assert not warnings(caplog)
    assert {seq for _, seq in collector.acked} == set(range(1, seq + 1))


def test_a_busy_collector_says_when_to_come_back(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 3)
    times_s = []

    def busy_once(frame: Received) -> Ack | None:
        times_s.append(time.monotonic())
        if frame.stream == 1:
            raise Drop(FULL, "too many", (("retry-after-ms", "1500"),))
        return acknowledge(frame)

    with playing(PlayedCollector(busy_once)) as collector, linked(spool, collector.address):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
    assert times_s[1] - times_s[0] >= 1.5
    assert "too many" in caplog.text


def test_a_frame_refused_for_a_clock_is_offered_again_with_a_new_time(spool: Spool) -> None:
    """Sound, but it lay in a socket; only the time of its sending differs."""
    fill(spool, 6)
    times: dict[int, list[Received]] = {}

    def slow_way(frame: Received) -> Ack | None:
        times.setdefault(frame.seq, []).append(frame)
        time.sleep(0.005)
        if frame.seq == 3 and len(times[3]) < 3:
            return refuse(frame, "clock")
        return acknowledge(frame)

    patience = Patience((0.0, 0.05))
    with (
        playing(PlayedCollector(slow_way)) as collector,
        linked(spool, collector.address, patience=patience) as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        stats = uplink.stats()
    assert (stats.acked, stats.restamped, stats.refused, stats.streams) == (6, 2, {}, 1)
    assert [one.body for one in times[3]] == [serialised(made_frame(3, processes=10))] * 3
    stamps = [one.sent_at_ms for one in times[3]]
    assert stamps[0] < stamps[1] < stamps[2]


def test_a_clock_that_stays_wrong_sets_the_frame_apart(spool: Spool) -> None:
    fill(spool, 6)

    def skewed(frame: Received) -> Ack | None:
        return refuse(frame, "clock") if frame.seq == 3 else acknowledge(frame)

    with (
        playing(PlayedCollector(skewed)) as collector,
        linked(spool, collector.address, patience=Patience((0.0, 0.05))) as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "all settled")
        assert uplink.stats().refused == {"clock": 1}
    assert sum(one.seq == 3 for one in collector.received) == 3
    assert (spool.stats().acked, spool.stats().refused) == (5, 1)


def test_while_a_clock_is_wrong_for_all_few_frames_are_touched(spool: Spool) -> None:
    """A collector whose clock leapt loses no frame, if it is put right in time."""
    fill(spool, 200)
    right = False

    def leapt(frame: Received) -> Ack | None:
        return acknowledge(frame) if right else refuse(frame, "clock")

    patience = Patience((0.0, *[0.5] * 100), most=10)
    with (
        playing(PlayedCollector(leapt)) as collector,
        linked(spool, collector.address, patience=patience) as uplink,
    ):
        wait_until(lambda: patience.full, "as many as may wait")
        collector.wait_for(lambda: len(collector.received) > 60)
        assert len({one.seq for one in collector.received}) <= 20
        right = True
        wait_until(lambda: spool.pending() == 0, "all acknowledged", 30)
        assert uplink.stats().refused == {}
    assert spool.stats().acked == 200


def test_a_fresh_frame_leaves_at_its_time_and_holds_up_no_other(spool: Spool) -> None:
    arrived_s: dict[tuple[int, int], float] = {}

    def noted(frame: Received) -> Ack | None:
        arrived_s[frame.epoch, frame.seq] = time.monotonic()
        return acknowledge(frame)

    fill(spool, 30)
    with playing(PlayedCollector(noted)) as collector:
        spool.append(made_frame(1, epoch=2))
        begun_s = time.monotonic()
        uplink = Uplink(spool, collector.address)
        uplink.wake(2.0)
        uplink.start()
        collector.wait_for(lambda: len(collector.acked) == 30)
        collector.wait_for(lambda: (2, 1) in collector.acked)
        assert arrived_s[2, 1] - begun_s >= 2.0
        # One that stops sends at once.
        spool.append(made_frame(2, epoch=2))
        uplink.wake(3600.0)
        uplink.stop(10.0)
    assert (2, 2) in collector.acked
    assert spool.pending() == 0


def test_a_name_that_resolves_again_is_found(
    spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spool, 3)
    asked = 0
    resolve = socket.getaddrinfo

    def down(host: Any, *rest: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked <= 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", down)
    with (
        playing(PlayedCollector()) as collector,
        linked(spool, f"localhost:{collector.port}") as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert uplink.stats().ends == {"resolve": 3}
    assert len(warnings(caplog)) == 1
    assert "its name does not resolve: [Errno -3] Temporary failure" in caplog.text
