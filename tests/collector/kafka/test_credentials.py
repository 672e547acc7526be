"""A broker that wants TLS and a password, or a certificate: real ones, right and wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka.errors import KafkaError

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka import reasons, topics
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.topics import check_topics
from tests.certificates import Authority, Pair
from tests.collector.kafka.conftest import settings_of
from tests.kafka import Broker, jars, lasting_port

USER, PASSWORD = "joulegram", "one-joule-is-one-watt-second"
SASL = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Guarded:
    """A broker with a listener that asks for a password and one that asks for a certificate."""

    broker: Broker
    authority: Authority
    password_port: int
    certificate_port: int

    def settings(self, port: int, **more: object) -> KafkaConfig:
        address = f"localhost:{port}"
        tls = {"brokers": (address,), "tls": True, "ca_file": self.authority.cert}
        return settings_of(self.broker, **{**tls, **more})


def keystore(pair: Pair) -> Path:
    """Key and certificate in one file, the key as Java reads it (PKCS #8)."""
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = pair.cert.with_suffix(".keystore.pem")
    path.write_bytes(pem + pair.cert.read_bytes())
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder)
    password, certificate = lasting_port(), lasting_port()
    tls = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": keystore(authority.issue("broker", "localhost")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.cert,
    }
    more = {
        **tls,
        "listeners": f"LOGIN://localhost:{password},MUTUAL://localhost:{certificate}",
        "listener.security.protocol.map": "LOGIN:SASL_SSL,MUTUAL:SSL",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.login.plain.sasl.jaas.config": f"{SASL}.plain.PlainLoginModule required "
        f'user_{USER}="{PASSWORD}";',
        "listener.name.login.scram-sha-256.sasl.jaas.config": f"{SASL}.scram.ScramLoginModule "
        "required;",
        "listener.name.login.scram-sha-512.sasl.jaas.config": f"{SASL}.scram.ScramLoginModule "
        "required;",
    }
    users = [
        flag
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for flag in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
    ]
    broker = Broker(folder / "kafka", jars(), more=more, format_flags=users)
    try:
        broker.start()
        yield Guarded(broker, authority, password, certificate)
    finally:
        broker.stop()


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_over_tls(guarded: Guarded, password_file: Path, mechanism: str) -> None:
    check_topics(login(guarded, password_file, sasl=mechanism))


def test_a_certificate_of_our_own(guarded: Guarded) -> None:
    pair = guarded.authority.issue("collector", "collector")
    check_topics(guarded.settings(guarded.certificate_port, cert_file=pair.cert, key_file=pair.key))


def login(guarded: Guarded, password_file: Path, **more: object) -> KafkaConfig:
    said = {"sasl": "SCRAM-SHA-512", "username": USER, "password_file": password_file}
    return guarded.settings(guarded.password_port, **{**said, **more})


def why(settings: KafkaConfig) -> str:
    """What a person is told of these settings."""
    with pytest.raises(KafkaError) as failed:
        check_topics(settings)
    return reasons.told(failed.value)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, and hear nothing of what other tests met."""
    monkeypatch.setattr(topics, "connection", partial(connection, bootstrap_s=3.0))
    monkeypatch.setattr(reasons, "heard", reasons.Heard())


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password(guarded: Guarded, password_file: Path, mechanism: str) -> None:
    password_file.write_text("another\n")
    said = why(login(guarded, password_file, sasl=mechanism))
    assert "uthentication failed" in said
    assert "kafka.password_file" in said
    assert "another" not in said


def test_another_authority(guarded: Guarded, password_file: Path, tmp_path: Path) -> None:
    said = why(login(guarded, password_file, ca_file=Authority(tmp_path).cert))
    assert "certificate verify failed" in said
    assert "kafka.ca_file" in said


def test_no_certificate_of_ours(guarded: Guarded) -> None:
    assert "kafka.cert_file" in why(guarded.settings(guarded.certificate_port))


def test_no_log_in(guarded: Guarded) -> None:
    assert "kafka.sasl" in why(guarded.settings(guarded.password_port))


def test_no_tls(guarded: Guarded, password_file: Path) -> None:
    assert "kafka.tls" in why(login(guarded, password_file, tls=False, ca_file=None))


def test_tls_where_there_is_none(guarded: Guarded) -> None:
    assert "kafka.tls" in why(guarded.settings(guarded.broker.port))


def test_nobody_there() -> None:
    assert "kafka.brokers" in why(KafkaConfig(brokers=(f"127.0.0.1:{lasting_port()}",)))


def test_a_password_that_is_no_text_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"caf\xe9-secret")
    settings = KafkaConfig(
        brokers=("localhost:1",), sasl="PLAIN", username=USER, password_file=path
    )
    with pytest.raises(BadSetting, match="not UTF-8") as failed:
        connection(settings)
    assert "secret" not in repr(failed.value) + reasons.told(failed.value)
