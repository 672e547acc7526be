"""What NESO says is read strictly: null is not zero, zero is an outage, nonsense is set aside."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector.grid import neso

NOW_MS = 1_772_719_800_000  # 2026-03-05T14:10Z
DOCUMENTED: dict[str, Any] = {
    "data": [
        {
            "from": "2026-03-05T13:30Z",
            "to": "2026-03-05T14:00Z",
            "intensity": {"forecast": 140, "actual": 145, "index": "moderate"},
        },
        {
            "from": "2026-03-05T14:00Z",
            "to": "2026-03-05T14:30Z",
            "intensity": {"forecast": 143, "actual": None, "index": "moderate"},
        },
    ]
}


def changed(**intensity: Any) -> dict[str, Any]:
    payload = copy.deepcopy(DOCUMENTED)
    payload["data"][0]["intensity"].update(intensity)
    return payload


def test_the_documented_answer() -> None:
    past, now = neso.parse(DOCUMENTED, NOW_MS).rows
    assert (past.g_per_kwh, past.quality) == (145, "estimated")
    assert (now.g_per_kwh, now.quality) == (143, "forecast")
    assert (past.valid_from_s, past.valid_to_s) == (1_772_717_400, 1_772_719_200)
    assert {row.basis for row in (past, now)} == {"average-direct-consumption"}
    assert {(row.zone, row.provider, row.known_at_ms) for row in (past, now)} == {
        ("GB", "neso", NOW_MS)
    }


@pytest.mark.parametrize(
    ("intensity", "value", "quality", "quarantined"),
    [
        ({"actual": None}, 140, "forecast", {}),
        ({"actual": 0}, 140, "forecast", {"zero": 1}),
        ({"actual": -3}, 140, "forecast", {"outlier": 1}),
        ({"actual": 938}, 140, "forecast", {"outlier": 1}),
        ({"actual": 937}, 937, "estimated", {}),
        ({"actual": 14.5}, 14.5, "estimated", {}),
        ({"actual": float("nan")}, 140, "forecast", {"outlier": 1}),
        ({"actual": 0, "forecast": 13_021}, None, None, {"zero": 1, "outlier": 1}),
        ({"actual": None, "forecast": None}, None, None, {}),
        ({"actual": "145"}, None, None, {"shape": 1}),
        ({"actual": True}, None, None, {"shape": 1}),
        ({"forecast": [1]}, None, None, {"shape": 1}),
        ({"actual": 10**400}, None, None, {"shape": 1}),
    ],
)
def test_a_value_that_cannot_be_is_counted_and_not_stored(
    intensity: dict[str, Any],
    value: float | None,
    quality: str | None,
    quarantined: dict[str, int],
) -> None:
    answer = neso.parse(changed(**intensity), NOW_MS)
    rows = [row for row in answer.rows if row.valid_from_s == 1_772_717_400]
    assert [(row.g_per_kwh, row.quality) for row in rows] == (
        [] if value is None else [(value, quality)]
    )
    assert dict(answer.quarantined) == quarantined
    assert len(answer.rows) == len(rows) + 1, "the other half hour is stored all the same"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("from", "2026-03-05T13:30", "shape"),
        ("from", "2026-03-05T13:30:00Z", "shape"),
        ("from", None, "shape"),
        ("to", "2026-03-05T13:30Z", "interval"),
        ("to", "2026-03-06T13:30Z", "interval"),
        ("from", "2019-03-05T13:30Z", "interval"),
        ("from", "9999-03-05T13:30Z", "interval"),
        ("intensity", None, "shape"),
        ("intensity", 140, "shape"),
    ],
)
def test_an_interval_that_cannot_be_is_counted_and_not_stored(
    key: str, value: Any, reason: str
) -> None:
    payload = copy.deepcopy(DOCUMENTED)
    payload["data"][0][key] = value
    answer = neso.parse(payload, NOW_MS)
    assert len(answer.rows) == 1 and dict(answer.quarantined) == {reason: 1}


def test_one_interval_may_come_bare() -> None:
    assert len(neso.parse({"data": DOCUMENTED["data"][0]}, NOW_MS).rows) == 1


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "shape"),
        ([], "shape"),
        ("data", "shape"),
        ({"error": {"code": "500", "message": "sorry"}}, "shape"),
        ({"data": None}, "shape"),
        ({"data": []}, "empty"),
        ({"data": [None, 3]}, "shape"),
        ({"data": [{"from": "x", "to": "y", "carbon": {}}]}, "shape"),
    ],
)
def test_an_answer_of_another_shape_is_a_failure(payload: Any, reason: str) -> None:
    with pytest.raises(neso.FeedFailure) as failed:
        neso.parse(payload, NOW_MS)
    assert failed.value.reason == reason and reason in neso.REASONS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "from", "to", "intensity", "actual"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_answer_breaks_more_than_itself(payload: Any) -> None:
    try:
        answer = neso.parse({"data": payload}, NOW_MS)
    except neso.FeedFailure as failed:
        assert failed.reason in neso.REASONS
    else:
        assert set(answer.quarantined) <= set(neso.QUARANTINED)
        assert all(0 < row.g_per_kwh <= 937 for row in answer.rows)
