"""Who may change the schema of servers: a lease on which all of them agree.

The states of the lease are tables `schema_lease_<n>`; the newest says who holds it and until
when, in the defaults of its columns. To take, renew or give back is to create the next one. Servers
refuse a CREATE TABLE of a table that is there, so of two who want the same step one loses, and on
a cluster the servers run statements ON CLUSTER in one order. A holder that dies holds it until
its time is up.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from joulegram.collector.errors import LeaseTaken, LedgerFailed
from joulegram.collector.ledger.ledger import Ledger, literal

LEASE_S = 300  # longer than a step's statements may take
_TABLE = re.compile(r"schema_lease_(\d{9})")


@dataclass(frozen=True, slots=True)
class State:
    """Of the lease; without a holder it is free."""

    number: int
    holder: str
    until_s: int


@contextlib.contextmanager
def lease(
    ledger: Ledger,
    *,
    holder: str = "",
    clock: Callable[[], float] = time.time,
) -> Iterator[Callable[[], None]]:
    """Hold the lease while the block runs. Yields: what renews it, to be called before each step.

    Raises: LeaseTaken naming the holder, here or when renewing: somebody took it over since its
        time was up.
    """
    own = _clean(holder or f"{socket.gethostname()}:{os.getpid()}")
    states = _States(ledger, f" ON CLUSTER `{ledger.cluster}`" if ledger.cluster else "")
    last = states.newest()
    if last.holder and last.until_s > clock():
        raise LeaseTaken(_taken(last, clock()))
    held = [states.follow(last, own, int(clock()) + LEASE_S)]

    def renew() -> None:
        held.append(states.follow(held[-1], own, int(clock()) + LEASE_S))

    try:
        yield renew
    finally:
        # Somebody may have taken it over, which is as good; else its time will be up.
        with contextlib.suppress(LeaseTaken, LedgerFailed):
            states.follow(held[-1], "", 0)


@dataclass(frozen=True, slots=True)
class _States:
    ledger: Ledger
    everywhere: str  # ON CLUSTER, or nothing

    def newest(self) -> State:
        found = self.ledger.query(
            "SELECT table AS state, max(if(name = 'holder', default_expression, '')) AS holder, "
            "max(if(name = 'until_s', default_expression, '')) AS until FROM system.columns "
            "WHERE database = currentDatabase() AND table LIKE 'schema_lease_%' GROUP BY table"
        ).to_pylist()
        states = [
            State(int(match[1]), row["holder"].strip("'"), _first_number(row["until"]))
            for row in found
            if (match := _TABLE.fullmatch(row["state"]))
        ]
        return max(states, key=lambda state: state.number, default=State(0, "", 0))

    def follow(self, last: State, holder: str, until_s: int) -> State:
        """Make the state after `last`. Raises LeaseTaken when somebody else has made it."""
        mine = State(last.number + 1, holder, until_s)
        try:
            self.ledger.execute(
                f"CREATE TABLE {_name(mine.number)}{self.everywhere} "
                f"(holder String DEFAULT {literal(holder)}, until_s UInt32 DEFAULT {until_s}) "
                "ENGINE = Memory"
            )
        except Exception as refused:
            newest = self.newest()
            if newest != mine:
                # Not made by us: the server said so, or could not be asked.
                if newest.number < mine.number:
                    raise
                raise LeaseTaken(_taken(newest, time.time())) from refused
        newest = self.newest()
        if newest != mine:
            # We were so slow that others went on and cleared away what we made again.
            raise LeaseTaken(_taken(newest, time.time()))
        for number in range(max(1, mine.number - 3), mine.number):
            self.ledger.execute(f"DROP TABLE IF EXISTS {_name(number)}{self.everywhere}")
        return mine


def _name(number: int) -> str:
    return f"schema_lease_{number:09}"


def _taken(state: State, now_s: float) -> str:
    left_s = max(0, round(state.until_s - now_s))
    return (
        f"{state.holder or 'somebody'} migrates the servers right now. Try again when it is done; "
        f"if it died, in {left_s} s at the latest."
    )


def _clean(holder: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.:@-]", "_", holder)[:100]


def _first_number(expression: str) -> int:
    """Of `12345`, or `CAST(12345, 'UInt32')` as older servers write it."""
    match = re.search(r"\d+", expression.removeprefix("CAST"))
    return int(match[0]) if match else 0
