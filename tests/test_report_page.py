"""The page in a browser: its numbers are the table's, it sorts, switches, prints, and is inert."""

import math
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import planted_report as planted
import pytest

from model_diffs.report import page

WIDTHS = (390, 1280, 1920)
# Least contrast of any text against what lies behind it (WCAG 2.2, 1.4.3), and where it is.
CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!says || !e.checkVisibility() || e.tagName === "SCRIPT") continue;
    const both = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const [a, b] = both.sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, e.tagName + "." + e.className + " " + e.textContent];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; without one these tests are skipped, and say so."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three models, one of them named by somebody who means harm."""
    outroot = tmp_path_factory.mktemp("outputs")
    return planted.write(planted.signature(), outroot)


class Opened:
    """A page in a tab, with what went wrong there."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, **options: Any) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.problems: list[str] = []
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.problems.append("dialog"), dialog.dismiss()))
        self.tab.on("request", self._request)
        self.tab.goto(path.as_uri())

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.problems.append(f"asked for {request.url}")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.tab.close()

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.tab.locator(selector).all_inner_texts()]

    def models(self) -> list[str]:
        """The models in the order of the table's columns."""
        return self.texts(".measures thead [data-model]")

    def row(self, measure: str) -> Any:
        """The row of a measure."""
        return self.tab.locator(f"tr[data-measure={measure}]")

    def shown(self) -> set[str]:
        """The models whose panels can be seen."""
        panels = self.tab.locator("[data-panel]:visible")
        return {panels.nth(i).get_attribute("data-panel") for i in range(panels.count())}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_fits_every_screen_with_contrast_in_light_and_dark(
    browser: Any, written: Path, width: int, scheme: str
) -> None:
    with Opened(browser, written, width, color_scheme=scheme) as opened:
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
        paper = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
        assert brightness > 200 if scheme == "light" else brightness < 60
        assert opened.tab.locator("section.axis img:visible").count() >= 1
        pictures = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
        assert opened.tab.evaluate(pictures)
        contrast, where = opened.tab.evaluate(CONTRAST)
        assert 4.5 <= contrast < 99, where
        assert opened.problems == []


def test_numbers_of_the_table_are_those_of_the_csv(browser: Any, written: Path) -> None:
    table = pd.read_csv(written.parent / "signature.csv").set_index("comparison")
    signature = planted.signature()
    with Opened(browser, written) as opened:
        assert opened.tab.locator("tr[data-measure]").count() == len(signature.measures)
        assert opened.models() == [comparison.short for comparison in signature.comparisons]
        seen = 0
        for measure in signature.measures:
            cells = opened.row(measure.key).locator("[data-model]")
            assert cells.count() == len(table) == 3
            for i, comparison in enumerate(signature.comparisons):
                found = cells.nth(i).get_attribute("data-value")
                cell = float(table.loc[comparison.label, measure.key])
                assert (found == "") == math.isnan(cell)
                if not found:
                    why = cells.nth(i).locator(".none").get_attribute("title")
                    assert why == signature.reasons[comparison.label, measure.key]
                    continue
                assert float(found) == cell
                link = cells.nth(i).locator("a")
                text = link.inner_text().split("\n")[0].replace("−", "-")
                assert abs(float(text) - cell) <= (0.05 if abs(cell) >= 10 else 0.005)
                title = link.get_attribute("title")
                source = signature.values[comparison.label, measure.key].source
                assert repr(cell) in title and str(source) in title
                # What the number leads to says its source in plain sight.
                target = opened.tab.locator(link.get_attribute("href"))
                assert source.path in target.text_content()
                seen += 1
        assert seen == len(signature.values)


def test_numbers_at_a_glance_are_the_table_numbers(browser: Any, written: Path) -> None:
    with Opened(browser, written) as opened:
        first, row = opened.tab.locator(".glance a.value"), opened.row("hazard_accuracy")
        assert first.count() == 3
        assert opened.texts(".glance a.value strong") == ["0.22", "0.34", "0.39"]
        for i in range(3):
            for attribute in ("href", "title"):
                same = row.locator("a.value").nth(i).get_attribute(attribute)
                assert first.nth(i).get_attribute(attribute) == same
        assert [float(width) for width in opened.tab.eval_on_selector_all(
            ".bar .part", "all => all.map(e => e.getAttribute('width'))"
        )] == [22, 34, 39]  # fmt: skip
        # A conclusion stands below its model's name, its numbers apart.
        assert opened.texts(".finding .claim")[4].startswith("Moved <img")
        roles = opened.texts(".finding h3 small:not(.once)")
        assert roles == ["never learned: the reference", "control: changed without unlearning"]


def test_what_is_not_told_apart_from_harmless_training_is_grey(browser: Any, written: Path) -> None:
    colour = "e => getComputedStyle(e).color"
    with Opened(browser, written) as opened:
        for measure, grey in (("size", [1]), ("rank", [1]), ("hazard_accuracy", []), ("moved", [])):
            links = opened.row(measure).locator("[data-model] a.value")
            found = [links.nth(i).evaluate(colour) for i in range(3)]
            heading = opened.row(measure).locator("button").evaluate(colour)
            assert [i for i in range(3) if found[i] != found[0]] == grey
            assert (heading != found[0]) == bool(grey)
        said = opened.texts("tr.unlike th small")
        assert said[0] == "not told apart from controls (calm)"
        assert said[1] == f"not told apart from controls: {planted.HOSTILE} (calm)"
        titles = opened.tab.locator("[data-measure=size] a.value").evaluate_all(
            "all => all.map(e => e.title.includes('not told apart'))"
        )
        assert titles == [False, True, False]
        assert "0.125" in opened.tab.locator("#conditions").inner_text()


def test_sorting_by_mouse_and_by_keyboard(browser: Any, written: Path) -> None:
    with Opened(browser, written) as opened:
        # An address that is none of the page's, nor decodable, stops nothing.
        opened.tab.goto("about:blank")
        opened.tab.goto(f"{written.as_uri()}#%")
        start = opened.models()
        heading = opened.row("size").locator("th")
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        assert opened.models() == ["npo", planted.HOSTILE, "filtered"]
        # Numbers go with their models, in every row.
        assert opened.texts("[data-measure=rank] td") == ["–", "3.6", "2.2", "9.9"]
        opened.tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        assert opened.models() == ["filtered", planted.HOSTILE, "npo"]
        opened.tab.keyboard.press("Space")
        assert opened.models() == start
        # A model without a number is last both ways.
        for order in ([planted.HOSTILE, "npo"], ["npo", planted.HOSTILE]):
            opened.row("back").locator("button").click()
            assert opened.models() == [*order, "filtered"]
        assert opened.problems == []


def test_switching_between_comparisons(browser: Any, written: Path) -> None:
    with Opened(browser, written) as opened:
        assert opened.shown() == {"0"}
        opened.tab.locator("[data-switch] input").first.focus()
        opened.tab.keyboard.press("ArrowRight")
        assert opened.shown() == {"1"}
        opened.tab.get_by_label("all").check(force=True)
        assert opened.shown() == {"0", "1", "2"}
        opened.tab.keyboard.press("ArrowLeft")
        assert opened.shown() == {"2"}
        # A number of another model shows that model, where the number is.
        opened.row("size").locator("[data-model='1'] a").click()
        opened.tab.wait_for_function("document.activeElement.matches('tbody')")
        assert opened.shown() == {"1"}
        assert opened.problems == []


def test_arrow_keys_move_among_numbers_of_one_tab_stop(browser: Any, written: Path) -> None:
    with Opened(browser, written) as opened:
        stops = opened.tab.locator(".measures a.value[tabindex='0']")
        assert stops.count() == 1
        stops.focus()
        opened.tab.keyboard.press("ArrowDown")
        opened.tab.keyboard.press("ArrowRight")
        told = opened.tab.locator("[data-source-line]").inner_text()
        source = (
            planted.signature()
            .values["base__to__" + planted.HOSTILE.replace("/", "_"), "rank"]
            .source
        )
        assert str(source) in told


def test_hostile_name_is_shown_as_text(browser: Any, written: Path) -> None:
    html = written.read_text()
    assert planted.HOSTILE not in html and "<img src=x" not in html
    with Opened(browser, written) as opened:
        assert planted.HOSTILE in opened.models()
        assert opened.tab.locator("script").count() == 1
        hrefs = opened.tab.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
        assert hrefs and not [h for h in hrefs if not re.match(r"#|\.\./|[a-z]+\.\w+$", h)]
        assert not [href for href in hrefs if re.search(r"[<>\"' ]", href)]
        # Were something to slip through, the policy would not let it run.
        opened.tab.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"alert(1)\">')"
        )
        opened.tab.wait_for_timeout(100)
        assert "dialog" not in opened.problems
        assert any("Content Security Policy" in problem for problem in opened.problems)


def test_everything_is_shown_without_scripts_and_in_print(browser: Any, written: Path) -> None:
    with Opened(browser, written, java_script_enabled=False) as opened:
        assert opened.shown() == {"0", "1", "2"}
        assert not opened.tab.locator("[data-switch]").is_visible()
    with Opened(browser, written) as opened:
        opened.tab.emulate_media(media="print")
        assert opened.shown() == {"0", "1", "2"}
        assert not opened.tab.locator("[data-switch]").is_visible()
        printed = opened.tab.pdf(prefer_css_page_size=True)
        assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
        assert opened.problems == []


def test_headings_are_in_order_and_images_have_alternatives(browser: Any, written: Path) -> None:
    with Opened(browser, written) as opened:
        levels = opened.tab.eval_on_selector_all(
            "h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))"
        )
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))
        assert opened.tab.evaluate("[...document.images].every(i => i.alt.length > 10)")
        ids = opened.tab.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert opened.tab.evaluate("document.documentElement.lang") == "en"
        opened.tab.keyboard.press("Tab")
        assert opened.tab.evaluate("document.activeElement.textContent").startswith("Skip")


def test_page_of_one_comparison_and_of_no_measure(browser: Any, tmp_path: Path) -> None:
    for name, signature in (("one", planted.only_one()), ("none", planted.nothing_measured())):
        path = planted.write(signature, tmp_path / name)
        with Opened(browser, path) as opened:
            assert opened.tab.locator("[data-switch]").is_hidden()
            assert opened.shown() == ({"0"} if signature.measures else set())
            assert "collect_param_stats.py" in opened.tab.locator("#missing").inner_text()
            assert opened.problems == []


def test_same_signature_gives_same_bytes(tmp_path: Path) -> None:
    first, second = (planted.write(planted.signature(), tmp_path / n).read_bytes() for n in "ab")
    assert first == second


def test_figures_without_room_are_shown_from_their_files(browser: Any, tmp_path: Path) -> None:
    signature = planted.signature()
    planted.figures(signature, tmp_path)
    image = planted.picture(0)
    whole = page.render(signature, image, tmp_path)
    assert "Open the figure" not in whole
    count = len(re.findall("data:image/png", whole))
    # Half the room: some are files, the signature stays embedded.
    half = page.render(signature, image, tmp_path, len(whole) // 2)
    assert len(half) <= len(whole) // 2
    beside = half.count("Open the figure")
    assert beside and len(re.findall("data:image/png", half)) + beside == count
    assert f"{beside} figures would make this page too large" in half
    # No room at all: the text is whole, and every figure can still be seen.
    least = page.render(signature, image, tmp_path, 0)
    assert least.count("Open the figure") == count - 1
    path = tmp_path / "report" / "report.html"
    path.parent.mkdir()
    path.write_text(least)
    with Opened(browser, path) as opened:
        opened.tab.evaluate("for (const image of document.images) image.loading = 'eager'")
        opened.tab.get_by_label("all").check(force=True)
        loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
        opened.tab.wait_for_function(loaded, timeout=10_000)
        assert opened.problems == []
