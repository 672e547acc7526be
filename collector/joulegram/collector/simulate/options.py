"""What `joulegram simulate` is told, and the plan that follows from it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from joulegram.collector.errors import BadSetting
from joulegram.collector.simulate.fleet import Plan
from joulegram.collector.workloads import CONTROL

SLOT_S = 300
NODES_MAX, JOBS_MAX, HOURS_MAX = 20_000, 1_000_000, 24 * 400
WINDOW_SENT_S, WINDOW_STORED_S = 10, 300


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """Flags of `joulegram simulate`."""

    nodes: int = field(default=20, metadata={"help": "how many nodes the site has"})
    jobs: int = field(
        default=0, metadata={"help": "Slurm jobs that arrive; 0: as many as keep the site busy"}
    )
    hours: float = field(default=1.0, metadata={"help": "how long, in the site's time"})
    since: str = field(
        default="",
        metadata={"help": "when it begins, ISO 8601, UTC if it says none (default: so as to end "
                  "now; with --speed 1: now)"},
    )  # fmt: skip
    speed: float = field(
        default=0.0,
        metadata={"help": "60: an hour in a minute; 1: live; 0: as fast as it is acknowledged"},
    )
    seed: int = field(default=1, metadata={"help": "the same seed makes the same frames"})
    window: int = field(
        default=0,
        metadata={"help": f"seconds in a frame, a divisor of 300 (default: {WINDOW_SENT_S}, with "
                  f"--data {WINDOW_STORED_S})"},
    )  # fmt: skip
    node_prefix: str = field(
        default="sim", metadata={"help": "how names of nodes and clusters begin"}
    )
    collector: str = field(
        default="127.0.0.1:7471", metadata={"help": "HOST:PORT of the collector's gRPC port"}
    )
    data: str = field(
        default="",
        metadata={"help": "write into the ledger in this directory instead; no collector may "
                  "run on it meanwhile"},
    )  # fmt: skip
    json: bool = field(default=False, metadata={"help": "print the summary as JSON"})
    rules: bool = field(
        default=False,
        metadata={"help": "print the [[teams.rules]] of the site for a collector's file, and end"},
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting for a value that cannot hold."""
        for name, most in (("nodes", NODES_MAX), ("jobs", JOBS_MAX), ("hours", HOURS_MAX)):
            if getattr(self, name) > most:
                raise BadSetting(f"--{name} {getattr(self, name):g}: at most {most}.")
        if not self.nodes:
            raise BadSetting("--nodes 0: a site has at least one node.")
        if self.hours * 3600 < self.window_s:
            raise BadSetting(
                f"--hours {self.hours:g} is shorter than a window of {self.window_s} s. Give more "
                "hours, or a shorter --window."
            )
        if SLOT_S % self.window_s:
            raise BadSetting(
                f"--window {self.window_s}: a window divides 300 s. Take 1, 2, 5, 10, 30, 60, 300."
            )
        if self.data and self.speed:
            raise BadSetting(
                f"--speed {self.speed:g} is for a collector; --data writes as fast as the disk "
                "takes it. Leave one of them out."
            )
        if not self.node_prefix or len(self.node_prefix) > 64 or CONTROL.search(self.node_prefix):
            raise BadSetting(
                f"--node-prefix {self.node_prefix!r}: 1 to 64 characters without control "
                "characters, such as sim."
            )
        host, _, port = self.collector.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise BadSetting(
                f"--collector {self.collector!r}: write HOST:PORT, such as 127.0.0.1:7471."
            )

    @property
    def window_s(self) -> int:
        return self.window or (WINDOW_STORED_S if self.data else WINDOW_SENT_S)


def plan_of(options: SimulateOptions, now_s: float) -> Plan:
    """What the options mean at a time. Raises BadSetting when it would reach into the future."""
    window_s = options.window_s
    windows = int(options.hours * 3600) // window_s
    live = options.speed == 1 and not options.data
    if options.since:
        since_s = _time(options.since)
    elif live:
        since_s = int(now_s)
    else:
        since_s = int(now_s) - windows * window_s
    # Slots begin every 300 s, and 10 s windows lie in them either way; live, no slot is waited for.
    since_s -= since_s % (window_s if live else SLOT_S)
    ends_s = since_s + windows * window_s
    takes_s = windows * window_s / options.speed if options.speed else 0.0
    if ends_s > now_s + takes_s + SLOT_S:
        raise BadSetting(
            f"{options.hours:g} hours since {datetime.fromtimestamp(since_s, UTC):%Y-%m-%dT%H:%MZ} "
            "reach into the future, and no collector takes that. Begin earlier, or take fewer "
            "--hours, or --speed 1 for a live site."
        )
    return Plan(
        options.nodes, options.jobs, since_s, windows, window_s, options.seed, options.node_prefix
    )


def _time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        if seconds < SLOT_S:
            raise ValueError
    except (ValueError, OverflowError):
        raise BadSetting(
            f"--since {text!r} is no time: write 2026-03-01 or 2026-03-01T12:00:00Z."
        ) from None
    return seconds
