"""One GET to a neighbour on this node: bounded in time, in bytes, and in what it follows.

The standard library's parser and not httpx, which costs an agent 5 MB more.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping

from joulegram.agent.errors import SourceFailed

TIMEOUT_S = 10.0
ANSWER_MAX = 16 << 20

Connect = Callable[[float], socket.socket]  # within so many seconds


def over_unix(path: str) -> Connect:
    def connect(timeout_s: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def over_tcp(host: str, port: int, context: ssl.SSLContext | None) -> Connect:
    def connect(timeout_s: float) -> socket.socket:
        plain = socket.create_connection((host, port), timeout_s)
        if context is None:
            return plain
        try:
            return context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    return connect


def get(
    connect: Connect,
    host: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    most: int = ANSWER_MAX,
) -> tuple[int, bytes]:
    """(status, body).

    Args:
        host: for the header, and for words about what went wrong.
    Raises: SourceFailed when there is no whole answer within `timeout_s` and `most` bytes.
    """
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Accept: application/json"]
    lines += ["Connection: close", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    until = time.monotonic() + timeout_s
    try:
        with connect(timeout_s) as connection:
            connection.sendall(request)
            raw = _read(connection, until, most)
        return _parsed(raw)
    except TimeoutError as exc:
        raise SourceFailed(f"{host}{target}: no answer within {timeout_s:g} s") from exc
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise SourceFailed(f"{host}{target}: {exc or type(exc).__name__}") from exc


def _read(connection: socket.socket, until: float, most: int) -> bytes:
    raw = bytearray()
    while True:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(65536)
        if not chunk:
            return bytes(raw)
        raw += chunk
        if len(raw) > most:
            raise ValueError(f"an answer of more than {most} bytes")


class _Heard:
    """What http.client takes for a connection."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _parsed(raw: bytes) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(_Heard(raw), method="GET")  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read()
