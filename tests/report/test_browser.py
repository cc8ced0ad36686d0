"""The page in a real browser: everything is drawn, nothing is fetched, a phone can read it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ellzero as ez

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-quic",
    "--disable-dev-shm-usage",
)  # fmt: skip

BOXES = """
return [...document.querySelectorAll("svg, img")].map(element => {
    const box = element.getBoundingClientRect();
    const drawn = element.querySelectorAll("path, polygon, text, use, image").length;
    return [element.getAttribute("aria-label") || "marker", box.width, box.height, drawn];
})
"""
OUTSIDE = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll("h1, h2, h3, p, li, dd, figure, .scroll")].filter(
    element => element.getBoundingClientRect().right > wide + 1
).map(element => element.outerHTML.slice(0, 80))
"""
SMALLEST = """
return Math.min(...[...document.querySelectorAll("svg text")].map(text => {
    const matrix = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
}))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # selenium is to use the driver that is there: no download, no statistics
    environment = os.environ | {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    driver = webdriver.Chrome(options=options, service=service.Service(DRIVER, env=environment))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = shutil.copytree(made, tmp_path_factory.mktemp("pages") / "small")
    runs = sorted(folder.glob("cells/l0*-seed0-*"))
    several = folder / "several.html"
    return {
        "study": ez.write_report(folder),
        "run": ez.write_report(runs[0]),
        "several": ez.write_report(runs[:3], several),
    }


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["study", "run", "several"])
def test_a_page_in_a_browser(name, width, pages, browser):
    # a headless window cannot be as narrow as a phone, an emulated screen can
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get_log("performance")
    browser.get(pages[name].as_uri())

    assert browser.execute_script("return document.documentElement.clientWidth") <= width
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0
    assert browser.execute_script(OUTSIDE) == []

    boxes = browser.execute_script(BOXES)
    assert len(boxes) >= 3
    for label, box_width, box_height, drawn in boxes:
        assert min(box_width, box_height) > (10 if label == "marker" else 80), label
        assert drawn >= (2 if label == "marker" else 3), label
    assert browser.execute_script(SMALLEST) > 7.5  # CSS pixels

    assert browser.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
