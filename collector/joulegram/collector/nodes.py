"""Nodes that are gone for good: from then on their silence lowers no coverage."""

from collections.abc import Mapping
from datetime import UTC, datetime

from joulegram.collector.errors import BadSetting
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.settings import known, record


def check_retired(retired: Mapping[str, str]) -> dict[str, int]:
    """{node: retired since, epoch seconds}. Raises: BadSetting for what is not a date."""
    return {node: _epoch_s(node, since) for node, since in retired.items()}


def record_retired(ledger: Ledger, retired: Mapping[str, int], now_ms: int) -> None:
    """Append what differs from what the ledger knows; a node no longer named is back."""
    for node, since_s in retired.items():
        record(ledger, "retired", True, now_ms=now_ms, name=node, valid_from_s=since_s)
    for node in {s.name for s in known(ledger, "retired", now_ms)} - retired.keys():
        record(ledger, "retired", False, now_ms=now_ms, name=node)


def _epoch_s(node: str, since: str) -> int:
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as exc:
        raise BadSetting(
            f"collector.retired.{node} = {since!r}: write the date since when it is gone, such "
            "as 2026-11-01 or 2026-11-01T12:00Z."
        ) from exc
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
