"""One window as a Frame of the wire, and as a JSON line for people."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from joulegram.agent.attribution import IDLE, WHOLE, Device, Metered, Share, attribute
from joulegram.agent.gpus import with_gpus, work
from joulegram.agent.identity import Identity
from joulegram.agent.textfile import printable
from joulegram.agent.use.usage import Use
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
DEFAULTS = {"gpu_device": -1, "holder": -1}  # in every row of an empty column; else 0
ALWAYS = ("pid", "start_ticks", "cpu_uj", "dram_uj", "other_uj", "cpu_ns")
IDLE_OWNER, NOBODYS = Owner(IDLE_KIND), Owner(UNATTRIBUTED)


def frame_of(
    window: Window,
    devices: Sequence[Metered],
    uses: Sequence[Use],
    identity: Identity,
) -> Frame:
    """The window's Frame, without node, epoch and seq, which are the agent's to say.

    Args:
        devices: what was metered.
        uses: who used the CPU.
    """
    frame = Frame(
        window_start_ms=window.start_ms, window_ms=window.length_ms, agent_version=AGENT_VERSION
    )
    uses, held = with_gpus(window, uses)
    index: dict[Owner, int] = {}
    for owner in [use.owner for use in uses] + [o for of_gpu in held.values() for o in of_gpu]:
        if owner not in index:
            index[owner] = len(index)
    drawn, shares = attribute(
        devices, window.length_ms, [use.cpu_ns for use in uses], work(window, uses, held, index)
    )
    for owner in (IDLE_OWNER, NOBODYS):
        if any(share.use < 0 and _owner(share) == owner for share in shares):
            index.setdefault(owner, len(index))
    for device in drawn:
        frame.devices.add(**{name: getattr(device, name) for name in Device.__slots__})
    for owner in index:
        _add_workload(frame, owner, identity)
    _add_held(frame, drawn, held, index)
    _add_rows(frame, uses, shares, index)
    return frame


def _owner(share: Share) -> Owner:
    return IDLE_OWNER if share.use == IDLE else NOBODYS


def _add_rows(
    frame: Frame, uses: Sequence[Use], shares: Sequence[Share], index: Mapping[Owner, int]
) -> None:
    rows = []
    seen: set[int] = set()
    for share in shares:
        use = uses[share.use] if share.use >= 0 else None
        process = use.process if use else None
        # CPU time stands in the first of a process's rows.
        cpu_ns = use.cpu_ns if use and share.use not in seen else 0
        seen.add(share.use)
        rows.append(
            (
                index[use.owner if use else _owner(share)],
                process.pid if process else 0,
                process.start_ticks if process else 0,
                share.cpu_uj,
                share.dram_uj,
                share.gpu,
                share.gpu_uj,
                share.other_uj,
                cpu_ns,
                share.gpu_ns,
                share.holder,
            )
        )
        frame.rows.command.append(process.command if process else "")
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    for name, values in zip(COLUMNS, columns, strict=True):
        if name == "workload" or name in ALWAYS or any(v != DEFAULTS.get(name, 0) for v in values):
            setattr(frame.rows, name, _pack(name, values))


def _add_held(
    frame: Frame,
    drawn: Sequence[Device],
    held: Mapping[str, Mapping[Owner, int]],
    index: Mapping[Owner, int],
) -> None:
    for n, device in enumerate(drawn):
        for owner, part in held.get(device.name, {}).items():
            reserved = frame.workloads[index[owner]].reserved_devices
            reserved.add(device=n, fraction=round(part / WHOLE, 6))


def _add_workload(frame: Frame, owner: Owner, identity: Identity) -> None:
    known = identity.about(owner)
    frame.workloads.add(
        scope=identity.scope_of(owner),
        kind=owner.kind,
        id=printable(owner.id),
        user=known.user,
        project=known.project,
        name=known.name,
        attributes=known.attributes,
        reserved_cpus=known.reserved_cpus,
    )


def _pack(name: str, values: Iterable[int]) -> bytes:
    numbers = tuple(values)
    return struct.pack(f"<{len(numbers)}{COLUMNS[name]}", *numbers)


def unpack(frame: Frame, name: str, rows: int) -> tuple[int, ...]:
    """One column of a frame's rows; an empty one is the default in every row."""
    raw = getattr(frame.rows, name)
    if not raw:
        return (DEFAULTS.get(name, 0),) * rows
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
        "host_node": frame.host_node,
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
