"""A store in which every figure and table has rows, and one in which few have; a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from rlsparse_ray.report import write_report
from tests.builders import overlap_directly
from tests.sql.conftest import REFRESHES, _make_pairs, _write, _write_refresh
from tests.sql.test_family_queries import make_zoo

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOSTILE = "</script><script>window.hacked = 1</script>"
CURLY = '{{js}} & "two", <b>\nlines'


@pytest.fixture(scope="session")
def full_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with a published figure, spectra, other shapes, a trajectory, a refresh that failed;
    two of them have names that are anything but names."""
    place = tmp_path_factory.mktemp("report") / "store"
    current, superseded = _make_pairs()
    zoo, within = make_zoo()
    current[1].row["name"], zoo[0].row["name"] = HOSTILE, CURLY
    zoo[1].row["lineage_score"] = 0.01
    for pair in [*superseded, *current, *zoo, *within]:
        _write(place, pair)
    (place / "store.json").write_text(json.dumps({"format": "rlsparse_ray", "schema_version": 1}))
    overlap_directly(place)
    for row in REFRESHES[:1]:
        _write_refresh(place, row)
    return place


@pytest.fixture(scope="session")
def full_page(full_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(full_store, path)
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("NO BROWSER: apt-get install chromium chromium-driver; pages are not opened")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()
