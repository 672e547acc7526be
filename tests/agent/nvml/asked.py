"""The agent's NVIDIA sensor in a process of its own, where the played library is the real one.

The dynamic linker finds a library once per process, so tests ask a child: one JSON list a line
in (what, arguments), one JSON value a line out. Time is virtual, and so are the trace's samples.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from joulegram.agent.errors import AgentError
from joulegram.agent.sensors.gpu import GpuLook, GpuOpen, GpuUse
from joulegram.agent.sensors.nvidia.gpus import CountingNvidia, NvidiaGpu, NvidiaGpus
from tests.agent.nvml.library import environment, play
from tests.agent.played import START_NS, Clock

START_US = START_NS // 1000


@dataclass
class Asked:
    """A machine with GPUs, as the agent's sensor in the child sees it."""

    child: subprocess.Popen[str]
    trace: Path
    now_us: int = START_US

    def begin(self, trace: str) -> list[dict[str, Any]]:
        """A new agent, at START_US, on this trace; its GPUs."""
        self.now_us = START_US
        play(self.trace, trace)
        self._ask("begin")
        return self.find()

    def play(self, trace: str, after_s: float = 0.0) -> None:
        """Time passes, and the machine changes."""
        play(self.trace, trace)
        self.now_us += round(after_s * 1e6)
        self._ask("pass", after_s)

    def find(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("find")
        return found

    def why_none(self) -> str:
        return str(self._ask("why_none"))

    def read(self, device: str = "gpu:GPU-a") -> Any:
        """uJ, or (uW, monotonic ns). Raises AgentError with what the sensor's error said."""
        return self._ask("read", device)

    def names(self, device: str = "gpu:GPU-a") -> dict[str, float]:
        names: dict[str, float] = self._ask("names", device)
        return names

    def look(self, device: str = "gpu:GPU-a") -> GpuLook:
        told = self._ask("look", device)
        return GpuLook(
            [GpuUse(**use) for use in told["uses"]],
            [GpuOpen(**process) for process in told["opened"]],
            told["modelled"],
            told["parts"],
        )

    def memory_kib(self) -> int:
        return int(self._ask("memory"))

    def _ask(self, *what: Any) -> Any:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(json.dumps(what) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        assert line, f"the child ended with {self.child.wait(5)}"
        answer = json.loads(line)
        if "failed" in answer:
            raise AgentError(answer["failed"])
        return answer["is"]


@contextlib.contextmanager
def asking(library: Path, folder: Path) -> Iterator[Asked]:
    """Start the child with this library, or with none where the folder is empty."""
    trace = folder / "trace"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.agent.nvml.asked"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, **environment(library, trace)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Asked(child, trace)
    finally:
        assert child.stdin
        child.stdin.close()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(5)


@dataclass
class Child:
    """The other end."""

    clock: Clock = field(default_factory=Clock)
    gpus: NvidiaGpus = field(init=False)
    found: list[NvidiaGpu] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gpus = NvidiaGpus(self.clock)

    def answer(self, what: str, *arguments: Any) -> Any:
        if what == "begin":
            self.clock = Clock()
            self.gpus = NvidiaGpus(self.clock)
            return None
        if what == "pass":
            self.clock.wall += round(arguments[0] * 1e9)
            self.clock.mono += round(max(0, arguments[0]) * 1e9)
            return None
        if what == "find":
            self.found = list(self.gpus.find())
            return [described(gpu) for gpu in self.found]
        if what == "why_none":
            return self.gpus.why_none()
        if what == "memory":
            status = Path("/proc/self/status").read_text()
            return status.split("VmRSS:")[1].split()[0]
        gpu = next(gpu for gpu in self.found if gpu.device == arguments[0])
        if what == "names":
            return dict(gpu.names())
        if what == "look":
            return asdict(gpu.look())
        if isinstance(gpu, CountingNvidia):
            return gpu.read_uj()
        sample = gpu.sample()
        return sample.power_uw, sample.at_ns


def described(gpu: NvidiaGpu) -> dict[str, Any]:
    return {
        "device": gpu.device,
        "component": gpu.component,
        "quality": gpu.quality,
        "max_power_w": gpu.max_power_w,
        "averaged_s": getattr(gpu, "averaged_s", None),
        "range_uj": getattr(gpu, "range_uj", None),
    }


def main() -> None:
    child = Child()
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        try:
            answer = {"is": child.answer(what, *arguments)}
        except AgentError as exc:
            answer = {"failed": str(exc)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
