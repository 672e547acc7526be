"""When to come back to a collector after a stream ended, from how it ended. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc

RETRY_AFTER = "retry-after-ms"  # in the trailing metadata of a stream's end
RETRY_AFTER_MAX_S = 300.0
AGED_S = 1.0


@dataclass(frozen=True, slots=True)
class Comeback:
    """Wait a time drawn evenly from `least_s` to `most_s`. `normal`: nothing is wrong."""

    reason: str  # a label: resolve, connect, drained, aged..., or a gRPC status in small letters
    least_s: float
    most_s: float
    normal: bool = False


def after_close(drain_s: float) -> Comeback:
    """The collector ended the stream in peace: it drains, and all its agents come back."""
    return Comeback("drained", 0.0, drain_s, normal=True)


def after_error(
    code: grpc.StatusCode,
    details: str,
    trailing: Iterable[tuple[str, str | bytes]],
    backoff_s: float,
    drain_s: float,
) -> Comeback:
    """The stream ended with a status.

    Args:
        backoff_s: the longest wait where the collector asks for none.
        drain_s: the longest wait where it is stopping.
    """
    reason = code.name.lower()
    asked_s = _retry_after_s(trailing)
    if asked_s is not None:
        # Later by up to a quarter: agents that were told the same shall not come together.
        return Comeback(reason, asked_s, asked_s * 1.25)
    if code is grpc.StatusCode.UNAVAILABLE:
        said = details.lower()
        if "max connection age" in said or "max_age" in said:  # gRPC's own words
            return Comeback("aged", 0.0, AGED_S, normal=True)
        if "drain" in said or "stopping" in said:
            return Comeback("drained", 0.0, drain_s, normal=True)
    return Comeback(reason, 0.0, backoff_s)


def _retry_after_s(trailing: Iterable[tuple[str, str | bytes]]) -> float | None:
    """What the collector asks for, s, within bounds; None when it asks for nothing."""
    for key, value in trailing:
        if key == RETRY_AFTER:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            if text.isascii() and text.isdigit() and len(text) < 16:
                return min(int(text) / 1000, RETRY_AFTER_MAX_S)
    return None
