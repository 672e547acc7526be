"""What an operator may say of Kafka: table [kafka]. Imports Python's own library alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from joulegram.collector.errors import BadSetting

# The largest frame that intake reads is 16 MiB; a record of it has a few bytes more.
RECORD_MOST_BYTES = 17 * 2**20
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
NO_FLAG = None
SPOOLS_KEEP_DAYS = 30.0  # [agent] spool_max_days, unless agents are told otherwise


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Table [kafka]. Without `brokers` there is no Kafka: intake hands frames to the writer."""

    brokers: Sequence[str] = field(
        default=(),
        metadata={
            "help": "HOST:PORT of Kafka brokers between intake and writer (repeatable); none: "
            "the writer is in the same process",
            "flag": "kafka-broker",
        },
    )
    topic: str = field(
        default="joulegram-frames", metadata={"help": "the topic of frames", "flag": NO_FLAG}
    )
    dead_letter_topic: str = field(
        default="joulegram-dead-letters",
        metadata={"help": "where frames go that can never be stored", "flag": NO_FLAG},
    )
    group: str = field(
        default="joulegram-writers",
        metadata={"help": "the consumer group of all writers", "flag": NO_FLAG},
    )
    partitions: int = field(
        default=12,
        metadata={
            "help": "partitions of the topic: the most writers that can share the work; fixed "
            "once the topic exists",
            "flag": NO_FLAG,
        },
    )
    replication_factor: int = field(
        default=3, metadata={"help": "copies of every record, at least", "flag": NO_FLAG}
    )
    min_insync_replicas: int = field(
        default=2,
        metadata={"help": "copies that must exist before a record counts", "flag": NO_FLAG},
    )
    retention_days: float = field(
        default=7.0,
        metadata={"help": "days that frames wait for a writer, at least", "flag": NO_FLAG},
    )
    dead_letter_days: float = field(
        default=30.0, metadata={"help": "days that dead letters are kept", "flag": NO_FLAG}
    )
    linger_s: float = field(
        default=0.25,
        metadata={
            "help": "seconds that frames wait for others to share a record",
            "flag": NO_FLAG,
        },
    )
    record_max_bytes: int = field(
        default=1_000_000,
        metadata={"help": "size of a record that holds more than one frame", "flag": NO_FLAG},
    )
    buffer_max_bytes: int = field(
        default=64 * 2**20,
        metadata={
            "help": "frames on their way to the brokers; beyond it agents wait",
            "flag": NO_FLAG,
        },
    )
    fetch_max_bytes: int = field(
        default=16 * 2**20,
        metadata={"help": "frames read and not yet in the ledger, per writer", "flag": NO_FLAG},
    )
    delivery_timeout_s: float = field(
        default=20.0,
        metadata={
            "help": "seconds until frames that no broker acknowledged are refused as busy",
            "flag": NO_FLAG,
        },
    )
    session_timeout_s: float = field(
        default=30.0,
        metadata={
            "help": "seconds of silence after which a writer's partitions go to others",
            "flag": NO_FLAG,
        },
    )
    tls: bool = field(default=False, metadata={"help": "speak TLS to the brokers", "flag": NO_FLAG})
    ca_file: Path | None = field(
        default=None,
        metadata={"help": "PEM of who signed the brokers' certificates", "flag": NO_FLAG},
    )
    cert_file: Path | None = field(
        default=None, metadata={"help": "PEM of our own certificate", "flag": NO_FLAG}
    )
    key_file: Path | None = field(
        default=None, metadata={"help": "PEM of its private key", "flag": NO_FLAG}
    )
    sasl: str = field(
        default="",
        metadata={"help": f"how to log in: {', '.join(MECHANISMS)}; empty: not", "flag": NO_FLAG},
    )
    username: str = field(default="", metadata={"help": "who logs in", "flag": NO_FLAG})
    password_file: Path | None = field(
        default=None, metadata={"help": "file with the password", "flag": NO_FLAG}
    )

    @property
    def on(self) -> bool:
        """Whether Kafka stands between intake and writer."""
        return bool(self.brokers)

    def at_home(self) -> Self:
        """The same with absolute paths, for a process that moves to another directory."""
        paths = {
            name: path.expanduser().absolute()
            for name in ("ca_file", "cert_file", "key_file", "password_file")
            if (path := getattr(self, name)) is not None
        }
        return replace(self, **paths)

    def __post_init__(self) -> None:
        """Raises: BadSetting for a value that cannot hold."""
        for broker in self.brokers:
            host, _, port = broker.rpartition(":")
            if not host or not port.isdigit():
                raise BadSetting(
                    f"kafka.brokers has {broker!r}: write HOST:PORT, such as kafka1:9092."
                )
        for name in ("topic", "dead_letter_topic", "group"):
            if not getattr(self, name):
                raise BadSetting(f"kafka.{name} is empty: give it a name.")
        if self.topic == self.dead_letter_topic:
            raise BadSetting(
                f"kafka.dead_letter_topic = {self.topic!r} is also kafka.topic: a dead letter "
                "would be read as a frame again and again. Name another."
            )
        for name in ("partitions", "replication_factor", "min_insync_replicas"):
            if getattr(self, name) < 1:
                raise BadSetting(f"kafka.{name} = {getattr(self, name)}: write 1 or more.")
        if self.min_insync_replicas > self.replication_factor:
            raise BadSetting(
                f"kafka.min_insync_replicas = {self.min_insync_replicas} is above "
                f"kafka.replication_factor = {self.replication_factor}: nothing could be written. "
                "Write 2 of 3, say."
            )
        for name, least in (
            ("retention_days", 0.01),
            ("dead_letter_days", 0.01),
            ("delivery_timeout_s", 1.0),
            ("session_timeout_s", 1.0),
            ("buffer_max_bytes", 2**20),
            ("fetch_max_bytes", 2**20),
        ):
            if not least <= getattr(self, name) < 2**40:
                raise BadSetting(
                    f"kafka.{name} = {getattr(self, name):g}: write {least:g} or more."
                )
        if not 1_000 <= self.record_max_bytes <= 16 * 2**20:
            raise BadSetting(
                f"kafka.record_max_bytes = {self.record_max_bytes}: write 1,000 to 16,777,216; a "
                "frame that is larger gets a record of its own."
            )
        if not self.linger_s <= 10.0:
            raise BadSetting(f"kafka.linger_s = {self.linger_s:g}: write 0 to 10 seconds.")
        if self.sasl and self.sasl not in MECHANISMS:
            raise BadSetting(f"kafka.sasl = {self.sasl!r}: write one of {', '.join(MECHANISMS)}.")
        if bool(self.sasl) != bool(self.username and self.password_file):
            raise BadSetting(
                "kafka.sasl, kafka.username and kafka.password_file belong together: give all "
                "three, or none."
            )
        if (self.ca_file or self.cert_file or self.key_file) and not self.tls:
            raise BadSetting("kafka.tls is false and certificates are named: set tls = true.")
        if bool(self.cert_file) != bool(self.key_file):
            raise BadSetting("kafka.cert_file and kafka.key_file belong together: give both.")


def check_retention(config: KafkaConfig, raw_days: float) -> None:
    """Whether the oldest frame that may come, out of a spool and through Kafka, can be stored.

    Args:
        raw_days: how long the ledger keeps rows; an older frame is parked.
    Raises: BadSetting naming both.
    """
    longest_days = SPOOLS_KEEP_DAYS + config.retention_days + config.dead_letter_days
    if config.on and raw_days <= longest_days:
        raise BadSetting(
            f"collector.raw_days = {raw_days:g} is not above {longest_days:g}: agents' spools keep "
            f"frames for {SPOOLS_KEEP_DAYS:g} days, then kafka.retention_days = "
            f"{config.retention_days:g} and kafka.dead_letter_days = {config.dead_letter_days:g} "
            "may pass, and a frame could come out of Kafka too old for the ledger. Raise raw_days, "
            "or lower the days of Kafka."
        )
