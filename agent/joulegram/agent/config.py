"""What an operator may say to an agent: table [agent].

A value that cannot hold is refused when the table is made, so that `joulegram config` and
`joulegram up` refuse what the agent would. Imports Python's own library alone.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from joulegram.agent.errors import BadSetting
from joulegram.agent.textfile import printable

SLOT_MS = 300_000
NODE_MAX = 255
MAX_DAYS = 3650
IPMI = ("auto", "on", "off")
SLURM = ("auto", "off")
DOCKER_SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Table [agent]."""

    node: str = field(
        default_factory=socket.gethostname, metadata={"help": "this node's name in every frame"}
    )
    host_node: str = field(
        default="",
        metadata={
            "help": "this machine is a guest, and its host is metered too: that host's node; "
            "totals count the host alone"
        },
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
    tls: bool = field(
        default=False,
        metadata={
            "flag": "agent-tls",
            "help": "encrypt the way to the collector, trusting this system's authorities",
        },
    )
    tls_ca: Path | None = field(
        default=None,
        metadata={
            "flag": "agent-tls-ca",
            "help": "PEM certificates trusted to sign the collector's; implies TLS",
        },
    )
    tls_cert: Path | None = field(
        default=None,
        metadata={
            "flag": "agent-tls-cert",
            "help": "this node's own PEM certificate, its name in subjectAltName; implies TLS",
        },
    )
    tls_key: Path | None = field(
        default=None,
        metadata={
            "flag": "agent-tls-key",
            "help": "its PEM private key; others must not be able to read it",
        },
    )
    token_file: Path | None = field(
        default=None,
        metadata={
            "flag": "agent-token-file",
            "help": "file that holds the token for the collector; others must not read it",
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
        metadata={
            "help": "the CPU packages' TDP together (a VM: its share), for the load model; 0: "
            "looked up by the processor's name"
        },
    )
    instance_type: str = field(
        default="",
        metadata={
            "help": "the cloud's name for this machine (m5.xlarge, n2-standard-8, "
            "Standard_D4s_v5), by which the load model knows the processor"
        },
    )
    ipmi: str = field(
        default="auto",
        metadata={
            "help": "whether to ask this machine's management controller for its power (IPMI "
            "DCMI, by ipmi-dcmi or ipmitool): on, off, or auto: where it has one"
        },
    )
    redfish_url: str = field(
        default="",
        metadata={"help": "https://HOST of this node's management controller, for its power"},
    )
    redfish_user: str = field(
        default="", metadata={"help": "account there that may read (role ReadOnly)"}
    )
    redfish_password_file: Path | None = field(
        default=None,
        metadata={"help": "file that holds its password alone; others must not read it"},
    )
    redfish_ca: Path | None = field(
        default=None, metadata={"help": "PEM certificates trusted to sign that controller's"}
    )
    redfish_insecure: bool = field(
        default=False,
        metadata={"help": "take any certificate of it, or none: whoever answers gets the password"},
    )
    redfish_chassis: Sequence[str] = field(
        default=(),
        metadata={
            "help": "Id of a chassis whose power is this node's, where the controller does not "
            "tell (repeatable: they are summed)"
        },
    )
    slurm: str = field(
        default="auto",
        metadata={
            "help": "auto: ask scontrol and squeue whose jobs are whose, where they are on PATH; "
            "off: take the jobs' own environments"
        },
    )
    kubelet_url: str = field(
        default="",
        metadata={"help": "https://NODE:10250 of this node's kubelet, for the names of pods"},
    )
    kubelet_token_file: Path | None = field(
        default=None,
        metadata={"help": "file with a service account's token for the kubelet; read anew"},
    )
    kubelet_ca: Path | None = field(
        default=None, metadata={"help": "PEM certificates trusted to sign the kubelet's"}
    )
    kubelet_insecure: bool = field(
        default=False,
        metadata={"help": "trust whoever answers as the kubelet: its certificate is its own"},
    )
    docker_socket: str = field(
        default=DOCKER_SOCKET,
        metadata={
            "help": "socket of Docker, or of Podman (/run/podman/podman.sock), for the names of "
            "containers, where it is there; empty: none"
        },
    )
    fold_cores: float = field(
        default=0.01,
        metadata={"help": "processes using less CPU than this share their workload's row"},
    )
    spool_max_mb: float = field(
        default=1024.0, metadata={"help": "what the spool may hold on disk"}
    )
    spool_max_days: float = field(
        default=30.0,
        metadata={
            "help": "frames that could not be sent for so long are dropped; must be below the "
            "collector's raw_days (90), which refuses older ones"
        },
    )
    spool_keep_hours: float = field(
        default=24.0,
        metadata={"help": "how long sent frames stay for `joulegram resend` while there is room"},
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting for a value that cannot hold."""
        check_node(self.node)
        if self.host_node:
            check_node(self.host_node, "--host-node")
        if self.host_node == self.node:
            raise BadSetting(
                f"--host-node {self.host_node!r} is this node itself: a machine that is no guest "
                "has none. Leave it empty."
            )
        timing_ms(self.tick_s, self.window_s)
        if (self.tls_cert is None) != (self.tls_key is None):
            have, lack = ("cert", "key") if self.tls_cert else ("key", "cert")
            raise BadSetting(
                f"agent.tls_{have} stands without agent.tls_{lack}: a certificate takes both."
            )
        if self.ipmi not in IPMI:
            raise BadSetting(f"agent.ipmi = {printable(self.ipmi)[:40]!r}: {', '.join(IPMI)}.")
        self._check_redfish()
        self._check_owners()
        if not 1.0 <= self.spool_max_days <= MAX_DAYS:
            raise BadSetting(
                f"--spool-max-days {self.spool_max_days:g}: 1 to {MAX_DAYS} days, and fewer than "
                "`raw_days` under [collector], which refuses older frames. 30 is the default."
            )
        if not 0.0 <= self.spool_keep_hours <= 24 * MAX_DAYS:
            raise BadSetting(
                f"--spool-keep-hours {self.spool_keep_hours:g}: 0 to {24 * MAX_DAYS} hours; give "
                "as many as may pass between two backups of the ledger. 24 is the default."
            )

    def _check_redfish(self) -> None:
        if not self.redfish_url:
            return
        if (self.redfish_password_file is None) != (not self.redfish_user):
            have, lack = (
                ("user", "password_file") if self.redfish_user else ("password_file", "user")
            )
            raise BadSetting(f"agent.redfish_{have} stands without agent.redfish_{lack}.")
        try:
            url = urlsplit(self.redfish_url)
            named = bool(url.hostname) and url.port != 0 and self.redfish_url.isprintable()
        except ValueError:
            named = False
        # What may hold a password is not shown.
        if not named or url.scheme not in ("http", "https") or url.username or url.password:
            raise BadSetting(
                "agent.redfish_url: an address such as https://10.0.0.7 or https://bmc-n7:8443; "
                "user and password stand in redfish_user and redfish_password_file."
            )
        if url.scheme == "http" and not (self.redfish_insecure or is_loopback(url.hostname or "")):
            raise BadSetting(
                f"agent.redfish_url = {self.redfish_url}: without TLS anybody on the way reads "
                "the password. Write https://, or set redfish_insecure where the way is trusted."
            )

    def _check_owners(self) -> None:
        if self.slurm not in SLURM:
            raise BadSetting(f"agent.slurm = {printable(self.slurm)[:40]!r}: {', '.join(SLURM)}.")
        if not self.kubelet_url:
            return
        try:
            url = urlsplit(self.kubelet_url)
            named = bool(url.hostname) and url.port != 0 and self.kubelet_url.isprintable()
        except ValueError:
            named = False
        if not named or url.scheme not in ("http", "https") or url.username or url.password:
            raise BadSetting(
                "agent.kubelet_url: an address such as https://127.0.0.1:10250; the token stands "
                "in kubelet_token_file."
            )
        if (
            url.scheme == "http"
            and self.kubelet_token_file is not None
            and not (self.kubelet_insecure or is_loopback(url.hostname or ""))
        ):
            raise BadSetting(
                f"agent.kubelet_url = {self.kubelet_url}: without TLS anybody on the way reads "
                "the token. Write https://."
            )


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Flags of `joulegram agent` that belong to one run, not to the configuration."""

    print: bool = field(
        default=False, metadata={"help": "print frames as JSON lines; send and store nothing"}
    )
    frames: int = field(default=0, metadata={"help": "end after this many frames; 0: go on"})


@dataclass(frozen=True, slots=True)
class ResendOptions:
    """Flags of `joulegram resend`."""

    since: str = field(
        default="",
        metadata={
            "help": "the time of the backup that was restored (2026-03-01T14:00Z), or a duration "
            "before now (6h); frames acknowledged since then go again"
        },
    )


def is_loopback(host: str) -> bool:
    """Whether a host, as an address names it, is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_node(node: str, flag: str = "--node") -> None:
    """Raises: BadSetting for a name that no collector would take."""
    if not 0 < len(node) <= NODE_MAX or printable(node) != node:
        raise BadSetting(
            f"{flag} {printable(node)[:80]!r}: a node's name is 1 to {NODE_MAX} characters of "
            "UTF-8 without control characters. Take the host's name."
        )


def timing_ms(tick_s: float, window_s: float) -> tuple[int, int]:
    """Tick and window in ms. Raises: BadSetting when windows would not be aligned."""
    tick_ms, window_ms = round(tick_s * 1000), round(window_s * 1000)
    if window_ms < 1000 or window_ms % 1000 or SLOT_MS % window_ms:
        raise BadSetting(
            f"--window {window_s:g}: a window is whole seconds and divides 300 s, so that it "
            "never leaves its slot. Take 1, 2, 5, 10, 15, 20, 30, 60 or so."
        )
    if tick_ms < 10 or abs(tick_ms - tick_s * 1000) > 1e-6 or window_ms % tick_ms:
        raise BadSetting(
            f"--tick {tick_s:g}: a tick is whole milliseconds, at least 0.01 s, and divides "
            f"the window of {window_s:g} s, so that every window ends on a tick. Take 1."
        )
    return tick_ms, window_ms
