"""Table [clickhouse]: which servers keep the ledger. Imports Python's own library alone."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.collector.errors import BadSetting

PORT = 9000
TLS_PORT = 9440

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[A-Za-z0-9_.@-]+")


@dataclass(frozen=True, slots=True)
class ClickhouseConfig:
    """Table [clickhouse]."""

    hosts: Sequence[str] = field(
        default=(),
        metadata={
            "help": "HOST:PORT of ClickHouse servers, native protocol; the next one is asked when "
            "one is down; none: the embedded ledger in --data (repeatable)",
            "flag": "clickhouse-host",
        },
    )
    database: str = field(default="joulegram", metadata={"help": "database", "flag": None})
    user: str = field(default="default", metadata={"help": "user", "flag": None})
    password_file: str = field(
        default="", metadata={"help": "file that holds the user's password", "flag": None}
    )
    tls: bool = field(default=False, metadata={"help": "speak TLS to the servers", "flag": None})
    ca_file: str = field(
        default="",
        metadata={
            "help": "PEM file of who may have signed the servers' certificates; empty: whom this "
            "machine trusts",
            "flag": None,
        },
    )
    cluster: str = field(
        default="",
        metadata={
            "help": "name of the servers' cluster, for replicated tables; empty: each server "
            "stands alone",
            "flag": None,
        },
    )
    insert_quorum: int = field(
        default=0,
        metadata={
            "help": "replicas that must hold an insert before it counts; 0: the one that took it",
            "flag": None,
        },
    )
    connect_timeout_s: float = field(
        default=5.0, metadata={"help": "seconds to wait for a connection", "flag": None}
    )
    timeout_s: float = field(
        default=60.0,
        metadata={"help": "seconds to wait for the server while it sends nothing", "flag": None},
    )
    query_max_s: float = field(
        default=30.0, metadata={"help": "seconds that a question may take", "flag": None}
    )
    query_max_bytes: int = field(
        default=4_000_000_000, metadata={"help": "memory that a question may take", "flag": None}
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting for a value that cannot hold."""
        for host in self.hosts:
            self._address(host)
        # The database's name stands in statements, the others may hold more.
        for key, pattern in (("database", _NAME), ("user", _WORD), ("cluster", _WORD)):
            value = getattr(self, key)
            if not pattern.fullmatch(value) and (value or key != "cluster"):
                raise BadSetting(
                    f"clickhouse.{key} = {value!r}: write a name of letters, digits and _"
                    f"{'' if key == 'database' else ', - or .'}."
                )
        for key in ("connect_timeout_s", "timeout_s", "query_max_s"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise BadSetting(f"clickhouse.{key} = {value:g}: seconds, above 0.")
        if self.ca_file and not self.tls:
            raise BadSetting(
                "clickhouse.ca_file is set and clickhouse.tls is not: set tls = true, or drop "
                "ca_file."
            )
        if self.insert_quorum and not self.cluster:
            raise BadSetting(
                f"clickhouse.insert_quorum = {self.insert_quorum} needs replicas: name the "
                "cluster with clickhouse.cluster, or drop insert_quorum."
            )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of every server, in the order they are tried."""
        return [self._address(host) for host in self.hosts]

    def password(self) -> str:
        """What the password file holds; "" without one. Raises: BadSetting."""
        if not self.password_file:
            return ""
        try:
            return Path(self.password_file).expanduser().read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as unreadable:
            why = getattr(unreadable, "strerror", None) or "it is not UTF-8 text"
            raise BadSetting(
                f"clickhouse.password_file = {self.password_file!r} cannot be read: {why}. Let "
                "the collector's user read it, and nobody else."
            ) from unreadable

    def _address(self, text: str) -> tuple[str, int]:
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, str(TLS_PORT if self.tls else PORT)
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise BadSetting(
                f"clickhouse.hosts: {text!r} is no server: write HOST:PORT, such as "
                f"ch1:{TLS_PORT if self.tls else PORT}."
            )
        return host, int(port)
