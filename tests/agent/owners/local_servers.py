"""HTTP servers on this machine that answer as a test says: over TLS, or on a socket in a folder."""

import contextlib
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a server does with a request: target and headers -> all bytes of the answer.
Respond = Callable[[str, dict[str, str]], bytes]


@dataclass
class Heard:
    """What a server was asked, and what it answers next."""

    respond: Respond
    where: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def ok(body: bytes, status: str = "200 OK", *, chunked: bool = False) -> bytes:
    if chunked:
        half = len(body) // 2
        parts = [p for p in (body[:half], body[half:]) if p]
        body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
        return f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _handler(heard: Heard, drip_s: float) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                target = self.rfile.readline().decode("latin-1").split(" ")[1]
                headers = {}
                while line := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                heard.requests.append((target, headers))
                answer = heard.respond(target, headers)
                if not drip_s:
                    self.wfile.write(answer)
                for n in range(len(answer) if drip_s else 0):
                    self.wfile.write(answer[n : n + 1])
                    time.sleep(drip_s)

    return Handler


@contextlib.contextmanager
def serving_tls(
    respond: Respond, context: ssl.SSLContext | None, drip_s: float = 0.0
) -> Iterator[Heard]:
    heard = Heard(respond)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def finish_request(self, request, client_address):  # type: ignore[no-untyped-def]
            with contextlib.suppress(OSError):
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
                super().finish_request(request, client_address)
                request.close()

        def handle_error(self, request, client_address):  # type: ignore[no-untyped-def]
            pass

    with Server(("127.0.0.1", 0), _handler(heard, drip_s)) as server:
        scheme = "https" if context is not None else "http"
        heard.where = f"{scheme}://localhost:{server.server_address[1]}"
        with _running(server):
            yield heard


@contextlib.contextmanager
def serving_unix(respond: Respond, path: Path) -> Iterator[Heard]:
    heard = Heard(respond, str(path))

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    with Server(str(path), _handler(heard, 0.0)) as server, _running(server):
        yield heard


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
