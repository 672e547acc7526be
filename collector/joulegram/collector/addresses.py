"""Where a collector listens: HOST:PORT, judged before anything is opened."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from joulegram.collector.errors import BadSetting
from joulegram.collector.security.tls import Certificates


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int  # 0: any free one

    @classmethod
    def parse(cls, key: str, text: str, insecure: bool) -> "Address":
        """Read HOST:PORT. Raises BadSetting when it is none, or is open to others unasked."""
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise BadSetting(
                f"collector.{key} = {text!r}: write HOST:PORT, such as "
                f"127.0.0.1:{7470 if key == 'http' else 7471}."
            )
        if not insecure and not _is_loopback(host):
            raise BadSetting(
                f"collector.{key} = {text!r} is open to other machines, and there is no TLS: "
                "anyone there could send or read energy. Listen on 127.0.0.1, set tls_cert and "
                "tls_key in [security], or say --insecure where the network is trusted."
            )
        return cls(host, int(port))

    def check_apart(self, web: "Address") -> None:
        """Agents' address and the page's must differ. Raises BadSetting."""
        if self.port and self == web:
            raise BadSetting(
                f"collector.listen and collector.http are both {self.shown(self.port)}: agents and "
                "the page take a port each; change one."
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return _is_loopback(self.host)

    def shown(self, port: int) -> str:
        """HOST:PORT with the port that was found."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def listen(self, server: grpc.aio.Server, certificates: Certificates | None) -> int:
        """Open the port for agents; returns it. Raises BadSetting when it is taken."""
        here = self.shown(self.port)
        try:
            port: int = (
                server.add_insecure_port(here)
                if certificates is None
                else server.add_secure_port(here, certificates.for_agents())
            )
        except RuntimeError as exc:
            raise BadSetting(self._taken("listen")) from exc
        return port

    @contextlib.contextmanager
    def bound(self, key: str) -> Iterator[socket.socket]:
        """A socket bound here. Raises BadSetting when the port is taken."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((self.host, self.port))
            except OSError as exc:
                raise BadSetting(self._taken(key, f" ({exc.strerror})")) from exc
            yield bound

    def _taken(self, key: str, why: str = "") -> str:
        return (
            f"cannot listen on {self.shown(self.port)}{why}: another program may have the port, or "
            f"the address is not of this machine. Stop that program, or choose with --{key} "
            "HOST:PORT."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return _is_loopback(bound.getsockname()[0])


def shown(bound: socket.socket) -> str:
    """HOST:PORT of a socket that listens."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
