"""The page in a real browser: everything is drawn, nothing is fetched, a phone can read it."""

import shutil
from pathlib import Path

import pytest

import ellzero as ez
from accessibility import violations
from browser import DESK, PHONE, requests, show

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
WITHOUT_HINT = """
return [...document.querySelectorAll("section.table")].filter(table => {
    const scroll = table.querySelector(".scroll"), hint = table.querySelector(".hint");
    const shown = hint !== null && hint.getBoundingClientRect().height > 0;
    return (scroll.scrollWidth > scroll.clientWidth) !== shown;
}).map(table => table.querySelector("h3").textContent)
"""


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
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["study", "run", "several"])
def test_a_page_in_a_browser(name, width, pages, browser):
    show(browser, pages[name], width=width)

    assert browser.execute_script("return document.documentElement.clientWidth") <= width
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0
    assert browser.execute_script(OUTSIDE) == []
    assert browser.execute_script(WITHOUT_HINT) == [], "tables that scroll say so, and no others"

    boxes = browser.execute_script(BOXES)
    assert len(boxes) >= 3
    for label, box_width, box_height, drawn in boxes:
        assert min(box_width, box_height) > (10 if label == "marker" else 80), label
        assert drawn >= (2 if label == "marker" else 3), label
    assert browser.execute_script(SMALLEST) > 7.5  # CSS pixels

    assert browser.get_log("browser") == []
    assert requests(browser) == [pages[name].as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["study", "run", "several"])
def test_a_page_can_be_read_and_used_by_everybody(name, width, dark, pages, browser):
    show(browser, pages[name], width=width, dark=dark)
    assert violations(browser) == []


@pytest.mark.slow
def test_what_is_wrong_is_found(browser, tmp_path):
    page = tmp_path / "wrong.html"
    page.write_text(
        "<!doctype html><html lang=en><title>a</title><main><h1 style='color: #bbb'>pale</h1>"
        "<button></button><p tabindex=3>first</p></main></html>"
    )
    show(browser, page)
    rules = {text.split(":")[0] for text in violations(browser)}
    assert rules == {"color-contrast", "button-name", "tabindex"}
