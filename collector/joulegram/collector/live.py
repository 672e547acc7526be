"""What every node drew in its newest window: the page's and /metrics' view of now.

Frames come here once they are durable. On that way only the newest window's frames of a node
are kept, unread; they are read when somebody looks. Bounded: at `max_nodes` the node heard
from least recently is forgotten, which is counted; the ledger forgets nothing.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from joulegram.collector import rules as team_rules
from joulegram.collector.doubled import Epochs
from joulegram.collector.packed import whole
from joulegram.collector.rules import RESERVED_KINDS
from joulegram.v1.telemetry_pb2 import Frame, Workload

log = logging.getLogger(__name__)

COMPONENTS = ("cpu", "dram", "gpu", "other")
MAX_NODES = 20_000
MAX_PROCESSES = 50  # of a node, and in a snapshot
MAX_WORKLOADS = 200  # of a node, and in a snapshot; the rest is one row of kind REST
REST = "rest"
MAX_FRAMES_OF_A_WINDOW = 8  # a clock step or a restart makes two; more are one agent too many
SILENT_AFTER_WINDOWS = 3
LATE_MS = 30_000  # a frame may wait this long for a counter that answers late

TeamOf = Callable[[Workload], str]
ClockMs = Callable[[], int]


@dataclass(frozen=True, slots=True)
class WorkloadPower:
    """A workload's mean power over the window, W by component; reserved kinds have no id."""

    scope: str
    kind: str
    id: str
    user: str
    project: str
    name: str
    team: str
    power_w: Mapping[str, float]

    @property
    def total_w(self) -> float:
        return sum(self.power_w.values())


@dataclass(frozen=True, slots=True)
class ProcessPower:
    """A process's mean power over the window, W; `workload` says where it belongs."""

    node: str
    pid: int
    command: str
    workload: WorkloadPower
    power_w: float


@dataclass(frozen=True, slots=True)
class NodePower:
    """A node in its newest window."""

    node: str
    host_node: str  # a guest VM: counted in its host, not in totals
    simulated: bool
    window_start_ms: int
    window_ms: int
    received_at_ms: int
    power_w: Mapping[str, float]
    quality_w: Mapping[str, float]  # the same watts by quality
    coverage: float  # measured fraction of the window, mean over devices
    workloads: Sequence[WorkloadPower]
    processes: Sequence[ProcessPower]
    doubled: bool = False  # two agents report under this name at once

    @property
    def total_w(self) -> float:
        return sum(self.power_w.values())


@dataclass(frozen=True, slots=True)
class Now:
    """All nodes together. Silent nodes add no watts and count as coverage 0."""

    at_ms: int
    power_w: Mapping[str, float]
    quality_w: Mapping[str, float]
    coverage: float | None  # None: no node is known
    nodes: Sequence[NodePower]
    silent: Sequence[NodePower]
    simulated: bool
    workloads: Sequence[WorkloadPower]  # without the reserved kinds, greatest first
    reserved: Sequence[WorkloadPower]  # one per reserved kind
    processes: Sequence[ProcessPower]

    @property
    def total_w(self) -> float:
        return sum(self.power_w.values())


@dataclass(slots=True)
class _Newest:
    window_start_ms: int
    received_at_ms: int
    frames: list[Frame]
    epochs: Epochs
    doubled: bool
    skew_ms: int
    read: NodePower | None = None


def _no_team(workload: Workload) -> str:
    return team_rules.UNASSIGNED


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Live:
    """The newest window of every node, at most `max_nodes` of them.

    Args:
        team_of: who answers for a workload.
        now_ms: the wall clock, ms since 1970 UTC.
    """

    team_of: TeamOf = _no_team
    now_ms: ClockMs = _wall_clock_ms
    max_nodes: int = MAX_NODES
    forgotten: int = 0  # nodes dropped at the bound since the start
    _newest: OrderedDict[str, _Newest] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on_durable(self, frames: Sequence[Frame]) -> None:
        """Take frames that are durable. Windows older than a node's newest are left alone."""
        received_at_ms = self.now_ms()
        with self._lock:
            for frame in frames:
                self._keep(frame, received_at_ms)

    def _keep(self, frame: Frame, received_at_ms: int) -> None:
        known = self._newest.get(frame.node)
        if known is not None:
            _note_epoch(known, frame)
        if known is not None and frame.window_start_ms < known.window_start_ms:
            return
        # The clock of the node against ours, judged by the sending, never by the window's age.
        skew_ms = received_at_ms - frame.sent_at_ms if frame.sent_at_ms else 0
        if known is not None and frame.window_start_ms == known.window_start_ms:
            # Two frames may share a window: they add. A frame seen before does not.
            if any(_same(frame, other) for other in known.frames):
                return
            frames = [*known.frames[-MAX_FRAMES_OF_A_WINDOW + 1 :], frame]
        else:
            frames = [frame]
        epochs, doubled = (known.epochs, known.doubled) if known else (Epochs(), False)
        newest = _Newest(
            frame.window_start_ms, received_at_ms, frames, epochs, doubled, skew_ms=skew_ms
        )
        if known is None:
            _note_epoch(newest, frame)
        self._newest[frame.node] = newest
        self._newest.move_to_end(frame.node)
        if len(self._newest) > self.max_nodes:
            self._newest.popitem(last=False)
            self.forgotten += 1

    def __len__(self) -> int:
        return len(self._newest)

    def window_s(self) -> float:
        """Length of the latest window that came, s; 0 before the first."""
        with self._lock:
            if not self._newest:
                return 0.0
            return self._newest[next(reversed(self._newest))].frames[-1].window_ms / 1000

    def now(self) -> Now:
        """Everything, as of this moment. Reads frames that nobody has read yet."""
        at_ms = self.now_ms()
        with self._lock:
            newest = list(self._newest.items())
        current: list[NodePower] = []
        silent: list[NodePower] = []
        for node, entry in newest:
            if entry.read is None:
                try:
                    entry.read = read_window(entry.frames, entry.received_at_ms, self.team_of)
                except Exception:
                    # Those in a topic nobody has looked into yet: they cost nobody but their node.
                    log.exception("a window of node %r cannot be shown", node)
                    with self._lock:
                        if self._newest.get(node) is entry:
                            del self._newest[node]
                    continue
            if entry.read.doubled != entry.doubled:
                entry.read = replace(entry.read, doubled=entry.doubled)
            (silent if _is_silent(entry, at_ms) else current).append(entry.read)
        return together(at_ms, current, silent)


def by_rules(rules: Sequence[Mapping[str, str]], now_ms: ClockMs = _wall_clock_ms) -> TeamOf:
    """The team of a workload by the operator's rules, as `check_rules` returns them."""

    def team_of(workload: Workload) -> str:
        who = {
            "scope": workload.scope,
            "kind": workload.kind,
            "id": workload.id,
            "user": workload.user,
            "project": workload.project,
            "name": workload.name,
            "attributes": dict(workload.attributes),
        }
        return team_rules.team_of(rules, who, now_ms() // 1000)

    return team_of


def _note_epoch(entry: _Newest, frame: Frame) -> None:
    entry.epochs.seen(frame.window_start_ms, frame.epoch)
    if entry.epochs.doubled != entry.doubled:
        entry.doubled = not entry.doubled
        if entry.doubled:
            log.warning(
                "duplicate_node: two agents report as node %r at once, and their energy adds up "
                "under one name. Give each node a name of its own (`node` in [agent]; a cloned "
                "machine may have kept the name of its template).",
                frame.node,
            )
        else:
            log.warning("duplicate_node: one agent alone reports as node %r again", frame.node)


def _same(one: Frame, other: Frame) -> bool:
    return (one.epoch, one.seq) == (other.epoch, other.seq)


def _is_silent(entry: _Newest, at_ms: int) -> bool:
    window_ms = entry.frames[-1].window_ms
    patience_ms = SILENT_AFTER_WINDOWS * window_ms
    # A replay of an outage arrives now and speaks of long ago: both must be recent.
    window_end_ms = entry.window_start_ms + window_ms + entry.skew_ms
    return (
        at_ms - entry.received_at_ms > patience_ms or at_ms - window_end_ms > patience_ms + LATE_MS
    )


def read_window(frames: Sequence[Frame], received_at_ms: int, team_of: TeamOf) -> NodePower:
    """Add up the frames of one node and window. Watts are energy by the window's whole length.

    What was not measured is missing from the watts and lowers coverage; nothing is stretched.
    """
    frames = [whole(frame) for frame in frames]
    last = frames[-1]
    power_w: dict[str, float] = {}
    quality_w: dict[str, float] = {}
    covered: list[float] = []
    workloads: dict[tuple[str, str, str], WorkloadPower] = {}
    processes: list[ProcessPower] = []
    for frame in frames:
        to_w = 1 / (1000 * frame.window_ms)  # uJ -> W
        for device in frame.devices:
            component = device.component if device.component in COMPONENTS else "other"
            power_w[component] = power_w.get(component, 0.0) + device.energy_uj * to_w
            quality_w[device.quality] = quality_w.get(device.quality, 0.0) + device.energy_uj * to_w
        covered.append(_mean([device.coverage for device in frame.devices]))
        own, its_processes = _read_rows(frame, to_w, team_of)
        for workload in own:
            _add(workloads, workload)
        processes.extend(its_processes)
    processes.sort(key=lambda process: (-process.power_w, process.pid))
    return NodePower(
        node=last.node,
        host_node=last.host_node,
        simulated=any(frame.simulated for frame in frames),
        window_start_ms=last.window_start_ms,
        window_ms=last.window_ms,
        received_at_ms=received_at_ms,
        power_w=power_w,
        quality_w=quality_w,
        coverage=min(1.0, sum(covered)),
        workloads=_bounded(workloads.values()),
        processes=processes[:MAX_PROCESSES],
    )


def _read_rows(
    frame: Frame, to_w: float, team_of: TeamOf
) -> tuple[list[WorkloadPower], list[ProcessPower]]:
    rows = frame.rows
    workload = np.frombuffer(rows.workload, "<u4").astype(np.int64)
    count = len(workload)
    watts = {
        "cpu": _column(rows.cpu_uj, "<u8", count) * to_w,
        "dram": _column(rows.dram_uj, "<u8", count) * to_w,
        "gpu": _column(rows.gpu_uj, "<u8", count) * to_w,
        "other": _column(rows.other_uj, "<u8", count) * to_w,
    }
    metered = [component for component in COMPONENTS if watts[component].any()]
    sums = {
        component: np.bincount(workload, watts[component], len(frame.workloads))
        for component in metered
    }
    own = [
        _power_of(message, {c: float(sums[c][index]) for c in metered}, team_of)
        for index, message in enumerate(frame.workloads)
    ]

    total = sum((watts[component] for component in metered), np.zeros(count))
    pid = _column(rows.pid, "<u4", count)
    ticks = _column(rows.start_ticks, "<u8", count)
    power: dict[tuple[int, int], float] = {}  # a process on two GPUs has two rows
    at_row: dict[tuple[int, int], int] = {}
    for index in np.flatnonzero((pid != 0) & (total > 0)).tolist():
        identity = (int(pid[index]), int(ticks[index]))
        power[identity] = power.get(identity, 0.0) + float(total[index])
        at_row.setdefault(identity, index)
    top = sorted(power, key=lambda identity: (-power[identity], identity))[:MAX_PROCESSES]
    return own, [
        ProcessPower(
            node=frame.node,
            pid=identity[0],
            command=rows.command[at_row[identity]] if rows.command else "",
            workload=own[workload[at_row[identity]]],
            power_w=power[identity],
        )
        for identity in top
    ]


def _column(packed: bytes, dtype: str, count: int) -> npt.NDArray[np.float64]:
    """An empty column is 0 in every row. float64 holds these numbers to 2**53 exactly."""
    if not packed:
        return np.zeros(count)
    return np.frombuffer(packed, dtype).astype(np.float64)


def _power_of(message: Workload, power_w: Mapping[str, float], team_of: TeamOf) -> WorkloadPower:
    return WorkloadPower(
        scope=message.scope,
        kind=message.kind,
        id=message.id,
        user=message.user,
        project=message.project,
        name=message.name,
        team=team_of(message),
        power_w=power_w,
    )


def _add(
    workloads: dict[tuple[str, str, str], WorkloadPower],
    workload: WorkloadPower,
    key: tuple[str, str, str] | None = None,
) -> None:
    key = key or (workload.scope, workload.kind, workload.id)
    known = workloads.get(key)
    if known is None:
        workloads[key] = workload
        return
    power_w = dict(known.power_w)
    for component, watts in workload.power_w.items():
        power_w[component] = power_w.get(component, 0.0) + watts
    # What a later frame says of its name and owner is the better knowledge.
    workloads[key] = WorkloadPower(
        scope=workload.scope,
        kind=workload.kind,
        id=workload.id,
        user=workload.user or known.user,
        project=workload.project or known.project,
        name=workload.name or known.name,
        team=workload.team,
        power_w=power_w,
    )


def _bounded(workloads: Iterable[WorkloadPower]) -> list[WorkloadPower]:
    """The greatest first; beyond MAX_WORKLOADS they become one row, so that sums stay whole."""
    ordered = sorted(
        workloads,
        # Reserved kinds come first, so that they are never folded.
        key=lambda w: (w.kind not in RESERVED_KINDS, -w.total_w, w.scope, w.kind, w.id),
    )
    if len(ordered) <= MAX_WORKLOADS:
        return ordered
    kept = [w for w in ordered[:MAX_WORKLOADS] if w.kind != REST]
    rest = [w for w in ordered if w.kind == REST] + [
        w for w in ordered[MAX_WORKLOADS:] if w.kind != REST
    ]
    power_w: dict[str, float] = {}
    for workload in rest:
        for component, watts in workload.power_w.items():
            power_w[component] = power_w.get(component, 0.0) + watts
    return [*kept, WorkloadPower("", REST, "", "", "", "smaller workloads", "", power_w)]


def together(at_ms: int, current: Sequence[NodePower], silent: Sequence[NodePower]) -> Now:
    """All nodes as one. Guests add nothing: their host has their watts."""
    power_w: dict[str, float] = {}
    quality_w: dict[str, float] = {}
    workloads: dict[tuple[str, str, str], WorkloadPower] = {}
    reserved: dict[tuple[str, str, str], WorkloadPower] = {}
    processes: list[ProcessPower] = []
    counted = [node for node in current if not node.host_node]
    for node in counted:
        for component, watts in node.power_w.items():
            power_w[component] = power_w.get(component, 0.0) + watts
        for quality, watts in node.quality_w.items():
            quality_w[quality] = quality_w.get(quality, 0.0) + watts
        for workload in node.workloads:
            if workload.kind in RESERVED_KINDS:
                _add(reserved, workload, ("", workload.kind, ""))
            else:
                _add(workloads, workload)
        processes.extend(node.processes)
    processes.sort(key=lambda process: (-process.power_w, process.node, process.pid))
    expected = len(counted) + sum(not node.host_node for node in silent)
    return Now(
        at_ms=at_ms,
        power_w={c: power_w[c] for c in COMPONENTS if c in power_w},
        quality_w=quality_w,
        coverage=sum(node.coverage for node in counted) / expected if expected else None,
        nodes=current,
        silent=silent,
        simulated=any(node.simulated for node in counted),
        workloads=_bounded(workloads.values()),
        reserved=[
            reserved[("", kind, "")] for kind in RESERVED_KINDS if ("", kind, "") in reserved
        ],
        processes=processes[:MAX_PROCESSES],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
