"""The page of a collector that asks for tokens, in a real browser."""

from pathlib import Path

from tests.certificates import token_file
from tests.e2e.sending import collector
from tests.e2e.test_page import frames
from tests.servers import chromium

OPERATOR, GONE = "0123456789abcdef-operator", "0123456789abcdef-of-nobody"


def test_the_page_asks_for_a_token_and_keeps_it_in_its_tab(tmp_path: Path) -> None:
    tokens = token_file(tmp_path / "readers.toml", [(OPERATOR, 'sees = "everything"')])
    with collector(tmp_path, "--zone", "GB", "--read-tokens", str(tokens)) as running:
        running.send(frames())
        with chromium() as browser:
            page = browser.new_context().new_page()
            page.goto(running.url)
            page.wait_for_selector("#sign-in:not([hidden])")
            assert page.is_hidden("#numbers") and "train-resnet50" not in page.content()
            page.fill("#token", GONE)
            page.click("#sign-in button")
            page.wait_for_selector("#alert:not([hidden])")
            assert "does not know that token" in page.inner_text("#alert")
            page.fill("#token", OPERATOR)
            page.click("#sign-in button")
            page.wait_for_selector("#numbers:not([hidden])")
            assert page.is_hidden("#sign-in")
            assert "train-resnet50" in page.inner_text("#workload-rows")
            # Neither the address nor the page shows it; another tab knows nothing of it.
            assert OPERATOR not in page.content() + page.url
            page.reload()
            page.wait_for_selector("#numbers:not([hidden])")
            other = browser.new_context().new_page()
            other.goto(running.url)
            other.wait_for_selector("#sign-in:not([hidden])")
