"""`make fuzz`: the harness for as long as one likes, guided by the coverage of the agent's code.

    python -m tests.fuzz.guided [--seconds N]

Inputs that reach new code stay in build/fuzz, so that the next run goes on from them; the first
begins with those of seeds.zip (--pack writes it anew). What ends the loop or breaks a sum is
written to build/fuzz-found and ends the run. Put such an input into tests/fuzz/corpus: `make
test` plays it from then on.
"""

import argparse
import logging
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["joulegram.agent"]):
    from tests.fuzz.harness import fresh, play

ROOT = Path(__file__).resolve().parents[2]
KEPT, FOUND = ROOT / "build/fuzz", ROOT / "build/fuzz-found"
CORPUS, SEEDS = (Path(__file__).parent / name for name in ("corpus", "seeds.zip"))
EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same inputs are the same file


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description="fuzz what the agent reads")
    parser.add_argument("--seconds", type=int, default=3600, help="how long (default 3600)")
    parser.add_argument("--pack", action="store_true", help="keep build/fuzz in seeds.zip; no run")
    asked = parser.parse_args()
    if asked.pack:
        pack()
        return
    unpack()
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


def unpack() -> None:
    """Begin with the kept inputs where there are none of an earlier run."""
    if not KEPT.exists():
        with zipfile.ZipFile(SEEDS) as kept:
            kept.extractall(KEPT)


def pack() -> None:
    """Write what the runs so far have found to reach new code."""
    with zipfile.ZipFile(SEEDS, "w", zipfile.ZIP_DEFLATED) as kept:
        for path in sorted(KEPT.iterdir()):
            kept.writestr(zipfile.ZipInfo(path.name, EPOCH), path.read_bytes())


if __name__ == "__main__":
    main()
