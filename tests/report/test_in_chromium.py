"""The page in a browser: from disk, without a network, on a phone and on a desk."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_run import write_run

from roli_fast.report import write

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)

WIDE, NARROW = 1280, 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, once for all tests."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page, one of a run that lacks what can lack, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    whole, bare = write_run(root / "a run"), write_run(root / "bare", analysis=False)
    (bare / "summary.json").unlink()
    return {"run": write(whole), "bare": write(bare), "both": write(whole, [bare])}


@pytest.fixture(params=["run", "bare", "both"])
def file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    """Each of them."""
    return files[request.param]


def opened(browser: Browser, file: Path, width: int, **settings: Any) -> tuple[Page, list[str]]:
    """The page in a window of `width`, offline, and what it asked for or complained of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
    context.set_offline(True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))

    def asked(request: Any) -> None:
        if request.url != file.as_uri() and not request.url.startswith("data:"):
            said.append(f"asked for {request.url}")

    page.on("request", asked)
    page.goto(file.as_uri())
    return page, said


OVER = """() => [...document.querySelectorAll('main *')].filter(one => {
    const box = one.getBoundingClientRect();
    return box.right > innerWidth + 1 && !one.closest('.scroll, pre');
}).map(one => one.outerHTML.slice(0, 80))"""
"""What leaves the window, aside from what scrolls in a box of its own."""

SIZES = """() => [...document.querySelectorAll('body *')]
    .filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                   && one.tagName !== 'title')
    .map(one => {
        const svg = one.closest('svg');
        const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        return [scale * parseFloat(getComputedStyle(one).fontSize), one.outerHTML.slice(0, 60)];
    })"""
"""(size in pixels as shown, element) of every word."""


OUTLINE = """() => [
    [...document.querySelectorAll('h1, h2, h3, h4')].map(one => +one.tagName[1]),
    [...document.querySelectorAll('[id]')].map(one => one.id)]"""
"""Levels of the headings, and every id."""


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_it_opens_from_disk_fits_and_can_be_read(browser: Browser, file: Path, width: int) -> None:
    """And its headings and landmarks are in order."""
    page, said = opened(browser, file, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVER) == []
    sizes = page.evaluate(SIZES)
    assert len(sizes) > 50
    assert [word for size, word in sizes if size < 11] == []
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(landmark).count() == 1
    levels, names = page.evaluate(OUTLINE)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(set(names)) == len(names)
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_words_stand_out(browser: Browser, files: dict[str, Path], scheme: str) -> None:
    """WCAG's contrast of 4.5 between words and the page, of 3 between lines and the page."""
    page, _ = opened(browser, files["run"], WIDE, color_scheme=scheme)
    colours = page.evaluate(
        """() => {
        const style = getComputedStyle(document.documentElement);
        const names = ['paper', 'field', 'note-field', 'ink', 'soft', 'link',
                       ...[0, 1, 2, 3, 4, 5, 6, 7].map(i => 'c' + i)];
        return Object.fromEntries(names.map(n => [n, style.getPropertyValue('--' + n).trim()]));
    }"""
    )
    for name in ("ink", "soft", "link"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["ink"], colours["field"]) >= 4.5
    assert contrast(colours["ink"], colours["note-field"]) >= 4.5
    for number in range(8):
        assert contrast(colours[f"c{number}"], colours["paper"]) >= 3, number
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (shown == "rgb(255, 255, 255)") == (scheme == "light")
    page.context.close()


def contrast(one: str, other: str) -> float:
    """Of "#rrggbb" or "#rgb", as WCAG 2 defines it."""
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_its_images_are_there_and_told(browser: Browser, files: dict[str, Path]) -> None:
    page, _ = opened(browser, files["run"], WIDE)
    images = page.evaluate(
        "() => [...document.images].map(one => [one.alt, one.complete && one.naturalWidth])"
    )
    assert len(images) == 6
    assert all(alt and width == 4 for alt, width in images)
    drawings = page.evaluate(
        """() => [...document.querySelectorAll('svg:not([aria-hidden])')].map(
        one => [one.getAttribute('role'), one.getAttribute('aria-label')])"""
    )
    assert len(drawings) >= 8
    assert all(role == "img" and label for role, label in drawings)
    page.context.close()
