"""The report in a real browser: what is on the screen, and that nothing else happens."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, Browser
from reports import HOSTILE, LONG, TROUBLED, Case, made_view, many_rows, sided_view
from typer.testing import CliRunner

from chatbot.variants import CONTROL
from ray_jobs.cli.app import app
from ray_jobs.report.page import page
from ray_jobs.results.store import RunDirectory
from ray_jobs.sweep.folder import read_rows, read_validations
from ray_jobs.sweep.importance import Importance, Importances
from ray_jobs.sweep.page import sweep_page

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium is installed: make test-packages (root, apt-get) installs it"
    ),
]
RESULTS = Path(__file__).resolve().parent.parent / "results"
DESKTOP, PHONE = (1280, 800), (390, 844)
TEXT = "document.body.innerText"
CELLS = "[...document.querySelectorAll('.heat tbody td')].map(td => td.innerText.replace(/\\s+/g, ' '))"
BOTTOM = "document.querySelector('{}').getBoundingClientRect().bottom"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"  # a phone's innerWidth grows
FIGURES = """[...document.querySelectorAll('.figures tr[data-variant]')].map(tr => [
    tr.dataset.variant, tr.querySelector('.p50').innerText, tr.querySelector('.speedup').innerText,
    tr.querySelector('.verdict').innerText])"""


WORDS = {"inconclusive": "undecided"}  # as a person would say it


def fastest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a trial of exact variants alone, as every table has them."""
    return sorted(rows, key=lambda row: -row["speedup"])


def rounded(row: dict[str, Any], names: tuple[str, str, str]) -> Any:
    """A figure and its limits as they may be shown: to a digit that is a quarter of the interval's width at most."""
    value, low, high = (row[name] for name in names)
    return pytest.approx([value, low, high], abs=(high - low) / 8)


P50, SPEEDUP = ("p50_ms", "p50_low_ms", "p50_high_ms"), ("speedup", "speedup_low", "speedup_high")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that was really measured, made by the command that a user types."""
    place = tmp_path_factory.mktemp("runs") / "make-matrix"
    shutil.copytree(RESULTS / "make-matrix", place, ignore=shutil.ignore_patterns("report.html"))
    assert CliRunner().invoke(app, ["report", str(place)]).exit_code == 0
    return place / "report.html"


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Failed, skipped, invalid and undecided rows, with long names."""
    path = tmp_path_factory.mktemp("pages") / "troubled.html"
    path.write_text(page([made_view(TROUBLED, {"torchscript": LONG})]))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five hundred rows."""
    path = tmp_path_factory.mktemp("pages") / "many.html"
    with many_rows() as cases:
        path.write_text(page([made_view(cases)]))
    return path


@pytest.fixture(scope="module")
def sided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sides, one of which has a long name."""
    path = tmp_path_factory.mktemp("pages") / "sided.html"
    path.write_text(page([sided_view()]))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed sweep's page."""
    directory = RunDirectory.existing(str(RESULTS / "sweep-small"), "sweep.json")
    sheet = json.loads(directory.read("sweep.json"))
    shares = [Importance(**one) for one in sheet["importance"]["of"]]
    found = Importances(tuple(shares), sheet["importance"]["trials"], sheet["importance"]["explained"])
    path = tmp_path_factory.mktemp("pages") / "sweep.html"
    path.write_text(sweep_page(sheet, read_rows(directory), read_validations(directory), found))
    return path


def nothing_else_happened(chromium: Browser, path: Path) -> None:
    assert chromium.complaints() == []
    assert set(chromium.requests()) == {path.resolve().as_uri()}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*", text)]


def test_complaints_and_requests_would_be_seen(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); undefined.x</script>")
    chromium.open(path)
    assert any(event["method"] == "Runtime.exceptionThrown" for event in chromium.complaints())
    assert any(event["method"] == "Runtime.consoleAPICalled" for event in chromium.complaints())
    assert "http://127.0.0.1:9/x.png" in chromium.requests()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["measured", "troubled", "many", "swept", "sided"])
def test_it_opens_quietly_and_fits_every_screen(
    name: str, dark: bool, size: tuple[int, int], chromium: Browser, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    chromium.open(path, *size, dark=dark)
    nothing_else_happened(chromium, path)
    assert chromium.value(OVERFLOW) <= 0, "the page itself never scrolls sideways"
    background = numbers(chromium.value("getComputedStyle(document.body).backgroundColor"))
    assert (max(background[:3]) < 60) if dark else (min(background[:3]) > 240)


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_first_screen_tells_what_matrix_json_holds(
    size: tuple[int, int], scripts: bool, chromium: Browser, measured: Path
) -> None:
    """With scripts and without: the figures on the screen are those that were measured, to what is shown of them."""
    rows = fastest_first(json.loads((measured.parent / "matrix.json").read_text()))
    chromium.open(measured, *size, scripts=scripts)
    nothing_else_happened(chromium, measured)
    assert chromium.value(BOTTOM.format(".legend")) < size[1], "the whole matrix is seen without scrolling"
    best = next(row for row in rows if row["variant"] == "torchscript")
    headline = numbers(chromium.value("document.querySelector('h1').innerText"))
    assert headline == rounded(best, SPEEDUP)
    shown = chromium.value(CELLS)
    assert len(shown) == len(rows)
    for text, row in zip(shown, rows, strict=True):
        found = numbers(text.replace("±2%", ""))
        expected = [row["p50_ms"]] if row["verdict"] == "baseline" else [row["speedup"], row["p50_ms"]]
        assert found == pytest.approx(expected, rel=2e-3)
        assert WORDS.get(row["verdict"], row["verdict"]) in text
    control = next(row for row in rows if row["variant"] == CONTROL)
    facts = chromium.value("document.querySelector('.facts').innerText")
    assert f"{control['speedup']:.3f} ({control['speedup_low']:.3f} to {control['speedup_high']:.3f})" in facts
    assert chromium.value("!!document.querySelector('.tip')") is scripts, "scripts ran where they may, and only there"


def test_the_table_of_a_trial_tells_what_matrix_json_holds(chromium: Browser, measured: Path) -> None:
    rows = fastest_first(json.loads((measured.parent / "matrix.json").read_text()))
    chromium.open(measured)
    found = chromium.value(FIGURES)
    assert [one[0] for one in found] == [row["variant"] for row in rows]
    for (_, p50, speedup, verdict), row in zip(found, rows, strict=True):
        assert numbers(p50) == rounded(row, P50)
        assert numbers(speedup) == ([] if row["verdict"] == "baseline" else rounded(row, SPEEDUP))
        assert WORDS.get(row["verdict"], row["verdict"]) in verdict


def test_pointing_at_a_cell_shows_its_interval(chromium: Browser, measured: Path) -> None:
    chromium.open(measured)
    box = chromium.value("document.querySelector('.heat .up2').getBoundingClientRect().toJSON()")
    assert chromium.value("document.querySelector('.tip').hidden") is True
    chromium.press(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = chromium.value("document.querySelector('.tip').innerText")
    assert re.search(r"speedup \d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)", tip)
    chromium.press(2, 2)
    assert chromium.value("document.querySelector('.tip').hidden") is True


def test_what_is_uncertain_is_hatched_and_trouble_is_outlined(chromium: Browser, troubled: Path) -> None:
    """Told by more than colour."""
    chromium.open(troubled)
    style = "getComputedStyle(document.querySelector('td.{}')).{}"
    assert "repeating-linear-gradient" in chromium.value(style.format("inconclusive", "backgroundImage"))
    assert chromium.value(style.format("up2", "backgroundImage")) == "none"
    for kind in ("failed", "skipped", "invalid"):
        assert chromium.value(style.format(kind, "outlineStyle")) == "dashed"
        assert chromium.value(f"document.querySelector('td.{kind}').innerText.trim()") == kind


def test_a_link_from_the_matrix_unfolds_its_trial(chromium: Browser, troubled: Path) -> None:
    chromium.open(troubled)
    unfolded = "document.querySelectorAll('details[id][open]').length"
    assert chromium.value(unfolded) == 0
    chromium.value("document.querySelector('.heat tbody a').click()")
    chromium.value("new Promise(done => setTimeout(done, 0))")
    assert chromium.value(unfolded) == 1


def test_it_prints_with_everything_unfolded(chromium: Browser, troubled: Path) -> None:
    chromium.open(troubled)
    few = chromium.value("document.querySelectorAll('details[open]').length")
    chromium.value("dispatchEvent(new Event('beforeprint'))")
    assert chromium.value("document.querySelectorAll('details:not([open])').length") == 0
    chromium.value("dispatchEvent(new Event('afterprint'))")
    assert chromium.value("document.querySelectorAll('details[open]').length") == few
    assert len(chromium.call("Page.printToPDF")["data"]) > 10_000


def test_names_that_are_programs_stay_names(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page([made_view([Case(device_name=HOSTILE)], {"torchscript": HOSTILE}, run=HOSTILE)]))
    chromium.open(path)
    nothing_else_happened(chromium, path)
    assert chromium.value("typeof window.hacked") == "undefined"
    assert HOSTILE in chromium.value("document.querySelector('h1').textContent")
