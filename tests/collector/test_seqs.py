"""Numbers in runs are the same set as numbers one by one."""

from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector.seqs import Seqs


@given(st.lists(st.integers(0, 40)))
def test_they_hold_what_was_put_in(numbers: list[int]) -> None:
    seqs, plain = Seqs(), set[int]()
    for number in numbers:
        seqs.add(number)
        plain.add(number)
        assert [n for n in range(-1, 43) if n in seqs] == sorted(plain)
        assert seqs.runs == sum(n - 1 not in plain for n in plain)
