"""The ledger on ClickHouse servers, over their native protocol.

Servers from 18.16 on; of several the first that answers keeps all connections until it fails,
then the next. A call that fails raises `LedgerFailed` and is not repeated here: only the caller
knows whether it may be. What was sent when a connection broke may have been done or not.
"""

import contextlib
import logging
import re
import select
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from clickhouse_driver import Client
from clickhouse_driver.errors import Error as DriverError
from clickhouse_driver.errors import ErrorCodes, ServerException

from joulegram.collector import counters
from joulegram.collector.errors import CollectorError, LedgerFailed, LedgerRefused
from joulegram.collector.ledger.cluster import local
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.ledger import Value, literal
from joulegram.collector.ledger.native import Columns, as_array

MAX_CONNECTIONS = 16
PING_S = 5.0
MAX_ERROR_CHARS = 500  # old servers append their stack

# The driver warns, with a stack, of a host that is down and of types it reads value by value;
# the first we say ourselves, the second is no fault.
logging.getLogger("clickhouse_driver").setLevel(logging.ERROR)
log = logging.getLogger(__name__)

# One insert arrives as one block and is written as it came: one part for one partition. We
# dedupe before inserting and when reading; a server that drops what it saw before would take a
# roll-up that returned to an earlier value for a repetition.
WRITE_SETTINGS: Mapping[str, Value] = {
    "async_insert": 0,
    "insert_deduplicate": 0,
    "max_insert_threads": 1,
    "max_query_size": 16_777_216,
    "min_insert_block_size_rows": 1_000_000,
    "min_insert_block_size_bytes": 536_870_912,
    "optimize_on_insert": 0,
    "allow_experimental_low_cardinality_type": 1,
}

READ_SETTINGS: Mapping[str, Value] = {
    "max_query_size": 16_777_216,
    "max_ast_elements": 1_000_000,
    "max_expanded_ast_elements": 2_000_000,
    "allow_experimental_low_cardinality_type": 1,
}

NO_SUCH_CLUSTER = 170  # CLUSTER_DOESNT_EXIST; the driver has no name for it
_NOT_LET_IN = {
    ErrorCodes.UNKNOWN_USER,
    ErrorCodes.WRONG_PASSWORD,
    ErrorCodes.REQUIRED_PASSWORD,
    ErrorCodes.IP_ADDRESS_NOT_ALLOWED,
    ErrorCodes.DATABASE_ACCESS_DENIED,
    497,  # ACCESS_DENIED
    516,  # AUTHENTICATION_FAILED
}
# What stands in quotes is data; the rest of a statement may name parameters.
_PARAMETER = re.compile(r"'(?:[^'\\]|\\.)*'|\{(\w+):(\w+)\}", re.DOTALL)
_NUMBER = re.compile(r"U?Int(8|16|32|64)|Float64")


class ClickhouseLedger:
    """A database of ClickHouse servers, made when it is missing. Thread-safe.

    Raises: LedgerRefused when a server answers and will not have us; LedgerFailed when none
    answers; BadSetting when the password file cannot be read.
    """

    exclusive: bool = False
    cluster: str = ""

    def __init__(self, config: ClickhouseConfig) -> None:
        self.cluster = config.cluster
        self._config = config
        self.cluster = config.cluster
        self._hosts = config.addresses
        self._idle: list[_Connection] = []
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._state = threading.Condition()
        self._running = 0
        self._closed = False
        self._writing = dict(WRITE_SETTINGS) | {"insert_quorum_timeout": _ms(config.timeout_s / 2)}
        if config.insert_quorum:
            self._writing["insert_quorum"] = config.insert_quorum
        counters.LEDGER_QUORUM.set(config.insert_quorum)
        self._reading = dict(READ_SETTINGS) | {
            # Sets of a question over all shards come from all shards.
            **({"distributed_product_mode": "global"} if config.cluster else {}),
            # What a quorum does not hold yet is not there yet: nobody may acknowledge it.
            **({"select_sequential_consistency": 1} if config.insert_quorum else {}),
            "max_execution_time": max(1, round(config.query_max_s)),
            "max_memory_usage": config.query_max_bytes,
        }
        try:
            with self._connection():
                pass
        except LedgerRefused as refused:
            if refused.code != ErrorCodes.UNKNOWN_DATABASE:
                raise
            self._create_database()

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """Append equal-length columns (numpy arrays, Arrow arrays or lists) as one insert.

        Returns once the server, or the quorum, has them. Up to 500,000 rows and 128 MiB of one
        partition land whole or not at all.
        """
        arrays = [as_array(column) for column in columns.values()]
        if not len(arrays[0]):
            return
        names = ", ".join(columns)
        with self._connection() as connection:
            connection.client.execute(
                f"INSERT INTO {self._own(table)} ({names}) VALUES",
                arrays,
                columnar=True,
                settings=connection.known(self._writing),
            )

    def execute(self, sql: str) -> None:
        """Run one statement that changes the schema or drops partitions."""
        with self._connection() as connection:
            connection.client.execute(sql, settings=connection.known(self._writing))

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        """Run one SELECT; `{name:Type}` takes its parameter. A DateTime is its epoch seconds."""
        text = sql if params is None else substituted(sql, params)
        with self._connection() as connection:
            found = connection.client.query_arrow(text, settings=connection.known(self._reading))
        return pa.table([_plain(column) for column in found.columns], names=found.column_names)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Refuse what comes, wait for what runs. False when something still runs."""
        with self._state:
            self._closed = True
            ended = self._state.wait_for(lambda: self._running == 0, timeout_s)
        self._drop_idle()
        return ended

    def _own(self, table: str) -> str:
        """What is written to: of a cluster the server's own replicated table."""
        return f"{local(self._config.database)}.{table}" if self.cluster else table

    def _create_database(self) -> None:
        on_cluster = f" ON CLUSTER {literal(self._config.cluster)}" if self._config.cluster else ""
        name = self._config.database
        with self._connection(database="") as connection:
            connection.client.execute(f"CREATE DATABASE IF NOT EXISTS {name}{on_cluster}")
        self._drop_idle()  # these know no database

    @contextlib.contextmanager
    def _connection(self, database: str | None = None) -> Iterator["_Connection"]:
        """A connection that nobody else has meanwhile; one that failed is not used again."""
        with self._state:
            if self._closed:
                raise CollectorError("the ledger is closed; this collector is stopping")
            self._running += 1
        try:
            # Whoever holds one gives it back within the time-outs of a call.
            if not self._free.acquire(timeout=self._config.query_max_s + self._config.timeout_s):
                raise LedgerFailed(
                    f"all {MAX_CONNECTIONS} connections to {self._names()} are in use; the "
                    "servers are too slow for what is asked of them."
                )
            counters.LEDGER_CONNECTIONS.inc()
            try:
                connection = self._take() or self._connect(database)
                try:
                    yield connection
                except BaseException as failure:
                    connection.client.disconnect()
                    if isinstance(failure, ServerException):
                        raise self._failed(connection, failure) from None  # its stack is long
                    if isinstance(failure, (OSError, EOFError, DriverError)):
                        raise self._failed(connection, failure) from failure
                    raise
                with self._state:
                    self._idle.append(connection)
            finally:
                counters.LEDGER_CONNECTIONS.dec()
                self._free.release()
        finally:
            with self._state:
                self._running -= 1
                self._state.notify_all()
                closed = self._closed
            if closed:
                self._drop_idle()

    def _failed(self, connection: "_Connection", failure: BaseException) -> CollectorError:
        of_server = isinstance(failure, ServerException)
        counters.LEDGER_FAILED.labels("server" if of_server else "connection").inc()
        if not of_server:
            self._drop_idle()  # they are of the same server
            with self._state:
                if self._hosts[0] == connection.address:
                    self._hosts = [*self._hosts[1:], self._hosts[0]]
        said = f"ClickHouse {_name(connection.address)}: {_said(failure)}"
        if isinstance(failure, ServerException) and failure.code == NO_SUCH_CLUSTER:
            said += ". Give clickhouse.cluster the name that <remote_servers> of the servers has"
        return LedgerFailed(said)

    def _take(self) -> "_Connection | None":
        """An idle connection whose server has not hung up."""
        while True:
            with self._state:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.client.disconnect()

    def _connect(self, database: str | None) -> "_Connection":
        failures = []
        for address in list(self._hosts):
            client = self._client(address, self._config.database if database is None else database)
            try:
                client.connection.connect()
                # Old servers refuse a statement for a setting that they do not know.
                (names,) = client.execute("SELECT name FROM system.settings", columnar=True)
                client.connection.block_out = Columns(
                    client.connection.fout, client.connection.context
                )
            except ServerException as refused:
                client.disconnect()
                if refused.code in _NOT_LET_IN or refused.code == ErrorCodes.UNKNOWN_DATABASE:
                    raise self._refused(address, refused) from None
                failures.append((address, refused))
            except (OSError, EOFError, DriverError) as unreachable:
                client.disconnect()
                failures.append((address, unreachable))
            else:
                if failures:
                    log.warning("%s; using %s", _all_said(failures), _name(address))
                    with self._state:
                        first = self._hosts.index(address)
                        self._hosts = self._hosts[first:] + self._hosts[:first]
                return _Connection(client, address, frozenset(names.tolist()))
        counters.LEDGER_FAILED.labels("connection").inc()
        raise LedgerFailed(
            f"no ClickHouse server answers: {_all_said(failures)}. Start one, or correct "
            "clickhouse.hosts, clickhouse.tls and clickhouse.ca_file."
        )

    def _client(self, address: tuple[str, int], database: str) -> Client:
        config = self._config
        return Client(
            *address,
            database=database,
            user=config.user,
            password=config.password(),  # read anew, so that it can be changed while we run
            client_name="joulegram",
            connect_timeout=config.connect_timeout_s,
            send_receive_timeout=config.timeout_s,
            sync_request_timeout=min(PING_S, config.timeout_s),
            disable_reconnect=True,
            secure=config.tls,
            ca_certs=config.ca_file or ssl.get_default_verify_paths().cafile,
            settings={"use_numpy": True},
        )

    def _refused(self, address: tuple[str, int], refused: ServerException) -> LedgerRefused:
        return LedgerRefused(
            f"ClickHouse {_name(address)} does not let user {self._config.user!r} use database "
            f"{self._config.database!r}: {_said(refused)}. Check clickhouse.user, "
            "clickhouse.password_file and the user's rights.",
            refused.code,
        )

    def _drop_idle(self) -> None:
        with self._state:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.client.disconnect()

    def _names(self) -> str:
        return ", ".join(map(_name, self._hosts))


class _Connection:
    """A client, the server it talks to, and the settings that server knows."""

    def __init__(self, client: Client, address: tuple[str, int], settings: frozenset[str]) -> None:
        self.client = client
        self.address = address
        self._settings = settings

    def known(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Those of these that the server knows."""
        return {name: value for name, value in settings.items() if name in self._settings}

    def is_quiet(self) -> bool:
        """Whether the server said nothing since the last answer; good-bye would be something."""
        waiting = self.client.connection.socket
        if waiting is None:
            return False
        # Not `select`: it knows no descriptor beyond 1,024, and agents alone may have ten thousand.
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        return not poll.poll(0)


def substituted(sql: str, params: Mapping[str, Value]) -> str:
    """`sql` with every `{name:Type}` outside quotes replaced by its value, as SQL of that type.

    Raises: ValueError for a parameter that is missing or not of its type.
    """

    def value(match: re.Match[str]) -> str:
        name, kind = match[1], match[2]
        if name is None:
            return match[0]
        if name not in params:
            raise ValueError(f"parameter {{{name}:{kind}}} is missing")
        given = params[name]
        if kind == "String" and isinstance(given, str):
            return literal(given)
        if _NUMBER.fullmatch(kind) and isinstance(given, int | float):
            # Exactly this type, as a server that takes parameters itself would make it.
            number = repr(float(given)) if kind == "Float64" else str(int(given))
            if kind != "Float64" and not _holds(kind, int(given)):
                raise ValueError(f"parameter {{{name}:{kind}}} = {given} does not fit")
            return f"to{kind}({number})"
        raise ValueError(f"parameter {{{name}:{kind}}} = {given!r} is not of that type")

    return _PARAMETER.sub(value, sql)


def _holds(kind: str, value: int) -> bool:
    limits = np.iinfo(kind.lower())
    return int(limits.min) <= value <= int(limits.max)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as the embedded ledger gives it."""
    if not pa.types.is_timestamp(column.type):
        return column
    if column.type.tz is None:
        raise TypeError("a DateTime without a time zone; write toDateTime(..., 'UTC')")
    return column.cast(pa.int64()).cast(pa.uint32())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _name(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _said(failure: BaseException) -> str:
    """What went wrong, in one line, without a server's stack."""
    text = str(failure).split("Stack trace:")[0]
    return " ".join(text.split()).rstrip(",. ")[:MAX_ERROR_CHARS] or type(failure).__name__


def _all_said(failures: list[tuple[tuple[str, int], BaseException]]) -> str:
    return "; ".join(f"{_name(address)}: {_said(failure)}" for address, failure in failures)
