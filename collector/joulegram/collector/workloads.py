"""Workloads as frames carry them and as the ledger keeps them.

Agents repeat themselves: a workload comes in every frame while it runs, the same bytes each
time. So a frame's workloads are read as bytes first, and each distinct one is looked into once.
"""

import re
from dataclasses import dataclass, replace
from hashlib import blake2b

from google.protobuf.message import DecodeError

from joulegram.collector.packed import PackedFrame, whole
from joulegram.v1.telemetry_pb2 import Workload as WireWorkload

MAX_BYTES = 65_536  # one workload, attributes included
MAX_NAME = 1_020  # characters of scope, kind, id, user, project, name, and a label's value
MAX_LABELS = 64
MAX_LABEL = 320  # characters; Kubernetes allows 317
MAX_CPUS = 1_000_000.0  # of one node; sums over years of them stay finite

BASE_BYTES = 500  # of a Workload in memory, without its texts
TEXT_BYTES = 50  # of a text, without its characters
KNOWN_ENTRIES = 65_536  # beyond it all are looked into anew
KNOWN_BYTES = 1_024  # larger ones are looked into each time

CONTROL = re.compile("[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One version of what is known of a workload; the same object while it stays the same."""

    workload: int  # of (scope, kind, id)
    details: int  # of user, project, name, labels
    scope: str
    kind: str
    id: str
    user: str
    project: str
    name: str
    labels: tuple[str, ...]
    label_values: tuple[str, ...]
    reserved_cpus: float
    reserved_devices: tuple[tuple[int, float], ...]  # (index into the frame's devices, fraction)
    problem: str  # why no frame may carry it; "": it is well

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory; the same for all with its id and details."""
        names = self.scope, self.kind, self.id, self.user, self.project, self.name
        return BASE_BYTES + sum(map(_size_bytes, (*names, *self.labels, *self.label_values)))


def _size_bytes(text: str) -> int:
    # Not what it takes at the moment: Python may keep its UTF-8 beside it later.
    return TEXT_BYTES + (len(text) if text.isascii() else 8 * len(text))


NONE = Workload(0, 0, "", "", "", "", "", "", (), (), 0.0, (), "")
_known: dict[bytes, Workload] = {}  # by their canonical bytes


def digest(*texts: str) -> int:
    """64 bits of texts, each with its length, so that ("ab", "c") differs from ("a", "bc")."""
    hashed = blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        hashed.update(len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(hashed.digest(), "little")


def workload_id(scope: str, kind: str, id: str) -> int:
    """Identity of a workload in the ledger."""
    return digest(scope, kind, id)


def read_workloads(frame: PackedFrame) -> list[Workload]:
    """The workloads of a frame, in its order. The frame's own bytes of them become canonical."""
    found = [_known.get(packed) for packed in frame.workloads]
    if not all(found):
        for index, workload in enumerate(found):
            if workload is None:
                found[index] = _read_into(frame, index)
    return found  # type: ignore[return-value]


def _read_into(frame: PackedFrame, index: int) -> Workload:
    packed = frame.workloads[index]
    try:
        # In a frame of its own: what nests too deep for a Frame must not pass here.
        (wire,) = whole(PackedFrame(workloads=[packed])).workloads  # type: ignore[list-item]
    except DecodeError as failed:
        return replace(NONE, problem=f"it cannot be read ({failed}); text must be UTF-8")
    canonical = wire.SerializeToString(deterministic=True)
    workload = _read(wire, len(packed))
    if canonical != packed:
        frame.workloads[index] = canonical
    elif len(packed) <= KNOWN_BYTES:
        if len(_known) >= KNOWN_ENTRIES:
            _known.clear()
        _known[packed] = workload
    return workload


def _read(wire: WireWorkload, size: int) -> Workload:
    labels = tuple(sorted(wire.attributes))
    values = tuple(wire.attributes[label] for label in labels)
    return Workload(
        workload_id(wire.scope, wire.kind, wire.id),
        digest(wire.user, wire.project, wire.name, *labels, "", *values),
        wire.scope,
        wire.kind,
        wire.id,
        wire.user,
        wire.project,
        wire.name,
        labels,
        values,
        wire.reserved_cpus,
        tuple((reserved.device, reserved.fraction) for reserved in wire.reserved_devices),
        _problem(wire, size),
    )


def _problem(wire: WireWorkload, size: int) -> str:
    names = wire.scope, wire.kind, wire.id
    if size > MAX_BYTES:
        return f"it has {size} bytes, at most {MAX_BYTES} fit; shorten its attributes"
    if CONTROL.search("".join(names)):
        return "its scope, kind or id holds a control character"
    if max(map(len, names)) > MAX_NAME:
        return f"its scope, kind or id is beyond {MAX_NAME} characters"
    texts = wire.user, wire.project, wire.name, *wire.attributes.values()
    if CONTROL.search("".join((*texts, *wire.attributes))):
        return "its user, project, name or attributes hold a control character; escape it"
    if max(map(len, texts)) > MAX_NAME:
        return f"its user, project, name or an attribute is beyond {MAX_NAME} characters"
    if len(wire.attributes) > MAX_LABELS:
        return f"it has {len(wire.attributes)} attributes, at most {MAX_LABELS} fit"
    if not all(0 < len(label) <= MAX_LABEL for label in wire.attributes):
        return f"an attribute's name has 1 to {MAX_LABEL} characters"
    if not 0.0 <= wire.reserved_cpus <= MAX_CPUS:
        return f"reserved_cpus {wire.reserved_cpus} is no number of CPUs of one node"
    for reserved in wire.reserved_devices:
        if not 0.0 <= reserved.fraction <= 1.0:
            return f"it reserves {reserved.fraction} of a device; 0 to 1 fit"
    return ""
