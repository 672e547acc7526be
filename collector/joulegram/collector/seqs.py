"""Which numbers of a count are there: in memory that grows with the gaps, not with the numbers."""

from bisect import bisect_right


class Seqs:
    """A set of whole numbers that mostly follow each other."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        # Runs in order, none next to another.
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def add(self, number: int) -> None:
        """Put one more in; one that is there already changes nothing."""
        firsts, lasts = self._firsts, self._lasts
        at = bisect_right(firsts, number)  # the run after it
        if at and number <= lasts[at - 1]:
            return
        follows = at > 0 and lasts[at - 1] + 1 == number
        leads = at < len(firsts) and number + 1 == firsts[at]
        if follows and leads:
            lasts[at - 1] = lasts.pop(at)
            del firsts[at]
        elif follows:
            lasts[at - 1] = number
        elif leads:
            firsts[at] = number
        else:
            firsts.insert(at, number)
            lasts.insert(at, number)

    @property
    def runs(self) -> int:
        """In how many runs they lie."""
        return len(self._firsts)
