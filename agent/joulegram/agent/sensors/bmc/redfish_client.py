"""Asking a management controller over HTTPS, and trusting its answers with nothing.

Speaks  Redfish's protocol: JSON resources, sessions (X-Auth-Token) or basic authentication
Format  DMTF DSP0266, "Redfish Specification"; in 1.20 clauses 6 (protocol) and 13 (security)

Nothing goes to another host than the configured one: neither a redirect nor a link leaves it.
The standard library's client and not httpx, which costs an agent 8 MB more.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.bmc.background import LONGEST_WAIT_S, Later

WITHIN_S = 20.0  # of one answer; slow controllers take several seconds
GOODBYE_WITHIN_S = 2.0
MAX_BYTES = 1_000_000
MAX_PASSWORD_BYTES = 4096
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
ROOT = "/redfish/v1/"
SESSIONS = "/redfish/v1/SessionService/Sessions"  # where a service root does not say it
PROTECTED = "/redfish/v1/Chassis"  # the service root anybody may read
NO_SESSIONS = (404, 405, 501)
BUSY = (429, 503)
BASIC = re.compile(r"(?:^|,)\s*basic\b", re.I)  # in WWW-Authenticate
# What a connection says that the other end has closed since it was last used.
CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
PORTS = {"http": 80, "https": 443}
IN_PATHS = "/?&=%#:;,@+!$'()*~[]"  # what a link may hold as it is


class _Bounded(io.RawIOBase):
    """What comes over a connection: MAX_BYTES at most, and all within its time limit.

    A socket's own limit starts again with every piece.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until_s = time.monotonic() + (connection.gettimeout() or 0.0)
        self._pieces = connection.makefile("rb", buffering=0)
        self._left = MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
        """Raises: TimeoutError; HTTPException where there is too much."""
        self._connection.settimeout(_left_s(self._until_s))
        size = self._pieces.readinto(into)
        self._left -= size or 0
        if self._left < 0:
            raise http.client.HTTPException(f"the answer is larger than {MAX_BYTES} bytes.")
        return size

    def close(self) -> None:
        self._pieces.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that is bounded as a whole: headers, chunks and trailers too."""

    def __init__(self, connection: socket.socket, *args: Any, **how: Any) -> None:
        super().__init__(connection, *args, **how)
        self.fp.close()
        self.fp = io.BufferedReader(_Bounded(connection))


class NotThere(SensorFailed):
    """The controller does not have this resource."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach one controller, as configured.

    Attributes:
        url: https://HOST[:PORT]; what follows is ignored.
        user: "" where no authentication is asked for.
        ca: PEM certificates that its own is signed with; None: this system's authorities.
        insecure: take any certificate.
    """

    url: str
    user: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    insecure: bool = False


class RedfishClient:
    """One controller's resources, over one connection. For one thread.

    A session is opened when first needed, again when the controller forgot it, and ended by
    `close`. A controller without sessions, or one that refuses one and offers basic
    authentication, is given user and password with each request. A password that was refused
    both ways is tried one way alone the next time: accounts are locked after a few.
    """

    def __init__(self, access: Access, within_s: float = WITHIN_S) -> None:
        parts = urlsplit(access.url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = _host(parts)
        self._access = access
        self._within_s = within_s
        self._line: http.client.HTTPConnection | None = None
        self._token = ""
        self._session = ""  # its path
        self._basic = ""  # the header that says user and password
        self._refused_both = ""  # a password

    def get(self, path: str) -> dict[str, Any]:
        """A resource, decoded. Raises: NotThere, Later, SensorDenied, SensorFailed."""
        if self._access.user and not self._token and not self._basic:
            self._log_in()
        status, headers, body = self._followed(path)
        if status == 401 and self._token:  # it forgot the session, or it timed out
            self._token = self._session = ""
            self._log_in()
            status, headers, body = self._followed(path)
        self._refuse(path, status, headers)
        return _decoded(f"{self._origin}{path}", body)

    def close(self) -> None:
        """End the session, for controllers hold few; then the connection. Raises nothing."""
        if self._session:
            with contextlib.suppress(SensorFailed):  # it will time out by itself
                self._request("DELETE", self._session, within_s=GOODBYE_WITHIN_S)
        self._token = self._session = ""
        if self._line is not None:
            self._line.close()

    def _log_in(self) -> None:
        password = self._password()
        said = json.dumps({"UserName": self._access.user, "Password": password}).encode()
        sessions = self._sessions()
        status, headers, body = self._request("POST", sessions, said)
        again, self._refused_both = password == self._refused_both, ""
        offers = status == 401 and BASIC.search(", ".join(headers.get_all("WWW-Authenticate", [])))
        if status in NO_SESSIONS or (offers and not again):
            known_as = base64.b64encode(f"{self._access.user}:{password}".encode()).decode()
            self._basic = f"Basic {known_as}"
            status, _, _ = self._followed(PROTECTED)
            if status != 401:
                return
            self._basic, self._refused_both = "", password
        if status in (400, 401, 403):
            raise self._refused(status)
        self._refuse(sessions, status, headers)
        token = headers.get("x-auth-token", "")
        if not token or len(token) > 4096 or not token.isascii():
            # Controllers hold few sessions, and this one cannot be ended.
            raise Later(
                f"{self._origin} opened a session and gave no X-Auth-Token.", LONGEST_WAIT_S
            )
        self._token = token
        self._session = self._session_path(headers, body)

    def _refused(self, status: int) -> SensorDenied:
        return SensorDenied(
            f"{self._origin} refuses user {self._access.user!r} with the password in "
            f"{self._access.password_file} ({status}). Correct redfish_user or the file; it "
            f"is tried again in {LONGEST_WAIT_S:.0f} s, so that the account is not locked."
        )

    def _sessions(self) -> str:
        """Where sessions are opened; the service root says it to anybody."""
        _, _, body = self._followed(ROOT)
        try:
            return self._path(_decoded("", body)["Links"]["Sessions"]["@odata.id"])
        except (SensorFailed, LookupError, TypeError, AttributeError):
            return SESSIONS

    def _session_path(self, headers: Message, body: bytes) -> str:
        where = headers.get("location", "")
        try:
            return self._path(where or _decoded("", body)["@odata.id"])
        except (SensorFailed, LookupError, TypeError, AttributeError):
            return ""

    def _followed(self, path: str) -> tuple[int, Message, bytes]:
        """The answer to a GET, at most a few redirects away, on the same host."""
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, body = self._request("GET", path)
            if status not in REDIRECTS:
                return status, headers, body
            path = self._path(headers.get("location", ""))
        raise SensorFailed(f"{self._origin}{path}: redirected again and again.")

    def _path(self, where: str) -> str:
        """The path of a link or a redirect. Raises: SensorFailed where it leaves the host."""
        try:
            parts = urlsplit(where)
            same = not (parts.scheme or parts.netloc) or _host(parts) == self._host
        except ValueError:
            same = False
        if not same or not parts.path.startswith("/") or not where.isprintable():
            raise SensorFailed(
                f"{self._origin} points to {where[:120]!r}, which is not on the same host; it "
                "is not followed. Set redfish_url to the address that the controller uses."
            )
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def _request(
        self, method: str, path: str, content: bytes | None = None, within_s: float = 0.0
    ) -> tuple[int, Message, bytes]:
        """(status, headers, body), bounded in time and size. Raises: SensorFailed."""
        path = self._path(path)
        url = self._origin + path
        within_s = within_s or self._within_s
        line = self._line = self._line or self._connection()
        until_s = time.monotonic() + within_s
        if method == "POST":
            line.close()  # what was kept may be closed already, and a POST is not sent again
        kept = line.sock is not None
        try:
            try:
                return self._exchange(line, method, path, content, until_s)
            except CLOSED:
                # They close what was idle for some seconds, sometimes just as they are asked.
                if not kept:
                    raise
                line.close()
                return self._exchange(line, method, path, content, until_s)
        except TimeoutError as exc:
            line.close()
            raise SensorFailed(
                f"{url}: no answer in {within_s:g} s. The management controller is slow, "
                "hangs, or is not reached from this node."
            ) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            line.close()
            raise SensorFailed(f"{url}: {_why(exc)}") from exc

    def _exchange(
        self,
        line: http.client.HTTPConnection,
        method: str,
        path: str,
        content: bytes | None,
        until_s: float,
    ) -> tuple[int, Message, bytes]:
        """Raises: OSError; HTTPException where the answer cannot be taken."""
        line.timeout = _left_s(until_s)  # of connecting
        if line.sock is not None:
            line.sock.settimeout(line.timeout)
        line.request(method, quote(path, safe=IN_PATHS), content, self._headers())
        line.sock.settimeout(_left_s(until_s))  # of the whole answer
        answer = line.getresponse()
        body = bytearray()  # in pieces: it may say any length
        while piece := answer.read1(65_536):
            body += piece
        if answer.length:
            raise http.client.IncompleteRead(bytes(body), answer.length)
        answer.read()  # nothing; it lets the line be used again
        # A compressed body may be bounded on the wire and still fill the memory.
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise http.client.HTTPException("the answer is compressed, unasked.")
        return answer.status, answer.headers, bytes(body)

    def _refuse(self, path: str, status: int, headers: Message) -> None:
        """Raises what a status other than success means."""
        url = f"{self._origin}{path}"
        if status in (200, 201):
            return
        if status in (401, 403):
            basic, self._basic = self._basic, ""  # the password's file is read again
            if status == 401 and basic:
                raise self._refused(status)
            raise SensorDenied(
                f"{url}: {'who asks is not accepted' if status == 401 else 'not allowed'} "
                f"({status}). Set redfish_user and redfish_password_file in [agent] to an account "
                "that may read (role ReadOnly)."
            )
        if status in (404, 410):
            raise NotThere(f"{url}: is not there ({status}).")
        if status in BUSY:
            after_s = _after_s(headers.get("retry-after", ""))
            raise Later(f"{url}: busy ({status}); the agent asks again.", after_s)
        raise SensorFailed(f"{url}: answered {status}.")

    def _headers(self) -> dict[str, str]:
        fixed = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "OData-Version": "4.0",
            "User-Agent": "joulegram",
        }
        if self._token:  # with a session under way user and password stay at home
            return fixed | {"X-Auth-Token": self._token}
        return fixed | ({"Authorization": self._basic} if self._basic else {})

    def _connection(self) -> http.client.HTTPConnection:
        scheme, host, port = self._host
        line = (
            http.client.HTTPConnection(host, port)
            if scheme == "http"
            else http.client.HTTPSConnection(host, port, context=self._context())
        )
        line.response_class = _Answer
        return line

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(
                cafile=str(self._access.ca) if self._access.ca else None
            )
        except (OSError, ssl.SSLError) as exc:
            raise SensorFailed(
                f"agent.redfish_ca = {self._access.ca}: no PEM certificates that can be read "
                f"({exc.strerror or exc})."
            ) from exc
        if self._access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _password(self) -> str:
        """Read anew for every session, so that a changed one needs no restart."""
        path = self._access.password_file
        if path is None:
            return ""
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(MAX_PASSWORD_BYTES)
            password = content.decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise SensorDenied(
                f"agent.redfish_password_file = {path}: cannot be read "
                f"({getattr(exc, 'strerror', None) or 'not UTF-8'}). Name a file that this user "
                "may read and that holds the password alone."
            ) from exc
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise SensorDenied(
                f"agent.redfish_password_file = {path}: every user of this machine may read it. "
                "chmod 0600 it."
            )
        return password


def _host(parts: SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, parts.hostname or "", parts.port or PORTS.get(parts.scheme)


def _left_s(until_s: float) -> float:
    """Raises: TimeoutError."""
    if (left_s := until_s - time.monotonic()) <= 0:
        raise TimeoutError
    return left_s


def _decoded(url: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise SensorFailed(f"{url}: the answer is not JSON: {body[:80]!r}") from exc
    if not isinstance(found, dict):
        raise SensorFailed(f"{url}: the answer is no JSON object: {body[:80]!r}")
    return found


def _after_s(text: str) -> float:
    """Retry-After: seconds, or a date. 0 where it says neither."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0


def _why(exc: Exception) -> str:
    ours = type(exc) is http.client.HTTPException
    text = str(exc) if ours else f"{type(exc).__name__} {exc}".strip()[:300]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        remedy = "redfish_ca in [agent] to the certificate of who signed it (self-signed: itself)"
        if "mismatch" in text:
            remedy = "redfish_url in [agent] to a name that the certificate has"
        return f"its certificate is not accepted: {text}. Set {remedy}, or redfish_insecure."
    return text
