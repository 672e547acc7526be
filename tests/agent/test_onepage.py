"""The server of one page: it answers, and whoever can connect cannot make it spend much."""

import contextlib
import resource
import socket
import threading
import time

import httpx
import pytest

from joulegram.agent import onepage
from joulegram.agent.onepage import CONNECTIONS_MAX, PER_S, REQUEST_MAX, OnePage
from tests.servers import free_port, wait_until

PAGE = b"x 1\n" * 50_000  # more than a socket takes at once


@pytest.fixture
def made():
    return []


@contextlib.contextmanager
def serving(made, **more):
    port = free_port()

    def make():
        made.append(1)
        if len(made) == 2:
            raise ZeroDivisionError
        return PAGE

    page = OnePage("127.0.0.1", port, "text/x", make, **more)
    try:
        yield port
    finally:
        page.close()
    assert "metrics" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def port(made):
    with serving(made) as port:
        yield port


def get(port: int, method: str = "GET", path: str = "/metrics") -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=30)


def connected(port: int, sent: bytes = b"") -> socket.socket:
    way = socket.create_connection(("127.0.0.1", port), timeout=30)
    with contextlib.suppress(OSError):
        way.sendall(sent)
    return way


def test_every_get_is_answered_with_the_page(port):
    answer = get(port)
    assert (answer.status_code, answer.content) == (200, PAGE)
    assert answer.headers["content-type"] == "text/x"
    head = get(port, "HEAD")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(PAGE)))
    assert get(port, "POST").status_code == 405


def test_a_page_that_cannot_be_made_costs_one_answer(made):
    with serving(made, fresh_s=0.0) as port:
        assert [get(port).status_code for _ in range(3)] == [200, 500, 200]


def test_a_request_that_comes_in_pieces(port):
    with connected(port, b"GET /metrics HTTP/1.1\r\n") as way:
        way.sendall(b"Host: x\r\n\r\n")
        assert way.recv(12) == b"HTTP/1.1 200"


def test_a_request_without_end_is_refused(port):
    with connected(port, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (REQUEST_MAX // 6)) as way:
        assert way.recv(12) == b"HTTP/1.1 431"


def test_connections_that_ask_nothing_make_room(port):
    threads = threading.active_count()
    idle = [connected(port, b"GET /metrics HTTP/1.1\r\n") for _ in range(CONNECTIONS_MAX + 5)]
    assert get(port).status_code == 200
    assert threading.active_count() <= threads  # those of earlier tests may end
    assert idle[0].recv(1) == b""  # it was the first to go
    for way in idle:
        way.close()


def test_connections_that_send_for_ever_cost_no_memory(port):
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = [connected(port, b"GET / HTTP/1.1\r\nx: " + b"y" * 1_000_000) for _ in range(60)]
    assert get(port).status_code == 200
    for way in many:
        way.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 30_000


def test_who_asks_again_and_again_gets_so_many_answers_and_an_old_page(port, made):
    began_s = time.monotonic()
    answers = 0
    while time.monotonic() - began_s < 6.0:
        assert get(port).status_code in (200, 500)
        answers += 1
    took_s = time.monotonic() - began_s
    assert answers <= onepage.BURST + PER_S * took_s + 2
    assert len(made) <= took_s / onepage.FRESH_S + 2


def test_who_neither_asks_nor_takes_the_answer_is_given_up(made):
    with serving(made, within_s=0.2) as port:
        with connected(port) as way:
            wait_until(lambda: way.recv(1) == b"", "its end")
        assert get(port).status_code == 200
