"""A burst of frames gets the verdicts that each frame gets alone, and those that integers give."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from joulegram.collector import sums
from joulegram.collector.checked import WIDTHS, Checked
from joulegram.collector.sums import ENERGIES, MAX_NS, MAX_ROW_UJ, Unsound
from joulegram.collector.validate import MAX_UJ, Refusal, validate, validate_all
from joulegram.v1.telemetry_pb2 import Device, Frame, Rows, Workload
from tests.collector.made_frames import NOW_MS, START_MS, WINDOW_MS, checked, frame

RAW_DAYS = 30.0
COMPONENTS = ("cpu", "dram", "gpu", "gpu", "other", "fans", "")
KINDS = ("idle", "idle", "system", "slurm")
NUMBERS = (0, 1, 2**31, MAX_ROW_UJ, MAX_ROW_UJ + 1, MAX_NS + 1, 2**63 - 1, 2**63, 2**64 - 1)

small = st.one_of(st.just(0), st.integers(0, 50))


@st.composite
def sound_frames(draw: st.DrawFn) -> Frame:
    """A frame that holds: any workloads, devices and rows, some columns left out."""
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=4))
    components = draw(st.lists(st.sampled_from(COMPONENTS), max_size=4))
    size = draw(st.integers(0, 6)) if kinds else 0
    gpus = [i for i, component in enumerate(components) if component == "gpu"]
    with_gpus = bool(gpus) and draw(st.booleans())
    workload = [draw(st.integers(0, len(kinds) - 1)) for _ in range(size)]
    columns: dict[str, list[int]] = {"workload": workload}
    for name, component in (("cpu_uj", "cpu"), ("dram_uj", "dram"), ("other_uj", "other")):
        have = [_counts_as(c) for c in components]
        if component in have and draw(st.booleans()):
            columns[name] = [draw(small) for _ in range(size)]
    if with_gpus:
        columns["gpu_device"] = [draw(st.sampled_from([-1, *gpus])) for _ in range(size)]
        columns["gpu_uj"] = [draw(small) if at >= 0 else 0 for at in columns["gpu_device"]]
    if draw(st.booleans()):
        columns["holder"] = [draw(st.integers(-1, len(kinds) - 1)) for _ in range(size)]
    if draw(st.booleans()):
        columns["cpu_ns"] = [draw(small) for _ in range(size)]

    devices = [
        Device(name=f"d{i}", component=component, quality="measured", coverage=1.0)
        for i, component in enumerate(components)
    ]
    for row, of in enumerate(workload):
        for name in ENERGIES:
            uj = columns[name][row] if name in columns else 0
            if name == "gpu_uj":
                at = columns["gpu_device"][row] if uj else -1
            else:
                at = _some_device(draw, components, name.removesuffix("_uj")) if uj else -1
            if at >= 0:
                devices[at].energy_uj += uj
                devices[at].idle_uj += uj if kinds[of] == "idle" else 0
    packed = Rows()
    for name, numbers in columns.items():
        setattr(packed, name, np.array(numbers, WIDTHS[name]).tobytes())
    return Frame(
        node="n1",
        epoch=1,
        seq=1,
        window_start_ms=START_MS,
        window_ms=WINDOW_MS,
        devices=devices,
        workloads=[Workload(scope="n1", kind=kind, id=str(i)) for i, kind in enumerate(kinds)],
        rows=packed,
    )


def _counts_as(component: str) -> str:
    return component if component in ("cpu", "dram", "gpu") else "other"


def _some_device(draw: st.DrawFn, components: Sequence[str], component: str) -> int:
    return draw(
        st.sampled_from([i for i, c in enumerate(components) if _counts_as(c) == component])
    )


@st.composite
def spoilt_frames(draw: st.DrawFn) -> Frame:
    """A frame with one number or one column changed, which may well hold all the same."""
    spoilt = draw(st.one_of(sound_frames(), st.builds(frame, rows=st.integers(1, 9))))
    rows = len(spoilt.rows.workload) // 4
    what = draw(st.integers(0, 4))
    if what == 0 and rows:
        name = draw(st.sampled_from(sorted(WIDTHS)))
        width = WIDTHS[name]
        column = np.frombuffer(getattr(spoilt.rows, name) or bytes(width.itemsize * rows), width)
        column = column.copy()
        limits = np.iinfo(width)
        number = draw(st.one_of(st.integers(-2, 9), st.sampled_from(NUMBERS)))
        column[draw(st.integers(0, rows - 1))] = min(max(number, limits.min), limits.max)
        setattr(spoilt.rows, name, column.tobytes())
    elif what == 1:
        setattr(spoilt.rows, draw(st.sampled_from(sorted(WIDTHS))), b"")
    elif what == 2 and spoilt.devices:
        device = draw(st.sampled_from(list(spoilt.devices)))
        name = draw(st.sampled_from(["energy_uj", "idle_uj"]))
        number = draw(st.one_of(st.integers(0, 60), st.sampled_from(NUMBERS)))
        setattr(device, name, number)
    elif what == 3 and spoilt.devices:
        draw(st.sampled_from(list(spoilt.devices))).component = draw(st.sampled_from(COMPONENTS))
    elif what == 4 and spoilt.workloads:
        if draw(st.booleans()):
            del spoilt.workloads[-1]
        else:
            draw(st.sampled_from(list(spoilt.workloads))).kind = draw(st.sampled_from(KINDS))
    return spoilt


def holds(one: Frame) -> bool:
    """The same question, asked of every row alone, in integers without bounds."""
    column = {
        name: np.frombuffer(getattr(one.rows, name), width).tolist()
        for name, width in WIDTHS.items()
    }
    size = len(column["workload"])
    for name, default in (("gpu_device", -1), ("holder", -1)):
        column[name] = column[name] or [default] * size
    numbers = [*ENERGIES, "cpu_ns", "gpu_ns"]
    for name in numbers:
        column[name] = column[name] or [0] * size
    workloads, devices = one.workloads, one.devices
    drawn: dict[tuple[str, bool], int] = {}  # by component or, of GPUs, device; idle or all
    for i in range(size):
        of, at, holder = (column[name][i] for name in ("workload", "gpu_device", "holder"))
        if of >= len(workloads) or not -1 <= holder < len(workloads):
            return False
        if at != -1 and not (0 <= at < len(devices) and devices[at].component == "gpu"):
            return False
        if any(column[name][i] > (MAX_NS if "ns" in name else MAX_ROW_UJ) for name in numbers):
            return False
        for name in ENERGIES:
            where = f"gpu {at}" if name == "gpu_uj" else name.removesuffix("_uj")
            idle = workloads[of].kind == "idle"
            drawn[where, False] = drawn.get((where, False), 0) + column[name][i]
            drawn[where, True] = drawn.get((where, True), 0) + column[name][i] * idle
    said: dict[tuple[str, bool], int] = {}
    for i, device in enumerate(devices):
        component = _counts_as(device.component)
        where = f"gpu {i}" if component == "gpu" else component
        if device.energy_uj > MAX_UJ or device.idle_uj > device.energy_uj:
            return False
        said[where, False] = said.get((where, False), 0) + device.energy_uj
        said[where, True] = said.get((where, True), 0) + device.idle_uj
    return all(drawn.get(key, 0) == said.get(key, 0) for key in drawn.keys() | said.keys())


def verdict(answer: Checked | Refusal) -> Refusal | None:
    return None if isinstance(answer, Checked) else answer


@given(st.lists(st.one_of(sound_frames(), spoilt_frames()), max_size=6))
@settings(deadline=None, max_examples=400)
def test_a_burst_gets_the_verdicts_of_its_frames(frames: list[Frame]) -> None:
    burst = [(one.frame, one.packed, "n1") for one in checked(*frames)]
    together = [verdict(answer) for answer in validate_all(burst, NOW_MS, RAW_DAYS)]
    assert together == [validate(one, "n1", NOW_MS, RAW_DAYS) for one in frames]
    for one, refusal in zip(frames, together, strict=True):
        event("sound" if refusal is None else refusal[0])
        if refusal is None or refusal[0] == "sums":
            assert holds(one) == (refusal is None)


@given(st.lists(sound_frames(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=300)
def test_frames_that_hold_need_no_second_look(frames: list[Frame]) -> None:
    assert all(map(holds, frames))
    assert sums.hold(checked(*frames))


@given(st.lists(st.one_of(sound_frames(), spoilt_frames()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_no_burst_holds_with_a_frame_that_does_not(frames: list[Frame]) -> None:
    """`hold` never spares a frame its own check."""
    burst = [one for one in checked(*frames) if _shaped(one)]
    alone = True
    for one in burst:
        try:
            sums.check(one)
        except Unsound:
            alone = False
    assert sums.hold(burst) == alone


def _shaped(one: Checked) -> bool:
    """Whether it may come as far as the sums."""
    of_device = all(d.energy_uj <= MAX_UJ and d.idle_uj <= d.energy_uj for d in one.frame.devices)
    return of_device and all(
        len(column) in (0, one.rows * WIDTHS[name].itemsize) for name, column in one.columns.items()
    )


@pytest.mark.parametrize("column", ["cpu_uj", "dram_uj", "other_uj", "gpu_uj"])
@pytest.mark.parametrize("numbers", [[2**63, 2**63], [2**64 - 1, 1], [2**62] * 4])
def test_numbers_that_wrap_to_the_sum_are_refused_in_a_burst(
    column: str, numbers: list[int]
) -> None:
    bad = frame(2, rows=1)
    bad.rows.CopyFrom(Rows(workload=np.zeros(len(numbers), "<u4").tobytes()))
    for device in bad.devices:
        device.energy_uj = device.idle_uj = 0
    setattr(bad.rows, column, np.array(numbers, "<u8").tobytes())
    all_three = checked(frame(1), bad, frame(3, gpu=True))
    burst = [(one.frame, one.packed, "n1") for one in all_three]
    answers = [verdict(answer) for answer in validate_all(burst, NOW_MS, RAW_DAYS)]
    assert answers[0] is None and answers[2] is None
    assert answers[1] is not None and answers[1][0] == "sums"
