"""The documentation in a browser: it can be searched and navigated, is readable, and asks no other host."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxnorm

ROOT = Path(jaxnorm.__file__).parents[1]
WORDS = {
    "SyncBatchNorm": "coming-from-pytorch",
    "track_running_stats": "coming-from-pytorch",
    "update_bn": "recalibrate",
    "decay_rate": "coming-from-haiku",
    "moving_variance": "coming-from-keras",
    "evaluation worse than training": "train-and-eval",
}
PHONE, LAPTOP = {"width": 400, "height": 800}, {"width": 1300, "height": 900}
# The lines of text that an element takes, and what the page would have to scroll sideways for.
LINES = "es => es.map(e => [e.textContent, e.getClientRects().length])"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

pytestmark = pytest.mark.thorough


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without printing each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the documentation, built from this tree."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
        capture_output=True,
    )
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: Playwright's own, or the system's."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: make test-all"
    )
    with playwright.sync_playwright() as run:
        own = run.chromium.executable_path
        path = own if Path(own).exists() else shutil.which("chromium")
        if path is None:
            pytest.skip("there is no Chromium: playwright install chromium")
        chromium = run.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """A page whose errors and requests to other hosts make the test fail."""
    opened = browser.new_page(viewport=LAPTOP)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(site) else problems.append(r.url))
    yield opened
    opened.close()
    assert [p for p in problems if not p.startswith("data:")] == []


def addresses(page: Any, site: str) -> list[str]:
    """The address of every page in the navigation."""
    page.goto(site)
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.href)")
    return sorted({link.split("#")[0] for link in links if link.startswith(site)})


def test_every_page(page: Any, site: str) -> None:
    """The navigation leads to all pages; they fit a phone, and names in tables are on one line."""
    found = addresses(page, site)
    written = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {address.removeprefix(site).strip("/") for address in found} >= written
    for address in found:
        assert page.goto(address).ok
        page.set_viewport_size(LAPTOP)
        assert [e for e in page.eval_on_selector_all("td code", LINES) if e[1] > 1] == [], address
        page.set_viewport_size(PHONE)
        assert page.evaluate(OVERFLOW) <= 0, address


def test_version_and_repository(page: Any, site: str) -> None:
    """The version and the repository are at the top of each page."""
    page.goto(site)
    link = page.locator(".md-header .md-source")
    assert jaxnorm.__version__ in link.inner_text()
    assert "github.com" in link.get_attribute("href")


def test_examples_of_the_reference_are_programs(page: Any, site: str) -> None:
    """An example in a docstring is shown as code."""
    page.goto(f"{site}reference/")
    assert page.locator("blockquote").count() == 0
    assert page.locator("code .gp").count() > 500  # prompts


@pytest.mark.parametrize("words", WORDS)
def test_search(page: Any, site: str, words: str) -> None:
    """What users type is found on the page that answers it, among the first results."""
    page.goto(site, wait_until="networkidle")  # before, the page does not listen yet
    page.locator("input.md-search__input").press_sequentially(words, delay=20)
    page.wait_for_selector(".md-search-result__item")
    links = page.eval_on_selector_all("a.md-search-result__link", "all => all.map(a => a.href)")
    firsts = [link.removeprefix(site).split("/")[0] for link in links]
    assert WORDS[words] in list(dict.fromkeys(firsts))[:3]
