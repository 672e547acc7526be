"""Retired nodes: said in the configuration, kept with knowledge time, taken back."""

import pytest

from joulegram.collector.errors import BadSetting
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.nodes import check_retired, record_retired
from joulegram.collector.settings import in_force, known

NOV_1_S = 1_793_491_200


def test_a_date_is_midnight_utc_and_a_zone_counts():
    assert check_retired({"a": "2026-11-01", "b": "2026-11-01T01:00+01:00"}) == {
        "a": NOV_1_S,
        "b": NOV_1_S,
    }


def test_what_is_no_date_is_refused_with_its_remedy():
    with pytest.raises(BadSetting, match=r"collector\.retired\.n7 = 'yes'.*2026-11-01"):
        check_retired({"n7": "yes"})


def test_a_node_that_is_no_longer_named_is_back(tmp_path):
    ledger = ChdbLedger(tmp_path)
    migrate(ledger)
    record_retired(ledger, {"n7": NOV_1_S}, now_ms=1000)
    record_retired(ledger, {"n7": NOV_1_S}, now_ms=2000)
    record_retired(ledger, {}, now_ms=3000)
    record_retired(ledger, {}, now_ms=4000)
    statements = known(ledger, "retired", 9000)
    assert [s.known_at_ms for s in statements] == [1000, 3000]
    now = in_force(statements, NOV_1_S + 1)
    before = in_force(known(ledger, "retired", 2500), NOV_1_S + 1)
    assert now is not None and now.value is False
    assert before is not None and before.value is True
    ledger.close()
