"""How much of the time that should have been measured was measured. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """When frames of a node are expected, epoch seconds; empty where it ends before it begins.

    It begins with the node's first frame ever and ends when the node is retired, or with what
    can be known: a node that merely fell silent is still expected.
    """

    since_s: float
    until_s: float
    expected_ms: float | None = None  # of several nodes together; None: of one, all the time

    @property
    def length_ms(self) -> float:
        """The expected time, ms."""
        if self.expected_ms is not None:
            return self.expected_ms
        return max(0.0, self.until_s - self.since_s) * 1000.0

    def within_ms(self, since_s: float, until_s: float) -> float:
        """The part of the expected time that lies in [since_s, until_s), ms."""
        inside = min(self.until_s, until_s) - max(self.since_s, since_s)
        return self.length_ms * inside / (self.until_s - self.since_s) if inside > 0 else 0.0


def ratio(parts: Iterable[tuple[float, float]]) -> float:
    """Measured share of (covered, expected) times; 0 where nothing was expected."""
    covered = expected = 0.0
    for part, whole in parts:
        covered, expected = covered + part, expected + whole
    return float(covered / expected) if expected > 0 else 0.0
