"""What the operator said, with valid time and knowledge time: the `settings` table.

A row is never changed: a new statement is appended, and an answer as of a past date reads
the statements that were known by then.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulegram.collector.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Statement:
    """From `valid_from_s` on (epoch seconds) `value` holds, as was known at `known_at_ms`."""

    name: str
    valid_from_s: int
    known_at_ms: int
    value: Any


def known(ledger: Ledger, kind: str, as_of_ms: int) -> list[Statement]:
    """Every statement of a kind that was known by then, oldest knowledge first."""
    table = ledger.query(
        "SELECT DISTINCT name, toUInt32(valid_from) AS valid_from_s, known_at_ms, value "
        "FROM settings WHERE kind = {kind:String} AND known_at_ms <= {as_of:UInt64} "
        "ORDER BY known_at_ms, valid_from_s, name",
        {"kind": kind, "as_of": as_of_ms},
    )
    return [
        Statement(row["name"], row["valid_from_s"], row["known_at_ms"], json.loads(row["value"]))
        for row in table.to_pylist()
    ]


def in_force(statements: Sequence[Statement], at_s: int) -> Statement | None:
    """The statement that holds at a time: of those already valid, the one known last."""
    valid = [s for s in statements if s.valid_from_s <= at_s]
    return max(valid, key=lambda s: (s.known_at_ms, s.valid_from_s), default=None)


def record(
    ledger: Ledger,
    kind: str,
    value: Any,
    *,
    now_ms: int,
    name: str = "",
    valid_from_s: int = 0,
) -> bool:
    """Append a statement, unless the newest of its name says the same. True: appended."""
    newest = [s for s in known(ledger, kind, now_ms) if s.name == name][-1:]
    if newest and (newest[0].value, newest[0].valid_from_s) == (value, valid_from_s):
        return False
    ledger.insert(
        "settings",
        {
            "kind": np.array([kind]),
            "name": np.array([name]),
            "valid_from": np.array([valid_from_s], dtype=np.uint32),
            "known_at_ms": np.array([now_ms], dtype=np.uint64),
            "value": np.array([json.dumps(value, sort_keys=True)]),
        },
    )
    return True
