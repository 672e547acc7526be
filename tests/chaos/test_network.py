"""The proxy does to real connections what it says."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from chaos.network import Proxy
from tests.servers import free_port, wait_until


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Before a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(peer: socket.socket) -> None:
            with peer:
                try:
                    while data := peer.recv(1024):
                        peer.sendall(data)
                except OSError:
                    pass

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(peer,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        made = Proxy(server.getsockname(), free_port())
        made.start()
        try:
            yield made
        finally:
            made.close()


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10.0)


def echo(peer: socket.socket, word: bytes) -> bytes:
    peer.sendall(word)
    return peer.recv(1024)


def hears_nothing(peer: socket.socket) -> bool:
    peer.settimeout(0.5)
    try:
        return peer.recv(1024) is None
    except TimeoutError:
        return True
    finally:
        peer.settimeout(10.0)


def test_it_passes_bytes_on(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        assert echo(peer, b"one") == b"one"
        assert echo(peer, b"two") == b"two"


def test_refuse_and_allow(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        assert echo(peer, b"one") == b"one"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.allow()
    with connected(proxy) as peer:
        assert echo(peer, b"two") == b"two"


def test_reset_ends_what_is_there_and_lets_new_ones_in(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        assert echo(peer, b"one") == b"one"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    with connected(proxy) as peer:
        assert echo(peer, b"two") == b"two"


def test_half_open(proxy: Proxy) -> None:
    with connected(proxy) as old, connected(proxy) as idle:
        assert echo(old, b"one") == b"one"
        assert echo(idle, b"one") == b"one"
        proxy.swallow(True)
        old.sendall(b"lost")
        assert hears_nothing(old)
        with connected(proxy) as late:
            late.sendall(b"lost too")
            assert hears_nothing(late)
            proxy.swallow(False)
            old.sendall(b"after")  # a stream with a hole is no stream
            assert hears_nothing(old)
            # Nothing was lost on this one.
            assert echo(idle, b"two") == b"two"
            proxy.reset(broken=True)
            for peer in (old, late):
                with pytest.raises(ConnectionResetError):
                    peer.recv(1)
            assert echo(idle, b"three") == b"three"


def test_delay(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        proxy.delay(0.3)
        begun_s = time.monotonic()
        assert echo(peer, b"one") == b"one"
        assert time.monotonic() - begun_s >= 0.6


def test_slow(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        proxy.slow(1_000)
        begun_s = time.monotonic()
        assert echo(peer, b"x" * 200) == b"x" * 200
        assert time.monotonic() - begun_s >= 0.4


def test_nobody_behind_it(proxy: Proxy) -> None:
    proxy.target = ("127.0.0.1", free_port())

    def ended() -> bool:
        try:  # it may be reset before we know that we were taken
            with connected(proxy) as peer:
                return peer.recv(1) == b""
        except ConnectionResetError:
            return True

    wait_until(ended, "the end")
