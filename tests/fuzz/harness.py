"""A played machine whose files are spoilt as bytes say: the loop goes on, every sum holds.

The bytes are a script: before each reading of the agent a few of its files get other content,
are emptied, cut, made into folders, or go.
"""

import shutil
import threading
from pathlib import Path

from joulegram.agent.conservation import check
from joulegram.v1.telemetry_pb2 import Frame
from tests.agent.played import Clock
from tests.fuzz.tree import tree

FRAMES = 3
SPOILT_PER_TICK = 3
LONGEST = 512
FRESHNESS = "sys/cray/pm_counters/freshness"


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
    machine = tree(root, version=1 + script.number(2))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    clock = Spoiling(files, script, root / FRESHNESS)
    frames = machine.play(FRAMES, clock=clock, tick_s=1.0)
    assert [frame.seq for frame in frames] == list(range(1, FRAMES + 1))
    for frame in frames:
        check(frame)
        Frame.FromString(frame.SerializeToString())
    return frames


class Spoiling(Clock):
    """After time has passed, and before the agent reads, files are spoilt."""

    def __init__(self, files: list[Path], script: Script, freshness: Path) -> None:
        super().__init__()
        self.files, self.script, self.freshness = files, script, freshness

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        for path in self.files:  # the machine writes files, it does not remove folders
            if path.is_dir():
                path.rmdir()
        stopped = super().wait(stop, for_s)
        self.freshness.write_text(f"{self.wall}\n")
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
