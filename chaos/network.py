"""A TCP proxy whose way can be made long, narrow, closed, cut or silent while it is used."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

CHUNK = 1 << 16
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST


@dataclass(eq=False, slots=True)
class _Pair:
    """The two ends of one connection through us."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    broken: bool = False  # bytes were swallowed: what came after would make no sense

    def reset(self) -> None:
        for end in (self.near, self.far):
            if end is None:
                continue
            with contextlib.suppress(OSError, AttributeError):
                end.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER
                )
            end.transport.abort()


@dataclass(eq=False)
class Proxy:
    """Passes 127.0.0.1:`port` on to `target`. Every method may be called from any thread."""

    target: tuple[str, int]
    port: int
    _delay_s: float = 0.0
    _bytes_per_s: float = 0.0  # 0: as fast as it goes
    _silent: bool = False
    _pairs: set[_Pair] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return once it listens. Raises: OSError."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen())

    def close(self) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    def delay(self, seconds: float) -> None:
        """Hold every chunk up for so long, each way; 0: no more."""
        self._delay_s = seconds

    def slow(self, bytes_per_s: float) -> None:
        """Let so many bytes through per second, connection and way; 0: all."""
        self._bytes_per_s = bytes_per_s

    def refuse(self) -> None:
        """Nobody listens; connections that were there are reset."""
        self._do(self._unlisten())
        self.reset()

    def allow(self) -> None:
        """Listen again."""
        self._do(self._listen())

    def reset(self, *, broken: bool = False) -> None:
        """RST on all connections; with `broken` on those alone that lost bytes."""
        self._do(self._reset(broken))

    def swallow(self, on: bool) -> None:
        """Half-open: take connections and bytes, and pass nothing on.

        Connections that lost bytes so stay silent for good, until they are reset.
        """
        self._silent = on

    # -- in the loop -----------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(30.0)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _reset(self, broken: bool) -> None:
        for pair in list(self._pairs):
            if pair.broken or not broken:
                pair.reset()

    async def _serve(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        pair = _Pair(near)
        self._pairs.add(pair)
        try:
            if self._silent:
                pair.broken = True
                await self._pump(pair, reader, lambda: None)
                return
            back, pair.far = await asyncio.open_connection(*self.target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(pair, reader, lambda: pair.far))
                both.create_task(self._pump(pair, back, lambda: near))
        except OSError:
            pair.reset()
        except BaseExceptionGroup:
            pair.reset()
        finally:
            self._pairs.discard(pair)
            for end in (near, pair.far):
                if end is not None:
                    end.close()

    async def _pump(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        to: Callable[[], asyncio.StreamWriter | None],
    ) -> None:
        while data := await reader.read(CHUNK):
            if self._silent:
                pair.broken = True
            if pair.broken:
                continue
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if self._bytes_per_s:
                await asyncio.sleep(len(data) / self._bytes_per_s)
            writer = to()
            if writer is None or self._silent:
                pair.broken = True
                continue
            writer.write(data)
            await writer.drain()
        # A goodbye is a thing to swallow too.
        if not (self._silent or pair.broken) and (writer := to()) is not None:
            with contextlib.suppress(OSError):
                writer.write_eof()
