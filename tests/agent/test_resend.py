"""`joulegram resend`: what was acknowledged goes again, unchanged, whether an agent runs or not."""

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from joulegram.agent.config import AgentConfig, ResendOptions
from joulegram.agent.errors import BadSetting, SpoolFailed
from joulegram.agent.spool.home import energy_uj
from joulegram.agent.spool.resend import moment, resend, run
from joulegram.agent.spool.spool import Spool
from joulegram.agent.uplink.in_flight import BACKLOG
from joulegram.agent.uplink.uplink import Uplink
from tests.agent.made_frames import START_MS, WINDOW_MS, made_frame, serialised
from tests.agent.played_collector import PlayedCollector, playing
from tests.servers import wait_until

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_MS = time.time_ns() // 1_000_000
ACKED_MS = NOW_MS - 3_600_000  # long after the windows


def acknowledged(state: Path, count: int) -> list[bytes]:
    """A closed spool whose frames were acknowledged, 1 s apart."""
    now = [ACKED_MS]
    with contextlib.closing(Spool.open(state, "n1", now_ms=lambda: now[0])) as spool:
        for seq in range(1, count + 1):
            spool.append(made_frame(seq, processes=5))
            spool.offer(1, recent=True)
            now[0] = ACKED_MS + 1000 * seq
            spool.ack([(1, seq, seq)])
    return [serialised(made_frame(seq, processes=5)) for seq in range(1, count + 1)]


def again(state: Path) -> list[bytes]:
    with contextlib.closing(Spool.open(state, "n1")) as spool:
        every = spool.offer(1000, recent=False) + spool.offer(1000, recent=True)
        return [one.body for one in every]


@pytest.mark.parametrize(("since_ms", "first"), [
    (ACKED_MS + 4000, 4),  # acknowledged since then
    (NOW_MS, 99),  # nothing
    (START_MS - 1, 1),  # windows since then, whenever they were acknowledged
], ids=["acknowledged since", "nothing since", "windows since"])  # fmt: skip
def test_what_was_acknowledged_since_goes_again(tmp_path: Path, since_ms: int, first: int) -> None:
    bodies = acknowledged(tmp_path, 9)
    found = resend(tmp_path, "n1", since_ms, NOW_MS)
    assert found.frames == len(bodies[first - 1 :])
    assert found.energy_uj == sum(energy_uj(made_frame(s, processes=5)) for s in range(first, 10))
    assert found.oldest_kept_ms == ACKED_MS + 1000
    assert again(tmp_path) == bodies[first - 1 :]


def test_a_window_after_then_goes_again_though_its_ack_seems_older(tmp_path: Path) -> None:
    """The clock stepped back: the window is later than the time of its acknowledgement."""
    now = [START_MS - 10**7]
    with contextlib.closing(Spool.open(tmp_path, "n1", now_ms=lambda: now[0])) as spool:
        spool.append(made_frame(1))
        spool.offer(1, recent=True)
        spool.ack([(1, 1, 1)])
    assert resend(tmp_path, "n1", START_MS + WINDOW_MS, START_MS).frames == 1


def test_twice_asked_is_once_sent_and_what_waits_is_left_alone(tmp_path: Path) -> None:
    acknowledged(tmp_path, 3)
    with contextlib.closing(Spool.open(tmp_path, "n1")) as spool:
        spool.append(made_frame(4))
        spool.offer(9, recent=True)
        spool.quarantine(1, 4, "sums", "")
        spool.append(made_frame(5))
    assert resend(tmp_path, "n1", 0, NOW_MS).frames == 3
    assert resend(tmp_path, "n1", 0, NOW_MS).frames == 0
    assert len(again(tmp_path)) == 4


def test_a_running_agent_sends_them_beside_its_own(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "n1")
    made = {}
    for seq in range(1, 31):
        frame = made_frame(seq, processes=5)
        spool.append(frame)
        made[seq] = serialised(frame)
    with contextlib.closing(spool), playing(PlayedCollector()) as collector:
        uplink = Uplink(spool, collector.address, first_backoff_s=0.02)
        uplink.start()
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert resend(tmp_path, "n1", START_MS, NOW_MS).frames == 30
        spool.append(made_frame(31, processes=5))
        uplink.wake()  # as the next window does
        wait_until(lambda: spool.pending() == 0, "all acknowledged again")
        uplink.stop(2.0)
    assert len(collector.received) == 61
    second = collector.received[30:]
    assert (1, 31) in [(one.epoch, one.seq) for one in second[: BACKLOG + 4]]
    assert {one.seq: one.body for one in second if one.seq < 31} == made


def test_at_the_bound_what_was_asked_for_again_goes_before_what_never_arrived(
    tmp_path: Path,
) -> None:
    limit = 1_000_000
    spool = Spool.open(tmp_path, "n1", max_bytes=limit)
    seq = 0
    while spool.stats().used_bytes < limit * 0.8:
        seq += 1
        spool.append(made_frame(seq, processes=300))
        spool.offer(1, recent=True)
        spool.ack([(1, seq, seq)])
    resend(tmp_path, "n1", 0, NOW_MS)
    fresh = 0
    while not spool.stats().folded:
        fresh += 1
        spool.append(made_frame(fresh, epoch=2, processes=300))
    gone = sum(energy_uj(made_frame(s, processes=300)) for s in range(1, seq + 1))
    assert spool.stats().dropped_uj == {"resend": gone}
    spool.close()


def test_whose_spool_it_is_matters(tmp_path: Path) -> None:
    acknowledged(tmp_path, 1)
    with pytest.raises(SpoolFailed, match="belongs to node 'n1', not to 'n2'"):
        resend(tmp_path, "n2", 0, 0)
    with pytest.raises(SpoolFailed, match="--state DIR"):
        resend(tmp_path / "elsewhere", "n1", 0, 0)
    assert not (tmp_path / "elsewhere").exists()


def test_it_says_how_much_and_what_is_no_longer_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acknowledged(tmp_path, 3)
    config = AgentConfig(node="n1", state=tmp_path)
    assert run(config, ResendOptions(since="2025-06-01")) == 0
    said = capsys.readouterr()
    uj = sum(energy_uj(made_frame(seq, processes=5)) for seq in range(1, 4))
    assert f"3 frames, {uj // 10**6}.{uj % 10**6:06d} J" in said.out
    oldest = datetime.fromtimestamp(ACKED_MS // 1000 + 1, UTC)
    assert f"none from before {oldest:%Y-%m-%dT%H:%M:%S}Z" in said.err
    with pytest.raises(BadSetting, match="time of the backup"):
        run(config, ResendOptions())


@pytest.mark.parametrize(("text", "iso"), [
    ("90m", "2026-03-01T10:30:00+00:00"),
    ("2026-02-01", "2026-02-01T00:00:00+00:00"),
    ("2026-02-01T12:00+05:45", "2026-02-01T06:15:00+00:00"),
    ("2026-02-01T12:00Z", "2026-02-01T12:00:00+00:00"),
])  # fmt: skip
def test_times_as_people_write_them(text: str, iso: str) -> None:
    assert moment(text, NOW).isoformat() == iso


@pytest.mark.parametrize("text", ["", "yesterday", "5y", "2026-13-01", "999999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="--since"):
        moment(text, NOW)
