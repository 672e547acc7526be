"""The meter of a run: a process of its own, beside the command and never in its way.

It meters until the last rank of the job on this node has said that its command ended, and gives
that one the result. Whatever becomes of it, the command runs on.
"""

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from joulegram.agent import findings
from joulegram.agent.clock import SystemClock
from joulegram.agent.config import AgentConfig
from joulegram.agent.findings import Finding
from joulegram.agent.floors import Floors
from joulegram.agent.meter import Meter
from joulegram.agent.one_run import meeting, result
from joulegram.agent.one_run.lineage import KIND, Lineage
from joulegram.agent.one_run.meeting import Lost
from joulegram.agent.one_run.tally import Tally
from joulegram.agent.owners.batch import Batch
from joulegram.agent.owners.owners import Owners
from joulegram.agent.workloads import Owner

# A run may be short: many small windows. NVIDIA's samples of use may come once a second only.
TICK_S, WINDOW_S, NVIDIA_WINDOW_S = 0.5, 1.0, 2.0
NVIDIA = Path("/dev/nvidiactl")
POLL_S, READY_POLL_S = 0.5, 0.02
STOPS_WITHIN_S = 8.0
PARTIES_MAX = 4_096


class RunClock(SystemClock):
    """The machine's clock; knows when metering began and when it was told to stop."""

    def __init__(self, window_ms: int) -> None:
        self.ready = threading.Event()
        self.began_ns = self.ended_ns = 0  # monotonic
        self._window_ms = window_ms
        self._first_ms = 0

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        now_ms = self.wall_ns() // 1_000_000
        if not self._first_ms:
            self._first_ms = (now_ms // self._window_ms + 1) * self._window_ms
        elif not self.ready.is_set() and now_ms >= self._first_ms:
            self.began_ns = self.mono_ns() - now_ms % self._window_ms * 1_000_000
            self.ready.set()
        stopped = super().wait(stop, for_s)
        if stopped:
            self.ended_ns = self.mono_ns()
        return stopped


@dataclass(slots=True)
class Party:
    """A `joulegram run` that takes part."""

    pid: int
    rank: int | None = None
    waits: bool = False


@dataclass(slots=True)
class Metering:
    """One run's meter, its thread, and who takes part."""

    config: AgentConfig
    clock: RunClock
    lineage: Lineage
    tally: Tally
    meter: Meter
    stop: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    ranks: int = 0  # that took part
    troubles: list[Finding] = field(default_factory=list)

    @classmethod
    def begin(cls, config: AgentConfig) -> "Metering":
        """Everything but the thread."""
        window_s = NVIDIA_WINDOW_S if NVIDIA.exists() else WINDOW_S
        config = replace(
            config, tick_s=TICK_S, window_s=window_s, slurm="off", docker_socket="", kubelet_url=""
        )
        owner = Owner(KIND, f"{int(time.time())}-{os.getppid()}")
        lineage = Lineage(config.procfs, owner, os.getpid())
        owners = Owners(Batch(config.procfs))
        # A GPU is the run's from when it opens it; that its job was given it is another matter.
        owners.meets.clear()
        floors = Floors.kept_in(config.state, config.node)
        clock = RunClock(round(window_s * 1000))
        meter = Meter(config, clock, floors=floors, owners=owners, run=lineage)
        return cls(config, clock, lineage, Tally(owner), meter)

    def run(self) -> None:
        """The thread: frames until `stop`."""
        try:
            with contextlib.closing(self.meter):
                for frame in self.meter.frames(self.stop):
                    # What came before the command is no part of its run.
                    if self.clock.ready.is_set():
                        self.tally.add(frame)
        except Exception as fault:  # whatever it is, the command goes on
            self.failure = f"{type(fault).__name__}: {fault}"
        self.clock.ready.set()

    def look(self) -> None:
        """The other thread: what can be metered here at all."""
        try:
            self.troubles = list(findings.energy(self.config))
        except Exception as fault:
            self.troubles = [Finding("sensors", findings.FAILS, f"{type(fault).__name__}: {fault}")]

    def result(self) -> dict[str, Any]:
        """What the last one is told."""
        if not self.failure and self.meter.unsound:
            self.failure = f"{self.meter.unsound} windows whose sums did not hold"
        began_ns = self.clock.began_ns
        if not self.failure and not began_ns:
            self.failure = "the command ended before metering began"
        return result.measured(
            self.tally,
            elapsed_ms=max(0, self.clock.ended_ns - began_ns) / 1e6 if began_ns else 0.0,
            used_ns=self.lineage.used_ns(),
            left=self.lineage.left(),
            ranks=self.ranks,
            node=self.config.node,
            troubles=self.troubles,
            errors={name: device.error for name, device in self.meter.devices.metered.items()},
            unknown_floors=[
                name
                for name, device in self.meter.devices.metered.items()
                if device.floor_uw is None and not self.meter.devices.learnt.floor_uw(name)
            ],
            no_such_devices=sorted(set(self.config.idle_w) - set(self.meter.devices.metered)),
            failure=self.failure,
        )


def main(config: AgentConfig, first: socket.socket, listener: socket.socket | None) -> None:
    """The whole life of the metering process."""
    logging.disable(logging.WARNING)  # what is wrong stands in the result
    try:
        metering = Metering.begin(config)
    except Exception as fault:
        with contextlib.suppress(Lost):
            meeting.say(first, {"failed": f"{type(fault).__name__}: {fault}"})
        return
    thread = threading.Thread(target=metering.run, daemon=True)
    thread.start()
    looking = threading.Thread(target=metering.look, daemon=True)
    looking.start()
    last = _Table(metering, first, listener).serve()
    metering.stop.set()
    thread.join(STOPS_WITHIN_S)
    if thread.is_alive():
        metering.failure = "a sensor does not answer"
    looking.join(STOPS_WITHIN_S)
    if last is not None:
        with contextlib.suppress(Lost):
            meeting.say(last, {"result": metering.result()})


class _Table:
    """Who takes part, and what they are told."""

    def __init__(
        self, metering: Metering, first: socket.socket, listener: socket.socket | None
    ) -> None:
        self._metering, self._listener = metering, listener
        self._parties: dict[socket.socket, Party] = {}
        self._selector = selectors.DefaultSelector()
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)
        self._join(first)

    def serve(self) -> socket.socket | None:
        """Until the last command has ended. Returns: the way to who told so, if anybody did."""
        while self._parties:
            for way in self._readable():
                if way is self._listener:
                    with contextlib.suppress(OSError):
                        self._join(way.accept()[0])
                elif way in self._parties and self._hear(way):
                    return way
            if self._metering.clock.ready.is_set():
                self._tell_ready()
        return None

    def _readable(self) -> Iterator[socket.socket]:
        waiting = any(party.waits for party in self._parties.values())
        for key, _ in self._selector.select(READY_POLL_S if waiting else POLL_S):
            yield key.fileobj  # type: ignore[misc]

    def _join(self, way: socket.socket) -> None:
        pid, uid = meeting.peer(way)
        if uid != os.getuid() or len(self._parties) >= PARTIES_MAX:
            way.close()
            return
        self._parties[way] = Party(pid)
        self._selector.register(way, selectors.EVENT_READ)

    def _hear(self, way: socket.socket) -> bool:
        """Take one message; whether it was the last command's end."""
        party = self._parties[way]
        try:
            message = meeting.hear(way)
        except Lost:
            self._metering.lineage.end(party.pid, None)
            self._leave(way)
            return False
        if "hello" in message:
            self._welcome(way, party, message)
            return False
        waited_ns = message.get("waited_ns")
        self._metering.lineage.end(party.pid, waited_ns if isinstance(waited_ns, int) else None)
        if len(self._parties) == 1:
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()  # who comes now brings a meter of its own
            return True
        with contextlib.suppress(Lost):
            meeting.say(way, {"others": len(self._parties) - 1})
        self._leave(way)
        return False

    def _welcome(self, way: socket.socket, party: Party, message: dict[str, Any]) -> None:
        rank = message.get("rank")
        others = [p.rank for w, p in self._parties.items() if w is not way]
        why = ""
        if rank is not None and rank in others:
            why = f"rank {rank} is metered already"
        elif not self._metering.lineage.add(party.pid):
            why = f"pid {party.pid} is not in {self._metering.config.procfs}"
        if why:
            with contextlib.suppress(Lost):
                meeting.say(way, {"refused": why})
            self._leave(way)
            return
        party.rank, party.waits = rank, True
        self._metering.ranks += 1

    def _tell_ready(self) -> None:
        for way, party in list(self._parties.items()):
            if party.waits:
                party.waits = False
                failure = self._metering.failure
                with contextlib.suppress(Lost):
                    meeting.say(way, {"failed": failure} if failure else {"ready": True})

    def _leave(self, way: socket.socket) -> None:
        self._selector.unregister(way)
        del self._parties[way]
        way.close()
