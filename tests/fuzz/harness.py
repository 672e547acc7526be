"""A played machine whose files are spoilt as bytes say: the loop goes on, every sum holds.

The bytes are a script: which machine, then before the agent looks for sensors, and before each
reading, a few of the files get other content, are emptied, cut, made into folders, or go.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from joulegram.agent.conservation import check
from joulegram.v1.telemetry_pb2 import Frame
from tests.agent.played import MS, START_NS, Clock, Machine
from tests.fuzz.tree import GROUPS, KINDS, SYSTEMS, tree

FRAMES = 3
TICK_S = 2.0  # so that three frames take long enough for sensors to be looked for again
SPOILT_PER_TICK = 3
LONGEST = 512
NEWCOMER = 107
FRESHNESS = "sys/cray/pm_counters/freshness"
SCAN_NS = 100_000_000  # of the blade controller


class Script:
    """Takes what it needs from the bytes; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, below: int) -> int:
        """0 <= number < below <= 65536."""
        raw = self.take(2)
        return int.from_bytes(raw, "little") % below

    def take(self, count: int) -> bytes:
        raw = self._data[self._at : self._at + count]
        self._at += count
        return raw.ljust(count, b"\0")

    @property
    def over(self) -> bool:
        return self._at >= len(self._data)


def play(root: Path, data: bytes) -> list[Frame]:
    """Frames of the shipped meter on the spoilt machine.

    Raises: whatever ends the agent's loop; NotConserved; AssertionError for frames that lack.
    """
    script = Script(data)
    kind, system = KINDS[script.number(len(KINDS))], SYSTEMS[script.number(len(SYSTEMS))]
    return meter(tree(root, kind, *system), script)


def meter(machine: Machine, script: Script) -> list[Frame]:
    """The same of one machine."""
    root = machine.root
    files = sorted(path for path in root.rglob("*") if path.is_file())
    spoil(files, script)
    clock = Spoiling(files, script, root / FRESHNESS if root / FRESHNESS in files else None)
    events: dict[float, Callable[[], object]] = {
        1.0: lambda: comes(machine),
        3.0: lambda: machine.end(NEWCOMER),
    }
    frames = machine.play(FRAMES, events, clock, tick_s=TICK_S, window_s=TICK_S)
    assert [frame.seq for frame in frames] == list(range(1, FRAMES + 1))
    # The agent withholds a frame whose sums do not hold: its window would be missing here.
    window_ms = round(TICK_S * 1000)
    first_ms = START_NS // MS + window_ms
    starts_ms = [first_ms + n * window_ms for n in range(FRAMES)]
    assert [frame.window_start_ms for frame in frames] == starts_ms
    for frame in frames:
        check(frame)
        Frame.FromString(frame.SerializeToString())
    return frames


def comes(machine: Machine) -> None:
    """A process that is not there from the start, and does not stay."""
    machine.task(NEWCOMER, b"brief", GROUPS[1], cores=0.1)
    loadavg = machine.root / "proc/loadavg"
    loadavg.write_text(f"0.50 0.40 0.30 2/345 {NEWCOMER}\n")


class Spoiling(Clock):
    """After time has passed, and before the agent reads, files are spoilt."""

    def __init__(self, files: list[Path], script: Script, freshness: Path | None) -> None:
        super().__init__()
        self.files, self.script, self.freshness = files, script, freshness

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        for path in self.files:  # the machine writes files, it does not remove folders
            if path.is_dir():
                path.rmdir()
        stopped = super().wait(stop, for_s)
        if self.freshness:
            self.freshness.write_text(f"{self.wall // SCAN_NS}\n")
        spoil(self.files, self.script)
        return stopped


def spoil(files: list[Path], script: Script) -> None:
    """Let the script change a few files."""
    for _ in range(SPOILT_PER_TICK):
        if script.over:
            return
        path = files[script.number(len(files))]
        how = script.number(8)
        if how == 0:
            continue
        if not path.is_dir():
            _spoil(path, how, script)


def _spoil(path: Path, how: int, script: Script) -> None:
    before = path.read_bytes() if path.exists() else b""
    if how == 1:
        path.unlink(missing_ok=True)
    elif how == 2:
        path.write_bytes(before[: script.number(len(before) + 1)])
    elif how == 3:  # one number in it is another
        path.write_bytes(
            before.replace(b"1", script.take(1)).replace(b"2", b"99999999999999999999")
        )
    elif how == 4:
        path.unlink(missing_ok=True)
        path.mkdir()
    elif how == 5:
        path.write_bytes(before + script.take(script.number(LONGEST)))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script.take(script.number(LONGEST)) + b"\n" * (how == 6))


def fresh(folder: Path) -> Path:
    """An empty folder of that name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
