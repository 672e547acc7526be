"""Two real ClickHouse servers that replicate through a real ZooKeeper, all on loopback."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clickhouse_driver.errors import Error

from joulegram.collector.ledger.config import ClickhouseConfig
from tests.clickhouse import USER, ClickhouseServer
from tests.servers import Program, free_port, need, running, wait_until

NAME = "joulegram_test"
ZOOKEEPER = Path("/usr/share/java/zookeeper.jar")
ZOO_CFG = """
tickTime=500
initLimit=10
syncLimit=5
dataDir={folder}/data
clientPort={port}
clientPortAddress=127.0.0.1
admin.enableServer=false
"""
MORE = """
  <zookeeper>
    <node><host>127.0.0.1</host><port>{zookeeper}</port></node>
    <session_timeout_ms>4000</session_timeout_ms>
  </zookeeper>
  <macros><shard>{shard}</shard><replica>{replica}</replica></macros>
  <distributed_ddl><path>/clickhouse/ddl</path></distributed_ddl>
  <remote_servers><{name}>{shards}</{name}></remote_servers>
"""
REPLICA = (
    "<replica><host>127.0.0.1</host><port>{port}</port><user>{user}</user>"
    "<password>{password}</password></replica>"
)


@dataclass
class Cluster:
    """Servers of one cluster, and the ZooKeeper they share."""

    servers: list[ClickhouseServer]
    password: Path

    def config(self, database: str, first: int = 0, **more: object) -> ClickhouseConfig:
        """What a writer whose own server is number `first` would have."""
        in_order = self.servers[first:] + self.servers[:first]
        said: dict[str, object] = {
            "hosts": tuple(server.address for server in in_order),
            "database": database,
            "user": USER,
            "password_file": str(self.password),
            "cluster": NAME,
            "timeout_s": 20.0,
        }
        return ClickhouseConfig(**(said | more))  # type: ignore[arg-type]


@contextlib.contextmanager
def zookeeper(folder: Path) -> Iterator[int]:
    """A ZooKeeper on the port that is yielded."""
    if not ZOOKEEPER.exists():
        reason = "ZooKeeper is missing: apt-get install zookeeper"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    port = free_port()
    folder.mkdir(parents=True)
    (folder / "zoo.cfg").write_text(ZOO_CFG.format(folder=folder, port=port))
    argv = [
        need("java"), "-Xmx128m", "-cp", f"/etc/zookeeper/conf:{ZOOKEEPER}",
        "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(folder / "zoo.cfg"),
    ]  # fmt: skip
    with running(argv, folder, name="zookeeper") as program:

        def answers() -> bool:
            assert program.process.poll() is None, program.said()
            with socket.create_connection(("127.0.0.1", port), 1.0):
                return True

        wait_until(answers, "ZooKeeper", 60.0)
        yield port


def made(folder: Path, zookeeper_port: int, shards: int) -> Cluster:
    """Two servers, not started: two replicas of one shard, or a shard each."""
    ports = [free_port(), free_port()]
    password = "of the cluster"
    replicas = [REPLICA.format(port=p, user=USER, password=password) for p in ports]
    internal = "<internal_replication>true</internal_replication>"
    if shards == 1:
        xml = f"<shard>{internal}{''.join(replicas)}</shard>"
    else:
        xml = "".join(f"<shard>{internal}{replica}</shard>" for replica in replicas)
    servers = [
        ClickhouseServer(
            folder / f"server{number}",
            MORE.format(
                zookeeper=zookeeper_port,
                shard=1 if shards == 1 else number,
                replica=number,
                name=NAME,
                shards=xml,
            ),
            port=ports[number],
            password=password,
        )
        for number in range(2)
    ]
    for server in servers:
        # What is said ON CLUSTER runs with the settings of the server's own profile.
        users = server.folder / "users.xml"
        allowed = "<default><allow_experimental_low_cardinality_type>1"
        closed = "</allow_experimental_low_cardinality_type></default>"
        users.write_text(users.read_text().replace("<default></default>", allowed + closed, 1))
    return Cluster(servers, servers[0].password_file)


@contextlib.contextmanager
def cluster(folder: Path, shards: int = 1) -> Iterator[tuple[Cluster, list[Program]]]:
    """Both servers running, with ZooKeeper."""
    with zookeeper(folder / "zookeeper") as port, contextlib.ExitStack() as stack:
        both = made(folder, port, shards)
        programs = [stack.enter_context(server.running()) for server in both.servers]
        for server in both.servers:
            wait_until(lambda server=server: takes_ddl(server), "distributed DDL", 30.0)  # type: ignore[misc]
        yield both, programs


def takes_ddl(server: ClickhouseServer) -> bool:
    """Whether ON CLUSTER may be said to it: 18.16 falls over while it has no session."""
    try:
        with server.client() as client:
            found = client.execute("SELECT name FROM system.zookeeper WHERE path = '/clickhouse'")
    except Error:
        return False
    return ("ddl",) in found
