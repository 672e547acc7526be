"""A real ClickHouse server on loopback, with all its state in one folder, ended by its pid.

Started once a session (the fixture `clickhouse`); a test isolates itself by `database`. A test
that kills its server, or wants it slow to come, makes one of its own.
"""

import contextlib
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from clickhouse_driver import Client

from joulegram.collector.ledger.config import ClickhouseConfig
from tests.servers import Program, free_port, need, running, wait_until

USER = "joulegram"

# Root and every path inside the folder: nothing of the machine's own server is read or written.
CONFIG = """<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <path>{folder}/data/</path>
  <tmp_path>{folder}/tmp/</tmp_path>
  <format_schema_path>{folder}/formats/</format_schema_path>
  <user_files_path>{folder}/files/</user_files_path>
  <users_config>users.xml</users_config>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{http_port}</http_port>
  <tcp_port>{port}</tcp_port>
  <tcp_port_secure>{tls_port}</tcp_port_secure>
  <interserver_http_port>{interserver_port}</interserver_http_port>
  <interserver_http_host>127.0.0.1</interserver_http_host>
  <openSSL><server>
    <certificateFile>{folder}/server.pem</certificateFile>
    <privateKeyFile>{folder}/server.key</privateKeyFile>
    <verificationMode>none</verificationMode>
    <loadDefaultCAFile>false</loadDefaultCAFile>
    <disableProtocols>sslv2,sslv3</disableProtocols>
  </server></openSSL>
  <max_concurrent_queries>100</max_concurrent_queries>
  <mark_cache_size>67108864</mark_cache_size>
  <timezone>{timezone}</timezone>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  {more}
</yandex>
"""
USERS = """<yandex>
  <profiles><default></default></profiles>
  <quotas><default></default></quotas>
  <users>
    <default>
      <password></password><networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile><quota>default</quota>
    </default>
    <{user}>
      <password>{password}</password><networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile><quota>default</quota>
    </{user}>
  </users>
</yandex>
"""


@dataclass
class ClickhouseServer:
    """One server: its folder, its ports; `running` starts it, as often as a test likes.

    Every start takes the same ports, so that what it kept and who knew it find it again.
    """

    folder: Path
    more: str = ""  # XML of the configuration: <zookeeper>, <macros>, <remote_servers>
    timezone: str = "UTC"
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    interserver_port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    program: Program | None = None  # while it runs

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        issuer = trustme.CA()
        issuer.cert_pem.write_to_path(str(self.ca_file))
        own = issuer.issue_cert("127.0.0.1", "localhost")
        own.private_key_pem.write_to_path(str(self.folder / "server.key"))
        (self.folder / "server.pem").write_bytes(
            b"".join(pem.bytes() for pem in own.cert_chain_pems)
        )
        self.password_file.write_text(f"{self.password}\n")
        (self.folder / "users.xml").write_text(USERS.format(user=USER, password=self.password))
        (self.folder / "config.xml").write_text(
            CONFIG.format(
                folder=self.folder,
                port=self.port,
                tls_port=self.tls_port,
                http_port=free_port(),
                interserver_port=self.interserver_port,
                timezone=self.timezone,
                more=self.more,
            )
        )

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Program]:
        """Start it, wait until it answers, and end it when the block is left."""
        argv = [need("clickhouse-server"), f"--config-file={self.folder / 'config.xml'}"]
        with running(argv, self.folder, name="clickhouse") as program:

            def answers() -> bool:
                assert program.process.poll() is None, program.said()
                with socket.create_connection((self.host, self.port), 1.0):
                    return True

            wait_until(answers, "clickhouse-server", 60.0)
            self.program = program
            try:
                yield program
            finally:
                self.program = None
                # Its own way out takes seconds, and nobody needs what it would still write.
                program.stop(signal.SIGKILL)

    def config(self, database: str, **more: object) -> ClickhouseConfig:
        """What an operator would write in [clickhouse] to reach it."""
        said: dict[str, object] = {
            "hosts": (self.address,),
            "database": database,
            "user": USER,
            "password_file": str(self.password_file),
        }
        return ClickhouseConfig(**(said | more))  # type: ignore[arg-type]

    def toml(self, database: str, **more: str) -> str:
        """The same as a table of joulegram.toml; values of `more` as TOML writes them."""
        said = {
            "hosts": f'["{self.address}"]',
            "database": f'"{database}"',
            "user": f'"{USER}"',
            "password_file": f'"{self.password_file}"',
        } | more
        return "[clickhouse]\n" + "".join(f"{key} = {value}\n" for key, value in said.items())

    def client(self, database: str = "default") -> Client:
        """A plain client of the driver, to look from outside."""
        return Client(self.host, self.port, database=database, user=USER, password=self.password)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The name of a database that is nobody else's; it is dropped afterwards."""
        name = f"test_{secrets.token_hex(6)}"
        try:
            yield name
        finally:
            with self.client() as client:
                client.execute(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickhouseServer]:
    """A running server, as old as we support."""
    need("clickhouse-server")
    server = ClickhouseServer(tmp_path_factory.mktemp("clickhouse"))
    with server.running():
        yield server
