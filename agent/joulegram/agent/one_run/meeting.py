"""Where a command's supervisor and the meter speak, and where ranks of one job find each other.

An abstract socket of Linux (unix(7)) named after user and job: whoever binds it first brings the
meter, and the others join. The kernel takes the name away when its holder ends, and says who is
at the other end. A message is one JSON object.
"""

import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

MESSAGE_BYTES = 180_000  # what a socket takes at once, by default
ANSWER_WITHIN_S = 10.0
TRIES = 100
PAUSE_S = 0.02
BACKLOG = 512
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: socket(7), SO_PEERCRED


class Lost(Exception):
    """The other end is gone, or did not answer in time."""


class Late(Lost):
    """No answer in time; one may still come."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """A way to the meter; `meter` and `listener` where this process is to bring it."""

    way: socket.socket
    meter: socket.socket | None = None
    listener: socket.socket | None = None


def alone() -> Meeting:
    """A way to a meter of our own."""
    way, meter = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Meeting(way, meter)


def with_others(job: str) -> Meeting:
    """The way to the meter of the job's ranks on this node; ours to bring where there is none.

    Raises: Lost when neither can be had.
    """
    name = f"\0joulegram-run/{os.getuid()}/{hashlib.sha256(job.encode()).hexdigest()[:32]}"
    for _ in range(TRIES):
        way = _socket()
        with contextlib.suppress(ConnectionRefusedError, TimeoutError):
            way.connect(name)
            if peer(way)[1] != os.getuid():
                way.close()
                raise Lost("the ranks' meeting place is taken by another user")
            return Meeting(way)
        way.close()
        listener = _socket()
        try:
            listener.bind(name)
        except OSError:  # somebody was faster, and listens in a moment
            listener.close()
            time.sleep(PAUSE_S)
            continue
        listener.listen(BACKLOG)
        own = alone()
        return Meeting(own.way, own.meter, listener)
    raise Lost("the job's other ranks do not answer")


def peer(way: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end, by the kernel's word."""
    raw = way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, _ = CREDENTIALS.unpack(raw)
    return pid, uid


def say(way: socket.socket, message: dict[str, Any]) -> None:
    """Raises: Lost."""
    try:
        way.send(json.dumps(message).encode())
    except OSError as gone:
        raise Lost(f"the other end is gone ({gone.strerror})") from gone


def hear(way: socket.socket, within_s: float | None = ANSWER_WITHIN_S) -> dict[str, Any]:
    """The next message. Raises: Lost, Late."""
    way.settimeout(within_s)
    try:
        raw = way.recv(MESSAGE_BYTES)
    except TimeoutError as late:
        raise Late(f"no answer within {within_s:g} s") from late
    except OSError as gone:
        raise Lost(f"the other end is gone ({gone.strerror})") from gone
    try:
        message = json.loads(raw) if raw else None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise Lost("the other end is gone")
    return message


def _socket() -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.settimeout(ANSWER_WITHIN_S)
    return found
