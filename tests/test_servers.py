"""The servers that other tests lean on do start, answer and end."""

import http.server
import threading

import pytest

from tests.servers import Prometheus, check_metrics, chromium

PAGE = b"# HELP joulegram_up 1 while it runs\n# TYPE joulegram_up gauge\njoulegram_up 1\n"


class Exporter(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


def test_prometheus_scrapes_what_it_is_told_to_watch(prometheus: Prometheus) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        prometheus.watch(address)
        assert [v for _, v in prometheus.query(f'joulegram_up{{instance="{address}"}}')] == [1.0]
        server.shutdown()


def test_promtool_refuses_what_is_not_clean() -> None:
    check_metrics(PAGE.decode())
    with pytest.raises(AssertionError, match="counter"):
        check_metrics("# HELP joules energy\n# TYPE joules counter\njoules 1\n")


def test_chromium_renders() -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.set_content("<title>joulegram</title>")
        assert page.title() == "joulegram"
