"""Time: aligned windows on a clock that may step, and who gets what happened when.

Windows are aligned in UTC; everything in them is cut by the monotonic clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from joulegram.agent.counters import cut
from joulegram.agent.use.procfs import Process
from joulegram.agent.workloads import Owner

NS_PER_MS = 1_000_000

# NTP slews smaller offsets; a jump beyond this is a step (or a suspend, during which the
# monotonic clock stands still and the wall clock does not).
CLOCK_STEP_NS = 200 * NS_PER_MS

# After a longer stall the missed windows are not made up one by one.
CATCH_UP_WINDOWS = 360


@dataclass(slots=True)
class DeviceEnergy:
    """What one device's counter gave to one window."""

    energy_uj: int = 0
    covered_ns: int = 0
    bridged_ns: int = 0  # readings are missing; the energy is known, its course is not
    late: bool = False  # holds energy of windows that were already sent


@dataclass(slots=True)
class GpuUsage:
    """Who used and held one GPU in one window."""

    uses: dict[tuple[Owner, Process | None], tuple[int, int]] = field(default_factory=dict)
    held: dict[Owner, int] = field(default_factory=dict)  # fraction of the GPU x time, ns
    looked_ns: int = 0  # time of the window in which that is known
    modelled: bool = False

    def add_use(self, who: tuple[Owner, Process | None], weight: int, busy_ns: int) -> None:
        before = self.uses.get(who, (0, 0))
        self.uses[who] = before[0] + weight, before[1] + busy_ns

    def add_held(self, owner: Owner, held_ns: int) -> None:
        self.held[owner] = self.held.get(owner, 0) + held_ns


@dataclass(slots=True, eq=False)
class Window:
    """One window while it gathers: energies per device, CPU time per process and cgroup."""

    start_ms: int  # UTC
    length_ms: int
    begin_ns: int  # monotonic; where the measured part begins...
    end_ns: int  # ...and ends
    whole: bool = True  # False when it was opened late or closed early
    energy: dict[str, DeviceEnergy] = field(default_factory=dict)
    process_ns: dict[tuple[Process, Owner, str | None], int] = field(default_factory=dict)
    group_ns: dict[str, int] = field(default_factory=dict)  # own use; may be negative for a while
    owner_ns: dict[Owner, int] = field(default_factory=dict)  # what no cgroup counts
    gpus: dict[str, GpuUsage] = field(default_factory=dict)  # by device

    def gpu(self, device: str) -> GpuUsage:
        """Who used and held a GPU, so far."""
        return self.gpus.setdefault(device, GpuUsage())

    def coverage(self, covered_ns: int) -> float:
        """Measured fraction of the window. A whole window is as long as its clock says."""
        length_ns = self.end_ns - self.begin_ns if self.whole else self.length_ms * NS_PER_MS
        return min(1.0, covered_ns / length_ns) if length_ns > 0 else 0.0


class Timeline:
    """The windows that are open: gathering, or waiting for a late counter."""

    def __init__(self, window_ms: int, wall_ns: int, mono_ns: int) -> None:
        self._window_ms = window_ms
        self._offset_ns = wall_ns - mono_ns
        first_ms = (wall_ns // NS_PER_MS // window_ms + 1) * window_ms
        self.born_ns = first_ms * NS_PER_MS - self._offset_ns
        self.open = [self._window(first_ms, self.born_ns)]
        self.steps = 0

    def advance(self, wall_ns: int, mono_ns: int) -> None:
        """Bring the windows up to now."""
        offset_ns = wall_ns - mono_ns
        stepped = abs(offset_ns - self._offset_ns) > CLOCK_STEP_NS
        last = self.open[-1]
        if not stepped:
            self._offset_ns = offset_ns
            last.end_ns = (last.start_ms + last.length_ms) * NS_PER_MS - offset_ns
        too_far = mono_ns - last.end_ns > CATCH_UP_WINDOWS * self._window_ms * NS_PER_MS
        # A step was just now, as far as anybody knows: windows that ended before it are whole.
        while mono_ns >= self.open[-1].end_ns and not too_far:
            last = self.open[-1]
            self.open.append(self._window(last.start_ms + last.length_ms, last.end_ns))
        if stepped or too_far:
            self._offset_ns = offset_ns
            self._restart(wall_ns, mono_ns)

    def close(self, mono_ns: int) -> None:
        """End the newest window now, for good: the agent stops."""
        last = self.open[-1]
        if last.begin_ns >= mono_ns:
            self.open.pop()
        elif mono_ns < last.end_ns:
            last.end_ns, last.whole = mono_ns, False

    def spread(self, amount: int, start_ns: int, end_ns: int) -> Iterator[tuple[Window, int, int]]:
        """Hand an amount out to the windows in which it happened.

        Yields: (window, its part, the time of it that lies in the window, ns). What lies in
        windows already sent, or never made up, comes with the oldest open one, or the one
        before, and a time of 0; what lies before the first window is nobody's.
        """
        if start_ns >= self.open[-1].begin_ns:  # nearly always
            yield self.open[-1], amount, end_ns - start_ns
            return
        begins = list(self._begins())
        edges = [self.born_ns, *(begin_ns for begin_ns, _, _ in begins)]
        inside = [min(max(edge, start_ns), end_ns) for edge in edges]
        _unborn, sent, *parts = cut(amount, start_ns, end_ns, inside)
        if sent:
            yield self.open[0], sent, 0
        for (_, window, gathers), part, begin, end in zip(
            begins, parts, inside[1:], [*inside[2:], end_ns], strict=True
        ):
            if end > begin:
                yield window, part, end - begin if gathers else 0

    def _begins(self) -> Iterator[tuple[int, Window, bool]]:
        """When each open window begins, and when one had ended, though the next began later."""
        ended: Window | None = None
        for window in self.open:
            if ended is not None and ended.end_ns < window.begin_ns:
                yield ended.end_ns, ended, False
            yield window.begin_ns, window, True
            ended = window

    def _window(self, start_ms: int, begin_ns: int) -> Window:
        end_ns = (start_ms + self._window_ms) * NS_PER_MS - self._offset_ns
        return Window(start_ms, self._window_ms, begin_ns, end_ns)

    def _restart(self, wall_ns: int, mono_ns: int) -> None:
        self.steps += 1
        last = self.open[-1]
        if last.begin_ns >= mono_ns:  # it has not begun
            self.open.pop()
            if not self.open:
                self.born_ns = mono_ns
        elif mono_ns < last.end_ns:
            last.end_ns, last.whole = mono_ns, False
        start_ms = wall_ns // NS_PER_MS // self._window_ms * self._window_ms
        window = self._window(start_ms, mono_ns)
        window.whole = False
        self.open.append(window)
