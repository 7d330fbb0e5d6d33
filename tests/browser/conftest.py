"""A page in the Chromium of this machine; without Playwright or Chromium the tests are skipped with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the test-browser extra")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(CHROMIUM)}): apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and what its console complained about."""

    def __init__(self, page: Any, pictures: Path | None) -> None:
        self.page, self.pictures = page, pictures
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", self._request_failed)

    def _request_failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the page itself, such as a stream that has served
            self.errors.append(f"{request.failure}: {request.url[:100]}")

    def picture(self, name: str) -> None:
        """Keep a screenshot, where --screenshots asks for it."""
        if self.pictures is not None:
            from PIL import Image

            self.pictures.mkdir(parents=True, exist_ok=True)
            file = self.pictures / f"{name}.png"
            self.page.screenshot(path=str(file))
            with Image.open(file) as large:  # few colours: small files for a repository
                large.convert("RGB").quantize(128).save(file, optimize=True)


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Visit]]:
    """Open an address in a context of its own."""
    pictures = request.config.getoption("--screenshots")
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(120_000)

    def open_page(address: str) -> Visit:
        visit = Visit(context.new_page(), Path(pictures) if pictures else None)
        visit.page.goto(address)
        return visit

    yield open_page
    context.close()
