"""`make replay`: the golden cases, through the shipped programs, in real time.

    python -m replay [NAME|NUMBER ...]      NAME: part of a case's name

Cases run several at a time: they mostly wait. A case whose trees could not be fed in time is
played again; what it finds wrong is not. Writes build/replay.json. Exit status 1 when any
verdict is wrong.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from replay import table
from replay.agent import Wrong, tail
from replay.case import Case, Late, Stage, Verdict
from replay.cases import CASES

OUTPUT = Path(__file__).resolve().parent.parent / "build" / "replay.json"
MEMORY = "/dev/shm"  # noqa: S108
JOBS = 8
ATTEMPTS = 4
END_WITHIN_S = 20.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m replay")
    parser.add_argument("wanted", nargs="*", metavar="NAME|NUMBER", help="some of the cases")
    parser.add_argument("--json", type=Path, default=OUTPUT)
    parser.add_argument("--jobs", type=int, default=JOBS, help="cases at a time")
    parser.add_argument("--age", type=float, default=0.0, help="how old files may be, s")
    parser.add_argument("--keep", type=Path, help="a new folder for trees and logs")
    told = parser.parse_args(argv)
    cases = [case for case in CASES if _is_wanted(case, told.wanted)]
    for word in told.wanted:
        if not any(_is_wanted(case, [word]) for case in CASES):
            parser.error(f"no case {word}; there are:\n" + "\n".join(map(str, CASES)))
    # Programs are ended whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="joulegram-replay-", dir=memory()) as own:
        folder = told.keep or Path(own)
        longest_first = sorted(cases, key=lambda case: -case.about_s)
        # Processes, and not threads: a feeder must not wait for another's Python.
        forks = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(max(1, told.jobs), forks) as pool:
            playing = {
                case.number: pool.submit(_play, case, folder / str(case.number), told.age)
                for case in longest_first
            }
            try:
                verdicts = [_verdict(case, playing[case.number]) for case in cases]
            except BaseException:  # somebody ends us: whoever plays ends its programs, and itself
                players = multiprocessing.active_children()
                for player in players:
                    player.terminate()
                for player in players:
                    player.join(END_WITHIN_S)
                raise
    table.show(verdicts)
    table.write(told.json, verdicts)
    wrong = [v for v in verdicts if not v.holds]
    print(
        f"{len(verdicts) - len(wrong)} of {len(verdicts)} right, "
        f"{time.monotonic() - began_s:.0f} s, {told.json}"
    )
    return 1 if wrong else 0


def memory() -> str | None:
    """Where files never wait for a disk, as the kernel's own do not; None where there is none."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


def _is_wanted(case: Case, wanted: Sequence[str]) -> bool:
    return not wanted or any(
        word == str(case.number) or (not word.isdigit() and word.lower() in case.name.lower())
        for word in wanted
    )


def _verdict(case: Case, playing: "Future[Verdict]") -> Verdict:
    try:
        return playing.result()
    except BrokenExecutor as gone:
        return Verdict(case, failure=f"who played it is gone: {gone}")


def _play(case: Case, folder: Path, age_s: float) -> Verdict:
    verdict = Verdict(case, failure="not played")
    for attempt in range(1, ATTEMPTS + 1):
        stage = Stage(folder / str(attempt), age_s, attempt < ATTEMPTS, tears=attempt == 1)
        stage.folder.mkdir(parents=True)
        try:
            verdict = Verdict(case, case.play(stage))
        except Late as late:
            verdict = Verdict(case, failure=f"never played in time: {late}")
            print(f"replay: {case}: {late}; again", file=sys.stderr, flush=True)
            continue
        except (Wrong, AssertionError, TimeoutError) as wrong:
            verdict = Verdict(case, failure=f"{wrong}")
        except (SystemExit, KeyboardInterrupt):
            os._exit(143)  # its programs are ended; a pool would give it the next case
        except pytest.fail.Exception as missing:  # a program that this machine lacks
            verdict = Verdict(case, failure=f"{missing}")
        except pytest.skip.Exception as missing:
            verdict = Verdict(case, failure=f"not played: {missing}")
        except Exception as failed:  # the others are still worth playing
            traceback.print_exc()
            verdict = Verdict(case, failure=f"{type(failed).__name__}: {failed}")
        break
    print(f"replay: {case}: {verdict.verdict}", file=sys.stderr, flush=True)
    if not verdict.holds and (said := tail(stage.folder)):
        print(said, file=sys.stderr, flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
