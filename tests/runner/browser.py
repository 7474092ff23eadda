"""A headless Chromium that looks at pages as a reader would: at a width, in light or dark, with its console open."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = "chromium", "chromedriver"
REQUIRED = os.environ.get("ROSETTA_BROWSER") == "required"
OVERFLOW = """
const width = document.documentElement.clientWidth, wide = [];
for (const each of document.querySelectorAll('body *')) {
  const box = each.getBoundingClientRect();
  if (box.width && box.right > width + 0.5 && !each.closest('.scroll, svg')) wide.push(each.outerHTML.slice(0, 120));
}
return [document.documentElement.scrollWidth - width, wide];
"""


@contextmanager
def open_browser(profile: Path) -> Iterator["Browser"]:
    """Skips where there is none, which ROSETTA_BROWSER=required makes a failure."""
    missing = [name for name in (CHROMIUM, DRIVER) if not shutil.which(name)]
    try:
        import selenium  # noqa: F401
    except ImportError:
        missing.append("selenium (pip install -e '.[test]')")
    if missing:
        what = f"the pages are NOT seen in a browser: {', '.join(missing)} not installed here"
        pytest.fail(what) if REQUIRED else pytest.skip(what)
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.driver.quit()


class Browser:
    """Chromium with an empty profile, asking the network for nothing."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which(CHROMIUM)
        quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", *quiet):
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER)))

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a page, in a window of which `width` CSS pixels are seen, where the reader prefers light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        prefers = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
        self.driver.get(page.resolve().as_uri())

    def console(self) -> list[str]:
        """What the page, or Chromium about it, has said since the last call."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def overflow(self) -> tuple[float, list[str]]:
        """By how many pixels the page is too wide, and the elements that reach beyond it."""
        return tuple(self.driver.execute_script(OVERFLOW))

    def ask(self, script: str) -> Any:
        """What a script finds out about the page."""
        return self.driver.execute_script(f"return {script}")
