"""Who a stream speaks for, and how much of us one peer may take.

A peer is what a credential and a node's name say together: of a token for a cluster each node is
a peer of its own. Without credentials there are no peers to tell apart, and only the intake's
own bounds hold.
"""

import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from joulegram.collector.security.config import SecurityConfig
from joulegram.collector.security.counts import STREAMS_DENIED
from joulegram.collector.security.fresh import Fresh
from joulegram.collector.security.tokens import Sender, Tokens, senders

log = logging.getLogger(__name__)

NODE_HEADER = "joulegram-node-bin"  # agents of ours say at the start of a stream who they are
RETRY_AFTER = "retry-after-ms"  # in the trailing metadata; agents come back no earlier
NAMELESS_MAX = 100  # streams of one credential that have not said a name yet
BURST_S = 10.0  # of frames a peer may send at once
PEERS_MAX = 20_000  # whose rate is remembered
SAY_AGAIN_S = 60.0
TRY_AGAIN_S = 30

# A client may open a connection and say nothing, half a handshake, or no more than that.
GRPC_OPTIONS = (
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 120_000),
)


class Denied(Exception):
    """Ends a stream; the agent keeps its frames. `reason` is a label of few values."""

    def __init__(
        self, code: grpc.StatusCode, reason: str, detail: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.reason, self.detail = code, reason, detail
        self.trailing = (
            () if retry_after_s is None else ((RETRY_AFTER, f"{retry_after_s * 1000:.0f}"),)
        )


@dataclass(slots=True)
class Peer:
    """One stream's right to speak. `end` is the intake's: how to stop reading it."""

    peers: "Peers"
    names: frozenset[str] | None = None  # of its certificate; None: none was asked for
    sender: Sender | None = None  # of its token; None: none was asked for
    credential: str = ""  # what it showed, in words
    node: str = ""  # whom it counts for; "": not known before its first frame
    counted: bool = False
    revoked: bool = False
    end: Callable[[], object] = lambda: None

    def allows(self, node: str) -> bool:
        by_certificate = self.names is None or node in self.names
        return by_certificate and (self.sender is None or self.sender.allows(node))

    def denies(self, node: str) -> str:
        """Why no frame of this node may come on this stream; empty when it may."""
        if self.allows(node):
            return ""
        return (
            f"the {self.credential} does not speak for node {node[:255]!r}; set `node` in [agent] "
            "to a name that it holds, or give this node a credential of its own"
        )

    def took_frame(self, node: str) -> None:
        """Count a frame, one that is refused too; `node` is empty where it cannot be read.

        Raises: Denied where the peer has too many streams or frames.
        """
        if not self.credential:
            return
        if not self.node and node and self.allows(node):
            self.peers.count_in(self, node)
        self.peers.spend(self)


@dataclass(slots=True)
class _Bucket:
    frames: float
    at_s: float


@dataclass(slots=True)
class Peers:
    """Everybody who may send."""

    config: SecurityConfig = field(default_factory=SecurityConfig)
    clock_s: Callable[[], float] = time.monotonic
    _tokens: Fresh[Tokens[Sender]] | None = None
    _peers: dict[int, Peer] = field(default_factory=dict)
    _streams: Counter[tuple[str, str]] = field(default_factory=Counter)
    _buckets: "OrderedDict[tuple[str, str], _Bucket]" = field(default_factory=OrderedDict)
    _said_at_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: BadSetting when the file of tokens cannot be used."""
        path = self.config.agent_tokens
        if path is not None:
            self._tokens = Fresh("agent_tokens", [path], lambda: senders(path))

    def refresh(self) -> None:
        """Take changed tokens; streams of one that is gone, or that lost its node, end."""
        if self._tokens is None or not self._tokens.refresh():
            return
        holders = self._tokens.value.holders
        for peer in list(self._peers.values()):
            assert peer.sender is not None
            now = holders.get(peer.sender.digest)
            if now is not None:
                peer.sender = now
            if now is None or (peer.node and not now.allows(peer.node)):
                peer.revoked = True
                peer.end()

    @contextlib.asynccontextmanager
    async def admit(self, context: Any) -> AsyncIterator[Peer]:
        """One stream of a peer, ended with a status that says why when it may not be.

        Raises: grpc's AbortError, which its server expects.
        """
        try:
            peer = self._identify(context)
        except Denied as denied:
            await self._abort(context, denied)
        if peer.sender is not None:
            self._peers[id(peer)] = peer
        try:
            yield peer
            if peer.revoked:
                raise Denied(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "revoked",
                    "this token is not valid any more; put a new one into `token_file` of [agent]",
                )
        except Denied as denied:
            await self._abort(context, denied)
        finally:
            self._peers.pop(id(peer), None)
            if peer.counted:
                self._leave(peer)

    def _identify(self, context: Any) -> Peer:
        """Raises: Denied."""
        peer = Peer(self)
        if self.config.client_ca is not None:
            dns = context.auth_context().get("peer_dns", ())
            peer.names = frozenset(name.decode(errors="replace") for name in dns)
            if not peer.names:
                raise Denied(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "no name",
                    "this certificate names no node: issue one whose subjectAltName has DNS:NODE",
                )
            peer.credential = f"certificate of {', '.join(sorted(peer.names))[:200]}"
        headers = dict(context.invocation_metadata() or ())
        if self._tokens is not None:
            authorization = headers.get("authorization", "")
            peer.sender = self._tokens.value.of(str(authorization))
            if peer.sender is None:
                raise Denied(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "token" if authorization else "no token",
                    "this collector does not know this token; its SHA-256 must stand in "
                    "agent_tokens of [security], and the token in `token_file` of [agent]"
                    if authorization
                    else "this collector asks for a token: set `token_file` in [agent]",
                )
            of_token = f"token {peer.sender.name!r}"
            peer.credential = " with ".join(filter(None, (peer.credential, of_token)))
        said = headers.get(NODE_HEADER)
        if peer.credential and isinstance(said, bytes):
            node = said.decode(errors="replace")
            if why := peer.denies(node):
                raise Denied(grpc.StatusCode.PERMISSION_DENIED, "node", why)
            self.count_in(peer, node)
        elif peer.credential:
            self.count_in(peer, "")
        return peer

    def count_in(self, peer: Peer, node: str) -> None:
        """This stream is of that node. Raises: Denied when it has as many as it may."""
        key = (peer.credential, node)
        if self._streams[key] >= (self.config.streams_per_peer if node else NAMELESS_MAX):
            who = f"{node[:255]!r} has" if node else "this credential has for no node"
            raise Denied(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "streams",
                f"{who} {self._streams[key]} streams open, as many as it may; close some, or "
                f"raise `streams_per_peer` in [security]. Retry after {TRY_AGAIN_S} s",
                TRY_AGAIN_S,
            )
        if peer.counted:
            self._leave(peer)
        self._streams[key] += 1
        peer.node, peer.counted = node, True

    def spend(self, peer: Peer) -> None:
        """Count a frame of this peer. Raises: Denied past `frames_per_s` and a burst."""
        key, rate, now_s = (peer.credential, peer.node), self.config.frames_per_s, self.clock_s()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(rate * BURST_S, now_s)
            if len(self._buckets) > PEERS_MAX:
                self._buckets.popitem(last=False)
        grown = bucket.frames + (now_s - bucket.at_s) * rate
        bucket.frames, bucket.at_s = min(rate * BURST_S, grown), now_s
        if bucket.frames < 1:
            raise Denied(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "rate",
                f"{peer.node[:255]!r} sends more than {rate:g} frames a second, which "
                f"`frames_per_s` in [security] allows. Retry after {TRY_AGAIN_S} s",
                TRY_AGAIN_S,
            )
        bucket.frames -= 1
        self._buckets.move_to_end(key)

    def _leave(self, peer: Peer) -> None:
        key = (peer.credential, peer.node)
        self._streams[key] -= 1
        if self._streams[key] <= 0:
            del self._streams[key]

    async def _abort(self, context: Any, denied: Denied) -> None:
        STREAMS_DENIED.labels(denied.reason).inc()
        now_s = self.clock_s()
        if now_s - self._said_at_s.get(denied.reason, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_at_s[denied.reason] = now_s
            log.warning(
                "stream of %s denied: %s (said once a minute)", context.peer(), denied.detail
            )
        await context.abort(denied.code, denied.detail, denied.trailing)
