"""The team rules in the ledger, with knowledge time; what they mean is in rules.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rules import check_rules
from joulegram.collector.settings import in_force, known, record


def record_rules(ledger: Ledger, rules: Sequence[Mapping[str, Any]], now_ms: int) -> bool:
    """Append the rules when they differ from what the ledger knows. At start, before serving.

    The list is one statement for all time (its order is part of it); each rule carries its own
    `since`. An edited list changes past answers; as of an earlier date the earlier list answers.
    """
    checked = check_rules(rules)
    if not checked and not known(ledger, "teams", now_ms):
        return False
    return record(ledger, "teams", checked, now_ms=now_ms)


def rules(ledger: Ledger, as_of_ms: int) -> list[dict[str, str]]:
    """The rules as they were known then."""
    statement = in_force(known(ledger, "teams", as_of_ms), as_of_ms // 1000)
    return [] if statement is None else list(statement.value)
