"""A server with a tiny model, and a browser."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from style_aligned.sets.records import SetError

expect.set_options(timeout=60_000)
ROOT = Path(__file__).parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # that anything may take on the page


@dataclass
class Served:
    """A page that is served.

    Attributes:
        url: Its address.
        folder: The folder with its sets.
    """

    url: str
    folder: Path


@contextmanager
def serve(folder: Path, *arguments: str) -> Generator[Served, None, None]:
    """Serve a page, in a process of its own."""
    command = [sys.executable, "-m", "tests.web.run_server", str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, "the server did not start"
            yield Served(url, folder)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=SECONDS)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (OSError, SetError):  # not there yet
            pass
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("web") / "sets") as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next((found for name in CHROMIUM if (found := shutil.which(name)) is not None), None)
    assert path is not None, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A page that is open. No script of it may fail, and it may load nothing from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(1000 * SECONDS)
    errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: _check_address(request.url, served.url, errors))
    page.goto(served.url)
    page.locator("#draw").wait_for()
    yield page
    context.close()
    assert errors == []


def _check_address(url: str, own: str, errors: list[str]) -> None:
    if not url.startswith((own, "data:", "blob:")):
        errors.append(f"asked for {url}")
