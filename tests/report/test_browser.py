"""The page in a real browser: it draws, the console stays empty, switches and keys work."""

import csv
import io
import itertools
import time

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from rlsparse_ray.report import FIGURES, write_report
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.sql import connect, run_query
from tests.report.conftest import CURLY, HOSTILE

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


def show(browser, page, width=1280, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("browser")
    browser.get(page.as_uri())
    wait(browser, "return document.documentElement.dataset.ready === 'yes'")


def wait(browser, condition, *args):
    end = time.monotonic() + 60
    while not browser.execute_script(condition, *args):
        logged = browser.get_log("browser")
        assert time.monotonic() < end, f"never true: {condition}; console: {logged}"
        time.sleep(0.05)


def drawn(browser, name):
    return browser.execute_script(
        "return document.getElementById(arguments[0]).dataset.drawn", name
    )


def labels(browser, name):
    """The texts that are drawn in a figure."""
    return browser.execute_script(
        "return [...document.querySelectorAll(`#chart-${arguments[0]} svg text`)]"
        ".map((t) => t.textContent)",
        name,
    )


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_draws_everything_and_says_nothing(browser, full_page, width, scheme):
    show(browser, full_page, width, scheme)
    assert browser.get_log("browser") == []
    sizes = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.chart')].map((c) =>"
        "[c.id.slice(6), c.querySelector('svg, canvas')?.getBoundingClientRect().height ?? 0]))"
    )
    assert sizes.keys() == {f.name for f in FIGURES}
    assert min(sizes.values()) > 40
    modes = (
        "return [...new Set([...document.querySelectorAll('[data-mode]')].map(f=>f.dataset.mode))]"
    )
    assert browser.execute_script(modes) == [scheme]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_never_scrolls_sideways(browser, full_page, width):
    show(browser, full_page, width)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    wait(browser, "return document.querySelectorAll('.as-table tbody tr').length > 50")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg, .chart canvas')].filter("
        "(c) => c.getBoundingClientRect().right > innerWidth + 1).map((c) => c.parentNode.id)"
    )
    assert beyond == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_is_cut(browser, full_page, width):
    show(browser, full_page, width)
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].flatMap((svg) => {"
        "const frame = svg.getBoundingClientRect();"
        "return [...svg.querySelectorAll('text')].filter((text) => {"
        "const box = text.getBoundingClientRect();"
        "return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1"
        "|| box.bottom > frame.bottom + 1);"
        "}).map((text) => `${svg.closest('figure').id}: ${text.textContent}`)})"
    )
    assert cut == []


def test_names_are_text_and_nothing_else(browser, full_page):
    show(browser, full_page)
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in browser.execute_script("return document.querySelector('#pairs').textContent")
    options = "return [...document.querySelector('#layers-run').options].map((o) => o.value)"
    # a browser takes a line break in a value as one
    assert {HOSTILE, CURLY} <= set(browser.execute_script(options))


def test_switches_change_what_is_drawn(browser, full_page):
    show(browser, full_page)
    assert drawn(browser, "overlap-matrix") == "magnitude|lift"
    cells = "return document.querySelector('#chart-overlap-matrix svg').outerHTML"
    before = browser.execute_script(cells)
    click = "document.querySelector(`#overlap-matrix input[value=${arguments[0]}]`).click()"
    browser.execute_script(click, "uniform")
    wait(
        browser, "return document.getElementById('overlap-matrix').dataset.drawn === 'uniform|lift'"
    )
    assert browser.execute_script(cells) != before
    said = browser.execute_script(
        "return document.querySelector('#overlap-matrix .status').textContent"
    )
    assert "uniform: densities only" in said
    browser.execute_script(click, "o1")
    wait(browser, "return document.getElementById('overlap-matrix').dataset.drawn === 'uniform|o1'")
    idle = "return document.querySelector('#overlap-matrix [data-switch=baseline]').disabled"
    assert browser.execute_script(idle)
    assert browser.get_log("browser") == []


def test_filters_choose_the_rows(browser, full_page):
    show(browser, full_page)
    first = labels(browser, "layers")
    browser.execute_script(
        "const s = document.getElementById('layers-run'); s.value = 'other';"
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    wait(browser, "return document.getElementById('layers').dataset.drawn === '|other'")
    assert labels(browser, "layers") != first
    assert "attn" in labels(browser, "layers")


def test_the_keyboard_reaches_and_turns_a_switch(browser, full_page):
    show(browser, full_page)
    press(browser, Keys.TAB)
    assert browser.execute_script("return document.activeElement.className") == "skip"
    for _ in range(60):
        press(browser, Keys.TAB)
        if (
            browser.execute_script("return document.activeElement.name")
            == "overlap-matrix-baseline"
        ):
            break
    outline = browser.execute_script(
        "return getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    )
    assert outline == "solid"
    press(browser, Keys.ARROW_RIGHT)
    wait(
        browser, "return document.getElementById('overlap-matrix').dataset.drawn === 'margins|lift'"
    )
    focused = browser.execute_script("return document.activeElement.value")
    assert focused == "margins"


def test_every_figure_has_words_beside_it(browser, full_page):
    show(browser, full_page)
    bare = browser.execute_script(
        "return [...document.querySelectorAll('figure')].filter((f) =>"
        "!f.querySelector('figcaption h3')?.textContent"
        "|| !f.querySelector('figcaption p')?.textContent"
        "|| !document.getElementById(f.getAttribute('aria-labelledby'))"
        "|| ![...f.querySelectorAll('.chart')].every("
        "(c) => c.role === 'img' && c.getAttribute('aria-label')?.length > 30)"
        ").map((f) => f.id)"
    )
    assert bare == []
    heads = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))"
    )
    assert heads[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(heads))
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('[role=region]')].filter((e) => "
        "!e.ariaLabel && !e.getAttribute('aria-labelledby')).length"
    )
    assert unnamed == 0


def test_a_table_has_the_rows_of_the_query(browser, full_page, full_store):
    show(browser, full_page)
    browser.execute_script("document.querySelector('#rounding .as-table').open = true")
    wait(browser, "return document.querySelectorAll('#rounding tbody tr').length > 0")
    with connect(full_store) as con:
        rows = run_query(con, "overlap_excess").num_rows
    shown = browser.execute_script("return document.querySelectorAll('#rounding tbody tr').length")
    assert shown == min(rows, 200)


def test_the_download_is_the_answer_of_the_query(browser, full_page, full_store):
    show(browser, full_page)
    text = browser.execute_script("return window.rlsparse.csv('runs')")
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    with connect(full_store) as con:
        figure = figure_named("runs")
        rows = Answers(con, str(full_store)).rows(figure).to_pylist()
    assert len(found) == len(rows)
    for got, want in zip(found, rows, strict=True):
        assert got["run"] == want["run"]
        assert float(got["sparsity"]) == pytest.approx(want["sparsity"], rel=1e-5)
        assert int(got["changed"]) == want["changed"]
    assert {HOSTILE, CURLY} <= {row["run"] for row in found}


def test_it_follows_the_colours_of_the_system(browser, full_page):
    show(browser, full_page, scheme="light")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait(browser, "return document.getElementById('principal').dataset.mode === 'dark'")
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(20, 22, 26)"


def test_print_shows_everything_and_what_was_chosen(browser, full_page):
    show(browser, full_page, scheme="dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        wait(browser, "return !document.querySelector('[data-mode=dark]')")
        hidden = "return [...document.querySelectorAll('.controls, .foot, nav')]"
        assert browser.execute_script(f"{hidden}.filter((e) => e.getClientRects().length)") == []
        cut = "return [...document.querySelectorAll('.scroll, .rows')].filter("
        cut += "(e) => e.scrollHeight > e.clientHeight + 1).map((e) => e.className)"
        assert browser.execute_script(cut) == []
        said = browser.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('.status')].filter("
            "(e) => e.textContent && e.getBoundingClientRect().height > 10).map("
            "(e) => [e.closest('figure').id, e.innerText]))"
        )
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert said["overlap-matrix"].startswith("Shown: Chance knows: magnitude: rounding; Show: lift")
    assert said["layers"].startswith("Shown: Run: ")
    assert ground == "rgb(255, 255, 255)"


def test_what_scrolls_can_be_reached_by_keys(browser, full_page):
    show(browser, full_page)
    odd = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter((e) => "
        "(e.scrollHeight > e.clientHeight) !== (e.tabIndex === 0)).length"
    )
    assert odd == 0
    assert browser.execute_script("return document.querySelectorAll('.scroll').length") > 9
    # half a window high, some figures do scroll
    browser.execute_script(
        "document.querySelectorAll('.scroll').forEach((e) => { e.style.maxHeight = '100px' });"
        "dispatchEvent(new Event('afterprint'))"
    )
    wait(browser, "return document.querySelectorAll('.scroll[tabindex=\"0\"]').length > 9")


def test_it_fetches_nothing(browser, full_page):
    show(browser, full_page)
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    assert [name for name in asked if not name.startswith(("data:", "blob:"))] == []


def test_what_is_not_there_yet_says_how_to_get_it(browser, example, tmp_path):
    page = tmp_path / "deep" / "report.html"
    write_report(example.store, page)
    show(browser, page)
    assert browser.get_log("browser") == []
    texts = browser.execute_script(
        "return Object.fromEntries("
        "[...document.querySelectorAll('figure')].map((f) => [f.id, f.textContent]))"
    )
    assert f"rlsparse overlap --store {example.store}" in texts["overlap-matrix"]
    assert f"rlsparse spectra --store {example.store}" in texts["ranks"]
    assert "trajectories" in texts["trajectories"]
