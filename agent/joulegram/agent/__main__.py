"""`joulegram agent`: meters this node and reports to a collector, or prints its frames."""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading

from joulegram.agent.config import AgentConfig, AgentOptions
from joulegram.agent.floors import Floors
from joulegram.agent.frames import as_json
from joulegram.agent.meter import Meter

HELP = "meter this node: energy per process and workload, sent to a collector or printed"
TABLES = {"agent": AgentConfig}
OPTIONS = AgentOptions


def run(agent: AgentConfig, options: AgentOptions) -> int:
    """Run until SIGTERM or SIGINT, or for `options.frames` frames. Returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="joulegram agent: %(message)s"
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    floors = Floors.kept_in(agent.state, agent.node)
    if options.print:
        with contextlib.closing(Meter(agent, floors=floors)) as meter:
            return print_frames(meter, options.frames, stop)
    # A collector that stops is no line of gRPC's own in our log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # gRPC and SQLite: not needed for printing.
    from joulegram.agent.metrics import AgentMetrics
    from joulegram.agent.run import serve

    gc.freeze()  # modules stay: not to be gone through again and again
    metrics = AgentMetrics()
    with contextlib.closing(Meter(agent, on_tick=metrics.tick, floors=floors)) as meter:
        return serve(meter, agent, stop, frames=options.frames, metrics=metrics, floors=floors)


def print_frames(meter: Meter, count: int, stop: threading.Event) -> int:
    """Write frames as JSON lines; `count` 0: until `stop`."""
    for frame in meter.frames(stop):
        sys.stdout.write(as_json(frame) + "\n")
        sys.stdout.flush()
        if count and meter.seq >= count:
            break
    return 0
