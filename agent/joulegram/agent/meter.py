"""The loop: a tick on the clock's own multiples, a frame for every window."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from joulegram.agent.clock import Clock, SystemClock
from joulegram.agent.config import AgentConfig, timing_ms
from joulegram.agent.conservation import check
from joulegram.agent.energy import AnySensor, Devices
from joulegram.agent.errors import NotConserved
from joulegram.agent.floors import Floors
from joulegram.agent.frames import frame_of
from joulegram.agent.gpus import Gpus
from joulegram.agent.identity import Identity
from joulegram.agent.machine import Machine, boot_id
from joulegram.agent.one_run.lineage import Lineage
from joulegram.agent.owners.owners import Owners
from joulegram.agent.sensors.gpu import GpuUsers
from joulegram.agent.use.cgroups import Cgroups
from joulegram.agent.use.procfs import Processes
from joulegram.agent.use.usage import Usage
from joulegram.agent.windows import Timeline, Window
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

RESCAN_NS = 5_000_000_000  # how often sensors are looked for: hot-plug


class Meter:
    """Turns this machine's counters into frames.

    Args:
        on_tick: told at every tick how late it came, s.
        floors: idle floors learnt before; go on being learnt.
        find: every sensor that this machine has now; asked again every few seconds.
        kernels: whether procfs and cgroupfs keep the kernel's promises; None: look.
        owners: who knows whose workloads are whose; None: as configured.
        run: the run whose processes are told from all others.
    """

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock | None = None,
        on_tick: Callable[[float], None] = lambda late_s: None,
        *,
        floors: Floors | None = None,
        find: Callable[[], Iterable[AnySensor]] | None = None,
        kernels: bool | None = None,
        owners: Owners | None = None,
        run: Lineage | None = None,
    ) -> None:
        self._config = config
        self._on_tick = on_tick
        self._clock = clock or SystemClock()
        self._machine = Machine(config, self._clock)
        self._find = find or self._machine.sensors
        self.tick_ms, self.window_ms = timing_ms(config.tick_s, config.window_s)
        self.epoch = secrets.randbits(64)
        self.seq = 0
        self.devices = Devices(self._clock, config.tick_s, config.idle_w, floors or Floors())
        self._processes = processes = Processes(config.procfs, counts_forks=kernels)
        self._cgroups = cgroups = Cgroups(config.cgroupfs, self._clock, kernels=kernels)
        self._identity = Identity(
            config.procfs,
            processes,
            cgroups,
            config.scope,
            config.node,
            owners or Owners.of(config),
            run,
        )
        self._usage = Usage(config.procfs, processes, cgroups, self._identity, config.fold_cores)
        self._gpus = Gpus(processes, self._identity, self._identity.holding)
        self._find_sensors()
        unknown = sorted(set(config.idle_w) - set(self.devices.metered))
        if unknown:
            log.warning(
                "idle_w names %s, which this machine does not have; its devices are %s",
                ", ".join(unknown),
                ", ".join(sorted(self.devices.metered)) or "none",
            )
        if "platform" in config.idle_w:
            log.warning(
                "idle_w of platform has no effect: what is left of a platform goes by what its "
                "parts draw. Give the parts their floors."
            )
        self._boot_id = boot_id(config.procfs)
        self._blind = False  # processes cannot be read
        self.unsound = 0  # frames withheld because their sums did not hold

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield a frame per window, from the first whole one on, until `stop` is set.

        The window that is open then is closed early: what it holds is not lost.
        """
        clock = self._clock
        timeline = Timeline(self.window_ms, clock.wall_ns(), clock.mono_ns())
        found_ns = clock.mono_ns()
        self._read(timeline)
        while not clock.wait(stop, self._until_tick_s()):
            self._on_tick(clock.wall_ns() % (self.tick_ms * 1_000_000) / 1e9)
            timeline.advance(clock.wall_ns(), clock.mono_ns())
            self._read(timeline)
            now_ns = clock.mono_ns()
            yield from self._ready(timeline, now_ns)
            if now_ns - found_ns > RESCAN_NS:
                found_ns = now_ns
                self._find_sensors()
        timeline.advance(clock.wall_ns(), clock.mono_ns())
        self._read(timeline)
        timeline.close(clock.mono_ns())
        for window in timeline.open:
            yield from self._sound(window)

    def close(self) -> None:
        """End the threads that ask slow sensors and schedulers; let go of every file."""
        self._machine.close()
        self._identity.close()
        self._processes.close()
        self._cgroups.close()

    def _read(self, timeline: Timeline) -> None:
        self.devices.tick(timeline)
        try:
            self._usage.tick(timeline, self._clock.mono_ns())
            self._gpus.tick(timeline, self._clock.mono_ns())
        except OSError as exc:
            if not self._blind:
                log.warning("cannot see processes, their energy is unattributed: %s", exc)
            self._blind = True
        else:
            self._blind = False

    def _ready(self, timeline: Timeline, now_ns: int) -> Iterator[Frame]:
        """Frames of the windows that have ended and wait for no counter."""
        while len(timeline.open) > 1:
            window = timeline.open[0]
            if self.devices.wait_for(window, now_ns):
                return
            del timeline.open[0]
            yield from self._sound(window)

    def _sound(self, window: Window) -> Iterator[Frame]:
        """The window's frame, unless its sums do not hold: then nobody shall see it."""
        try:
            yield self._frame(window)
        except NotConserved as exc:
            self.unsound += 1
            log.error("%s", exc)

    def _frame(self, window: Window) -> Frame:
        uses = self._usage.close(window)
        frame = frame_of(window, self.devices.of(window), uses, self._identity)
        check(frame)
        self.seq += 1
        frame.node, frame.epoch, frame.seq = self._config.node, self.epoch, self.seq
        frame.boot_id, frame.host_node = self._boot_id, self._config.host_node
        return frame

    def _find_sensors(self) -> None:
        for sensor in self._find():
            if self.devices.add(sensor) and hasattr(sensor, "look"):
                self._gpus.add(cast(GpuUsers, sensor), self._clock.mono_ns())

    def _until_tick_s(self) -> float:
        """Time until the next multiple of the tick in UTC, s."""
        now_ns = self._clock.wall_ns()
        tick_ns = self.tick_ms * 1_000_000
        return (tick_ns - now_ns % tick_ns) / 1e9
