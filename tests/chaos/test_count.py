"""A frame that is lost, doubled or nobody's is found, and named."""

import pytest

from chaos.count import Made, Outcome, Stored, settle
from chaos.spools import gone

FAULTS = [(10.0, "kill -9, agent"), (20.0, "reset, link to collector")]
MADE = [
    Made(("n1", 1, 1), 100, 5.0, kept=True),
    Made(("n1", 1, 2), 250, 12.0, kept=True),
    Made(("n1", 1, 3), 30, 19.9, kept=False),
    Made(("n2", 9, 1), 7, 25.0, kept=True),
    Made(("n2", 9, 2), 8, 5.0, kept=True, fault="repeated"),
]
THERE = {("n1", 1, 1): 100, ("n1", 1, 2): 250, ("n2", 9, 1): 7, ("n2", 9, 2): 8}


def settled(frames: dict[tuple[str, int, int], int], **more: object) -> Outcome:
    of_nodes = {
        node: sum(uj for key, uj in frames.items() if key[0] == node) for node in ("n1", "n2")
    }
    stored = Stored(frames, of_nodes, of_nodes, len(frames))
    return settle(MADE, stored, FAULTS, times={"repeated": 3}, **more)  # type: ignore[arg-type]


def lines(outcome: Outcome) -> dict[str, tuple[int, ...]]:
    return {
        row.fault: (row.times, row.sent_uj, row.stored_uj, row.lost_uj, row.doubled_uj)
        for row in outcome.rows
    }


def test_what_was_sent_is_stored() -> None:
    outcome = settled(THERE)
    assert not outcome.wrong
    assert lines(outcome) == {
        "none": (0, 100, 100, 0, 0),
        # The third frame's agent was killed before its spool had it.
        "kill -9, agent": (1, 250, 250, 0, 0),
        "reset, link to collector": (1, 7, 7, 0, 0),
        "repeated": (3, 8, 8, 0, 0),
    }


def test_a_frame_whose_keeping_nobody_saw_counts_once_it_is_there() -> None:
    outcome = settled(THERE | {("n1", 1, 3): 30})
    assert not outcome.wrong
    assert lines(outcome)["kill -9, agent"] == (1, 280, 280, 0, 0)


def test_a_lost_frame() -> None:
    outcome = settled({key: uj for key, uj in THERE.items() if key != ("n1", 1, 2)})
    assert outcome.wrong == ["lost: n1, epoch 0x1, frame 2: sent 250 uJ, stored 0 uJ"]
    assert lines(outcome)["kill -9, agent"] == (1, 250, 0, 250, 0)


def test_a_lost_microjoule() -> None:
    outcome = settled(THERE | {("n2", 9, 1): 6})
    assert len(outcome.wrong) == 1
    assert lines(outcome)["reset, link to collector"] == (1, 7, 6, 1, 0)


def test_a_doubled_frame() -> None:
    outcome = settled(THERE | {("n2", 9, 2): 16})
    assert len(outcome.wrong) == 1
    assert lines(outcome)["repeated"] == (3, 8, 16, 0, 8)


def test_a_frame_of_nobody() -> None:
    outcome = settled(THERE | {("n2", 10, 1): 5})
    assert outcome.wrong == ["nobody sent it: n2, epoch 0xa, frame 1: 5 uJ"]
    assert lines(outcome)["none"] == (0, 100, 100, 0, 5)


def test_a_frame_that_a_spool_counted_as_dropped() -> None:
    frames = {key: uj for key, uj in THERE.items() if key != ("n1", 1, 2)}
    outcome = settled(frames, dropped=[("n1", 1, 2)])
    assert not outcome.wrong
    assert lines(outcome)["kill -9, agent"] == (1, 0, 0, 0, 0)
    assert sum(row.dropped_uj for row in outcome.rows) == 250


def test_readers_that_disagree() -> None:
    stored = Stored(THERE, {"n1": 350, "n2": 15}, {"n1": 350, "n2": 16}, 4)
    outcome = settle(MADE, stored, FAULTS, times={})
    assert outcome.wrong == ["slots of n2 hold 16 uJ, its rows 15 uJ"]


@pytest.mark.parametrize(
    ("counted_uj", "counted_frames", "found"),
    [
        (0, 0, set()),
        (250, 0, {("n1", 1, 2)}),  # the full spool's count is exact
        (249, 0, set()),
        (250, 1, {("n1", 1, 2), ("n2", 9, 1)}),
        (257, 0, set()),
        (0, 1, {("n2", 9, 1)}),
    ],
)
def test_only_what_the_agent_counted_may_be_missing(
    counted_uj: int, counted_frames: int, found: set[tuple[str, int, int]]
) -> None:
    missing = [MADE[1], MADE[3]]
    assert set(gone(missing, counted_uj, counted_frames, {("n2", 9, 1)})) == found
