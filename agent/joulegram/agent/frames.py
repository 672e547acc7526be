"""One window as a Frame of the wire, and as a JSON line for people."""

import json
import struct
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from joulegram.agent.attribution import IDLE, Device, Share
from joulegram.agent.identity import Identity
from joulegram.agent.textfile import printable
from joulegram.agent.usage import Use
from joulegram.agent.windows import Window
from joulegram.agent.workloads import IDLE as IDLE_KIND
from joulegram.agent.workloads import UNATTRIBUTED, Owner
from joulegram.v1.telemetry_pb2 import Frame

AGENT_VERSION = version("joulegram")

COLUMNS = {
    "workload": "I",
    "pid": "I",
    "start_ticks": "Q",
    "cpu_uj": "Q",
    "dram_uj": "Q",
    "gpu_device": "i",
    "gpu_uj": "Q",
    "other_uj": "Q",
    "cpu_ns": "Q",
    "gpu_ns": "Q",
    "holder": "i",
}


def frame_of(
    window: Window,
    devices: Sequence[Device],
    uses: Sequence[Use],
    shares: Sequence[Share],
    identity: Identity,
) -> Frame:
    """The window's Frame, without node, epoch and seq, which are the agent's to say.

    Args:
        uses: who used the CPU; shares point into it.
        shares: who drew what, from attribution.attribute.
    """
    frame = Frame(
        window_start_ms=window.start_ms, window_ms=window.length_ms, agent_version=AGENT_VERSION
    )
    for device in devices:
        frame.devices.add(
            name=device.name,
            component=device.component,
            energy_uj=device.energy_uj,
            idle_uj=device.idle_uj,
            raw_uj=device.raw_uj,
            clamped=device.clamped,
            quality=device.quality,
            coverage=device.coverage,
            late=device.late,
        )
    index: dict[Owner, int] = {}
    rows = []
    for share in shares:
        use = uses[share.use] if share.use >= 0 else None
        owner = use.owner if use else Owner(IDLE_KIND if share.use == IDLE else UNATTRIBUTED)
        if owner not in index:
            index[owner] = len(index)
            _add_workload(frame, owner, identity)
        process = use.process if use else None
        rows.append(
            (
                index[owner],
                process.pid if process else 0,
                process.start_ticks if process else 0,
                share.cpu_uj,
                share.dram_uj,
                share.other_uj,
                use.cpu_ns if use else 0,
            )
        )
        frame.rows.command.append(process.command if process else "")
    columns = list(zip(*rows, strict=True)) or [()] * 7
    names = ("workload", "pid", "start_ticks", "cpu_uj", "dram_uj", "other_uj", "cpu_ns")
    for name, values in zip(names, columns, strict=True):
        setattr(frame.rows, name, _pack(name, values))
    return frame


def _add_workload(frame: Frame, owner: Owner, identity: Identity) -> None:
    user = printable(identity.user_of(owner))
    frame.workloads.add(
        scope=identity.scope_of(owner),
        kind=owner.kind,
        id=printable(owner.id),
        user=user,
        name=user if owner.kind == "user" else printable(owner.id),
    )


def _pack(name: str, values: Iterable[int]) -> bytes:
    numbers = tuple(values)
    return struct.pack(f"<{len(numbers)}{COLUMNS[name]}", *numbers)


def unpack(frame: Frame, name: str, rows: int) -> tuple[int, ...]:
    """One column of a frame's rows; an empty one is the default in every row."""
    raw = getattr(frame.rows, name)
    if not raw:
        return (-1 if name in ("gpu_device", "holder") else 0,) * rows
    return struct.unpack(f"<{rows}{COLUMNS[name]}", raw)


def as_json(frame: Frame) -> str:
    """The frame as one line of JSON: the .proto's field names, rows expanded from columns."""
    rows = len(frame.rows.workload) // 4
    columns: dict[str, Sequence[int | str]] = {n: unpack(frame, n, rows) for n in COLUMNS}
    columns["command"] = list(frame.rows.command) or [""] * rows
    document: dict[str, Any] = {
        "node": frame.node,
        "epoch": frame.epoch,
        "seq": frame.seq,
        "window_start_ms": frame.window_start_ms,
        "window_ms": frame.window_ms,
        "boot_id": frame.boot_id,
        "agent_version": frame.agent_version,
        "devices": [
            {field.name: getattr(device, field.name) for field in device.DESCRIPTOR.fields}
            for device in frame.devices
        ],
        "workloads": [
            {
                "scope": w.scope,
                "kind": w.kind,
                "id": w.id,
                "user": w.user,
                "project": w.project,
                "name": w.name,
                "attributes": dict(w.attributes),
                "reserved_cpus": w.reserved_cpus,
                "reserved_devices": [
                    {"device": r.device, "fraction": r.fraction} for r in w.reserved_devices
                ],
            }
            for w in frame.workloads
        ],
        "rows": [{name: values[i] for name, values in columns.items()} for i in range(rows)],
    }
    return json.dumps(document, separators=(",", ":"))
