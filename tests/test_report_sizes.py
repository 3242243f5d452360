"""The page in a real browser at every size that a decision may have: nothing is cut off, and all can be read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, Browser
from decisions import decision

from ray_jobs.report.page import page

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium is installed: make test-packages (root, apt-get) installs it"
    ),
]
SIZES = ((375, 812), (768, 1024), (1280, 800), (1920, 1080))
PAPER = (720, 1000)
PAGES: dict[str, dict[str, Any]] = {
    "3 variants, 1 station": {"variants": 3, "stations": 1, "load": True},
    "17 variants, 1 station": {"variants": 17, "stations": 1, "cold": True, "load": True},
    "3 variants, 40 stations": {"variants": 3, "stations": 40},
    "17 variants, 40 stations": {"variants": 17, "stations": 40, "trouble": True},
}
LEAST_CONTRAST = 4.5  # of text, https://www.w3.org/TR/WCAG22/#contrast-minimum
UNFOLD = "[...document.querySelectorAll('details')].slice(0, 3).forEach(one => one.open = true)"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What reaches beyond its own box, but for what is hidden from the eye and what is an inline part of a line.
CUT = """[...document.querySelectorAll('main *:not(svg *)')]
    .filter(one => one.clientWidth > 1 && one.scrollWidth > one.clientWidth + 1)
    .map(one => `${one.tagName}.${one.className} ${one.clientWidth} < ${one.scrollWidth}: ${one.innerText}`)
    .slice(0, 5)"""
# Figures that stand on two lines though there is no space in them.
BROKEN = """[...document.querySelectorAll('.heat td b')].filter(one => {
        const range = document.createRange();
        range.selectNodeContents(one);
        const tops = [...range.getClientRects()].map(part => Math.round(part.top / 6));
        return !one.textContent.includes(' ') && new Set(tops).size > 1;
    }).map(one => one.textContent).slice(0, 5)"""
# Labels of an axis that stand on each other, or beyond its ends.
CROWDED = """[...document.querySelectorAll('.axis')].filter(one => one.clientWidth).flatMap(one => {
        const boxes = [...one.querySelectorAll('i')].map(part => part.getBoundingClientRect()).filter(box => box.width);
        const ends = one.getBoundingClientRect();
        return boxes.filter((box, n) => n ? box.left < boxes[n - 1].right + 1 : box.left < ends.left - 1)
            .concat(boxes.filter(box => box.right > ends.right + 3)).map(() => one.innerText);
    }).slice(0, 5)"""
PALE = """(() => {
    const channels = (said) => {
        const numbers = said.match(/[\\d.]+/g).map(Number);
        return said.startsWith('color(srgb') ? numbers.map((one, n) => n < 3 ? 255 * one : one) : numbers;
    };
    const over = (front, back, share) => [0, 1, 2].map(n => share * front[n] + (1 - share) * back[n]);
    const light = (colour) => {
        const [r, g, b] = colour.slice(0, 3).map(one => one / 255)
            .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (one) => {
        for (; one; one = one.parentElement) {
            const found = channels(getComputedStyle(one).backgroundColor);
            if ((found[3] ?? 1) > 0) return found;
        }
        return [255, 255, 255];
    };
    const seen = new Map();
    const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim(), one = walker.currentNode.parentElement;
        if (!text || !one.checkVisibility()) continue;
        const style = getComputedStyle(one), back = behind(one);
        const key = [style.color, style.opacity, back].join();
        if (seen.has(key)) continue;
        const [a, b] = [light(over(channels(style.color), back, Number(style.opacity))), light(back)];
        seen.set(key, [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40), key]);
    }
    return [...seen.values()];
})()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off_and_all_can_be_read(name: str, chromium: Browser, tmp_path: Path) -> None:
    """On every screen, in light and in dark; asked of one page that stays open, as a large one takes long to load."""
    path = tmp_path / "page.html"
    path.write_text(page([decision(**PAGES[name])]))
    chromium.open(path)
    assert chromium.complaints() == []
    chromium.value(UNFOLD)
    for width, height in SIZES:
        chromium.resize(width, height)
        assert chromium.value("document.documentElement.clientWidth") == width
        assert chromium.value(SIDEWAYS) <= 0, width
        assert chromium.value(CUT) == [], width
        assert chromium.value(BROKEN) == [], width
        assert chromium.value(CROWDED) == [], width
        for dark in (False, True):
            chromium.colour(dark)
            found = chromium.value(PALE)
            assert len(found) > 3
            assert [one for one in found if one[0] < LEAST_CONTRAST] == [], (width, dark)
    chromium.resize(*PAPER)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.value(SIDEWAYS) <= 0, "on paper"
    assert chromium.value(BROKEN) == [], "on paper"
    chromium.call("Emulation.setEmulatedMedia", media="")


def test_what_is_cut_off_or_pale_would_be_seen(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><main><div style='width: 50px'><pre>far too long</pre></div>"
        "<table class='heat'><td style='width: 9px; overflow-wrap: anywhere'><b>18.15</b></table>"
        "<p style='opacity: .5'>pale</p><p style='background: #336; color: #558'>dim</p><p>fine</p></main>"
    )
    chromium.open(path)
    assert any("far too long" in one for one in chromium.value(CUT))
    assert chromium.value(BROKEN) == ["18.15"]
    assert [text for ratio, text, _ in chromium.value(PALE) if ratio < LEAST_CONTRAST] == ["pale", "dim"]
