"""A real browser for tests of the page: the system's Chromium, driven by playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, sync_playwright

PATIENCE_MS = 30_000
PHONE = {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window. As root it has no sandbox, which needs another user."""
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def tab(browser: Browser, **settings: object) -> Iterator[Page]:
    """A page of a profile of its own. What it complains of on its console, such as a file that the policy does not let
    in, fails the test; so does an error of a script."""
    said: list[str] = []
    context = browser.new_context(**settings)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    # A request that is refused is told of in the console too: the page says why by itself.
    assert [text for text in said if "Failed to load resource" not in text] == []
