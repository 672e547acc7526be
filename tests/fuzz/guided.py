"""`make fuzz`: the harness for as long as one likes, guided by the coverage of the agent's code.

    python -m tests.fuzz.guided [--seconds N]

Inputs that reach new code stay in build/fuzz, so that the next run goes on from them; what ends
the loop or breaks a sum is written to build/fuzz-found and ends the run. Put such an input into
tests/fuzz/corpus: `make test` plays it from then on.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["joulegram.agent"]):
    from tests.fuzz.harness import fresh, play

ROOT = Path(__file__).resolve().parents[2]
KEPT, FOUND = ROOT / "build/fuzz", ROOT / "build/fuzz-found"
CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description="fuzz what the agent reads")
    parser.add_argument("--seconds", type=int, default=3600, help="how long (default 3600)")
    asked = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    FOUND.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    # Memory, where there is some: every input makes a hundred small files.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        atheris.Setup(
            [
                sys.argv[0],
                str(KEPT),
                str(CORPUS),
                f"-max_total_time={asked.seconds}",
                f"-artifact_prefix={FOUND}/",
                "-max_len=2000",
                "-len_control=0",
                "-timeout=60",
                "-rss_limit_mb=4096",
            ],
            lambda data: play(fresh(Path(folder) / "machine"), data) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
