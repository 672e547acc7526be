"""An HTTP server of one page, in one thread and in bounds.

Whoever is on this machine can connect to its loopback, as often as they like. So many connections
are open at a time, the longest unanswered one making room; so much of a request is read; so many
are taken a second; and the page is made anew only so often.
"""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from joulegram.agent.rarely import Rarely

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 32
REQUEST_MAX = 8192
WITHIN_S = 5.0
FRESH_S = 0.2
PER_S, BURST = 50.0, 100.0  # connections taken a second; saved up for when nobody came
END_WITHIN_S = 1.0


@dataclass(slots=True, eq=False)
class Connection:
    """Somebody who asks."""

    way: socket.socket
    until_s: float  # monotonic
    heard: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None  # what is left of it to be sent


class OnePage:
    """Answers every GET with the page.

    Args:
        make: the page now; called in the server's thread.
        within_s: a connection is done, or closed.
        fresh_s: a page younger than this is good enough.
    Raises: OSError when the address cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        content_type: str,
        make: Callable[[], bytes],
        *,
        within_s: float = WITHIN_S,
        fresh_s: float = FRESH_S,
    ) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=16)
        self._listener.setblocking(False)
        self._type, self._make = content_type, make
        self._within_s, self._fresh_s = within_s, fresh_s
        self._page, self._made_s = b"", float("-inf")
        self._open: dict[Connection, None] = {}  # the oldest first
        self._credit, self._credited_s = BURST, time.monotonic()
        self._events = selectors.DefaultSelector()
        self._listening = False
        self._ended, self._end = socket.socketpair()
        self._events.register(self._ended, selectors.EVENT_READ)
        self._rarely = Rarely(log)
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._end.close()
        self._thread.join(END_WITHIN_S)

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for connection in list(self._open):
                self._drop(connection)
            self._events.close()
            self._listener.close()
            self._ended.close()

    def _turn(self) -> bool:
        """Whatever is to be done now; False when it is the end."""
        now_s = time.monotonic()
        self._credit = min(BURST, self._credit + (now_s - self._credited_s) * PER_S)
        self._credited_s = now_s
        self._listen(self._credit >= 1)
        waits_s = [connection.until_s - now_s for connection in self._open]
        if not self._listening:
            waits_s.append(1 / PER_S)
        for key, _ in self._events.select(max(0.0, min(waits_s)) if waits_s else None):
            if key.fileobj is self._ended:
                return False
            if key.fileobj is self._listener:
                self._accept()
            elif key.data in self._open:
                self._go_on(key.data)
        now_s = time.monotonic()
        for connection in [c for c in self._open if c.until_s <= now_s]:
            self._drop(connection)
        return True

    def _listen(self, wanted: bool) -> None:
        if wanted != self._listening:
            self._listening = wanted
            if wanted:
                self._events.register(self._listener, selectors.EVENT_READ)
            else:
                self._events.unregister(self._listener)

    def _accept(self) -> None:
        self._credit -= 1
        try:
            way, _ = self._listener.accept()
        except OSError:  # gone again, or too many files are open
            return
        way.setblocking(False)
        if len(self._open) >= CONNECTIONS_MAX:
            self._drop(next(iter(self._open)))
        connection = Connection(way, time.monotonic() + self._within_s)
        self._open[connection] = None
        self._events.register(way, selectors.EVENT_READ, connection)
        self._go_on(connection)  # most have asked by now

    def _go_on(self, connection: Connection) -> None:
        try:
            if connection.answer is None:
                self._hear(connection)
            if connection.answer is not None:
                sent = connection.way.send(connection.answer)
                connection.answer = connection.answer[sent:]
                if not connection.answer:
                    self._drop(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _hear(self, connection: Connection) -> None:
        heard = connection.heard
        piece = connection.way.recv(REQUEST_MAX)
        heard += piece
        if b"\r\n\r\n" in heard or b"\n\n" in heard:
            connection.answer = memoryview(self._answer(bytes(heard.split(None, 1)[0])))
        elif len(heard) > REQUEST_MAX:
            connection.answer = memoryview(_said("431 Request Header Fields Too Large"))
        elif not piece:
            self._drop(connection)
            return
        if connection.answer is not None:
            self._events.modify(connection.way, selectors.EVENT_WRITE, connection)

    def _answer(self, method: bytes) -> bytes:
        if method not in (b"GET", b"HEAD"):
            return _said("405 Method Not Allowed")
        now_s = time.monotonic()
        if now_s - self._made_s >= self._fresh_s:
            try:
                self._page, self._made_s = self._make(), now_s
            except Exception as fault:  # a fault of ours costs this answer, not the next ones
                self._rarely.warn("page", "no metrics this time: %r", fault)
                return _said("500 Internal Server Error")
        return _said("200 OK", self._page, self._type, head=method == b"HEAD")

    def _drop(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._events.unregister(connection.way)
        connection.way.close()


def _said(
    status: str, body: bytes = b"", content_type: str = "text/plain", *, head: bool = False
) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + (b"" if head else body)
