"""Processes that ended a moment ago: a GPU's driver tells of them when procfs does not any more.

Reads  <procfs>/uptime
Format https://docs.kernel.org/filesystems/proc.html
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.textfile import read_file
from joulegram.agent.use.procfs import TICK_NS, Process

REMEMBERED_NS = 60_000_000_000
SLACK_NS = 1_000_000_000  # a driver may tell whole seconds
# Who starts processes by the thousand makes none but its own cgroup's forgotten, while there are
# fewer cgroups than are remembered in all.
PER_CGROUP_MAX, ALL_MAX = 512, 2_048


@dataclass(frozen=True, slots=True)
class Gone:
    """A process that has ended."""

    process: Process
    missed_ns: int  # monotonic: from then on it was not there


@dataclass(slots=True)
class Ended:
    """The last of them."""

    _of: dict[bytes, deque[Gone]] = field(default_factory=dict)  # by where they were
    _by_pid: dict[int, list[Gone]] | None = None  # made when asked for

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def note(self, ended: Iterable[Process], now_ns: int) -> None:
        """These are gone since the last time; forget who is gone for long."""
        self._by_pid = None
        for process in ended:
            if process.groups:
                gone = self._of.pop(process.groups, None) or deque(maxlen=PER_CGROUP_MAX)
                gone.append(Gone(process, now_ns))
                self._of[process.groups] = gone  # the last in order
        for groups, gone in list(self._of.items()):
            while gone and now_ns - gone[0].missed_ns > REMEMBERED_NS:
                gone.popleft()
            if not gone:
                del self._of[groups]
        lengths = [len(gone) for gone in self._of.values()]
        most = max(lengths, default=0)
        while most > 1 and sum(min(length, most) for length in lengths) > ALL_MAX:
            most //= 2
        for groups in list(self._of)[: max(0, len(self._of) - ALL_MAX)]:
            del self._of[groups]
        for gone in self._of.values():
            while len(gone) > most:
                gone.popleft()

    def of(self, pid: int, after_ns: int) -> list[Process]:
        """Those with that pid who may have been there after a moment, the last one first."""
        if self._by_pid is None:
            self._by_pid = {}
            for gone in self._of.values():
                for one in gone:
                    self._by_pid.setdefault(one.process.pid, []).append(one)
        found = [one.process for one in self._by_pid.get(pid, ()) if one.missed_ns > after_ns]
        return sorted(found, key=lambda process: -process.start_ticks)


def uptime_ns(procfs: Path) -> int | None:
    """Now, in the time that processes' starts are told in; None: not told."""
    try:
        return round(float(read_file(f"{procfs}/uptime").split()[0]) * 1e9)
    except (OSError, ValueError, IndexError, OverflowError):
        return None


def there_by_then(processes: Sequence[Process], uptime_ns: int, ago_ns: int) -> Process | None:
    """Who of those that had a pid in turn, the last one first, had it so long ago."""
    for slack_ns in (0, SLACK_NS):
        for process in processes:
            if uptime_ns - process.start_ticks * TICK_NS >= ago_ns - slack_ns:
                return process
    return None
