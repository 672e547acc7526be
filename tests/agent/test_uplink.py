"""Every frame in the spool reaches the collector as it was appended, whatever the wire does."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.errors import UplinkRefused
from joulegram.agent.spool.spool import Spool
from joulegram.agent.uplink.address import address
from joulegram.agent.uplink.in_flight import BACKLOG, IN_FLIGHT
from joulegram.agent.uplink.uplink import Uplink, stamped
from joulegram.v1.telemetry_pb2 import Ack, Frame, SeqRange
from tests.agent.made_frames import made_frame, serialised
from tests.agent.played_collector import (
    Drop,
    PlayedCollector,
    Received,
    acknowledge,
    playing,
    refuse,
)
from tests.servers import free_port, wait_until


@contextlib.contextmanager
def linked(
    spool: Spool, address: str, ack_timeout_s: float = 60.0, stop_s: float = 2.0
) -> Iterator[Uplink]:
    uplink = Uplink(
        spool, address, first_backoff_s=0.02, max_backoff_s=0.2, ack_timeout_s=ack_timeout_s
    )
    uplink.start()
    try:
        yield uplink
    finally:
        uplink.stop(stop_s)
        assert uplink.stats().state == "stopped"


def fill(spool: Spool, count: int, epoch: int = 1) -> dict[tuple[int, int], bytes]:
    made = [made_frame(seq, epoch, processes=10) for seq in range(1, count + 1)]
    for frame in made:
        spool.append(frame)
    return {(frame.epoch, frame.seq): serialised(frame) for frame in made}


def bodies(collector: PlayedCollector) -> dict[tuple[int, int], set[bytes]]:
    """Every version of every frame that ever arrived."""
    found: dict[tuple[int, int], set[bytes]] = {}
    for one in collector.received:
        found.setdefault((one.epoch, one.seq), set()).add(one.body)
    return found


def test_frames_arrive_as_they_were_appended_and_say_when_they_were_sent(spool: Spool) -> None:
    made = fill(spool, 30, epoch=2**64 - 1)
    before_ms = time.time_ns() // 1_000_000
    with playing(PlayedCollector()) as collector, linked(spool, collector.address) as uplink:
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        stats = uplink.stats()
    assert bodies(collector) == {key: {body} for key, body in made.items()}
    assert len(collector.received) == 30
    assert all(before_ms <= one.sent_at_ms <= time.time_ns() // 1_000_000 + 1
               for one in collector.received)  # fmt: skip
    assert (stats.sent, stats.acked, stats.streams, stats.state) == (30, 30, 1, "connected")
    assert spool.stats().acked == 30


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_or_changed_over_broken_streams(spool: Spool, seed: int) -> None:
    """Acks that come late, alone, together, or never; streams that break; servers that die."""
    rng = random.Random(seed)
    held: list[Received] = []

    def moody(frame: Received) -> Ack | None:
        mood = rng.random()
        if mood < 0.1:
            held.clear()
            raise Drop(rng.choice((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN,
                                   grpc.StatusCode.RESOURCE_EXHAUSTED)))  # fmt: skip
        held.append(frame)
        if mood < 0.5 and len(held) < 4:
            return None
        ack = Ack(durable=[SeqRange(epoch=o.epoch, first_seq=o.seq, last_seq=o.seq) for o in held])
        held.clear()
        return ack

    collector = PlayedCollector(moody)
    made = fill(spool, 60)
    with linked(spool, collector.address) as uplink:
        for epoch in range(2, 6):
            collector.start()
            made |= fill(spool, 15, epoch)
            uplink.wake()
            count = len(collector.received)
            with contextlib.suppress(AssertionError):
                collector.wait_for(lambda count=count: len(collector.received) > count + 20, 1.0)  # type: ignore[misc]
            collector.stop()
            held.clear()
        collector.answer = acknowledge
        with playing(collector):
            uplink.wake()
            wait_until(lambda: spool.pending() == 0, "all acknowledged")
    assert bodies(collector) == {key: {body} for key, body in made.items()}
    assert set(collector.acked) == set(made)
    assert collector.streams > 4


def test_a_refused_frame_does_not_stop_the_stream(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 20)

    def choosy(frame: Received) -> Ack | None:
        if frame.seq % 5 == 0:
            return refuse(frame, "sums", "cpu rows sum to 7, cpu0 drew 8: a defect of the agent")
        if frame.seq == 7:
            return refuse(frame, "some text from outside " + "x" * 5000)
        return acknowledge(frame)

    with playing(PlayedCollector(choosy)) as collector:
        with linked(spool, collector.address) as uplink:
            wait_until(lambda: spool.pending() == 0, "all settled")
        assert uplink.stats().refused == {"sums": 4, "other": 1}
        assert uplink.stats().streams == 1
    assert (spool.stats().acked, spool.stats().refused) == (15, 5)
    assert caplog.text.count("cpu rows sum to 7") == 1


def test_a_bounded_number_waits_and_a_backlog_takes_half(spool: Spool) -> None:
    fill(spool, 40)
    go = threading.Event()

    def first_only(frame: Received) -> Ack | None:
        go.wait(10)
        return acknowledge(frame) if frame.seq == 1 else None

    with playing(PlayedCollector(first_only)) as collector, linked(spool, collector.address):
        time.sleep(0.3)
        assert not collector.received  # the first waits for `go`, the others for it
        go.set()
        expected = {1, 2, 3, 4, 5, 38, 39, 40}
        collector.wait_for(lambda: len(collector.received) == len(expected))
        time.sleep(0.3)
        assert {one.seq for one in collector.received} == expected
        assert len(expected) - 1 == BACKLOG + 3 < IN_FLIGHT


def test_fresh_frames_overtake_a_backlog(spool: Spool) -> None:
    fill(spool, 1000)
    unacknowledged = 0

    def slow(frame: Received) -> Ack | None:
        nonlocal unacknowledged
        time.sleep(0.005)
        stats = uplink.stats()
        unacknowledged = max(unacknowledged, stats.sent - stats.acked)
        return acknowledge(frame)

    with playing(PlayedCollector(slow)) as collector, linked(spool, collector.address) as uplink:
        for seq in range(1, 6):
            collector.wait_for(lambda seq=seq: len(collector.received) > 30 * seq)  # type: ignore[misc]
            spool.append(made_frame(seq, epoch=9))
            at = len(collector.received)
            uplink.wake()
            collector.wait_for(lambda seq=seq: (9, seq) in bodies(collector))  # type: ignore[misc]
            arrived = [(one.epoch, one.seq) for one in collector.received].index((9, seq))
            assert arrived - at <= IN_FLIGHT
            assert spool.pending() > 500
    assert IN_FLIGHT // 2 < unacknowledged <= IN_FLIGHT


def test_frames_wait_for_a_collector_that_is_not_there_yet(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 5)
    collector = PlayedCollector()
    with linked(spool, collector.address) as uplink:
        wait_until(lambda: "no way to the collector" in caplog.text, "a complaint")
        assert spool.pending() == 5
        assert uplink.stats().sent == uplink.stats().streams == 0
        with playing(collector):
            wait_until(lambda: spool.pending() == 0, "all acknowledged")
    assert caplog.text.count("Connection refused") == 1


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "credentials"),
        (grpc.StatusCode.UNIMPLEMENTED, "gRPC port"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "trying again"),
    ],
)
def test_a_refused_stream_says_what_to_do_and_touches_few_frames(
    spool: Spool, caplog: pytest.LogCaptureFixture, code: grpc.StatusCode, remedy: str
) -> None:
    fill(spool, 50)

    def closed(frame: Received) -> Ack | None:
        raise Drop(code)

    with playing(PlayedCollector(closed)) as collector, linked(spool, collector.address):
        collector.wait_for(lambda: collector.streams >= 5)
        assert len(bodies(collector)) <= 2
        assert spool.pending() == 50
    assert remedy in caplog.text


def test_fresh_frames_pass_one_that_kills_its_stream(spool: Spool) -> None:
    fill(spool, 30)

    def allergic(frame: Received) -> Ack | None:
        if frame.epoch == 1 and frame.seq == 1:
            raise Drop(grpc.StatusCode.INTERNAL)
        return acknowledge(frame)

    with playing(PlayedCollector(allergic)) as collector, linked(spool, collector.address):
        for seq in range(1, 10):
            spool.append(made_frame(seq, epoch=2))
            collector.wait_for(lambda seq=seq: (2, seq) in collector.acked)  # type: ignore[misc]


def test_a_silent_collector_is_left_and_tried_again(spool: Spool) -> None:
    fill(spool, 3)

    def deaf_at_first(frame: Received) -> Ack | None:
        return acknowledge(frame) if frame.stream > 2 else None

    with (
        playing(PlayedCollector(deaf_at_first)) as collector,
        linked(spool, collector.address, ack_timeout_s=0.2),
    ):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert collector.streams >= 3


def test_stopping_sends_what_is_pending_and_hears_the_answers(spool: Spool) -> None:
    def after_a_while(frame: Received) -> Ack | None:
        time.sleep(0.01)
        return acknowledge(frame)

    with playing(PlayedCollector(after_a_while)) as collector:
        with linked(spool, collector.address, stop_s=30.0) as uplink:
            wait_until(lambda: uplink.stats().state == "connected", "a stream")
            fill(spool, 40)
        assert spool.pending() == 0
    assert len(collector.received) == 40


def test_a_stop_while_an_answer_comes_in_forgets_no_frame(spool: Spool) -> None:
    """What is acknowledged at that moment is not counted for what was never sent."""
    with playing(PlayedCollector()) as collector:
        for epoch in range(1, 41):
            uplink = Uplink(spool, collector.address)
            uplink.start()
            spool.append(made_frame(1, epoch))
            uplink.wake()
            collector.wait_for(lambda epoch=epoch: (epoch, 1) in collector.acked)  # type: ignore[misc]
            spool.append(made_frame(2, epoch))
            uplink.wake(3600.0)
            uplink.stop(20.0)
            assert spool.pending() == 0, epoch


@pytest.mark.parametrize("answer", [lambda frame: None, None], ids=["silent", "absent"])
def test_stopping_is_bounded_and_loses_nothing(
    spool: Spool, answer: Callable[[Received], Ack | None] | None
) -> None:
    made = fill(spool, 20)
    collector = PlayedCollector(answer or acknowledge)
    with playing(collector) if answer else contextlib.nullcontext():
        uplink = Uplink(spool, collector.address)
        uplink.start()
        time.sleep(0.2)
        begun_s = time.monotonic()
        uplink.stop(1.0)
        assert time.monotonic() - begun_s < 4.0
        assert spool.pending() == 20
    collector.answer = acknowledge
    with playing(collector), linked(spool, collector.address):
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
    assert bodies(collector) == {key: {body} for key, body in made.items()}


def test_a_name_that_does_not_resolve_is_a_complaint(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 1)
    uplink = Uplink(spool, "collector.invalid:7471", insecure=True, first_backoff_s=0.05)
    uplink.start()
    wait_until(lambda: "no way to the collector" in caplog.text, "a complaint")
    uplink.stop(1.0)
    assert spool.pending() == 1
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@given(st.integers(0, 2**62))
def test_the_time_of_sending_changes_nothing_else(now_ms: int) -> None:
    body = serialised(made_frame(1))
    sent = Frame.FromString(stamped(body, now_ms))
    assert sent.sent_at_ms == now_ms
    sent.ClearField("sent_at_ms")
    assert serialised(sent) == body


@pytest.mark.parametrize(
    "collector", ["127.0.0.1:7471", "127.9.9.9:1", "[::1]:7471", "localhost:65535"]
)
def test_this_machine_needs_no_encryption(collector: str) -> None:
    host, port = address(collector, insecure=False)
    assert collector in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize(
    "collector", ["10.0.0.1:7471", "collector.example:7471", "[2001:db8::1]:1"]
)
def test_beyond_this_machine_plaintext_must_be_asked_for(collector: str) -> None:
    with pytest.raises(UplinkRefused, match="insecure = true"):
        address(collector, insecure=False)
    address(collector, insecure=True)


@pytest.mark.parametrize(
    "collector",
    [
        "",
        ":",
        "host",
        "host:",
        ":7471",
        "h:0",
        "h:65536",
        "h:x",
        "::1:7471",
        "[h]:1",
        "[::1:1",
        "::1]:1",
    ],
)
def test_an_address_that_is_none_is_refused(collector: str) -> None:
    with pytest.raises(UplinkRefused, match="HOST:PORT"):
        address(collector, insecure=True)


def test_waking_never_waits(spool: Spool) -> None:
    uplink = Uplink(spool, f"127.0.0.1:{free_port()}")
    uplink.start()
    begun_s = time.monotonic()
    for _ in range(10_000):
        uplink.wake()
    assert time.monotonic() - begun_s < 5.0
    uplink.stop(1.0)
