"""Many threads share few heaps, as the C library itself tells."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from joulegram.collector.arenas import few_arenas

if sys.argv[1] == "few":
    assert few_arenas()
libc = ctypes.CDLL(None)
together = threading.Barrier(8)

def work():
    libc.malloc(100_000)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no arenas")
def test_threads_share_two_heaps() -> None:
    assert heaps("few") == 2
    assert heaps("as many as it likes") > 4


def heaps(how: str) -> int:
    argv = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr.count("\nsystem bytes") - 1  # the last is of all together
