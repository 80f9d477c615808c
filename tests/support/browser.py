"""A headless Chromium for pages of ours, which may reach nothing: what it says, asks for and shows is kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--no-default-browser-check"),
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; without one, the test is skipped."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("the package playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it did: messages to the console, errors, and requests for anything but itself."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, script: str, argument: Any = None) -> Any:
        """What a function in JavaScript gives."""
        return self.page.evaluate(script, argument)


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1200, scheme: str = "light", scripts: bool = True
) -> Iterator[Opened]:
    """A page in a window of this width, with this colour scheme."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=scripts
    )
    # On a busy machine, the browser's own 30 seconds are too few.
    context.set_default_timeout(180_000)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.problems.append(message.text))
    page.on("pageerror", lambda error: found.problems.append(str(error)))
    page.on("dialog", lambda dialog: (found.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.as_uri())
    yield found
    context.close()
