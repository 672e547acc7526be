"""What a collector takes, and why it refuses the rest."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram.collector.validate import MAX_ROWS, MAX_UJ, REASONS, validate
from joulegram.v1.telemetry_pb2 import Device, Frame, ReservedDevice
from tests.collector.made_frames import NOW_MS, frame

DAY_MS = 86_400_000
RAW_DAYS = 30.0


def refusal(bad: Frame, node: str = "n1") -> tuple[str, str] | None:
    return validate(bad, node, NOW_MS, RAW_DAYS)


@given(st.integers(1, 300), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=60)
def test_frames_that_hold_are_taken(rows: int, seed: int, gpu: bool) -> None:
    assert refusal(frame(rows=rows, seed=seed, gpu=gpu)) is None


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_one_microjoule_anywhere_is_noticed(data: st.DataObject) -> None:
    """Law 1, per component, per GPU, and for what is idle."""
    bad = frame(rows=20, gpu=True)
    if data.draw(st.booleans()):
        column = data.draw(st.sampled_from(["cpu_uj", "dram_uj", "gpu_uj"]))
        numbers = np.frombuffer(getattr(bad.rows, column), "<u8").copy()
        row = data.draw(st.integers(0, len(numbers) - 1))
        numbers[row] += 1
        setattr(bad.rows, column, numbers.tobytes())
    else:
        device = data.draw(st.sampled_from(list(bad.devices)))
        name = data.draw(st.sampled_from(["energy_uj", "idle_uj"]))
        setattr(device, name, getattr(device, name) + 1)
    refused = refusal(bad)
    assert refused is not None and refused[0] == "sums"


def test_energy_moved_between_gpus_is_noticed() -> None:
    bad = frame(gpu=True)
    bad.devices.append(Device(name="gpu:b", component="gpu", coverage=1.0, quality="measured"))
    assert refusal(bad) is None
    bad.devices[2].energy_uj -= 1
    bad.devices[3].energy_uj += 1
    refused = refusal(bad)
    assert refused is not None and refused[0] == "sums" and "gpu:" in refused[1]


def test_an_unknown_component_counts_as_other() -> None:
    odd = frame(rows=2)
    odd.devices.append(Device(name="fan0", component="fans", energy_uj=7, coverage=1.0))
    odd.rows.other_uj = np.array([0, 7], "<u8").tobytes()
    assert refusal(odd) is None


def test_sums_that_wrap_do_not_pass() -> None:
    """2^64 uJ too much looks right to an adder of 64 bits."""
    bad = frame(rows=3)
    numbers = np.frombuffer(bad.rows.cpu_uj, "<u8").copy()
    numbers[1] += np.uint64(2**63)
    numbers[2] += np.uint64(2**63)
    bad.rows.cpu_uj = numbers.tobytes()
    refused = refusal(bad)
    assert refused is not None and refused[0] == "sums"


def test_an_empty_frame_is_a_frame() -> None:
    empty = frame()
    del empty.devices[:]
    del empty.workloads[:]
    empty.ClearField("rows")
    assert refusal(empty) is None


def set_column(name: str, value: bytes) -> Callable[[Frame], None]:
    return lambda f: setattr(f.rows, name, value)


def set_field(name: str, value: object) -> Callable[[Frame], None]:
    return lambda f: setattr(f, name, value)


U4, I4 = "<u4", "<i4"


@pytest.mark.parametrize(
    ("reason", "names", "spoil"),
    [
        ("node", "agent", set_field("node", "")),
        ("node", "n2", set_field("node", "n2")),
        ("node", "control", set_field("node", "n\n1")),
        ("shape", "epoch", set_field("epoch", 0)),
        ("shape", "seq", set_field("seq", 0)),
        ("shape", "divide 300", set_field("window_ms", 0)),
        ("shape", "divide 300", set_field("window_ms", 7_000)),
        ("shape", "divide 300", set_field("window_ms", 2_500)),
        ("shape", "multiple", set_field("window_start_ms", NOW_MS - 3_600_000 + 1)),
        ("clock", "NTP", set_field("window_start_ms", NOW_MS + 600_000)),
        ("clock", "NTP", set_field("sent_at_ms", NOW_MS + DAY_MS)),
        ("clock", "NTP", set_field("sent_at_ms", NOW_MS - DAY_MS)),
        ("too_old", "raw_days", set_field("window_start_ms", NOW_MS - 31 * DAY_MS)),
        ("shape", "rows.pid", set_column("pid", b"\0" * 19)),
        ("shape", "rows.workload", set_column("workload", b"\0" * 3)),
        ("shape", "rows.workload", set_column("workload", np.full(5, 4, U4).tobytes())),
        ("shape", "rows.holder", set_column("holder", np.full(5, 4, I4).tobytes())),
        ("shape", "rows.holder", set_column("holder", np.full(5, -2, I4).tobytes())),
        ("shape", "rows.gpu_device", set_column("gpu_device", np.full(5, 9, I4).tobytes())),
        ("shape", "no GPU", set_column("gpu_device", np.full(5, 0, I4).tobytes())),
        ("shape", "rows.command", lambda f: f.rows.command.append("x")),
        ("shape", "fold_cores", set_column("workload", bytes(4 * (MAX_ROWS + 1)))),
        ("shape", "comes twice", lambda f: setattr(f.devices[1], "name", "cpu0")),
        ("shape", "coverage", lambda f: setattr(f.devices[0], "coverage", 1.5)),
        ("shape", "coverage", lambda f: setattr(f.devices[0], "coverage", float("nan"))),
        ("sums", "counter reset", lambda f: setattr(f.devices[0], "energy_uj", MAX_UJ + 1)),
        ("sums", "exceeds", lambda f: setattr(f.devices[0], "idle_uj", MAX_UJ)),
        ("shape", "control", lambda f: setattr(f.workloads[2], "id", "7\x007")),
        ("shape", "attributes", lambda f: f.workloads[2].attributes.update(a="x" * 70_000)),
        ("shape", "attributes", lambda f: f.workloads[2].attributes.update({"a\x1b[2J": "x"})),
        ("shape", "attributes", lambda f: f.workloads[2].attributes.update(a="x\ny")),
        ("shape", "attribute", lambda f: f.workloads[2].attributes.update(a="x" * 1_021)),
        ("shape", "attribute", lambda f: f.workloads[2].attributes.update({"a" * 321: "x"})),
        ("shape", "attribute", lambda f: f.workloads[2].attributes.update({"": "x"})),
        (
            "shape",
            "at most 64",
            lambda f: f.workloads[2].attributes.update({f"a{i}": "" for i in range(65)}),
        ),
        ("shape", "control", lambda f: setattr(f.workloads[2], "user", "a\tb")),
        ("shape", "beyond", lambda f: setattr(f.workloads[2], "name", "x" * 1_021)),
        ("shape", "reserved_cpus", lambda f: setattr(f.workloads[2], "reserved_cpus", -1.0)),
        ("shape", "reserved_cpus", lambda f: setattr(f.workloads[2], "reserved_cpus", 1e300)),
        ("shape", "comm", lambda f: f.rows.command.__setitem__(0, "x" * 2_000)),
        ("shape", "boot_id", set_field("boot_id", "x" * 100_000)),
        ("shape", "agent_version", set_field("agent_version", "1\x00")),
        ("shape", "host_node", set_field("host_node", "h\n")),
        ("node", "no guest", set_field("host_node", "n1")),
        (
            "shape",
            "reserves",
            lambda f: f.workloads[2].reserved_devices.append(ReservedDevice(device=9)),
        ),
        (
            "shape",
            "0 to 1",
            lambda f: f.workloads[2].reserved_devices.append(ReservedDevice(fraction=2.0)),
        ),
    ],
)
def test_each_refusal_names_the_thing_and_the_remedy(
    reason: str, names: str, spoil: Callable[[Frame], None]
) -> None:
    bad = frame()
    spoil(bad)
    refused = refusal(bad)
    assert refused is not None
    assert refused[0] == reason and names in refused[1]
    assert refused[0] in REASONS


def test_gpu_energy_needs_a_gpu() -> None:
    bad = frame(gpu=True)
    bad.rows.gpu_device = np.full(7, -1, I4).tobytes()
    refused = refusal(bad)
    assert refused is not None and "without a device" in refused[1]


def test_the_age_of_a_window_is_no_clock() -> None:
    """A spool may hold days: what counts is when the agent says it sends."""
    old = frame(start_ms=NOW_MS // 300_000 * 300_000 - 20 * DAY_MS)
    old.sent_at_ms = NOW_MS - 200_000
    assert refusal(old) is None
