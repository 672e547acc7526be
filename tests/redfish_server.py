"""A management controller on loopback that speaks Redfish, as documented and as it misbehaves.

Answers  GET of any resource in `resources`; POST and DELETE of sessions
Source   DMTF DSP0266 and the examples of DSP0268; troubles as users of real ones report them
"""

import base64
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ROOT = "/redfish/v1"
USER, PASSWORD = "joulegram", "opensesame-ß"


class RedfishServer:
    """What it says, and how: tests set the public fields between requests.

    resources: {path without its last slash: document}.
    asks: "" (nobody), "session" or "basic": what all but the service root want.
    challenges: refuses with "WWW-Authenticate: Basic", a session too where it has none.
    slow_s: before every answer.
    odd: {path: (status, headers, body)}, said by GET instead.
    closes_after: methods after whose answer it closes the connection, unannounced.
    mute: methods that it does not answer; it closes the connection.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.resources: dict[str, Any] = {}
        self.asks = ""
        self.challenges = False
        self.slow_s = 0.0
        self.odd: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.closes_after: tuple[str, ...] = ()
        self.mute: tuple[str, ...] = ()
        self.sessions: dict[str, str] = {}  # path: token
        self.opened = 0
        self.asked: list[str] = []  # "GET /path"
        self.headers: list[dict[str, str]] = []
        self.connections: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hang_up(self) -> None:
        """Close every connection, unannounced."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def put(self, path: str, **members: Any) -> None:
        self.resources[ROOT + path] = {"@odata.id": ROOT + path, **members}

    def collection(self, path: str, *names: str) -> None:
        members = [link(f"{path}/{name}") for name in names]
        self.put(path, Members=members, **{"Members@odata.count": len(members)})

    def let_in(self, headers: Any) -> bool:
        if self.asks == "session":
            return headers.get("X-Auth-Token") in self.sessions.values()
        if self.asks == "basic":
            said = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            return bool(headers.get("Authorization") == f"Basic {said}")
        return True


def link(path: str) -> dict[str, str]:
    return {"@odata.id": ROOT + path}


def links(*paths: str) -> list[dict[str, str]]:
    return [link(path) for path in paths]


def node(server: RedfishServer, watts: Any = 344) -> None:
    """One system in one chassis with EnvironmentMetrics, as the newer models describe it."""
    server.put(
        "",
        Chassis=link("/Chassis"),
        Systems=link("/Systems"),
        SessionService=link("/SessionService"),
        Links={"Sessions": link("/SessionService/Sessions")},
    )
    server.collection("/Systems", "437XR1138R2")
    server.put("/Systems/437XR1138R2", HostName="n7", Links={"Chassis": links("/Chassis/1U")})
    server.collection("/Chassis", "1U")
    chassis(server, "1U", watts, ["437XR1138R2"])


def chassis(server: RedfishServer, name: str, watts: Any, systems: list[str], **more: Any) -> None:
    """A chassis; without EnvironmentMetrics where `watts` is Ellipsis."""
    inside = more.pop("contains", ())
    outside = more.pop("contained_by", None)
    said: dict[str, Any] = {"ComputerSystems": links(*(f"/Systems/{one}" for one in systems))}
    if inside:
        said["Contains"] = links(*(f"/Chassis/{one}" for one in inside))
    if outside:
        said["ContainedBy"] = link(f"/Chassis/{outside}")
    if watts is not ...:
        more["EnvironmentMetrics"] = link(f"/Chassis/{name}/EnvironmentMetrics")
        server.put(f"/Chassis/{name}/EnvironmentMetrics", PowerWatts={"Reading": watts})
    server.put(f"/Chassis/{name}", Id=name, **{"ChassisType": "RackMount", "Links": said, **more})


def old_power(server: RedfishServer, name: str, *controls: dict[str, Any]) -> None:
    """The Power resource of older models, instead of EnvironmentMetrics."""
    document = server.resources[f"{ROOT}/Chassis/{name}"]
    document.pop("EnvironmentMetrics", None)
    document["Power"] = link(f"/Chassis/{name}/Power")
    server.put(f"/Chassis/{name}/Power", PowerControl=list(controls))


def _handler(server: RedfishServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a head and a body in two packets cost 40 ms (delayed ACK)

        def setup(self) -> None:
            super().setup()
            server.connections.append(self.connection)

        def do_GET(self) -> None:
            path = self._seen()
            document = server.resources.get(path)
            if path in server.odd:
                self._answer(*server.odd[path])
            elif path != ROOT and not server.let_in(self.headers):
                self._refuse()
            elif document is None:
                self._answer(404, {}, b'{"error": {"code": "Base.1.0.ResourceMissing"}}')
            else:
                body = json.dumps(document).encode()
                self._answer(200, {"Content-Type": "application/json"}, body)

        def do_POST(self) -> None:
            path = self._seen()
            said = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if path != f"{ROOT}/SessionService/Sessions" or server.asks == "basic":
                if server.challenges:
                    self._refuse()
                else:
                    self._answer(405, {"Allow": "GET"}, b"")
            elif (said.get("UserName"), said.get("Password")) != (USER, PASSWORD):
                self._refuse()
            else:
                server.opened += 1
                where, token = f"{path}/{server.opened}", f"token-{server.opened}"
                server.sessions[where] = token
                headers = {"X-Auth-Token": token, "Location": server.url + where}
                self._answer(201, headers, json.dumps({"@odata.id": where}).encode())

        def do_DELETE(self) -> None:
            path = self._seen()
            allowed = server.let_in(self.headers) and path in server.sessions
            if allowed:
                del server.sessions[path]
            self._answer(204 if allowed else 404, {}, b"")

        def _refuse(self) -> None:
            headers = {"WWW-Authenticate": 'Basic realm="BMC"'} if server.challenges else {}
            self._answer(401, headers, b'{"error": {"code": "Base.1.0.NoValidSession"}}')

        def _seen(self) -> str:
            path = self.path.rstrip("/")
            server.asked.append(f"{self.command} {self.path}")
            server.headers.append(dict(self.headers))
            time.sleep(server.slow_s)
            return path

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.close_connection |= self.command in server.closes_after + server.mute
            if self.command in server.mute:
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204 and "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # a client that gives up is part of the play
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def redfish_server(
    context: ssl.SSLContext | None = None, build: Callable[[RedfishServer], None] = node
) -> Iterator[RedfishServer]:
    """Serve on a free port of loopback for as long as the context lasts."""
    server = RedfishServer(context)
    build(server)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(5)
