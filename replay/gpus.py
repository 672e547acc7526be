"""GPUs played to NVIDIA's own binding: a `libnvidia-ml.so.1` of the tests reads a trace."""

import time
from collections.abc import Mapping
from pathlib import Path

from tests.agent.nvml import library


def gpu(uuid: str, watts: float, *lines: str) -> str:
    """A GPU whose energy counter grows by so many watts from now on."""
    now_us = time.time_ns() // 1000
    counter = f"energy_mj 1000000 {now_us} {round(watts * 1000)}"
    return "\n".join([f"gpu {uuid}", counter, f"power_mw {round(watts * 1000)}", *lines]) + "\n"


def playing(folder: Path, trace: str) -> Mapping[str, str]:
    """What the agent's environment needs to see the trace's GPUs."""
    path = folder / "gpus.trace"
    library.play(path, trace)
    return library.environment(library.build(folder / "nvml"), path)
