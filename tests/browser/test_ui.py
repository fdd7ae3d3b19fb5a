"""What a user finds who opens `mlflow ui` after two trainings and two promotions."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import RATES, Trained, Window

sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="playwright is not installed, which drives the Chromium that CATDOG_CHROMIUM names: install the dev extra",
)
expect = sync_api.expect
expect.set_options(timeout=30_000)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from playwright.sync_api import Locator, Page


def tag(page: Page, name: str, value: str | re.Pattern[str]) -> Locator:
    """The row of a version's tag."""
    named = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
    return named.filter(has=page.get_by_role("cell", name=value, exact=isinstance(value, str)))


def row_of(page: Page, run: Run) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=run.info.run_name, exact=True))


def assert_loaded(image: Locator) -> None:
    """An image that was fetched and decoded."""
    expect(image).to_be_visible()
    image.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())


def test_a_first_visit_leads_to_the_runs_in_three_clicks(first_window: Window, trained: Trained):
    page = first_window.open("/")
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="Experiments", exact=True).click()
    page.get_by_role("link", name="catdog", exact=True).click()
    for run in trained.runs:
        link = page.get_by_role("link", name=run.info.run_name, exact=True)
        expect(link).to_have_attribute("href", re.compile(run.info.run_id))
    first_window.screenshot("first-visit")


def test_the_experiment_list_says_what_the_experiment_is_about(window: Window):
    page = window.open("/experiments")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="catdog", exact=True))
    expect(row).to_contain_text("classifiers")
    window.screenshot("experiments")


def test_the_runs_table_tells_the_trainings_apart_and_shows_data_and_versions(window: Window, trained: Trained):
    assert trained.runs[0].info.run_name != trained.runs[1].info.run_name
    page = window.open(f"/experiments/{trained.experiment}/runs")
    for number, run in enumerate(trained.runs, 1):
        expect(page.get_by_role("link", name=run.info.run_name, exact=True)).to_be_visible()
        model = page.locator(f'a[href$="/models/CatDogClassifier/versions/{number}"]')
        expect(model).to_contain_text(f"v{number}")
    expect(page.get_by_role("button", name=re.compile("train.*[0-9a-f]{16}"))).to_have_count(2)
    window.screenshot("runs")


def test_promotions_stay_folded_under_their_trainings(window: Window, trained: Trained):
    page = window.open(f"/experiments/{trained.experiment}/runs")
    expect(page.get_by_role("link", name=trained.runs[0].info.run_name, exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("production"))).to_have_count(0)
    for run in trained.runs:
        row_of(page, run).locator("[col-id*='Run Name'] button").first.click()
    expect(page.get_by_role("link", name=re.compile("production"))).to_have_count(2)
    window.screenshot("promotions")


def test_the_view_of_results_has_the_columns_that_matter_best_first(window: Window, trained: Trained):
    page = window.open(f"/experiments/{trained.experiment}/runs")
    page.get_by_role("button", name="Views").click()
    page.get_by_role("menuitem", name="Results").get_by_text("Results").click()
    for column in ("test/accuracy", "test/log_loss", "finetune.learning_rate"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    names = page.get_by_role("link", name=re.compile("|".join(re.escape(run.info.run_name) for run in trained.runs)))
    expect(names).to_have_text([trained.runs[1].info.run_name, trained.runs[0].info.run_name])
    window.screenshot("results")


def test_a_run_shows_its_card_figures_data_and_version(window: Window, trained: Trained):
    run = trained.runs[1]
    page = window.open_run(run)
    expect(page.get_by_role("heading", name=run.info.run_name)).to_be_visible()
    expect(page.get_by_role("heading", name="cat / dog classifier")).to_be_visible()  # Markdown, rendered
    metrics = page.get_by_role("link", name="test/accuracy", exact=True)
    expect(metrics).to_be_visible()
    expect(page.get_by_text(f"{run.data.metrics['test/accuracy']:.4g}", exact=False).first).to_be_visible()
    rate = page.get_by_role("row").filter(has=page.get_by_text("learning_rate", exact=True))
    expect(rate.first).to_contain_text(RATES[1])
    expect(page.get_by_text(re.compile("train.*[0-9a-f]{16}")).first).to_be_visible()
    expect(page.locator('a[href$="/models/CatDogClassifier/versions/2"]').first).to_be_visible()
    expect(page.get_by_text(run.data.tags["data.digest"]).first).to_be_visible()
    window.screenshot("run")


@pytest.mark.parametrize("name", ["plots/confusion_matrix.png", "plots/curves_finetune.png", "images/worst_mistakes.png"])
def test_images_open_among_the_artifacts(window: Window, trained: Trained, name: str):
    page = window.open_run(trained.runs[1], "/artifacts")
    folder, file = name.split("/")
    page.get_by_text(folder, exact=True).click()
    page.get_by_text(file, exact=True).click()
    assert_loaded(page.get_by_role("img", name=name))
    window.screenshot(f"artifact-{file.removesuffix('.png')}")


def test_the_model_card_is_rendered_among_the_artifacts(window: Window, trained: Trained):
    page = window.open_run(trained.runs[1], "/artifacts")
    page.get_by_text("model_card.md", exact=True).click()
    expect(page.get_by_role("heading", name="cat / dog classifier")).to_be_visible()
    expect(page.get_by_role("heading", name="Data", exact=True)).to_be_visible()
    expect(page.get_by_role("cell", name="test", exact=True)).to_be_visible()  # a table, and not its Markdown
    window.screenshot("card")


def test_the_curves_of_a_training_are_drawn(window: Window, trained: Trained):
    page = window.open_run(trained.runs[1], "/model-metrics")
    for curve in ("train_loss", "val_loss", "val_accuracy"):
        expect(page.get_by_role("heading", name=curve, exact=True)).to_be_attached()
    expect(page.locator("svg path.js-line").first).to_be_attached()
    window.screenshot("metrics")


def test_two_learning_rates_are_compared_side_by_side(window: Window, trained: Trained):
    page = window.open(f"/experiments/{trained.experiment}/runs")
    for run in trained.runs:
        row_of(page, run).get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name=re.compile("Comparing 2 Runs"))).to_be_visible()
    page.set_viewport_size({"width": 1400, "height": 4000})  # rows out of sight aren't there
    expect(page.locator("svg.main-svg").first).to_be_visible()  # parallel coordinates
    for run in trained.runs:
        expect(page.locator(f'a[href$="{run.info.run_id}"]').first).to_be_visible()
        expect(page.get_by_role("cell", name=run.info.run_name, exact=True)).to_be_attached()
    order = [
        run for link in page.get_by_role("rowheader").get_by_role("link").all() for run in trained.runs if link_to(link, run)
    ]
    assert beside(page, "learning_rate") == [float(run.data.params["learning_rate"]) for run in order]
    expect(page.get_by_role("link", name="test/accuracy", exact=True)).to_be_attached()
    for run in trained.runs:
        # 0.6625 is 0.662 in Python and 0.663 in JavaScript.
        accuracy = run.data.metrics["test/accuracy"]
        rounded = (f"{round(accuracy, 3):g}", f"{math.floor(1000 * accuracy + 0.5) / 1000:g}")
        expect(page.get_by_text(re.compile(rf"^({'|'.join(map(re.escape, rounded))})$")).first).to_be_attached()
    window.screenshot("compare")


def link_to(link: Locator, run: Run) -> bool:
    return (link.get_attribute("href") or "").endswith(run.info.run_id)


def beside(page: Page, name: str) -> list[float]:
    """The values of two runs in one row of the comparison."""
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))
    expect(row).to_be_attached()
    return [float(text) for text in row.get_by_role("cell").all_inner_texts()]


def test_the_curves_of_both_runs_lie_in_one_chart(window: Window, trained: Trained):
    page = window.open(f"/experiments/{trained.experiment}/runs?compareRunsMode=CHART")
    page.get_by_role("searchbox", name="Search metric charts").fill("finetune/val_loss")
    expect(page.get_by_role("heading", name="finetune/val_loss", exact=True)).to_be_visible()
    expect(page.locator(".scatterlayer path.js-line").nth(1)).to_be_attached()
    for run in trained.runs:
        expect(page.get_by_text(re.compile(rf"^{re.escape(run.info.run_name)}.*val_loss"))).to_be_attached()
    window.screenshot("curves")


def test_the_registry_lists_the_model_with_its_aliases(window: Window):
    page = window.open("/models")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="CatDogClassifier"))
    expect(row).to_contain_text(re.compile(r"@\sproduction\s*:\s*Version 2"))
    row.get_by_role("button", name="+1").click()
    expect(page.get_by_text(re.compile(r"@\sarchived")).first).to_be_visible()
    window.screenshot("models")


def test_the_registered_model_says_what_it_is_and_lists_its_versions(window: Window):
    page = window.open("/models/CatDogClassifier")
    expect(page.get_by_role("heading", name="CatDogClassifier")).to_be_visible()
    for version, alias in (("1", "archived"), ("2", "production")):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=f"Version {version}"))
        expect(row.get_by_role("status", name=alias, exact=True)).to_contain_text(f"@ {alias}")
        expect(row.get_by_role("status", name="stage", exact=True)).to_contain_text(alias)
        expect(row.get_by_role("status", name="author", exact=True)).to_be_visible()
    window.screenshot("model")
    description = page.get_by_role("button", name="Description")
    if description.get_attribute("aria-expanded") != "true":
        description.click()
    expect(page.get_by_text(re.compile("tells|classif", re.IGNORECASE)).first).to_be_visible()


@pytest.mark.parametrize(("version", "stage"), [("2", "production"), ("1", "archived")])
def test_a_version_shows_alias_tags_description_and_where_it_comes_from(
    window: Window, trained: Trained, version: str, stage: str
):
    run = trained.runs[int(version) - 1]
    page = window.open(f"/models/CatDogClassifier/versions/{version}")
    expect(page.get_by_role("status", name=stage, exact=True)).to_contain_text(f"@ {stage}")
    expect(page.locator(f'a[href$="/runs/{run.info.run_id}"]').first).to_have_text(run.info.run_name)
    expect(page.get_by_role("main")).to_contain_text(re.compile(rf"accuracy {run.data.metrics['test/accuracy']:.4f}"))
    expect(tag(page, "stage", stage)).to_be_visible()
    expect(tag(page, "test/accuracy", f"{run.data.metrics['test/accuracy']:.4f}")).to_be_attached()
    expect(tag(page, "data.digest", run.data.tags["data.digest"])).to_be_attached()
    expect(tag(page, "author", re.compile(r"\w"))).to_be_attached()
    window.screenshot(f"version-{version}")
