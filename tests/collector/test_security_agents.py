"""Who may send: a real collector, and gRPC clients that are right, wrong, or rude."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from joulegram.v1.telemetry_pb2 import Ack, Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.certificates import Authority, Pair, token_file
from tests.collector.made_frames import WINDOW_MS, frame
from tests.servers import Program, free_port, joulegram, running, wait_until

TOKEN = "0123456789abcdef-of-n1"
CLUSTER_TOKEN = "0123456789abcdef-of-the-gpus"
seqs = itertools.count(1)


@dataclass
class Served:
    """A collector whose agents need a credential."""

    program: Program
    agents: str
    url: str
    authority: Authority
    pair: Pair  # its own
    folder: Path
    channels: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def channel(self, pair: Pair | None = None, authority: Authority | None = None) -> grpc.Channel:
        credentials = (authority or self.authority).channel_credentials(pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return self.channels.enter_context(
            grpc.secure_channel(self.agents, credentials, options=options)
        )

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", verify=self.authority.context(), timeout=10).text


@contextlib.contextmanager
def served(folder: Path, *flags: Any, client_ca: bool = False) -> Iterator[Served]:
    authority = Authority(folder)
    pair = authority.issue("collector", "localhost", "127.0.0.1")
    agents, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    if client_ca:
        flags += ("--client-ca", authority.cert)
    argv = joulegram(
        "collector", "--data", folder / "ledger", "--http", http, "--listen", agents,
        "--neso-url", "", "--tls-cert", pair.cert, "--tls-key", pair.key, *flags,
    )  # fmt: skip
    with running(argv, folder, name="collector") as program:

        def ready() -> bool:
            assert program.process.poll() is None, program.said()
            return "page https://" in program.said()

        wait_until(ready, "the collector", 60)
        with contextlib.ExitStack() as channels:
            yield Served(program, agents, f"https://{http}", authority, pair, folder, channels)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It asks agents for certificates."""
    flags = ("--streams-per-peer", "2")
    with served(tmp_path_factory.mktemp("mutual"), *flags, client_ca=True) as collector:
        yield collector


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It asks agents for tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    path = token_file(folder / "agents.toml", entries())
    with served(folder, "--agent-tokens", path, "--frames-per-s", "2") as collector:
        yield collector


def entries() -> list[tuple[str, str]]:
    return [(TOKEN, 'nodes = ["n1"]'), (CLUSTER_TOKEN, 'nodes = ["gpu-*"]')]


def made(node: str) -> Frame:
    """A frame of a window that has just passed."""
    seq = next(seqs)
    start_ms = (time.time_ns() // 1_000_000 // WINDOW_MS - 600 + seq) * WINDOW_MS
    return frame(seq, node=node, window=0, start_ms=start_ms)


def report(channel: grpc.Channel, frames: Sequence[Frame], token: str = "", node: str = "") -> Any:
    said: list[tuple[str, str | bytes]] = []
    if token:
        said.append(("authorization", f"Bearer {token}"))
    if node:
        said.append(("joulegram-node-bin", node.encode()))
    stub: Any = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
    return stub.Report(iter(frames), metadata=said, timeout=20)


def durable(answers: Any) -> int:
    """How many frames were acknowledged; nothing was refused."""
    acks: list[Ack] = list(answers)
    assert not [one for ack in acks for one in ack.refused], acks
    return sum(r.last_seq - r.first_seq + 1 for ack in acks for r in ack.durable)


def denied(answers: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        list(answers)
    said: Any = failed.value
    return said.code(), said.details()


# -- certificates


def test_a_certificate_of_this_authority_may_send_for_its_node(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n1", "n1", "n1.rack7.example"))
    assert durable(report(channel, [made("n1"), made("n1")], node="n1")) == 2
    assert durable(report(channel, [made("n1.rack7.example")])) == 1


def test_another_nodes_frames_are_refused_by_name(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n1", "n1"))
    acks = list(report(channel, [made("n2"), made("n1"), made("n1x")]))
    refused = [one for ack in acks for one in ack.refused]
    assert [one.reason for one in refused] == ["node", "node"]
    assert "'n2'" in refused[0].detail and "set `node` in [agent]" in refused[0].detail
    assert sum(len(ack.durable) for ack in acks) == 1


def test_who_says_another_name_at_the_start_keeps_its_frames(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n1", "n1"))
    code, details = denied(report(channel, [made("n2")], node="n2"))
    assert code is grpc.StatusCode.PERMISSION_DENIED and "n2" in details


def test_a_wildcard_is_a_name_like_any_other(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("wild", "*.example"))
    acks = list(report(channel, [made("n9.example")]))
    assert [one.reason for ack in acks for one in ack.refused] == ["node"]


def test_a_certificate_without_a_name_may_nothing(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("mail", "somebody@example.org"))
    code, details = denied(report(channel, [made("n1")]))
    assert code is grpc.StatusCode.PERMISSION_DENIED and "subjectAltName" in details


@pytest.mark.parametrize("who", ["nobody", "stranger", "late"])
def test_without_a_good_certificate_no_connection_is_made(mutual: Served, who: str) -> None:
    stranger = Authority(mutual.folder)
    pair = {
        "nobody": None,
        "stranger": stranger.issue("stranger", "n1"),
        "late": mutual.authority.issue("late", "n1", expired=True),
    }[who]
    code, _ = denied(report(mutual.channel(pair), [made("n1")]))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_plaintext_gets_nowhere(mutual: Served) -> None:
    with grpc.insecure_channel(mutual.agents) as channel:
        assert denied(report(channel, [made("n1")]))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_peer_has_a_few_streams_and_others_have_theirs(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n3", "n3"))
    hold = threading.Event()
    open_ones = [report(channel, held(hold), node="n3") for _ in range(2)]
    wait_until(lambda: "joulegram_intake_streams 2.0" in mutual.metrics(), "two streams")
    code, details = denied(report(channel, [made("n3")], node="n3"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "streams_per_peer" in details
    other = mutual.channel(mutual.authority.issue("n4", "n4"))
    assert durable(report(other, [made("n4")], node="n4")) == 1
    hold.set()
    assert [list(one) for one in open_ones] == [[], []]
    assert durable(report(channel, [made("n3")], node="n3")) == 1


def test_streams_that_name_nobody_are_few(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n8", "n8"))
    hold = threading.Event()
    open_ones = [report(channel, held(hold)) for _ in range(100)]
    wait_until(lambda: "joulegram_intake_streams 100.0" in mutual.metrics(), "the streams", 60)
    code, details = denied(report(channel, [made("n8")]))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "for no node" in details
    assert durable(report(channel, [made("n8")], node="n8")) == 1  # who says its name may
    hold.set()
    assert all(list(one) == [] for one in open_ones)
    assert durable(report(channel, [made("n8")])) == 1


def held(until: threading.Event) -> Any:
    until.wait(30)
    yield from ()


def test_a_frame_beyond_16_mib_ends_its_stream_alone(mutual: Served) -> None:
    channel = mutual.channel(mutual.authority.issue("n5", "n5"))
    huge = made("n5")
    huge.boot_id = "x" * (17 * 2**20)
    code, details = denied(report(channel, [huge]))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
    assert durable(report(channel, [made("n5")])) == 1


def test_half_a_handshake_is_not_waited_for(mutual: Served) -> None:
    host, port = mutual.agents.split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"\x16\x03\x01\x02\x00\x01")  # the begin of a ClientHello
        silent.settimeout(60)
        assert silent.recv(100) == b""  # it hangs up first


def test_a_renewed_certificate_is_shown_while_streams_go_on(mutual: Served) -> None:
    pair = mutual.authority.issue("n6", "n6")
    channel = mutual.channel(pair)
    more = threading.Event()
    done = threading.Event()

    def frames() -> Iterator[Frame]:
        yield made("n6")
        more.wait(60)
        yield made("n6")
        done.wait(60)

    answers = report_slowly(channel, frames())
    assert len(next(answers).durable) == 1
    before = shown(mutual)
    # First a key that does not belong to it: what there is stays in force.
    good = mutual.pair.key.read_bytes()
    mutual.pair.key.write_bytes(pair.key.read_bytes())
    failing = 'joulegram_security_reload_failing{key="tls_cert"}'
    wait_until(lambda: f"{failing} 1.0" in mutual.metrics(), "the complaint")
    assert "does not belong to" in mutual.program.said()
    assert shown(mutual) == before
    mutual.pair.key.write_bytes(good)
    wait_until(lambda: f"{failing} 0.0" in mutual.metrics(), "the end of the complaint")
    mutual.pair.replace_with(
        mutual.authority.issue("renewed", "localhost", "127.0.0.1", "new.example")
    )
    wait_until(lambda: shown(mutual) != before, "the new certificate")
    assert "new.example" in shown(mutual)
    later = mutual.channel(mutual.authority.issue("n7", "n7"))
    assert durable(report(later, [made("n7")])) == 1
    more.set()
    assert len(next(answers).durable) == 1  # the old stream knows nothing of it
    done.set()
    assert list(answers) == []


def report_slowly(channel: grpc.Channel, frames: Iterator[Frame]) -> Any:
    stub: Any = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
    return stub.Report(frames, timeout=120)


def shown(collector: Served) -> str:
    """The names of the certificate that the page and the agents' port show now."""
    found = []
    for address in (collector.agents, collector.url.removeprefix("https://")):
        host, port = address.split(":")
        context = collector.authority.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        own = collector.folder / "n6.pem"
        context.load_cert_chain(own, own.with_suffix(".key"))
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            found.append(str(connection.getpeercert()))
    return " ".join(found) if found[0] == found[1] else ""


# -- tokens


def test_a_token_speaks_for_its_nodes(tokens: Served) -> None:
    channel = tokens.channel()
    assert durable(report(channel, [made("n1")], TOKEN, "n1")) == 1
    assert durable(report(channel, [made("gpu-1")], CLUSTER_TOKEN)) == 1
    acks = list(report(channel, [made("gpu-2"), made("n1")], CLUSTER_TOKEN))
    assert [one.reason for ack in acks for one in ack.refused] == ["node"]
    code, details = denied(report(channel, [made("gpu-1")], TOKEN, "gpu-1"))
    assert code is grpc.StatusCode.PERMISSION_DENIED and "gpu-1" in details


@pytest.mark.parametrize("token", ["", "not-a-token-of-anybody", TOKEN[:-1], TOKEN + "x"])
def test_without_its_token_nobody_sends(tokens: Served, token: str) -> None:
    code, details = denied(report(tokens.channel(), [made("n1")], token, "n1"))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "token_file" in details
    assert not token or token not in details


@pytest.mark.parametrize("node", ["gpu-9", "of-another"])
def test_too_many_frames_a_second_are_told_when_to_come_back(tokens: Served, node: str) -> None:
    """Frames that are refused count as well."""
    answers = report(tokens.channel(), [made(node) for _ in range(60)], CLUSTER_TOKEN)
    code, details = denied(answers)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "frames_per_s" in details
    assert dict(answers.trailing_metadata())["retry-after-ms"] == "30000"


def test_a_revoked_token_ends_its_streams_and_no_others(tokens: Served) -> None:
    revoked, kept = threading.Event(), threading.Event()
    path = tokens.folder / "agents.toml"

    def slow(node: str, until: threading.Event) -> Iterator[Frame]:
        yield made(node)
        until.wait(60)

    mine = report_of(tokens.channel(), slow("n1", revoked), TOKEN)
    other = report_of(tokens.channel(), slow("gpu-3", kept), CLUSTER_TOKEN)
    assert len(next(mine).durable) == len(next(other).durable) == 1
    token_file(path, entries()[1:])
    assert denied(mine)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert denied(report(tokens.channel(), [made("n1")], TOKEN))[0] is (
        grpc.StatusCode.UNAUTHENTICATED
    )
    path.write_text("[[token]]\nname = 'no digest'\nnodes = ['*']\n")  # a bad file changes nothing
    failing = 'joulegram_security_reload_failing{key="agent_tokens"} 1.0'
    wait_until(lambda: failing in tokens.metrics(), "the complaint")
    assert durable(report(tokens.channel(), [made("gpu-4")], CLUSTER_TOKEN)) == 1
    token_file(path, entries())
    wait_until(lambda: failing not in tokens.metrics(), "the good file")
    assert durable(report(tokens.channel(), [made("n1")], TOKEN)) == 1
    kept.set()
    revoked.set()
    assert list(other) == []


def report_of(channel: grpc.Channel, frames: Iterator[Frame], token: str) -> Any:
    stub: Any = TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
    return stub.Report(frames, metadata=[("authorization", f"Bearer {token}")], timeout=120)
