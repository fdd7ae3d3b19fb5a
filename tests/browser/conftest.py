"""MLflow's own UI, and a deployment's page, in headless Chromium, over two trainings that differ in their learning rate.

CATDOG_CHROMIUM names the Chromium binary (Debian's is /usr/bin/chromium); without it these tests skip.
CATDOG_SCREENSHOTS names a folder for what the tests saw; without it pytest's own temporary folder takes it.
The screenshots in docs/ are made by

    CATDOG_CHROMIUM=/usr/bin/chromium CATDOG_SCREENSHOTS=docs python -m pytest tests/browser/test_screenshots.py
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow.entities import Run
from PIL import Image, ImageDraw

from tests.project import Project, free_port, make_project, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

PATIENCE_MS = 30_000  # for whatever must appear
RATES = ("0.0001", "0.001")  # the second learns faster, and comes out better
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES: dict[str, dict[str, object]] = {
    "wide": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}
# What the browser of somebody who has been here before keeps: the view for trained models, greetings closed.
BEEN_HERE = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}


@dataclass(frozen=True)
class Trained:
    """The project, and its two training runs, in the order of `RATES`: versions 1 and 2."""

    project: Project
    runs: tuple[Run, Run]

    @property
    def experiment(self) -> str:
        return str(self.runs[0].info.experiment_id)


@dataclass
class Window:
    """A page of the UI."""

    page: Page
    address: str
    screenshots: Path

    def open(self, route: str) -> Page:
        self.page.goto(f"{self.address}/#{route}")
        return self.page

    def open_run(self, run: Run, tab: str = "") -> Page:
        return self.open(f"/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab}")

    def screenshot(self, name: str) -> Path:
        path = self.screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@pytest.fixture(scope="session")
def chromium() -> str:
    binary = os.environ.get("CATDOG_CHROMIUM")
    if not binary:
        pytest.skip("CATDOG_CHROMIUM is not set: it names a Chromium binary for the tests of the UI")
    return binary


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("CATDOG_SCREENSHOTS")
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train_twice(folder: Path) -> Project:
    """Version 1 was in production until version 2 took its place."""
    from catdog_pyfunc.pipeline.data import synthetic

    project = make_project(folder)
    photos = synthetic.make(folder / "drawn", {"train": 150, "val": 40, "test": 40}).rename(folder / "pets")
    training = {"data": photos, "weights": "none", "backbone": "resnet18", "image_size": 64, "finetune_epochs": 4}
    # What is at stake is what the UI shows, and not how a busy machine does.
    gate = {"min_accuracy": 0.5, "latency_allowed_ms": 10_000, "recall_margin": 1, "calibration_margin": 1}
    for rate in RATES:
        run(project, **training, learning_rate=rate)
    run(project, "-e", "promote", **gate, version=1, reason="the first one")
    run(project, "-e", "promote", **gate, version=2, reason="learned faster")
    return project


def run(project: Project, *words: str, **parameters: object) -> None:
    given = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
    done = project.run(*words, *given)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def trained(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = train_twice(tmp_path_factory.mktemp("compared"))
    client = project.client()
    versions = [client.get_model_version("CatDogClassifier", number) for number in ("1", "2")]
    first, second = (client.get_run(version.run_id) for version in versions)
    assert (first.data.params["learning_rate"], second.data.params["learning_rate"]) == RATES
    return Trained(project, (first, second))


@pytest.fixture(scope="session")
def ui(trained: Trained) -> Iterator[str]:
    """The address of `mlflow ui`."""
    project, port = trained.project, free_port()
    command = ["mlflow", "ui", "--backend-store-uri", project.tracking_uri, "--port", str(port), "--workers", "1"]
    with running(
        command, f"http://127.0.0.1:{port}/health", project.folder / "ui.log", cwd=project.folder, env=project.environment
    ):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def served(trained: Trained, *options: str) -> Iterator[str]:
    """The address of `run-local` with the model in production."""
    project, port = trained.project, free_port()
    given = [word for option in (f"port={port}", "workers=1", *options) for word in ("-C", option)]
    command = ["mlflow", "deployments", "run-local", "-t", "catdog", "--name", "here", "-m"]
    command += ["models:/CatDogClassifier@production", *given]
    log = project.folder / f"run-local-{port}.log"
    with running(command, f"http://127.0.0.1:{port}/ping", log, cwd=project.folder, env=project.environment):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def server(trained: Trained) -> Iterator[str]:
    """The address of a server without a key."""
    with served(trained) as address:
        yield address


def images_of(trained: Trained, number: int) -> list[Path]:
    """Drawn images that the model has not seen: a cat, a dog, a cat …"""
    by_label = [sorted((trained.project.folder / "pets" / "test" / label).iterdir()) for label in ("cat", "dog")]
    return [by_label[index % 2][index // 2] for index in range(number)]


def target() -> bytes:
    """Rings, which are unlike all that the model was trained on."""
    image = Image.new("RGB", (160, 160), "white")
    for radius in range(75, 0, -15):
        circle = (80 - radius, 80 - radius, 80 + radius, 80 + radius)
        ImageDraw.Draw(image).ellipse(circle, fill="black" if radius % 30 else "white")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium; ended with this package, as playwright keeps an event loop running while it lives."""
    reason = "playwright is not installed, which drives the Chromium that CATDOG_CHROMIUM names: install the dev extra"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, screenshots: Path, kept: dict[str, str], **options: object) -> Iterator[Window]:
    """A window with a profile of its own, which reaches nothing but 127.0.0.1."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script("".join(f"localStorage.setItem({key!r}, {value!r});" for key, value in kept.items()))
    page = context.new_page()

    def only_here(route: Route) -> None:
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            route.abort()

    page.route("**/*", only_here)
    try:
        yield Window(page, address, screenshots)
    finally:
        context.close()


@pytest.fixture
def window(browser: Browser, ui: str, screenshots: Path) -> Iterator[Window]:
    with opened(browser, ui, screenshots, BEEN_HERE) as window:
        yield window


@pytest.fixture
def first_window(browser: Browser, ui: str, screenshots: Path) -> Iterator[Window]:
    """Of somebody who opens the UI for the first time."""
    with opened(browser, ui, screenshots, {}) as window:
        yield window
