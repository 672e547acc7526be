"""The page in a real browser, on a shipped collector: right numbers, nothing from elsewhere."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any

import pytest

from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made import IDLE, SYSTEM, WINDOW_MS, Node, Row, workload
from tests.e2e.sending import RunningCollector, collector
from tests.servers import chromium, joulegram

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
SIZES: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1360, "height": 900}},
    "page-dark": {"viewport": {"width": 1360, "height": 900}, "color_scheme": "dark"},
    "page-mobile": {"viewport": {"width": 390, "height": 844}},
}
CUT = "[...document.querySelectorAll('td.num')].filter(c => c.scrollWidth > c.clientWidth)\
.map(c => c.textContent)"
EVIL = "<img src=x onerror=document.title='owned'>"


class Site:
    """Since ten minutes a node with a job, a person's `yes`, and somebody with a bad name."""

    def __init__(self) -> None:
        self.node = Node("node-a", quality="modelled")
        self.made = 0
        self.next_ms = newest_ms() - 59 * WINDOW_MS

    def frames(self) -> list[Frame]:
        """All windows up to now that were not made yet."""
        return [self._frame() for _ in range(self.next_ms, newest_ms() + 1, WINDOW_MS)]

    def _frame(self) -> Frame:
        job = workload("slurm", "48213", scope="hpc", user="grace", name="train-resnet50")
        person = workload("user", "1000", user="ann", name="ann")
        evil = workload("container", "5ad" * 20, user="eve", name=EVIL)
        rows = [
            Row(job, cpu_j=800.0, dram_j=100.0, pid=4_021_999, command="python"),
            Row(person, cpu_j=50.0 + min(self.made, 59), pid=991, command="yes"),
            Row(evil, cpu_j=5.0, pid=666, command=EVIL),
            Row(IDLE, cpu_j=1000.0, dram_j=50.0),
            Row(SYSTEM, cpu_j=20.0),
        ]
        start_ms, self.next_ms = self.next_ms, self.next_ms + WINDOW_MS
        self.made += 1
        return self.node.frame(start_ms, rows)


def newest_ms() -> int:
    """Where the newest window that is over begins."""
    return time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - WINDOW_MS


def frames() -> list[Frame]:
    """Ten minutes."""
    return Site().frames()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    with collector(tmp_path_factory.mktemp("page"), "--zone", "GB", "--pue", "1.5") as started:
        yield started


@contextmanager
def opened(browser: "Browser", url: str, **how: Any) -> Iterator["Page"]:
    """A page that fails the test on any request beyond loopback and on any console error."""
    context = browser.new_context(**how)
    page = context.new_page()
    wrong: list[str] = []
    page.on(
        "request",
        lambda request: (
            wrong.append(f"request to {request.url}")
            if not request.url.startswith((url + "/", "data:"))
            else None
        ),
    )
    page.on(
        "console",
        lambda message: (
            wrong.append(f"console {message.type}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def said(page: "Page", selector: str) -> str:
    return re.sub(r"\s+", " ", page.inner_text(selector)).strip()


def test_before_the_first_frame_it_says_what_it_waits_for(running: RunningCollector) -> None:
    # First in the file: the collector has no frame yet.
    with chromium() as browser, opened(browser, running.url) as page:
        page.wait_for_selector("#waiting:visible")
        assert "Waiting for the first window (up to 20 s)" in said(page, "#waiting")
        assert page.is_hidden("#numbers")
        page.wait_for_function("document.getElementById('state').textContent.includes('Waiting')")


def test_the_numbers_on_the_page_are_those_of_the_frames(running: RunningCollector) -> None:
    site = Site()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, how in SIZES.items():
            running.send(site.frames())  # a node that is silent for a while draws nobody knows what
            with opened(browser, running.url, **how) as page:
                page.wait_for_selector("#power-chart .main-svg")
                page.wait_for_selector("#intensity-chart .main-svg")
                page.wait_for_selector("#team-rows tr")
                page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
                check_numbers(page)
                # WCAG AA: text against what lies behind it has a contrast of at least 4.5.
                weakest = page.evaluate(CONTRAST)
                assert weakest["ratio"] >= 4.5, (name, weakest)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
                # A number cut short is a wrong number.
                assert page.evaluate(CUT) == [], name


def check_numbers(page: "Page") -> None:
    # J / 10 s: (800 + 100 + 109 + 5 + 1050 + 20) / 10
    assert said(page, "#power") == "208 W"
    assert said(page, "#components") == "CPU 193 W Memory 15.0 W"
    assert said(page, "#modelled") == "MODELLED"
    assert "Estimated from load" in said(page, "#modelled-why")
    assert said(page, "#zone") == "GB"
    assert said(page, "#grid-quality") == "FALLBACK"
    assert said(page, "#coverage") == "100 %"
    intensity = float(said(page, "#intensity").split()[0])
    grams_per_hour = float(said(page, "#gph").split()[0])
    assert grams_per_hour == pytest.approx(0.2084 * 1.5 * intensity, rel=0.02)
    # What people run stands above what nobody does, whatever it draws.
    rows = [said(page, f"#workload-rows tr:nth-child({i})") for i in (1, 2, 3)]
    assert rows[0].startswith("train-resnet50 slurm 48213")
    assert "90.0" in rows[0]
    assert rows[1].startswith("ann user 1000")
    assert rows[2].startswith(EVIL)
    assert said(page, "#reserved-rows tr:nth-child(1)").startswith("idle")
    assert said(page, "#process-rows tr:nth-child(1)").startswith("python")
    assert page.title() == "joulegram"
    assert said(page, "#team-rows tr:nth-child(1)").startswith("unassigned")
    assert said(page, "#today-energy") != "–"


def test_it_can_be_used_with_the_keyboard_and_paused(running: RunningCollector) -> None:
    with chromium() as browser, opened(browser, running.url) as page:
        page.wait_for_selector("#numbers:visible")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "pause"
        page.keyboard.press("Enter")
        assert said(page, "#state") == "Paused"
        page.keyboard.press("Enter")
        page.wait_for_function("document.getElementById('state').textContent !== 'Paused'")


def test_it_says_when_the_collector_stops_answering(tmp_path: Path) -> None:
    with collector(tmp_path) as started, chromium() as browser:
        context = browser.new_context()
        page = context.new_page()
        page.goto(started.url)
        page.wait_for_selector("#waiting:visible")
        started.send([Node().frame(*one_window())])
        page.wait_for_selector("#numbers:visible")
        started.program.stop()
        page.wait_for_selector("#alert:visible", timeout=15_000)
        assert "stopped answering" in said(page, "#alert")
        assert said(page, "#power") == "2.50 W"
        page.screenshot(path=SCREENSHOTS / "page-offline.png")


def test_what_silent_nodes_draw_is_not_known_and_no_zero(tmp_path: Path) -> None:
    with collector(tmp_path, "--zone", "GB") as started, chromium() as browser:
        long_ago, rows = one_window()
        started.send([Node().frame(long_ago - 3_600_000, rows)])
        with opened(browser, started.url) as page:
            page.wait_for_selector("#alert:visible")
            assert "not known" in said(page, "#alert")
            assert (said(page, "#power"), said(page, "#gph")) == ("– W", "– g CO₂e per hour")
            assert page.is_hidden("#no-workloads")
        seen = subprocess.run(
            joulegram("top", "--url", started.url, "--once"), capture_output=True, text=True
        ).stdout
        assert seen.startswith("? W") and "not known" in seen
        assert "0.00" not in seen and "CO2e/h" not in seen


def one_window() -> tuple[int, list[Row]]:
    return newest_ms(), [Row(IDLE, cpu_j=25.0)]


CONTRAST = """() => {
  const luminance = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let weakest = { ratio: 99 };
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest("svg") || node.closest(".skip") || !node.checkVisibility()) continue;
    if (![...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
    const front = luminance(parts(getComputedStyle(node).color).slice(0, 3));
    const back = luminance(behind(node));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < weakest.ratio) weakest = { ratio, text: node.textContent.slice(0, 40) };
  }
  return weakest;
}"""
