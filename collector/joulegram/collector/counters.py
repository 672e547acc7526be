"""What the pipeline counts of itself, for /metrics. Every label has few values."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FRAMES = Counter(
    "joulegram_intake_frames",
    "Frames by what became of them: stored, queued (Kafka has them), duplicate, refused, busy (to "
    "be offered again).",
    ["outcome"],
    registry=None,
)
REFUSED = Counter(
    "joulegram_intake_refused", "Frames refused for good, by reason.", ["reason"], registry=None
)
RECEIVED = Counter("joulegram_intake_bytes", "Size of the frames received.", registry=None)
ROWS = Counter("joulegram_intake_rows", "Rows made durable.", registry=None)
STREAMS = Gauge("joulegram_intake_streams", "Streams of agents that are open.", registry=None)
IN_FLIGHT = Gauge(
    "joulegram_intake_in_flight_bytes",
    "Frames read and not yet acknowledged, all streams.",
    registry=None,
)
QUEUED = Gauge("joulegram_writer_queue_rows", "Rows waiting for the next commit.", registry=None)
COMMIT_SECONDS = Histogram(
    "joulegram_writer_commit_seconds",
    "Time of one group commit, look-up to durable.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    registry=None,
)
FAILED = Counter(
    "joulegram_writer_failed_inserts",
    "Inserts that failed or whose outcome was unknown.",
    registry=None,
)
ROLLED_UP = Counter(
    "joulegram_rollup_slots", "Slots of nodes written, again ones included.", registry=None
)
ROLLUP_FAILED = Counter(
    "joulegram_rollup_failures", "Roll-ups that failed, to be tried again.", registry=None
)
CONFLICTS = Counter(
    "joulegram_rollup_conflicting_frames",
    "Frames that came to two writers at once with two contents, by outcome: one_counts, left_out "
    "(its rows and devices are of both). Look for two agents with one name.",
    ["outcome"],
    registry=None,
)
DROPPED = Counter(
    "joulegram_retention_dropped_rows",
    "Rows of partitions older than is kept, dropped, by table.",
    ["table"],
    registry=None,
)
LEDGER_CONNECTIONS = Gauge(
    "joulegram_ledger_connections",
    "Connections to ClickHouse servers that are in use; at 16 whoever comes waits.",
    registry=None,
)
LEDGER_QUORUM = Gauge(
    "joulegram_ledger_insert_quorum",
    "Replicas that must hold an insert before it counts; 0: the one that took it.",
    registry=None,
)
LEDGER_FAILED = Counter(
    "joulegram_ledger_failures",
    "Calls of ClickHouse servers that failed, by why: server (it said no), connection.",
    ["reason"],
    registry=None,
)


def register(registry: CollectorRegistry) -> None:
    """Show all of them in a registry."""
    for metric in (
        FRAMES,
        REFUSED,
        RECEIVED,
        ROWS,
        STREAMS,
        IN_FLIGHT,
        QUEUED,
        COMMIT_SECONDS,
        FAILED,
        ROLLED_UP,
        ROLLUP_FAILED,
        CONFLICTS,
        DROPPED,
        LEDGER_CONNECTIONS,
        LEDGER_QUORUM,
        LEDGER_FAILED,
    ):
        registry.register(metric)
