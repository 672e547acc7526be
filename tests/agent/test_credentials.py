"""The agent's credentials against a real TLS server that does as a test says."""

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting, UplinkRefused
from joulegram.agent.spool.spool import Spool
from joulegram.agent.uplink.credentials import Credentials
from joulegram.agent.uplink.uplink import Uplink
from joulegram.v1.telemetry_pb2 import Ack, Frame, SeqRange
from tests.agent.made_frames import made_frame
from tests.certificates import Authority, Pair
from tests.servers import free_port, wait_until

TOKEN = "0123456789abcdef0123"


@dataclass
class Collector:
    """Acknowledges everything, and notes who sent it."""

    address: str
    server: grpc.Server
    seen: list[tuple[tuple[str, ...], dict[str, Any]]]  # names of the certificate, headers

    def names(self) -> list[str]:
        return sorted({name for names, _ in self.seen for name in names})


@contextlib.contextmanager
def collecting(pair: Pair | None, client_ca: Path | None = None) -> Iterator[Collector]:
    seen: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def report(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Ack]:
        dns: Any = context.auth_context().get("peer_dns", ())
        headers = dict(context.invocation_metadata())
        seen.append((tuple(name.decode() for name in dns), headers))
        for raw in requests:
            frame = Frame.FromString(raw)
            yield Ack(
                durable=[SeqRange(epoch=frame.epoch, first_seq=frame.seq, last_seq=frame.seq)]
            )

    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.stream_stream_rpc_method_handler(
        report, request_deserializer=None, response_serializer=Ack.SerializeToString
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("joulegram.v1.TelemetryService", {"Report": handler})]
    )
    address = f"127.0.0.1:{free_port()}"
    if pair is None:
        server.add_insecure_port(address)
    else:
        own = [(pair.key.read_bytes(), pair.cert.read_bytes())]
        roots = client_ca.read_bytes() if client_ca else None
        credentials = grpc.ssl_server_credentials(own, roots, client_ca is not None)
        server.add_secure_port(address, credentials)
    server.start()
    try:
        yield Collector(address, server, seen)
    finally:
        server.stop(None).wait()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with contextlib.closing(Spool.open(tmp_path / "state", "n1")) as spool:
        yield spool


@contextlib.contextmanager
def linked(spool: Spool, collector: str, **keys: Any) -> Iterator[Uplink]:
    credentials = Credentials(AgentConfig(node="n1", collector=collector, **keys))
    uplink = Uplink(
        spool, collector, credentials=credentials, first_backoff_s=0.02, max_backoff_s=0.2
    )
    uplink.start()
    try:
        yield uplink
    finally:
        uplink.stop(2.0)


def test_certificate_token_and_name_are_shown(spool: Spool, authority: Authority) -> None:
    own = authority.issue("n1", "n1")
    token = authority.folder / "token"
    token.touch(0o600)
    token.write_text(f"{TOKEN}\n")
    spool.append(made_frame(1))
    keys = {"tls_ca": authority.cert, "tls_cert": own.cert, "tls_key": own.key}
    with (
        collecting(authority.issue("c", "127.0.0.1"), authority.cert) as collector,
        linked(spool, collector.address, token_file=token, **keys),
    ):
        wait_until(lambda: spool.pending() == 0, "the acknowledgement")
    names, headers = collector.seen[0]
    assert names == ("n1",)
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["joulegram-node-bin"] == b"n1"


def test_a_renewed_certificate_is_used_without_a_restart(
    spool: Spool, authority: Authority
) -> None:
    own = authority.issue("n1", "n1", "old.example")
    keys = {"tls_ca": authority.cert, "tls_cert": own.cert, "tls_key": own.key}
    spool.append(made_frame(1))
    with (
        collecting(authority.issue("c", "127.0.0.1"), authority.cert) as collector,
        linked(spool, collector.address, **keys) as uplink,
    ):
        wait_until(lambda: spool.pending() == 0, "the first acknowledgement")
        assert collector.names() == ["n1", "old.example"]
        own.replace_with(authority.issue("renewed", "n1", "new.example"))
        spool.append(made_frame(2))
        uplink.wake()
        wait_until(lambda: "new.example" in collector.names(), "the new certificate")
        spool.append(made_frame(3))
        uplink.wake()
        wait_until(lambda: spool.pending() == 0, "all acknowledged")
        assert uplink.stats().streams == 2


def test_files_that_go_bad_are_waited_for(
    spool: Spool, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    own = authority.issue("n1", "n1")
    good = own.key.read_bytes()
    keys = {"tls_ca": authority.cert, "tls_cert": own.cert, "tls_key": own.key}
    own.key.write_bytes(authority.issue("other", "n1").key.read_bytes())
    spool.append(made_frame(1))
    with (
        collecting(authority.issue("c", "127.0.0.1"), authority.cert) as collector,
        linked(spool, collector.address, **keys),
    ):
        wait_until(lambda: "this passes by itself" in caplog.text, "the complaint")
        assert spool.pending() == 1
        own.key.write_bytes(good)
        wait_until(lambda: spool.pending() == 0, "the acknowledgement")
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("another authority", "Is `tls_ca` in [agent] the authority that signed it"),
        ("another name", "is not valid for '127.0.0.1'"),
        ("expired", "certificate has expired"),
        ("my certificate is a stranger's", "the collector ended the handshake"),
        ("my certificate has expired", "the collector ended the handshake"),
        ("I have none", "the collector ended the handshake"),
        ("it speaks no TLS", "does not speak TLS"),
        ("it speaks TLS", "the collector there speaks TLS: set `tls_ca`"),
    ],
)
def test_what_is_wrong_is_said_and_frames_stay(
    spool: Spool,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
    said: str,
) -> None:
    stranger = Authority(authority.folder)
    theirs: Pair | None = {
        "another name": authority.issue("c", "10.0.0.1"),
        "expired": authority.issue("e", "127.0.0.1", expired=True),
    }.get(trouble, authority.issue("ok", "127.0.0.1"))
    own = {
        "my certificate is a stranger's": stranger.issue("s", "n1"),
        "my certificate has expired": authority.issue("x", "n1", expired=True),
    }.get(trouble, authority.issue("n1", "n1"))
    keys: dict[str, Path] = {"tls_ca": authority.cert, "tls_cert": own.cert, "tls_key": own.key}
    if trouble == "another authority":
        keys["tls_ca"] = stranger.cert
    if trouble == "I have none":
        del keys["tls_cert"], keys["tls_key"]
    if trouble == "it speaks TLS":
        keys = {}
    if trouble == "it speaks no TLS":
        theirs = None
    client_ca = None if trouble == "it speaks TLS" else authority.cert
    spool.append(made_frame(1))
    with (
        collecting(theirs, client_ca if theirs else None) as collector,
        linked(spool, collector.address, **keys) as uplink,
    ):
        wait_until(lambda: said in caplog.text, said)
        assert uplink.stats().acked == 0 and spool.pending() == 1
    assert collector.seen == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("key is public", "chmod 0600"),
        ("token is public", "chmod 0600"),
        ("no key", "No such file"),
        ("no token", "No such file"),
        ("short token", "at least 16"),
        ("two lines", "on one line"),
        ("ca is none", "no PEM certificate"),
        ("key is another's", "its own key"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(
    authority: Authority, spoil: str, said: str
) -> None:
    own, other = authority.issue("n1", "n1"), authority.issue("n2", "n2")
    token = authority.folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    ca = authority.cert
    match spoil:
        case "key is public":
            own.key.chmod(0o644)
        case "token is public":
            token.chmod(0o604)
        case "no key":
            own.key.unlink()
        case "no token":
            token.unlink()
        case "short token":
            token.write_text(TOKEN[:15])
        case "two lines":
            token.write_text(f"{TOKEN}\n{TOKEN}")
        case "ca is none":
            ca = token
        case "key is another's":
            own.key.write_bytes(other.key.read_bytes())
    config = AgentConfig(node="n1", tls_ca=ca, tls_cert=own.cert, tls_key=own.key, token_file=token)
    with pytest.raises(BadSetting) as refused:
        Credentials(config).check()
    assert said in str(refused.value)
    assert TOKEN not in str(refused.value) and "PRIVATE KEY" not in str(refused.value)


def test_beyond_this_machine_tls_is_enough(tmp_path: Path, authority: Authority) -> None:
    with contextlib.closing(Spool.open(tmp_path / "s", "n1")) as spool:
        with pytest.raises(UplinkRefused, match="tls_ca"):
            Uplink(spool, "collector.example:7471", credentials=Credentials(AgentConfig()))
        encrypted = Credentials(AgentConfig(tls_ca=authority.cert))
        Uplink(spool, "collector.example:7471", credentials=encrypted)


def test_a_certificate_takes_its_key_with_it(authority: Authority) -> None:
    with pytest.raises(BadSetting, match="tls_key"):
        AgentConfig(tls_cert=authority.cert)
    with pytest.raises(BadSetting, match="tls_cert"):
        AgentConfig(tls_key=authority.cert)
