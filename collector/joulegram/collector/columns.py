"""Frames -> the columns of the ledger's tables. Pure; rows are never touched one by one."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulegram.collector.checked import WIDTHS, Checked
from joulegram.collector.sums import component_of
from joulegram.collector.workloads import Workload
from joulegram.v1.telemetry_pb2 import Frame

Columns: TypeAlias = Mapping[str, Any]

NUMBERS = (
    "pid",
    "start_ticks",
    "cpu_uj",
    "dram_uj",
    "gpu_uj",
    "other_uj",
    "cpu_ns",
    "gpu_ns",
)
QUALITIES = ("measured", "derived", "modelled")


def content_of(frame: Frame) -> bytes:
    """All that an agent may not change once it has offered the frame, as canonical bytes."""
    sent_at_ms = frame.sent_at_ms
    frame.sent_at_ms = 0
    content = frame.SerializeToString(deterministic=True)
    frame.sent_at_ms = sent_at_ms
    return content


def hash_of(content: bytes) -> int:
    """64 bits of a frame's content."""
    return int.from_bytes(sha256(content).digest()[:8], "little")


def of_workloads(versions: Sequence[Workload], seen_at_ms: Sequence[int]) -> Columns:
    """Table `workloads`."""
    texts = pa.list_(pa.string())
    return {
        "workload": np.array([v.workload for v in versions], np.uint64),
        "details": np.array([v.details for v in versions], np.uint64),
        "seen_at_ms": np.array(seen_at_ms, np.uint64),
        "scope": [v.scope for v in versions],
        "kind": [v.kind for v in versions],
        "id": [v.id for v in versions],
        "user": [v.user for v in versions],
        "project": [v.project for v in versions],
        "name": [v.name for v in versions],
        "labels": pa.array([v.labels for v in versions], texts),
        "label_values": pa.array([v.label_values for v in versions], texts),
    }


def of_devices(frames: Sequence[Checked]) -> Columns | None:
    """Table `devices`; None when no frame has one."""
    found = [(c, i, d) for c in frames for i, d in enumerate(c.devices)]
    if not found:
        return None
    return {
        "node": [c.identity[0] for c, _, _ in found],
        "window": np.array([c.window_start_ms // 1000 for c, _, _ in found], np.uint32),
        "epoch": np.array([c.identity[1] for c, _, _ in found], np.uint64),
        "seq": np.array([c.identity[2] for c, _, _ in found], np.uint64),
        "device": np.array([i for _, i, _ in found], np.uint16),
        "window_ms": np.array([c.frame.window_ms for c, _, _ in found], np.uint32),
        "name": [d.name for _, _, d in found],
        "component": [component_of(d.component) for _, _, d in found],
        "energy_uj": np.array([d.energy_uj for _, _, d in found], np.uint64),
        "idle_uj": np.array([d.idle_uj for _, _, d in found], np.uint64),
        "raw_uj": np.array([d.raw_uj for _, _, d in found], np.uint64),
        "clamped": np.array([d.clamped for _, _, d in found], np.uint8),
        "late": np.array([d.late for _, _, d in found], np.uint8),
        # What we do not know how it came about is no better than modelled.
        "quality": [d.quality if d.quality in QUALITIES else "modelled" for _, _, d in found],
        "coverage": np.array([d.coverage for _, _, d in found], np.float64),
        "simulated": np.array([c.frame.simulated for c, _, _ in found], np.uint8),
        "host_node": [c.frame.host_node for c, _, _ in found],
        "boot_id": [c.frame.boot_id for c, _, _ in found],
    }


def of_reservations(frames: Sequence[Checked]) -> Columns | None:
    """Table `reservations`; None when no workload of these frames reserves anything."""
    amounts: dict[tuple[int, int, str], float] = {}
    for f, checked in enumerate(frames):
        for workload in checked.workloads:
            if not (workload.reserved_cpus or workload.reserved_devices):
                continue
            devices = checked.devices
            for device, amount in (
                ("", workload.reserved_cpus),
                *((devices[i].name, share) for i, share in workload.reserved_devices),
            ):
                if amount:
                    key = f, workload.workload, device
                    amounts[key] = amounts.get(key, 0.0) + amount
    if not amounts:
        return None
    of = [frames[f].frame for f, _, _ in amounts]
    return {
        "node": [f.node for f in of],
        "window": np.array([f.window_start_ms // 1000 for f in of], np.uint32),
        "epoch": np.array([f.epoch for f in of], np.uint64),
        "seq": np.array([f.seq for f in of], np.uint64),
        "workload": np.array([workload for _, workload, _ in amounts], np.uint64),
        "device": [device for _, _, device in amounts],
        "window_ms": np.array([f.window_ms for f in of], np.uint32),
        "amount": np.array(list(amounts.values()), np.float64),
    }


def of_rows(checked: Sequence[Checked], hashes: Sequence[int], landed_at_ms: int) -> Columns:
    """Table `rows`: each frame's header as row 0, then its rows.

    A column whose every row has the default is left out: the table knows it.

    Args:
        hashes: each frame's content hash.
    """
    counts = [one.rows for one in checked]
    sizes = np.array(counts, np.int64) + 1
    headers = np.cumsum(sizes) - sizes
    total = int(sizes.sum())

    def per_frame(values: Sequence[int], dtype: Any) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), sizes)

    def header_only(values: Sequence[int], dtype: Any) -> NDArray[Any]:
        column = np.zeros(total, dtype)
        column[headers] = values
        return column

    def packed(name: str, default: bytes = b"\0") -> NDArray[Any] | None:
        """The frames' own bytes, a default before each for its header; None: all default."""
        columns = [one.columns[name] for one in checked]
        if not any(columns):
            return None
        header = default * WIDTHS[name].itemsize
        parts = []
        for column, count in zip(columns, counts, strict=True):
            parts.append(header)
            parts.append(column or header * count)
        return np.frombuffer(b"".join(parts), WIDTHS[name])

    made: dict[str, Any] = {
        "node": _coded([one.identity[0] for one in checked], sizes),
        "window": per_frame([one.window_start_ms // 1000 for one in checked], np.uint32),
        "epoch": per_frame([one.identity[1] for one in checked], np.uint64),
        "seq": per_frame([one.identity[2] for one in checked], np.uint64),
        "row": np.arange(total, dtype=np.uint32) - np.repeat(headers.astype(np.uint32), sizes),
        "landed_at_ms": np.full(total, landed_at_ms, np.uint64),
        "window_ms": header_only([one.frame.window_ms for one in checked], np.uint32),
        "row_count": header_only(counts, np.uint32),
        "total_uj": header_only([sum(d.energy_uj for d in c.devices) for c in checked], np.uint64),
        "hash": header_only(hashes, np.uint64),
    }

    # Indices into a frame's own list become indices into one list of all frames.
    ids = np.array([w.workload for one in checked for w in one.workloads] + [0], np.uint64)
    lengths = np.array([len(one.workloads) for one in checked], np.int64)
    first_workload = np.repeat(np.cumsum(lengths) - lengths, sizes)
    index = packed("workload")
    if index is not None:
        workload = ids[index + first_workload]
        workload[headers] = 0
        made["workload"] = workload
    index = packed("holder", b"\xff")
    if index is not None:
        made["holder"] = np.zeros(total, np.uint64)
        held = index >= 0
        made["holder"][held] = ids[index[held] + first_workload[held]]
    index = packed("gpu_device", b"\xff")
    if index is not None:
        codes: dict[str, int] = {"": 0}
        device = np.zeros(total, np.int32)
        of_device = np.array(
            [codes.setdefault(d.name, len(codes)) for c in checked for d in c.devices], np.int32
        )
        lengths = np.array([len(c.devices) for c in checked], np.int64)
        first_device = np.repeat(np.cumsum(lengths) - lengths, sizes)
        named = index >= 0
        device[named] = of_device[index[named] + first_device[named]]
        made["device"] = pa.DictionaryArray.from_arrays(device, pa.array(list(codes)))
    if any(one.commands for one in checked):
        commands: list[bytes] = []
        for one, count in zip(checked, counts, strict=True):
            commands.append(b"")
            commands.extend(one.commands or [b""] * count)
        # As bytes and then as texts: Arrow takes twice as long for texts that are Python's.
        coded = pa.array(commands, pa.binary()).dictionary_encode()
        made["command"] = coded.cast(pa.dictionary(pa.int32(), pa.string()))
    for name in NUMBERS:
        column = packed(name)
        if column is not None:
            made[name] = column
    return made


def _coded(texts: Sequence[str], repeats: NDArray[np.int64]) -> Any:
    """Each text as often as it is to be repeated."""
    codes: dict[str, int] = {}
    indices = np.array([codes.setdefault(text, len(codes)) for text in texts], np.int32)
    return pa.DictionaryArray.from_arrays(np.repeat(indices, repeats), pa.array(list(codes)))
