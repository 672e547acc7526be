"""One run: a site, its faults in their time, then peace, and the count."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from chaos import count, spools
from chaos.client import Client
from chaos.count import Identity, Made, Outcome, Stored
from chaos.faults import strike
from chaos.schedule import AT_ONCE, Fault
from chaos.site import CLIENT, Site, client, site

Say = Callable[[str], None]

# Back-off, patience with clocks (30 s, then 120 s), silent streams: all of them may be due.
DRAIN_S = 200.0
LOOK_S = 0.5
SETTLED_S = 5.0


@dataclass
class Campaign:
    """What happened while it ran."""

    say: Say
    begun_s: float = field(default_factory=time.time)
    began: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _saying: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        with self._saying:
            self.say(f"{time.time() - self.begun_s:7.1f} s  {what}")


def run(
    shape: str,
    faults: Sequence[Fault],
    seed: int,
    seconds: float,
    folder: Path,
    say: Say,
    *,
    disks: bool,
    pace_s: float = 0.5,
) -> Outcome:
    """Play the faults and count.

    Args:
        folder: where everything is kept; made here.
        pace_s: between two frames of an agent.
    """
    say(f"{shape}: starting")
    with site(shape, folder, disks=disks, pace_s=pace_s) as there:
        with client(there, seed, pace_s) as one:
            this = Campaign(say)
            _play(this, there, faults, seed, seconds)
            _drain(this, there, one)
        made = [
            made
            for agent in there.agents.values()
            for made in count.made_by(agent.node, agent.made)
        ] + one.made
        stored = _stored(this, there, made)
        outcome = count.settle(
            made, stored, this.began, times=one.times, dropped=_dropped(this, there, made, stored)
        )
        say(
            f"{shape}: {len(made)} frames, {stored.inserted - len(stored.frames)} headers "
            "inserted again that readers pass over"
        )
        outcome.wrong[:0] = this.wrong + one.complaints
        return outcome


def _play(this: Campaign, there: Site, faults: Sequence[Fault], seed: int, seconds: float) -> None:
    start_s = time.monotonic()
    # A part may take longer to come back than planned; its next fault waits for that.
    busy = {name: threading.Lock() for fault in faults for name in fault.touches}

    def play(fault: Fault) -> None:
        with contextlib.ExitStack() as mine:
            for name in sorted(fault.touches):
                mine.enter_context(busy[name])
            play_alone(fault)

    def play_alone(fault: Fault) -> None:
        this.note(f"{fault.kind}: {fault.target}, for {fault.for_s:g} s")
        this.began.append((time.time(), fault.name))
        try:
            told = strike(there, fault, seed)
            this.note(f"  over: {fault.kind}: {fault.target}{told and f' ({told})'}")
        except Exception as failed:
            this.wrong.append(f"{fault.kind} on {fault.target}: {type(failed).__name__}: {failed}")
            this.note(this.wrong[-1])

    with ThreadPoolExecutor(4 * AT_ONCE, "fault") as threads:
        for fault in faults:
            time.sleep(max(0.0, start_s + fault.at_s - time.monotonic()))
            threads.submit(play, fault)
    time.sleep(max(0.0, start_s + seconds - time.monotonic()))
    this.began.sort()


def _drain(this: Campaign, there: Site, one: Client) -> None:
    """Until every spool is empty and every frame of the client acknowledged."""
    # Every fault has put back what it took; who is not there now went by itself.
    for name in there.ended_by_themselves():
        this.wrong.append(f"{name} ended by itself")
    for agent in there.agents.values():
        agent.enough()
    one.enough.set()
    this.note("no more frames; waiting for what is spooled")
    deadline_s = time.monotonic() + DRAIN_S
    left = dict.fromkeys((*there.agents, CLIENT), -1)
    while any(left.values()) and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        left[CLIENT] = one.pending
        for node, agent in there.agents.items():
            waiting = spools.held(node, agent.spool)
            left[node] = -1 if waiting is None else len(waiting)
    this.wrong += [
        f"{node}: {waiting} frames are not acknowledged after {DRAIN_S:g} s"
        for node, waiting in left.items()
        if waiting
    ]
    this.note(f"drained: {left}")
    for name, part in there.parts.items():
        if name not in there.agents:
            continue
        program = part.program
        part.end(signal.SIGTERM)
        if program is not None and program.process.returncode != 0:
            this.wrong.append(f"{name} ended with status {program.process.returncode}")


def _stored(this: Campaign, there: Site, made: Sequence[Made]) -> Stored:
    """What is in the ledger, once nothing comes any more."""
    if there.clickhouse is None:
        there.parts["collector"].end(signal.SIGTERM)
    wanted = {one.identity for one in made if one.kept}
    ledger = there.ledger()
    try:
        deadline_s = time.monotonic() + DRAIN_S
        stored, since_s = count.read(ledger), time.monotonic()
        # Through Kafka an acknowledged frame is safe, and stored a little later.
        while there.clickhouse is not None and time.monotonic() < deadline_s:
            missing = wanted - stored.frames.keys()
            if not missing and time.monotonic() - since_s > SETTLED_S:
                break
            time.sleep(1.0)
            now = count.read(ledger)
            if now != stored:
                stored, since_s = now, time.monotonic()
            if time.monotonic() - since_s > DRAIN_S / 3:
                break
        this.note(f"the ledger has {len(stored.frames)} frames")
        return stored
    finally:
        ledger.close()


def _dropped(this: Campaign, there: Site, made: Sequence[Made], stored: Stored) -> list[Identity]:
    found: list[Identity] = []
    for node, agent in there.agents.items():
        missing = spools.by_node(made, stored.frames, node)
        if not missing:
            continue
        counted_uj = spools.dropped_uj(agent.spool) + there.counts_gone[node]
        counted = spools.unreadable(agent.part.said())
        gone = spools.gone(missing, counted_uj, counted, there.bad_pages.get(node, set()))
        found += gone
        if len(gone) < len(missing):
            this.wrong.append(
                f"{node}: of {sum(one.uj for one in missing)} uJ in {len(missing)} frames that are "
                f"missing its spool counted {counted_uj} uJ as dropped, and {counted} frames as "
                "unreadable"
            )
            shutil.copytree(agent.state, agent.folder / "state at the end", dirs_exist_ok=True)
    return found
