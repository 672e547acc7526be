"""NESO's Carbon Intensity API on loopback, as it documents itself and as it misbehaves.

Answers  GET /intensity, /intensity/{from}, /intensity/{from}/fw24h|fw48h|pt24h,
         /intensity/{from}/{to} (at most 14 days), with or without a trailing slash
Source   https://carbon-intensity.github.io/api-definitions/; its troubles as seen live

`python -m tests.neso_server PORT` serves by the real clock.
"""

import gzip
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HALF_HOUR_S = 1800
SHAPES = (
    "html", "truncated", "slow", "drip", "reset", "error_in_200", "empty_body", "empty_list",
    "renamed", "bare", "gzip", "redirect", "too_large", "not_utf8", "no_type",
)  # fmt: skip


class NesoServer:
    """What it says, and how: tests set the public fields between requests.

    status: other than 200 is answered with the documented error object.
    shape: "" or one of SHAPES.
    forecast, actual: g/kWh of the half hour that starts at an epoch second; an actual is
        published once its half hour is over.
    changes: {start of a half hour: {key of `intensity`: value}}, written over the above.
    """

    def __init__(self, clock: Callable[[], float] = time.time, port: int = 0) -> None:
        self.clock = clock
        self.status = 200
        self.shape = ""
        self.headers: dict[str, str] = {}
        self.forecast: Callable[[int], Any] = lambda start_s: 100 + start_s // HALF_HOUR_S % 100
        self.actual: Callable[[int], Any] = lambda start_s: 103 + start_s // HALF_HOUR_S % 100
        self.changes: dict[int, dict[str, Any]] = {}
        self.paths: list[str] = []  # what was asked
        self.release = threading.Event()  # ends the waiting of slow answers
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def payload(self, path: str) -> tuple[int, Any]:
        """(status, decoded answer) of a path."""
        parts = [part for part in path.split("?")[0].split("/") if part]
        now_s = int(self.clock())
        try:
            if not parts or parts[0] != "intensity" or len(parts) > 3:
                raise LookupError
            since = _epoch_s(parts[1]) if len(parts) > 1 else now_s
            span = parts[2] if len(parts) > 2 else ""
            ahead = {"": 1, "fw24h": 86_400, "fw48h": 172_800}.get(span)
            if span == "pt24h":
                since, until = since - 86_400, since
            else:
                until = since + ahead if ahead else _epoch_s(span)
        except (LookupError, ValueError):
            return 400, _error("400 Bad Request", "Please enter a valid date in ISO8601 format.")
        if until - since > 14 * 86_400:
            return 400, _error("400 Bad Request", "Please enter a range of at most 14 days.")
        first = since // HALF_HOUR_S * HALF_HOUR_S
        # Half an hour late, as it often is: the newest actual is of the half hour before last.
        published_s = now_s - HALF_HOUR_S
        return 200, {
            "data": [self._interval(s, published_s) for s in range(first, until, HALF_HOUR_S)]
        }

    def _interval(self, start_s: int, published_s: int) -> dict[str, Any]:
        over = start_s + HALF_HOUR_S <= published_s
        intensity = {
            "forecast": self.forecast(start_s),
            "actual": self.actual(start_s) if over else None,
            "index": "moderate",
        }
        return {
            "from": _stamp(start_s),
            "to": _stamp(start_s + HALF_HOUR_S),
            "intensity": intensity | self.changes.get(start_s, {}),
        }


def _handler(server: NesoServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.paths.append(self.path)
            shape = server.shape
            if shape == "redirect" and "moved=1" not in self.path:
                return self._answer(302, b"", {"Location": f"{self.path}?moved=1"})
            if shape == "slow":
                server.release.wait(30)
            if server.status != 200:
                message = {500: "Requested resource not found."}.get(server.status, "no")
                body = json.dumps(_error(f"{server.status} Error", message)).encode()
                return self._answer(server.status, body, server.headers)
            status, payload = server.payload(self.path)
            return self._shaped(shape, status, payload)

        def _shaped(self, shape: str, status: int, payload: Any) -> None:
            body = json.dumps(payload).encode()
            headers = {"Content-Type": "application/json"} | server.headers
            if shape == "html":
                page = b"<!DOCTYPE html><html><body>maintenance</body></html>"
                return self._answer(200, page, {"Content-Type": "text/html; charset=UTF-8"})
            if shape == "no_type":
                headers = {}
            if shape == "error_in_200":
                body = json.dumps(_error("500 Internal Server Error", "sorry")).encode()
            if shape == "empty_body":
                body = b""
            if shape == "empty_list":
                body = b'{"data": []}'
            if shape == "renamed":
                body = body.replace(b"intensity", b"carbon").replace(b'"from"', b'"start"')
            if shape == "bare":
                body = json.dumps({"data": payload["data"][0]}).encode()
            if shape == "gzip":
                body, headers = gzip.compress(body), headers | {"Content-Encoding": "gzip"}
            if shape == "too_large":
                body = gzip.compress(b" " * 10_000_000)
                headers |= {"Content-Encoding": "gzip"}
            if shape == "not_utf8":
                body = b'{"data": "\xff\xfe"}'
            if shape == "truncated":
                body = body[: len(body) // 2]
            if shape in ("reset", "drip"):
                return self._broken(body, shape)
            return self._answer(status, body, headers)

        def _broken(self, body: bytes, shape: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:100])
            self.wfile.flush()
            if shape == "drip":
                for byte in body[100:]:
                    if server.release.wait(0.05):
                        break
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            # Closing with a linger of 0 s sends a reset.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            # A client that gives up is part of the play.
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _epoch_s(stamp: str) -> int:
    return int(datetime.strptime(stamp, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC).timestamp())


def _stamp(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


@contextmanager
def neso_server(clock: Callable[[], float] = time.time) -> Iterator[NesoServer]:
    """Serve on a free port of loopback for as long as the context lasts."""
    server = NesoServer(clock)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(5)


if __name__ == "__main__":
    main = NesoServer(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(main.url, flush=True)
    main.serve()
