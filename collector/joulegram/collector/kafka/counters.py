"""What the way through Kafka counts of itself, for /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge

PRODUCED = Counter(
    "joulegram_kafka_produced_records", "Records that the brokers acknowledged.", registry=None
)
PRODUCED_FRAMES = Counter(
    "joulegram_kafka_produced_frames", "Frames that the brokers acknowledged.", registry=None
)
UNDELIVERED = Counter(
    "joulegram_kafka_undelivered_records",
    "Records that no broker acknowledged in time; their frames were refused as busy.",
    registry=None,
)
BUFFERED = Gauge(
    "joulegram_kafka_buffered_bytes", "Frames on their way to the brokers.", registry=None
)
BUFFER_LIMIT = Gauge(
    "joulegram_kafka_buffer_limit_bytes", "Most of them; beyond it agents wait.", registry=None
)
CONSUMED = Counter(
    "joulegram_kafka_consumed_records", "Records read by this writer.", registry=None
)
COMMITTED = Counter(
    "joulegram_kafka_committed_records",
    "Records whose frames are durable, or parked, and whose offset is committed.",
    registry=None,
)
IN_FLIGHT = Gauge(
    "joulegram_kafka_in_flight_bytes",
    "Records read by this writer whose frames are not yet durable.",
    registry=None,
)
IN_FLIGHT_LIMIT = Gauge(
    "joulegram_kafka_in_flight_limit_bytes",
    "Beyond it this writer stops reading.",
    registry=None,
)
ASSIGNED = Gauge(
    "joulegram_kafka_assigned_partitions", "Partitions that this writer reads.", registry=None
)
REBALANCES = Counter(
    "joulegram_kafka_rebalances",
    "Times that partitions were taken from this writer.",
    registry=None,
)
PARKED = Counter(
    "joulegram_kafka_dead_letters",
    "Frames or records parked, by reason.",
    ["reason"],
    registry=None,
)
CONNECTED = Gauge(
    "joulegram_kafka_connected", "1 while the producer has its brokers, else 0.", registry=None
)
LAG = Gauge(
    "joulegram_kafka_lag_records",
    "Records that no writer has committed, all partitions.",
    registry=None,
)
OLDEST = Gauge(
    "joulegram_kafka_oldest_unread_seconds",
    "Age of the oldest record that no writer has committed, at most; 0: none waits.",
    registry=None,
)
TO_LOSS = Gauge(
    "joulegram_kafka_seconds_to_loss",
    "Until retention may delete a record that no writer has committed.",
    registry=None,
)
LOST = Gauge(
    "joulegram_kafka_lost_records",
    "Records that retention deleted before a writer committed them, as far as offsets tell.",
    registry=None,
)
LAG_KNOWN = Gauge(
    "joulegram_kafka_lag_known_timestamp_seconds",
    "When lag was last asked for and answered, seconds since 1970 UTC.",
    registry=None,
)

ALL = (
    PRODUCED, PRODUCED_FRAMES, UNDELIVERED, BUFFERED, BUFFER_LIMIT, CONSUMED, COMMITTED, IN_FLIGHT,
    IN_FLIGHT_LIMIT, ASSIGNED, REBALANCES, PARKED, CONNECTED, LAG, OLDEST, TO_LOSS, LOST, LAG_KNOWN,
)  # fmt: skip


def register(registry: CollectorRegistry) -> None:
    """Show all of them in a registry."""
    for metric in ALL:
        registry.register(metric)
