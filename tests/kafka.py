"""Real Apache Kafka brokers (KRaft) for the tests, with topics of their own.

Its jars come from Maven Central, once, into a folder that later runs share. A broker may be
killed, paused and started again over the same log.
"""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers import Program, need, running, wait_until

VERSION = "4.4.0"
POM = Path(__file__).with_name("kafka") / "pom.xml"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulegram"


def jars() -> Path:
    """The folder with the broker's jars, fetched where they are missing; else skip or fail."""
    folder = CACHE / f"kafka-{VERSION}"
    if folder.is_dir():
        return folder
    mvn = need("mvn")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        draft = CACHE / f"kafka-{VERSION}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        argv = [
            mvn, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies",
            f"-DoutputDirectory={draft}", "-DincludeScope=runtime",
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode:
            reason = f"no Kafka: Maven could not fetch its jars: {done.stdout[-500:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        draft.rename(folder)
    return folder


def lasting_port() -> int:
    """A free TCP port on 127.0.0.1 that no outgoing connection takes while its server is away."""
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(15_000, max(15_100, first_outgoing))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Broker:
    """One broker with its log in `folder`: alone, or one of those in `all`.

    Args:
        more: properties beyond those of every test; listeners are added.
        format_flags: of kafka-storage format.
    """

    folder: Path
    libs: Path
    port: int = field(default_factory=lasting_port)
    controller_port: int = field(default_factory=lasting_port)
    number: int = 1
    all: list["Broker"] = field(default_factory=list, repr=False)
    more: Mapping[str, object] = field(default_factory=dict)
    format_flags: Sequence[str] = ()
    program: Program | None = None
    _ended: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, timeout_s: float = 60.0) -> None:
        """Return once it answers."""
        self.launch()
        self.answers(timeout_s)

    def launch(self) -> None:
        """Start it. One of several answers only once most of them were launched."""
        self._format()
        self._ended = contextlib.ExitStack()
        argv = self._java("-Xmx512m", "kafka.Kafka", str(self._properties()))
        self.program = self._ended.enter_context(running(argv, self.folder, name="broker"))

    def answers(self, timeout_s: float = 60.0) -> None:
        """Return once it does."""
        program = self.program
        assert program is not None

        def ready() -> bool:
            assert program.process.poll() is None, f"ended early:\n{program.said()[-3000:]}"
            from kafka import KafkaAdminClient
            from kafka.errors import KafkaError

            try:
                KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=2_000).close()
            except KafkaError:
                return False
            return True

        wait_until(ready, "the Kafka broker", timeout_s)

    def keeps_groups(self) -> bool:
        """Whether it knows of consumer groups: some time after its first start."""
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        admin = KafkaAdminClient(bootstrap_servers=self.address)
        try:
            admin.list_group_offsets(["nobody"])
        except KafkaError:
            return False
        finally:
            admin.close()
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it by its pid; SIGKILL gives it no time to say goodbye."""
        if self.program is not None:
            self.program.stop(how, timeout_s=30.0)
        self._ended.close()
        self.program = None

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it and start it again over the same log."""
        self.stop(how)
        self.start()

    def pause(self) -> None:
        """It keeps its connections and answers nobody (SIGSTOP)."""
        assert self.program is not None
        self.program.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.program is not None
        self.program.process.send_signal(signal.SIGCONT)

    def names(self) -> "Names":
        """Names that no other test uses."""
        unique = uuid.uuid4().hex[:8]
        return Names(f"frames-{unique}", f"dead-{unique}", f"writers-{unique}")

    def _java(self, *arguments: str) -> list[str]:
        return [need("java"), "-cp", f"{self.libs}/*", *arguments]

    def _format(self) -> None:
        if (self.folder / "log" / "meta.properties").exists():
            return
        tool = self._java("-Xmx256m", "kafka.tools.StorageTool", "format", "-t")
        # 22 characters of base64: what StorageTool random-uuid would say.
        cluster = "am91bGVncmFtLXRlc3RzIQ"
        argv = [*tool, cluster, "-c", str(self._properties()), *self.format_flags]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def _properties(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.properties"
        listeners = f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self.controller_port}"
        all_ = self.all or [self]
        said = {
            "process.roles": "broker,controller",
            "node.id": self.number,
            "controller.quorum.voters": ",".join(
                f"{one.number}@127.0.0.1:{one.controller_port}" for one in all_
            ),
            "listeners": listeners,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self.folder / "log",
            "offsets.topic.replication.factor": len(all_),
            "offsets.topic.num.partitions": "2",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # After a kill -9 it waits for its former self to be forgotten.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
        }
        if len(all_) == 1:  # it keeps those who vote for one another apart until they have
            # Everyone may do what no test forbids.
            said["authorizer.class.name"] = (
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
            )
            said["allow.everyone.if.no.acl.found"] = "true"
        for key, value in self.more.items():
            said[key] = f"{said[key]},{value}" if key in said else value
        path.write_text("".join(f"{key}={value}\n" for key, value in said.items()))
        return path


@dataclass(frozen=True)
class Names:
    """Topics and group of one test."""

    topic: str
    dead_letters: str
    group: str


@contextlib.contextmanager
def kafka_broker(folder: Path) -> Iterator[Broker]:
    """A broker of one's own, for a test that ends it."""
    with kafka_brokers(folder, 1) as (broker,):
        yield broker


@contextlib.contextmanager
def kafka_brokers(folder: Path, count: int) -> Iterator[list[Broker]]:
    """So many brokers of one cluster, each of them a controller too."""
    brokers: list[Broker] = []
    for number in range(1, count + 1):
        brokers.append(Broker(folder / str(number), jars(), number=number, all=brokers))
    try:
        for broker in brokers:
            broker.launch()
        for broker in brokers:
            broker.answers()
        wait_until(brokers[0].keeps_groups, "the brokers' groups", 60.0)
        yield brokers
    finally:
        for broker in brokers:
            if broker.program is not None and broker.program.process.poll() is None:
                broker.resume()  # a paused program hears no SIGTERM
            # The last of them would wait for the others' votes.
            broker.stop(signal.SIGTERM if count == 1 else signal.SIGKILL)
