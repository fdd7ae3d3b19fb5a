"""The screenshots in docs/: how they are made, and that they stay small (see conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.browser.conftest import BEEN_HERE, Trained, Window, images_of, opened, target

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
    """Save a screenshot of the upper part of MLflow's UI."""
    page = window.page
    page.get_by_role("button", name="Toggle sidebar").click()
    page.get_by_role("button", name="MLflow Assistant").evaluate("button => { button.style.visibility = 'hidden' }")
    save(window, name, height)


def save(window: Window, name: str, height: int) -> None:
    """Save a screenshot of the page's upper part in 128 colours."""
    page = window.page
    page.mouse.move(0, SIZE["height"] - 1)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function(
        "() => document.getAnimations().every("
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


def test_the_screenshot_of_a_deployments_page(browser: Browser, server: str, screenshots: Path, trained: Trained):
    with opened(browser, server, screenshots, {}, viewport=SIZE) as window:
        page = window.page
        page.goto(server)
        files = [(file.name, file.read_bytes()) for file in images_of(trained, 2)]
        files += [("target.png", target()), ("broken.jpg", b"this is no image")]
        payloads = [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name, content in files]
        page.get_by_label("Choose images").set_input_files(payloads)  # type: ignore[arg-type]
        expect(page.get_by_role("status")).to_have_text("4 of 4 done")
        page.get_by_role("switch").check()
        expect(page.get_by_role("img", name="Heat map")).to_have_count(3)
        expect(page.get_by_role("status")).to_have_text("3 of 3 done")
        save(window, "ui-page", 800)
