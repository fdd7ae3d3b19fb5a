"""The four screenshots in docs/: how they are made, and that they stay small (see conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.browser.conftest import BEEN_HERE, Trained, Window, opened

expect = pytest.importorskip(
    "playwright.sync_api",
    reason="playwright is not installed, which drives the Chromium that CATDOG_CHROMIUM names: install the dev extra",
).expect
expect.set_options(timeout=30_000)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIZE = {"width": 1280, "height": 800}
LARGEST_BYTES = 150_000


@pytest.fixture
def wide_window(browser: Browser, ui: str, screenshots: Path) -> Iterator[Window]:
    with opened(browser, ui, screenshots, BEEN_HERE, viewport=SIZE) as window:
        yield window


def keep(window: Window, name: str, height: int) -> None:
    """Save a screenshot of the page's upper part in 128 colours."""
    page = window.page
    page.get_by_role("button", name="Toggle sidebar").click()
    page.get_by_role("button", name="MLflow Assistant").evaluate("button => { button.style.visibility = 'hidden' }")
    page.mouse.move(0, SIZE["height"] - 1)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function(
        "document.getAnimations().every("
        "one => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity)"
    )
    path = window.screenshots / f"{name}.png"
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": height})
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    assert path.stat().st_size < LARGEST_BYTES


def test_the_screenshot_of_the_runs(wide_window: Window, trained: Trained):
    page = wide_window.open(f"/experiments/{trained.experiment}/runs")
    page.get_by_role("button", name="Views").click()
    page.get_by_role("menuitem", name="Results").get_by_text("Results").click()
    expect(page.get_by_role("columnheader", name="test/accuracy").first).to_be_visible()
    expect(page.get_by_role("link", name=trained.runs[1].info.run_name, exact=True)).to_be_visible()
    keep(wide_window, "ui-runs", 430)


def test_the_screenshot_of_a_comparison(wide_window: Window, trained: Trained):
    page = wide_window.open(f"/experiments/{trained.experiment}/runs?compareRunsMode=CHART")
    page.get_by_role("searchbox", name="Search metric charts").fill("finetune/(train|val)_(loss|accuracy)")
    expect(page.get_by_role("heading", name="finetune/val_loss", exact=True)).to_be_visible()
    expect(page.locator(".scatterlayer path.js-line").nth(7)).to_be_attached()
    keep(wide_window, "ui-compare", 800)


def test_the_screenshot_of_artifacts(wide_window: Window, trained: Trained):
    page = wide_window.open_run(trained.runs[1], "/artifacts/images/worst_mistakes.png")
    image = page.get_by_role("img", name="images/worst_mistakes.png")
    expect(image).to_be_visible()
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    page.get_by_text("Path:").first.evaluate("path => { path.style.visibility = 'hidden' }")  # of the machine it is made on
    keep(wide_window, "ui-artifacts", 640)


def test_the_screenshot_of_a_version(wide_window: Window, trained: Trained):
    page = wide_window.open("/models/CatDogClassifier/versions/2")
    expect(page.get_by_role("status", name="production", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Description")).to_be_visible()
    keep(wide_window, "ui-version", 800)
