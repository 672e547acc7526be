"""What each kind of fault does to a site. Each returns when the fault is over."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from chaos.disk import corrupt_page
from chaos.parts import alive, hold, let_go
from chaos.schedule import Fault
from chaos.site import Site
from chaos.spools import EVERY, dropped_uj, held

Act: TypeAlias = Callable[[Site, Fault, random.Random], str]

SLOW_BYTES_PER_S = 4_000


def strike(site: Site, fault: Fault, seed: int) -> str:
    """Do it, wait, undo it. Returns what there is to say of it."""
    rng = random.Random(f"{seed} {fault}")
    return ACTS[fault.kind](site, fault, rng)


def _kill(site: Site, fault: Fault, rng: random.Random) -> str:
    return _ended(site, fault, signal.SIGKILL)


def _restart(site: Site, fault: Fault, rng: random.Random) -> str:
    return _ended(site, fault, signal.SIGTERM)


def _ended(site: Site, fault: Fault, how: signal.Signals) -> str:
    part = site.parts[fault.target]
    try:
        part.end(how)
    except subprocess.TimeoutExpired:
        part.end(signal.SIGKILL)
        return f"did not end on {how.name}; killed"
    finally:
        time.sleep(fault.for_s)
        part.start()
    return ""


def _hold(site: Site, fault: Fault, rng: random.Random) -> str:
    hold(site.parts[fault.target])
    time.sleep(fault.for_s)
    let_go(site.parts[fault.target])
    return ""


def _delay(site: Site, fault: Fault, rng: random.Random) -> str:
    link, seconds = site.links[fault.target], round(rng.uniform(0.1, 1.0), 2)
    link.delay(seconds)
    time.sleep(fault.for_s)
    link.delay(0.0)
    return f"{seconds:g} s a chunk"


def _slow(site: Site, fault: Fault, rng: random.Random) -> str:
    link = site.links[fault.target]
    link.slow(SLOW_BYTES_PER_S)
    time.sleep(fault.for_s)
    link.slow(0.0)
    return f"{SLOW_BYTES_PER_S} bytes/s"


def _refuse(site: Site, fault: Fault, rng: random.Random) -> str:
    site.links[fault.target].refuse()
    time.sleep(fault.for_s)
    site.links[fault.target].allow()
    return ""


def _reset(site: Site, fault: Fault, rng: random.Random) -> str:
    times = rng.randrange(1, 5)
    for _ in range(times):
        site.links[fault.target].reset()
        time.sleep(fault.for_s / times)
    return f"{times} times"


def _half_open(site: Site, fault: Fault, rng: random.Random) -> str:
    """Bytes go nowhere; then whoever knows the connection no more says so."""
    _half_open_for_good(site, fault, rng)
    site.links[fault.target].reset(broken=True)
    return ""


def _half_open_for_good(site: Site, fault: Fault, rng: random.Random) -> str:
    """New connections work again, those that were there stay silent until somebody ends them."""
    link = site.links[fault.target]
    link.swallow(True)
    time.sleep(fault.for_s)
    link.swallow(False)
    return ""


def _clock(site: Site, fault: Fault, rng: random.Random) -> str:
    """Within what a collector allows, and beyond; forwards and back."""
    off_s = rng.choice((-1, 1)) * rng.choice((5.0, 200.0, 3600.0, 40 * 86_400.0))
    if off_s > 30 * 86_400:
        # A month ahead every pending frame would be older than a spool keeps it.
        off_s = -off_s
    agent = site.agents[fault.target]
    agent.clock_off(off_s)
    time.sleep(fault.for_s)
    agent.clock_off(0.0)
    return f"{off_s:+g} s"


def _corrupt(site: Site, fault: Fault, rng: random.Random) -> str:
    """Frames wait in the spool; the agent ends; a page of its file goes bad; it starts again."""
    agent, way = site.agents[fault.target], next(iter(site.links.values()))
    way.refuse()
    time.sleep(fault.for_s)
    agent.part.end(signal.SIGTERM)
    try:
        waiting, counted_uj = held(agent.node, agent.spool), dropped_uj(agent.spool)
        page = corrupt_page(agent.spool, rng)
        agent.hush(True)  # while we look what is left, nothing new pushes old frames out
        agent.part.start()
        agent.await_looking()
        left = held(agent.node, agent.spool, EVERY)
        if waiting is None or left is None:
            raise RuntimeError(f"the spool of {agent.node} cannot be read")
        gone = waiting - left
        site.bad_pages.setdefault(agent.node, set()).update(gone)
        # Should the page have held the agent's own counts.
        site.counts_gone[agent.node] += counted_uj - dropped_uj(agent.spool)
    finally:
        if not alive(agent.part):
            agent.part.start()
        agent.hush(False)
        way.allow()
    return f"page {page}; of {len(waiting)} frames that waited {len(gone)} are gone"


def _full(site: Site, fault: Fault, rng: random.Random) -> str:
    part, disk, told = site.parts[fault.target], site.disks[fault.target], ""
    disk.fill()
    if fault.target in site.agents and rng.random() < 0.5:
        part.end(signal.SIGKILL)
        part.start()
        told = "started on it"
    time.sleep(fault.for_s)
    disk.free()
    if fault.target == "broker" and not alive(part):
        # Kafka ends itself when its log cannot be written: an operator makes room, and starts it.
        part.end(signal.SIGKILL)
        part.start()
        told = "ended itself, started again"
    return told


def _read_only(site: Site, fault: Fault, rng: random.Random) -> str:
    """It starts on a disk that takes nothing, which is then made well."""
    part, disk = site.parts[fault.target], site.disks[fault.target]
    part.end(signal.SIGTERM)
    disk.read_only(True)
    # An agent starts all the same; a collector is started again and again.
    with ThreadPoolExecutor(1) as thread:
        ready = thread.submit(part.start)
        time.sleep(fault.for_s)
        disk.read_only(False)
        ready.result()
    return ""


ACTS: Mapping[str, Act] = {
    "kill -9": _kill,
    "restart": _restart,
    "stop and continue": _hold,
    "delay": _delay,
    "slow": _slow,
    "refuse": _refuse,
    "reset": _reset,
    "half-open": _half_open,
    "half-open for good": _half_open_for_good,
    "clock jump": _clock,
    "corrupt page": _corrupt,
    "full disk": _full,
    "read-only disk": _read_only,
}
