"""What may leave on a stream, and how seldom the spool is asked for it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulegram.agent.spool.spool import RECENT, Spool
from joulegram.agent.uplink.in_flight import BACKLOG, IN_FLIGHT, InFlight
from joulegram.agent.uplink.patience import Patience
from joulegram.agent.uplink.uplink import Uplink
from tests.agent.made_frames import made_frame
from tests.agent.played_collector import PlayedCollector, playing


class Asked:
    """A spool's frames, and how often it was asked for some."""

    def __init__(self, spool: Spool) -> None:
        self.offers = 0
        self._offer = spool.offer

    def offer(self, *args: Any, **keys: Any) -> Any:
        self.offers += 1
        return self._offer(*args, **keys)


@pytest.fixture
def asked(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    asked = Asked(spool)
    monkeypatch.setattr(spool, "offer", asked.offer)
    yield asked


def answered(spool: Spool, patience: Patience | None = None) -> InFlight:
    in_flight = InFlight(spool, patience or Patience(), probe_recent=True)
    in_flight.answered = True
    return in_flight


def sequence(in_flight: InFlight, *, news: bool = False, hold_newest: bool = False) -> list[int]:
    return [one.seq for one in in_flight.take(news=news, hold_newest=hold_newest)]


def acknowledge(spool: Spool, in_flight: InFlight, seq: int) -> None:
    spool.ack([(1, seq, seq)])
    in_flight.settle(in_flight.positions([(1, seq, seq)]))


def test_a_spool_that_gave_all_is_not_asked_before_there_is_news(
    spool: Spool, asked: Asked
) -> None:
    in_flight = answered(spool)
    spool.append(made_frame(1))
    assert sequence(in_flight) == [1]
    offers = asked.offers
    spool.append(made_frame(2))
    assert sequence(in_flight) == []
    acknowledge(spool, in_flight, 1)
    assert sequence(in_flight) == []
    assert asked.offers == offers
    assert sequence(in_flight, news=True) == [2]


def test_a_spool_that_has_more_is_asked_after_every_answer(spool: Spool) -> None:
    for seq in range(1, 31):
        spool.append(made_frame(seq))
    in_flight = answered(spool)
    sent = sequence(in_flight)
    assert sorted(sent) == [*range(1, 1 + BACKLOG), 28, 29, 30]
    for seq in range(1, 31):  # each acknowledged as soon as it was sent
        assert seq in sent
        acknowledge(spool, in_flight, seq)
        sent += sequence(in_flight)
        assert len(in_flight) <= IN_FLIGHT
    assert sorted(sent) == list(range(1, 31))


def test_damaged_frames_are_not_the_end_of_a_backlog(spool: Spool, tmp_path: Path) -> None:
    for seq in range(1, 31):
        spool.append(made_frame(seq))
    with contextlib.closing(sqlite3.connect(tmp_path / "spool/frames.db")) as db, db:
        db.execute("UPDATE frames SET crc = crc + 1 WHERE seq BETWEEN 3 AND 12")
    in_flight = answered(spool)
    sent = sequence(in_flight)
    for seq in (*range(1, 3), *range(13, 31)):
        assert seq in sent
        acknowledge(spool, in_flight, seq)
        sent += sequence(in_flight)
    assert spool.pending() == 0


def test_the_newest_frame_is_held_and_hides_no_other(spool: Spool) -> None:
    for seq in range(1, RECENT + 3):
        spool.append(made_frame(seq))
    in_flight = answered(spool)
    assert sorted(sequence(in_flight, hold_newest=True)) == list(range(1, RECENT + 2))
    assert sequence(in_flight, hold_newest=True) == []
    assert sequence(in_flight, news=True) == [RECENT + 2]


def test_a_frame_that_is_to_be_sent_again_is_asked_for(spool: Spool) -> None:
    spool.append(made_frame(1))
    now_s = 100.0
    patience = Patience((0.0, 30.0), clock=lambda: now_s)
    in_flight = answered(spool, patience)
    for wait_s in (0.0, 30.0):
        assert sequence(in_flight) == [1]
        positions = in_flight.positions([(1, 1, 1)])
        in_flight.settle(positions)
        assert patience.refused(positions[0])
        in_flight.ask_again()
        if wait_s:
            assert sequence(in_flight) == []
        now_s += wait_s
    assert sequence(in_flight) == [1]


def test_a_frame_costs_two_questions_to_the_spool(spool: Spool, asked: Asked) -> None:
    with playing(PlayedCollector()) as collector:
        uplink = Uplink(spool, collector.address)
        uplink.start()
        with contextlib.ExitStack() as stack:
            stack.callback(uplink.stop, 2.0)
            for seq in range(1, 23):
                if seq == 3:
                    begun = asked.offers
                spool.append(made_frame(seq))
                uplink.wake(0.02)
                collector.wait_for(lambda seq=seq: (1, seq) in collector.acked)  # type: ignore[misc]
            asked_in_all = asked.offers - begun
    assert asked_in_all <= 2 * 20 + 4
