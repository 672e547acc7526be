"""What an operator may say to an agent: table [agent]."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Table [agent]."""

    node: str = field(
        default_factory=socket.gethostname, metadata={"help": "this node's name in every frame"}
    )
    sysfs: Path = field(default=Path("/sys"), metadata={"help": "root of sysfs"})
    procfs: Path = field(default=Path("/proc"), metadata={"help": "root of procfs"})
    cgroupfs: Path = field(default=Path("/sys/fs/cgroup"), metadata={"help": "root of cgroupfs"})
    tick_s: float = field(
        default=1.0, metadata={"flag": "tick", "help": "seconds between two readings"}
    )
    window_s: float = field(
        default=10.0,
        metadata={"flag": "window", "help": "seconds one frame covers; divides 300"},
    )
    state: Path = field(
        default=Path("~/.local/share/joulegram/agent"),
        metadata={"help": "directory of the spool of frames not yet acknowledged"},
    )
    collector: str = field(
        default="127.0.0.1:7471", metadata={"help": "HOST:PORT of the collector"}
    )
    insecure: bool = field(
        default=False,
        metadata={
            "flag": "agent-insecure",
            "help": "send to a collector beyond this machine without TLS all the same",
        },
    )
    http: str = field(
        default="127.0.0.1:7472",
        metadata={
            "flag": "agent-http",
            "help": "HOST:PORT of the agent's own /metrics; empty: none",
        },
    )
    scope: str = field(
        default="", metadata={"help": "the cluster's name, for jobs, pods and users; default: site"}
    )
    idle_w: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "idle floor of a device in watts, such as cpu0=12.5 (repeatable)"},
    )
    tdp_w: float = field(
        default=0.0,
        metadata={"help": "the CPU packages' TDP together, for the load model; 0: 4.5 W per CPU"},
    )
    fold_cores: float = field(
        default=0.01,
        metadata={"help": "processes using less CPU than this share their workload's row"},
    )
    spool_max_mb: float = field(
        default=1024.0, metadata={"help": "what the spool may hold on disk"}
    )


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Flags of `joulegram agent` that belong to one run, not to the configuration."""

    print: bool = field(
        default=False, metadata={"help": "print frames as JSON lines; send and store nothing"}
    )
    frames: int = field(default=0, metadata={"help": "end after this many frames; 0: go on"})
