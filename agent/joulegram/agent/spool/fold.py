"""A frame said shorter: its processes fold into their workloads, its sums stay exact."""

import struct
from collections.abc import Sequence

from joulegram.v1.telemetry_pb2 import Frame, Rows

_SUMMED = ("cpu_uj", "dram_uj", "gpu_uj", "other_uj", "cpu_ns", "gpu_ns")


def fold(frame: Frame) -> Frame:
    """The same frame with every process row added to its workload's remainder row.

    Rows that agree in (workload, gpu_device, holder) become one, so each component's sum, and
    each GPU's, is what it was. Rows keep the order in which their first member stood.

    Raises: ValueError when a column's length is not the row count's.
    """
    rows = frame.rows
    count = len(rows.workload) // 4
    keys = list(
        zip(
            _column(rows.workload, "I", count),
            _column(rows.gpu_device, "i", count, -1),
            _column(rows.holder, "i", count, -1),
            strict=True,
        )
    )
    groups: dict[tuple[int, int, int], int] = {}
    group = [groups.setdefault(key, len(groups)) for key in keys]

    folded = Rows(workload=_packed("I", [workload for workload, _, _ in groups]))
    if rows.gpu_device:
        folded.gpu_device = _packed("i", [device for _, device, _ in groups])
    if rows.holder:
        folded.holder = _packed("i", [holder for _, _, holder in groups])
    for name in _SUMMED:
        if column := getattr(rows, name):
            totals = [0] * len(groups)
            for owner, value in zip(group, _column(column, "Q", count), strict=True):
                totals[owner] += value
            setattr(folded, name, _packed("Q", totals))

    shorter = Frame()
    shorter.CopyFrom(frame)
    shorter.rows.CopyFrom(folded)
    return shorter


def _column(packed: bytes, code: str, count: int, default: int = 0) -> Sequence[int]:
    if not packed:
        return [default] * count
    if len(packed) != count * struct.calcsize(f"<{code}"):
        raise ValueError(f"a column of {len(packed)} bytes does not hold {count} rows")
    return struct.unpack(f"<{count}{code}", packed)


def _packed(code: str, values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)
