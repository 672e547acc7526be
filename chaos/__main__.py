"""`make chaos`: break everything, at random but repeatably, and count every microjoule.

    python -m chaos [--seed N] [--minutes M] [--shape direct,kafka] [--json FILE] [--keep FOLDER]

Prints the faults before it begins, each as it comes, and the table at the end; writes
build/chaos.json. Exit status 1 when a joule was lost or doubled, or a part did not do what it
should. The same seed gives the same faults; what they hit depends on the machine too.
"""

import argparse
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from chaos import campaign, table
from chaos.count import Row
from chaos.disk import disks_can_be_had
from chaos.schedule import SHAPES, plan

OUTPUT = Path(__file__).resolve().parent.parent / "build" / "chaos.json"
SEED = 20_261_122
MINUTES = 8.0  # of faults, all shapes together; starting, draining and counting come on top
MINUTES_MAX = 15.0
SHOWN = 20  # of what is wrong


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of faults, all shapes")
    parser.add_argument("--shape", default=",".join(SHAPES), help="some of " + ", ".join(SHAPES))
    parser.add_argument("--json", type=Path, default=OUTPUT)
    parser.add_argument("--keep", type=Path, help="a new folder for logs, spools and ledgers")
    told = parser.parse_args(argv)
    shapes = [shape for shape in SHAPES if shape in told.shape.split(",")]
    if not shapes or set(told.shape.split(",")) - set(SHAPES):
        parser.error(f"--shape {told.shape}: some of {', '.join(SHAPES)}")
    if not 0.0 < told.minutes <= MINUTES_MAX:
        parser.error(f"--minutes {told.minutes:g}: more than 0, at most {MINUTES_MAX:g}")
    # Parts are ended and disks unmounted whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="joulegram-chaos-") as own:
        folder = told.keep or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        return _all(told, shapes, folder)


def _all(told: argparse.Namespace, shapes: Sequence[str], folder: Path) -> int:
    disks = disks_can_be_had(folder)
    if not disks:
        say("no disks of their own can be mounted here (not root?): none is full or read-only")
    seconds = told.minutes * 60 / len(shapes)
    plans = {shape: plan(told.seed, seconds, shape, disks=disks) for shape in shapes}
    for shape, faults in plans.items():
        say(f"{shape}: {len(faults)} faults in {seconds:g} s, seed {told.seed}")
        for fault in faults:
            say(f"  {fault.at_s:6.1f} s  {fault.kind}: {fault.target}, for {fault.for_s:g} s")
    found: list[tuple[str, Row]] = []
    wrong: list[str] = []
    for shape, faults in plans.items():
        try:
            outcome = campaign.run(
                shape, faults, told.seed, seconds, folder / shape, say, disks=disks
            )
        except pytest.skip.Exception as missing:  # a server is not to be had on this machine
            say(f"{shape}: left out: {missing}")
            continue
        except Exception as failed:  # the other shape may still tell something
            traceback.print_exc()
            wrong.append(f"{shape}: {type(failed).__name__}: {failed}")
            continue
        found += [(shape, row) for row in outcome.rows]
        wrong += [f"{shape}: {what}" for what in outcome.wrong]
        table.show(shape, outcome.rows)
    table.write(told.json, found)
    for what in wrong[:SHOWN]:
        say(f"WRONG  {what}")
    if len(wrong) > SHOWN:
        say(f"WRONG  and {len(wrong) - SHOWN} more")
    if wrong or not found:
        return 1
    say("nothing lost, nothing doubled")
    return 0


def say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
