"""A folded frame says less about who, and the same about how much."""

import struct
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.spool.fold import fold
from joulegram.v1.telemetry_pb2 import Frame, Rows
from tests.agent.made_frames import made_frame

SUMMED = ("cpu_uj", "dram_uj", "gpu_uj", "other_uj", "cpu_ns", "gpu_ns")


def sums(frame: Frame) -> Counter[tuple[str, int, int, int]]:
    """Sum of every column by (column, workload, gpu, holder)."""
    rows = frame.rows
    count = len(rows.workload) // 4
    workload = struct.unpack(f"<{count}I", rows.workload)
    gpu = struct.unpack(f"<{count}i", rows.gpu_device or b"\xff" * 4 * count)
    holder = struct.unpack(f"<{count}i", rows.holder or b"\xff" * 4 * count)
    total: Counter[tuple[str, int, int, int]] = Counter()
    for name in SUMMED:
        values = struct.unpack(f"<{count}Q", getattr(rows, name) or bytes(8 * count))
        for key, value in zip(zip(workload, gpu, holder, strict=True), values, strict=True):
            total[name, *key] += value
    return +total


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    count = draw(st.integers(0, 30))

    def column(code: str, values: st.SearchStrategy[int]) -> bytes:
        drawn = draw(st.lists(values, min_size=count, max_size=count))
        return struct.pack(f"<{count}{code}", *drawn)

    frame = made_frame(1)
    rows = Rows(workload=column("I", st.integers(0, 3)), pid=column("I", st.integers(0, 5)))
    for name in SUMMED:
        if draw(st.booleans()):
            setattr(rows, name, column("Q", st.integers(0, 2**58)))
    if draw(st.booleans()):
        rows.gpu_device = column("i", st.integers(-1, 2))
    if draw(st.booleans()):
        rows.holder = column("i", st.integers(-1, 2))
    frame.rows.CopyFrom(rows)
    return frame


@given(frames())
def test_a_fold_keeps_every_sum_and_names_no_process(frame: Frame) -> None:
    before = frame.SerializeToString(deterministic=True)
    folded = fold(frame)
    assert sums(folded) == sums(frame)
    assert not folded.rows.pid
    assert not folded.rows.command
    assert fold(folded) == folded
    assert frame.SerializeToString(deterministic=True) == before


def test_a_fold_leaves_all_but_the_rows_alone() -> None:
    frame = made_frame(7, processes=300)
    folded = fold(frame)
    assert len(folded.rows.workload) // 4 <= 4 * 3
    assert folded.ByteSize() < frame.ByteSize() / 5
    folded.rows.CopyFrom(frame.rows)
    assert folded == frame
