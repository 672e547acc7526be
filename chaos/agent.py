"""An agent whose machine is made up: the shipped spool and uplink, fed by a meter of ours.

    python -m chaos.agent NODE FOLDER COLLECTOR BASE_MS PACE_S ROWS SPOOL_MB

FOLDER/made     a line per frame before it is offered to the spool: `made EPOCH SEQ UJ AT_S`,
                and once the spool has answered for it `kept EPOCH SEQ`
FOLDER/clock    seconds that this agent's clock is off; read all the time
FOLDER/enough   when it (or FOLDER/hush) is there no frames are made; what is spooled is sent
FOLDER/state    the agent's --state
"""

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from joulegram.agent.config import AgentConfig
from joulegram.agent.metrics import AgentMetrics
from joulegram.agent.run import serve
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made_frames import energy_uj, frame

true_time_ns = time.time_ns
LOOK_S = 0.1


class Record:
    """The truth about this agent's frames, on a disk that nobody touches."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._asked: list[tuple[int, int]] = []

    def made(self, one: Frame) -> None:
        """It is about to be offered to the spool."""
        self._asked.append((one.epoch, one.seq))
        self._say(f"made {one.epoch} {one.seq} {energy_uj([one])} {true_time_ns() / 1e9:.3f}")

    def answered(self, waiting: int) -> None:
        """The spool has taken (or counted as lost) all but the last `waiting`."""
        answered = len(self._asked) - waiting
        for epoch, seq in self._asked[:answered]:
            self._say(f"kept {epoch} {seq}")
        del self._asked[:answered]

    def _say(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())


class Metrics(AgentMetrics):
    """Hears from `serve` how many frames the spool has not taken yet."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def unwritten(self, frames: int, limit: int) -> None:
        super().unwritten(frames, limit)
        self._record.answered(frames)


class Meter:
    """A window every `pace_s`, of windows that are all in the past."""

    unsound = 0

    def __init__(
        self, node: str, folder: Path, record: Record, base_ms: int, pace_s: float, rows: int
    ) -> None:
        self._node, self._record, self._base_ms = node, record, base_ms
        self._pace_s, self._rows = pace_s, rows
        self._still = folder / "enough", folder / "hush"
        self._epoch = secrets.randbits(64) | 1

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        seq, last = 0, -1
        while not stop.wait(self._pace_s):
            # Windows go on where those of an earlier life ended.
            window = int((true_time_ns() / 1e6 - self._base_ms) / 1000 / self._pace_s)
            if window == last or any(file.exists() for file in self._still):
                continue
            seq, last = seq + 1, window
            one = windows(self._node, self._epoch, seq, window, self._base_ms, self._rows)
            self._record.made(one)
            yield one


def windows(node: str, epoch: int, seq: int, window: int, base_ms: int, rows: int = 3) -> Frame:
    """The frame of a made-up node; its windows follow each other, a day before `base_ms`."""
    start_ms = base_ms // 300_000 * 300_000 - 86_400_000
    count = rows + seq % 7
    one = frame(seq, node=node, epoch=epoch, window=window, start_ms=start_ms, rows=count)
    one.simulated = True
    return one


def main(argv: Sequence[str]) -> int:
    node, folder, collector, base_ms, pace_s, rows, spool_mb = argv
    _follow(Path(folder) / "clock")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    record = Record(Path(folder) / "made")
    meter = Meter(node, Path(folder), record, int(base_ms), float(pace_s), int(rows))
    config = AgentConfig(
        node=node,
        state=Path(folder) / "state",
        collector=collector,
        http="",
        spool_max_mb=float(spool_mb),
    )
    return serve(meter, config, stop, metrics=Metrics(record))


def _follow(clock: Path) -> None:
    """Every time of day that this process asks for is off by what the file says."""
    off_ns = 0

    def look() -> None:
        nonlocal off_ns
        while True:
            try:
                off_ns = int(float(clock.read_text() or 0) * 1e9)
            except (OSError, ValueError):
                off_ns = 0
            time.sleep(LOOK_S)

    time.time_ns = lambda: true_time_ns() + off_ns
    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
