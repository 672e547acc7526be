"""When an agent comes back, by how its stream ended; how long it bears with a clock."""

import grpc
import pytest

from joulegram.agent.run import hold_s
from joulegram.agent.uplink.comeback import Comeback, after_close, after_error
from joulegram.agent.uplink.patience import Patience
from joulegram.agent.uplink.uplink import SPREAD_MS, spread_s
from tests.agent.made_frames import made_frame

GONE, FULL = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


def asks(ms: object) -> list[tuple[str, str | bytes]]:
    return [("other", b"\xff"), ("retry-after-ms", str(ms))]


@pytest.mark.parametrize(
    ("code", "details", "trailing", "comeback"),
    [
        (GONE, "Connection reset by peer", [], Comeback("unavailable", 0, 2)),
        (GONE, "draining", [], Comeback("drained", 0, 30, normal=True)),
        (GONE, "the collector is stopping", [], Comeback("drained", 0, 30, normal=True)),
        (GONE, "max connection age", [], Comeback("aged", 0, 1, normal=True)),
        (FULL, "draining", [], Comeback("resource_exhausted", 0, 2)),
        (FULL, "busy", asks(8000), Comeback("resource_exhausted", 8, 10)),
        (GONE, "draining", asks(8000), Comeback("unavailable", 8, 10)),
        (FULL, "busy", asks(10**9), Comeback("resource_exhausted", 300, 375)),
        (FULL, "busy", asks(-5), Comeback("resource_exhausted", 0, 2)),
        (FULL, "busy", asks("soon"), Comeback("resource_exhausted", 0, 2)),
        (FULL, "busy", asks("9" * 400), Comeback("resource_exhausted", 0, 2)),
        (FULL, "busy", [("retry-after-ms", b"500")], Comeback("resource_exhausted", 0.5, 0.625)),
        (grpc.StatusCode.PERMISSION_DENIED, "", [], Comeback("permission_denied", 0, 2)),
    ],
)
def test_how_a_stream_ended_says_when_to_come_back(
    code: grpc.StatusCode,
    details: str,
    trailing: list[tuple[str, str | bytes]],
    comeback: Comeback,
) -> None:
    assert after_error(code, details, trailing, backoff_s=2, drain_s=30) == comeback


def test_a_clean_end_is_a_collector_that_drains() -> None:
    assert after_close(30) == Comeback("drained", 0, 30, normal=True)


def test_a_clock_is_borne_with_for_a_while_and_no_longer() -> None:
    now = [0.0]
    patience = Patience((0.0, 30.0, 120.0), clock=lambda: now[0])
    assert patience.refused(7)
    assert patience.held() == []  # at once
    assert patience.refused(7)
    assert (patience.held(), patience.next_due_s()) == ([7], 30.0)
    now[0] += 30
    assert (patience.held(), patience.next_due_s()) == ([], None)
    assert patience.refused(7)
    assert patience.next_due_s() == 120.0
    assert not patience.refused(7)
    assert patience.refused(7)  # forgotten: a frame asked for again begins anew
    patience.settled([7, 8])
    assert patience.held() == []


def test_patience_is_bounded() -> None:
    now = [0.0]
    patience = Patience((30.0,), most=5, clock=lambda: now[0])
    taken = [position for position in range(100) if patience.refused(position)]
    assert taken == list(range(10))  # twice as many as there may be before all else waits
    assert patience.full
    now[0] += 100  # they left the spool meanwhile: nobody settles them
    assert not patience.full
    assert patience.refused(1000)


def test_a_nodes_time_to_send_is_its_own_and_stays() -> None:
    assert spread_s("n1", 10_000) == 0.013
    times = [spread_s(f"node{number:05}", 10_000) for number in range(10_000)]
    assert 0 <= min(times) < max(times) < SPREAD_MS / 1000
    in_tenths = [sum(t // 0.2 == tenth for t in times) for tenth in range(10)]
    assert min(in_tenths) > 850 and max(in_tenths) < 1150
    assert all(spread_s(f"node{number}", 1000) < 1 for number in range(100))  # within its window


def test_a_fresh_frame_waits_for_its_nodes_time_wherever_the_clock_is() -> None:
    frame = made_frame(1, node="n3")
    after_s = spread_s("n3", 10_000)
    assert after_s > 0.5
    end_ms = frame.window_start_ms + frame.window_ms
    assert hold_s(frame, end_ms) == after_s
    assert hold_s(frame, end_ms + 500) == pytest.approx(after_s - 0.5)
    assert hold_s(frame, end_ms + 2000) == 0.0
    assert hold_s(frame, end_ms - 86_400_000) == after_s
    assert hold_s(frame, end_ms + 86_400_000) == 0.0
