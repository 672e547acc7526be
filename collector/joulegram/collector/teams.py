"""Who answers for a workload: rules from the configuration, first match wins."""

from collections.abc import Mapping, Sequence
from typing import Any

from joulegram.collector.ledger.chdb import ChdbLedger

UNASSIGNED = "unassigned"


def check_rules(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rules as the ledger stores them.

    Raises: BadSetting naming the rule's number, the key and the remedy.
    """
    raise NotImplementedError


def record_rules(ledger: ChdbLedger, rules: Sequence[Mapping[str, Any]], now_ms: int) -> bool:
    """Append the rules when they differ from what the ledger knows. At start, before serving."""
    raise NotImplementedError


def team_of(rules: Sequence[Mapping[str, str]], who: Mapping[str, Any], at_s: int) -> str:
    """The team of a workload at a time.

    Args:
        rules: as `check_rules` returns them.
        who: {scope, kind, id, user, project, name, attributes: {name: value}}.
        at_s: epoch seconds; rules whose `since` is later do not count.
    """
    raise NotImplementedError
