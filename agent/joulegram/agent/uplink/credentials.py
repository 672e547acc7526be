"""How the agent proves who it is, and knows whom it talks to: TLS, its certificate, its token.

Files are read anew for every stream, so that a renewed certificate needs no restart; a stream
whose files have changed is `stale` and makes room for the next one.
"""

import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

import grpc

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting

# What distributions call the file of all authorities they trust.
SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
# In gRPC's words for a connection that was not made, or was lost.
OF_CONNECTIONS = ("connect", "socket", "handshake", "ssl", "recvmsg", "reset")
NODE_HEADER = "joulegram-node-bin"
TOKEN_MIN = 16  # characters; a shorter one can be guessed from its digest
LOOK_TIMEOUT_S = 5.0
MAX_BYTES = 2**20


class Credentials:
    """Of one agent. Raises nothing until it is used."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._seen: Sequence[tuple[int, ...]] = ()

    @property
    def encrypts(self) -> bool:
        """Whether the way to the collector is TLS."""
        return self._config.tls or bool(self._config.tls_ca or self._config.tls_cert)

    def check(self) -> None:
        """Raises: BadSetting naming the file that cannot be used, and what to do."""
        self._channel_credentials()
        self.metadata()

    def channel(self, target: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """A channel of the running event loop with what the files hold now.

        Raises: BadSetting as `check` does.
        """
        self._seen = self._signature()
        credentials = self._channel_credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, credentials, options)

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What a stream says first. Raises: BadSetting when the token cannot be read."""
        node = (NODE_HEADER, self._config.node.encode())
        path = self._config.token_file
        if path is not None:
            token = _private("token_file", path).decode("ascii", errors="replace").strip()
            if len(token) < TOKEN_MIN or not token.isascii() or not token.isprintable():
                raise BadSetting(
                    f"agent.token_file = {path}: a token is at least {TOKEN_MIN} printable ASCII "
                    "characters on one line; `openssl rand -hex 32` makes one."
                )
            return node, ("authorization", f"Bearer {token}")
        return (node,)

    def stale(self) -> bool:
        """Whether a file has changed since `channel`."""
        return self._signature() != self._seen

    def why(self, address: tuple[str, int], details: str) -> str:
        """What TLS has against this connection, in words; empty when nothing is found.

        Args:
            details: how gRPC says that a stream was UNAVAILABLE. Where a collector has spoken,
                nobody need look.
        """
        if not any(word in details.lower() for word in OF_CONNECTIONS):
            return ""
        host = address[0]
        try:
            context = self._context()
        except BadSetting as exc:
            return str(exc)
        shaken = False
        try:
            with (
                socket.create_connection(address, LOOK_TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as connection,
            ):
                shaken = True
                # Whether it took our certificate shows now: HTTP/2 settings, or the end.
                if not connection.recv(1):
                    return _hung_up("it hung up")
        except ssl.SSLCertVerificationError as exc:
            return (
                f"the collector's certificate is not accepted: {exc.verify_message}. Is "
                "`tls_ca` in [agent] the authority that signed it, does it name the host in "
                "`collector`, and is it in date?"
            )
        except ssl.SSLError as exc:
            reason = (exc.reason or "no reason given").replace("_", " ").lower()
            if "wrong version" in reason or "record layer" in reason or "http request" in reason:
                if not self.encrypts:
                    return ""
                return "the collector there does not speak TLS: give it tls_cert in [security]"
            return _hung_up(reason)
        except OSError as exc:
            return _hung_up(str(exc)) if shaken and not isinstance(exc, TimeoutError) else ""
        if not self.encrypts:
            return (
                "the collector there speaks TLS: set `tls_ca` in [agent] to the authority that "
                "signed its certificate, or `tls = true` for the system's own"
            )
        return ""

    def _channel_credentials(self) -> grpc.ChannelCredentials | None:
        if not self.encrypts:
            return None
        self._context()  # gRPC would take nonsense, and fail later without saying why
        config = self._config
        if config.tls_cert is None or config.tls_key is None:
            return grpc.ssl_channel_credentials(self._roots())
        chain, key = _file("tls_cert", config.tls_cert), _private("tls_key", config.tls_key)
        return grpc.ssl_channel_credentials(self._roots(), key, chain)

    def _context(self) -> ssl.SSLContext:
        """Python's view of the same files. Raises: BadSetting."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        if not self.encrypts:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        try:
            context.load_verify_locations(cadata=self._roots().decode("ascii", errors="ignore"))
        except ssl.SSLError:
            raise BadSetting(
                f"agent.tls_ca = {self._config.tls_ca}: no PEM certificate in it."
            ) from None
        cert, key = self._config.tls_cert, self._config.tls_key
        if cert is not None and key is not None:
            _file("tls_cert", cert)
            _private("tls_key", key)
            try:
                context.load_cert_chain(cert, key, password="")
            except (ssl.SSLError, OSError) as exc:
                raise BadSetting(
                    f"agent.tls_cert = {cert} and tls_key = {key} are no PEM certificate and its "
                    f"own key without a password ({getattr(exc, 'reason', None) or 'unreadable'}). "
                    "If both are being replaced, this passes by itself."
                ) from None
        return context

    def _roots(self) -> bytes:
        if self._config.tls_ca is not None:
            return _file("tls_ca", self._config.tls_ca)
        for name in filter(None, (os.environ.get("SSL_CERT_FILE"), *SYSTEM_ROOTS)):
            if Path(name).is_file():
                return Path(name).read_bytes()
        raise BadSetting(
            "agent.tls: this machine has no file of authorities that it trusts (package "
            "ca-certificates). Install it, or set tls_ca to the one that signed the collector's "
            "certificate."
        )

    def _signature(self) -> list[tuple[int, ...]]:
        config = self._config
        found: list[tuple[int, ...]] = []
        for path in (config.tls_ca, config.tls_cert, config.tls_key, config.token_file):
            try:
                status = None if path is None else path.stat()
            except OSError:
                status = None
            found.append((status.st_ino, status.st_mtime_ns, status.st_ctime_ns) if status else ())
        return found


def _hung_up(how: str) -> str:
    return (
        f"the collector ended the handshake: {how}. It may want a certificate of this agent "
        "(`tls_cert` in [agent]) that is in date and signed by its `client_ca`"
    )


def _file(key: str, path: Path) -> bytes:
    return _read(key, path)[0]


def _private(key: str, path: Path) -> bytes:
    content, mode = _read(key, path)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise BadSetting(
            f"agent.{key} = {path}: every user of this machine may read it. chmod 0600 it (0640 "
            "for a group; in Kubernetes `defaultMode: 0440` of the volume)."
        )
    return content


def _read(key: str, path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as exc:
        raise BadSetting(
            f"agent.{key} = {path}: {exc.strerror}. Name a file that this user may read."
        ) from exc
