"""`joulegram agent --print` on a played machine: its frames, checked, and what they add up to."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from replay.case import Late, Stage
from replay.feeder import Event, Feeder
from replay.tree import Machine
from tests.servers import joulegram

Frame: TypeAlias = dict[str, Any]

LEAD_S = 0.3  # what happens first is told to the feeder so long before
SPARE = 1  # frames beyond those compared, where the first came late
START_WITHIN_S = 60.0
COMPONENTS = ("cpu", "dram", "gpu", "other")
# A reading is stamped a little after it was made, and rounded (10 ms in /proc/<pid>/stat).
READ_S = 0.02


class Wrong(Exception):
    """The agent did what it never may, whatever the case is about."""


@dataclass(frozen=True, slots=True)
class Played:
    """The frames that count.

    Args:
        stale_s: how old a value can have been, and how late read, where the frames begin and end,
            or where something happened; what counts for sums over all of them.
        worst_s: the same where any of the windows begins and ends.
    """

    frames: Sequence[Frame]
    window_s: float
    stale_s: float
    worst_s: float

    @property
    def seconds(self) -> float:
        return len(self.frames) * self.window_s

    def within(self, watts: float, times: float = 1.0) -> float:
        """How far an energy may be off, J, for what was read late where frames begin and end."""
        return watts * times * self.stale_s

    def within_window(self, watts: float) -> float:
        """The same for a single window: it may be read late at both of its ends."""
        return watts * 2 * self.worst_s

    def from_frame(self, first: int, last: int | None = None) -> "Played":
        return Played(self.frames[first:last], self.window_s, self.worst_s, self.worst_s)

    def rows(self, kind: str, id_: str | None = None, **wanted: object) -> list[Frame]:
        """Rows of workloads of a kind; `wanted` are fields of the row."""
        found = []
        for frame in self.frames:
            for row in frame["rows"]:
                workload = frame["workloads"][row["workload"]]
                if workload["kind"] == kind and id_ in (None, workload["id"]):
                    found.append(row)
        return [row for row in found if all(row[k] == v for k, v in wanted.items())]

    def joules(self, kind: str, id_: str | None = None, **wanted: object) -> float:
        return sum(row_uj(row) for row in self.rows(kind, id_, **wanted)) / 1e6

    def gpu_j(self, kind: str, id_: str | None = None, **wanted: object) -> float:
        return sum(int(row["gpu_uj"]) for row in self.rows(kind, id_, **wanted)) / 1e6

    def held_j(self, holder: str) -> float:
        """Idle energy of GPUs that a workload holds; of those that nobody does for ""."""
        return sum(
            int(row["gpu_uj"])
            for frame in self.frames
            for row in frame["rows"]
            if frame["workloads"][row["workload"]]["kind"] == "idle"
            and holder == (frame["workloads"][row["holder"]]["id"] if row["holder"] >= 0 else "")
        ) / 1e6  # fmt: skip

    def of_device(self, name: str, what: str = "energy_uj") -> list[Any]:
        """One value a frame; joules where it is an energy."""
        values = [d[what] for f in self.frames for d in f["devices"] if d["name"] == name]
        return [int(v) / 1e6 for v in values] if what.endswith("_uj") else values

    def device_j(self, name: str, what: str = "energy_uj") -> float:
        return float(sum(self.of_device(name, what)))

    @property
    def total_j(self) -> float:
        return sum(int(d["energy_uj"]) for f in self.frames for d in f["devices"]) / 1e6

    @property
    def devices(self) -> str:
        """Names, as every frame has them."""
        names = {" ".join(d["name"] for d in f["devices"]) for f in self.frames}
        return " | ".join(sorted(names))


def row_uj(row: Frame) -> int:
    return sum(int(row[f"{component}_uj"]) for component in COMPONENTS)


def play(
    stage: Stage,
    machine: Machine,
    windows: int = 5,
    events: Mapping[float, Event] | None = None,
    **how: Any,
) -> Played:
    """Feed a machine and watch it."""
    with Feeder(machine, stage) as feeder:
        return watch(stage, feeder, windows, events, **how)


def watch(
    stage: Stage,
    feeder: Feeder,
    windows: int = 5,
    events: Mapping[float, Event] | None = None,
    *,
    flags: Sequence[str] = (),
    tick_s: float = 0.2,
    window_s: float = 1.0,
    env: Mapping[str, str] | None = None,
    name: str = "agent",
) -> Played:
    """The frames of the shipped agent, from its third window on.

    Args:
        events: what happens so many seconds after the third window began.
    Raises: Late; Wrong.
    """
    argv = joulegram(
        *("agent", "--print", f"--frames={2 + windows + SPARE}", "--node=played"),
        *roots(feeder.machine),
        *(f"--tick={tick_s:g}", f"--window={window_s:g}", "--ipmi=off"),
        *(f"--state={stage.folder / name}", *flags),
    )
    (stage.folder / name).mkdir(exist_ok=True)
    said = stage.folder / f"{name}.err"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=stderr, cwd=stage.folder, env=bare(env)
        )
    limit_s = START_WITHIN_S + (4 + windows) * window_s + 40
    killer = threading.Timer(limit_s, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        base_ms = _begin(first, feeder, events or {}, window_s)
        lines, came_ms = [first], [time.time() * 1000]
        for line in process.stdout:
            lines.append(line)
            came_ms.append(time.time() * 1000)
        code = process.wait()
    finally:
        killer.cancel()
        process.kill()
        process.wait()
    (stage.folder / f"{name}.jsonl").write_bytes(b"".join(lines))
    errors = said.read_text(errors="replace")
    if code != 0 or "Traceback" in errors:
        raise Wrong(f"the agent ended with {code}: {(errors.splitlines() or [''])[-1]}")
    frames = [json.loads(line) for line in lines]
    check(frames)
    first_n = next((n for n, f in enumerate(frames) if f["window_start_ms"] >= base_ms), 0)
    compared = frames[first_n : first_n + windows]
    if first_n < 1 or len(compared) < windows:
        raise Late("the agent's first frames came too late")
    # A frame leaves at the reading that ends its window.
    late_ms = [came_ms[n] - _end_ms(frames[n]) for n in (first_n - 1, first_n + windows - 1)]
    return played(stage, feeder, compared, window_s, max(late_ms) / 1000)


def played(
    stage: Stage,
    feeder: Feeder,
    frames: Sequence[Frame],
    window_s: float = 1.0,
    late_s: float = READ_S,
) -> Played:
    """Frames, with how late what they were made of can have been.

    Args:
        late_s: of the readings where they begin and end.
    Raises: Late.
    """
    to_monotonic_s = time.monotonic() - time.time()
    begin_s = frames[0]["window_start_ms"] / 1000 + to_monotonic_s
    end_s = _end_ms(frames[-1]) / 1000 + to_monotonic_s
    every_s = [begin_s + n * window_s for n in range(len(frames))]
    stale_s, worst_s = feeder.stale_s([begin_s, end_s]), feeder.stale_s([*every_s, end_s])
    late_s = max(READ_S, late_s)
    stage.judge(stale_s, late_s, feeder.torn_s(begin_s - window_s, end_s + window_s))
    return Played(frames, window_s, stale_s + late_s, worst_s + late_s)


def _end_ms(frame: Frame) -> int:
    return int(frame["window_start_ms"]) + int(frame["window_ms"])


def roots(machine: Machine) -> list[str]:
    return [f"--sysfs={machine.sys}", f"--procfs={machine.proc}", f"--cgroupfs={machine.cgroup}"]


def bare(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without what configures joulegram."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("JOULEGRAM_")}
    return {**ours, **(more or {})}


def _begin(first: bytes, feeder: Feeder, events: Mapping[float, Event], window_s: float) -> int:
    """Plan what happens. Returns when the first window that counts begins, UTC ms."""
    if not first:
        return 0  # it ended; its exit code and stderr say why
    window_ms = round(window_s * 1000)
    base_ms = int(json.loads(first)["window_start_ms"]) + 2 * window_ms
    while base_ms / 1000 < time.time() + LEAD_S:
        base_ms += window_ms
    offset_s = time.monotonic() - time.time()
    base_s = base_ms / 1000 + offset_s
    for after_s, event in sorted(events.items()):
        feeder.at(base_s + after_s, event)
    return base_ms


def check(frames: Sequence[Frame]) -> None:
    """What holds of all frames of any machine. Raises: Wrong."""
    if [f["seq"] for f in frames] != list(range(1, len(frames) + 1)):
        raise Wrong(f"seq is {[f['seq'] for f in frames]}")
    for frame in frames:
        numbers = [row[c] for row in frame["rows"] for c in row if c.endswith(("_uj", "_ns"))]
        numbers += [d[k] for d in frame["devices"] for k in ("energy_uj", "idle_uj", "raw_uj")]
        if any(not isinstance(n, int) or n < 0 for n in numbers):
            raise Wrong(f"a number that is no count in frame {frame['seq']}")
        for component in COMPONENTS:
            _check_sum(frame, component)
        for n, device in enumerate(frame["devices"]):
            rows = [row for row in frame["rows"] if row.get("gpu_device", -1) == n]
            if device["component"] == "gpu" and (
                sum(row["gpu_uj"] for row in rows) != device["energy_uj"]
            ):
                raise Wrong(f"rows of {device['name']} are not its energy: frame {frame['seq']}")


def _check_sum(frame: Frame, component: str) -> None:
    drawn = [d for d in frame["devices"] if d["component"] == component]
    rows = sum(row[f"{component}_uj"] for row in frame["rows"])
    idle = sum(
        row[f"{component}_uj"]
        for row in frame["rows"]
        if frame["workloads"][row["workload"]]["kind"] == "idle"
    )
    energies = sum(d["energy_uj"] for d in drawn), sum(d["idle_uj"] for d in drawn)
    if (rows, idle) != energies:
        raise Wrong(f"{component}: rows {rows, idle}, devices {energies} in frame {frame['seq']}")


def tail(folder: Path, lines: int = 3) -> str:
    """The last that programs in a folder said."""
    texts = [path.read_text(errors="replace") for path in sorted(folder.rglob("*.err"))]
    return "\n".join("\n".join(text.splitlines()[-lines:]) for text in texts if text)
