"""Our certificate for agents and for the page, replaced while both go on."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from joulegram.collector.errors import BadSetting
from joulegram.collector.security.config import SecurityConfig
from joulegram.collector.security.counts import CERTIFICATE_EXPIRY
from joulegram.collector.security.files import read_private, read_trusted
from joulegram.collector.security.fresh import Fresh

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificate chain, its key, and who signs agents' certificates."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime
    context: ssl.SSLContext  # the same, for the page

    def __repr__(self) -> str:  # a traceback with locals must not show the key
        return f"Pem(expires={self.expires:%Y-%m-%dT%H:%M:%SZ})"


class Certificates:
    """The files of [security] for TLS, in force for every new connection once they change."""

    def __init__(self, config: SecurityConfig, now: Callable[[], datetime] | None = None) -> None:
        """Raises: BadSetting naming the file that cannot be used, and why."""
        if config.tls_cert is None or config.tls_key is None:
            raise BadSetting("security.tls_cert and security.tls_key are not given.")
        self._cert, self._key, self._client_ca = config.tls_cert, config.tls_key, config.client_ca
        self._now = now or (lambda: datetime.now(UTC))
        files = [path for path in (self._cert, self._key, self._client_ca) if path is not None]
        self._fresh = Fresh("tls_cert", files, self._load)
        self._given = self._fresh.value  # what gRPC has

    def refresh(self) -> bool:
        """Take the files' new content, if they have one that can be used."""
        return self._fresh.refresh()

    def for_agents(self) -> grpc.ServerCredentials:
        """For a gRPC server: each handshake takes what is in force."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._given),
            self._newer,  # type: ignore[arg-type]  # None: go on with what there is
            self._given.client_ca is not None,
        )

    def for_browsers(self) -> ssl.SSLContext:
        """For an HTTP server: each handshake takes what is in force."""
        first = _context(self._cert, self._key)

        # Called for every handshake, a name in it or none.
        def newest(connection: ssl.SSLObject, *_: object) -> None:
            connection.context = self._fresh.value.context

        first.sni_callback = newest
        return first

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before a handshake, from a thread of its own."""
        value = self._fresh.value
        if value is self._given:
            return None
        self._given = value
        return _configuration(value)

    def _load(self) -> Pem:
        chain = read_trusted("tls_cert", self._cert)
        key = read_private("tls_key", self._key)
        client_ca = None if self._client_ca is None else read_trusted("client_ca", self._client_ca)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
        except ValueError:
            raise BadSetting(
                f"security.tls_cert = {self._cert}: no PEM certificate; it begins with "
                "-----BEGIN CERTIFICATE-----, our own first, then those that signed it."
            ) from None
        try:
            public = load_pem_private_key(key, password=None).public_key()
        except (ValueError, TypeError):  # whose texts could show what the file holds
            raise BadSetting(
                f"security.tls_key = {self._key}: no PEM private key without a password."
            ) from None
        if public != leaf.public_key():
            raise BadSetting(
                f"security.tls_key = {self._key} does not belong to {self._cert}; if both are "
                "being replaced, this passes by itself."
            )
        if client_ca is not None:
            try:
                x509.load_pem_x509_certificates(client_ca)
            except ValueError:
                raise BadSetting(
                    f"security.client_ca = {self._client_ca}: no PEM certificate."
                ) from None
        pem = Pem(chain, key, client_ca, leaf.not_valid_after_utc, _context(self._cert, self._key))
        if pem.expires <= self._now():
            log.error(
                "security.tls_cert = %s has expired at %s: nobody will connect. Renew it; it is "
                "read again by itself.",
                self._cert,
                pem.expires,
            )
        CERTIFICATE_EXPIRY.set(pem.expires.timestamp())
        return pem


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as exc:
        raise BadSetting(
            f"security.tls_cert = {cert}: TLS does not take it ({type(exc).__name__})."
        ) from None
    return context


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)
