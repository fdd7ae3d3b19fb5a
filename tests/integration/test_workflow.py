"""The commands of MLproject: what they leave in MLflow, what their errors say, and how an interrupted one ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image

from catdog_pyfunc.errors import CatDogError, InvalidSetting, RegistryError
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.registry.gate import Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote
from tests.project import MODEL, REPOSITORY, Project, make_project


def runs(project: Project) -> list[Run]:
    client = project.client()
    return list(client.search_runs([client.get_experiment_by_name("catdog").experiment_id]))


def training_run(project: Project) -> Run:
    version = project.client().get_model_version_by_alias(MODEL, "production")
    return project.client().get_run(version.run_id)


def artifacts(project: Project, run: Run, folder: str | None = None) -> set[str]:
    return {entry.path for entry in project.client().list_artifacts(run.info.run_id, folder)}


def test_a_run_says_what_made_the_result(project: Project, drawn: Path, weights: Path):
    run = training_run(project)
    params = run.data.params
    assert run.info.status == "FINISHED"
    assert params["data"] == str(drawn)
    assert params["seed"] == "1"
    assert params["weights.used"] == weights.name
    assert {"weights.digest", "data.digest", "head.weight_decay", "preprocess.size", "system.torch", "system.cores"} <= set(
        params
    )
    assert run.data.tags["mlflow.source.type"] == "PROJECT"


def test_metrics_come_per_step_and_final(project: Project):
    run = training_run(project)
    metrics = run.data.metrics
    assert 0 <= metrics["test/accuracy_low"] <= metrics["test/accuracy"] <= metrics["test/accuracy_high"] <= 1
    assert {"test/log_loss", "test/calibration_error", "test/accepted", "test/recall_cat", "test/recall_dog"} <= set(metrics)
    history = project.client().get_metric_history(run.info.run_id, "head/val_loss")
    assert [metric.step for metric in history] == list(range(1, len(history) + 1))
    assert len(history) >= 4


def test_the_splits_are_inputs_with_digest_and_class_counts(project: Project):
    inputs = {entry.tags[0].value: entry.dataset for entry in training_run(project).inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation", "testing"}
    assert '"classes": {"cat": 30, "dog": 30}' in inputs["training"].profile
    assert len({dataset.digest for dataset in inputs.values()}) == 3


def test_plots_images_and_card_are_artifacts(project: Project):
    run = training_run(project)
    assert artifacts(project, run, "plots") == {
        f"plots/{name}.png"
        for name in ("confidence", "confusion_matrix", "curves_head", "regularisation", "reliability", "roc")
    }
    assert artifacts(project, run, "images") == {"images/least_confident.png", "images/worst_mistakes.png"}
    assert artifacts(project, run, "tables") == {"tables/metrics.csv"}
    assert "model_card.md" in artifacts(project, run)


def test_the_registered_version_can_be_judged_by_its_page(project: Project):
    version = project.client().get_model_version_by_alias(MODEL, "production")
    assert version.version in (2, "2")
    assert "test accuracy" in version.description
    assert "[model card](#/experiments/" in version.description
    assert "promoted to production" in version.description
    assert "Classifies images as one of: cat, dog" in project.client().get_registered_model(MODEL).description
    assert {"stage", "author", "data.digest", "test/accuracy", "test/log_loss"} <= set(version.tags)


def test_the_model_holds_its_card(project: Project):
    version = project.client().get_model_version_by_alias(MODEL, "production")
    path = project.client().download_artifacts(version.run_id, "model_card.md", str(project.folder))
    card = Path(path).read_text()
    assert version.run_id in card
    assert "95 % interval" in card
    assert "curl" in card


@pytest.mark.slow
def test_registering_again_makes_no_second_version(project: Project):
    run_id = training_run(project).info.run_id
    done = project.run("-e", "register", "-P", f"run_id={run_id}")
    assert done.returncode == 0, done.stderr
    assert f"models:/{MODEL}/2" in done.stdout
    assert len(project.client().search_model_versions(f"name='{MODEL}'")) == 2


def test_plain_mlflow_register_model_works(project: Project):
    code = (
        f"import mlflow; print(mlflow.register_model('runs:/{training_run(project).info.run_id}/model', 'Another').version)"
    )
    done = project.command("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("1")


@pytest.mark.slow
def test_promoted_to_staging_rolled_back_and_told(project: Project):
    lenient = ("-P", "min_accuracy=0", "-P", "latency_allowed_ms=60000", "-P", "recall_margin=1", "-P", "alpha=0")
    lenient += ("-P", "log_loss_margin=9", "-P", "calibration_margin=1", "-P", "alias=staging", "-P", "reason=to look at it")
    for version in ("1", "2"):
        done = project.run("-e", "promote", "-P", f"version={version}", *lenient)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^check +challenger +champion +required +verdict$", done.stdout, re.MULTILINE), done.stdout
        assert str(project.client().get_model_version_by_alias(MODEL, "staging").version) == version
    done = project.run("-e", "rollback", "-P", "alias=staging", "-P", "reason=seen enough")
    assert done.returncode == 0, done.stderr
    assert f"models:/{MODEL}@staging is version 1 again (it was 2)" in done.stdout
    done = project.run("-e", "history")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " staging " in line]
    assert [("rolled back" in line, "seen enough" in line) for line in lines] == [(False, False)] * 2 + [(True, True)]


@pytest.mark.slow
def test_evaluate_writes_a_run_of_its_own(project: Project, drawn: Path):
    done = project.run("-e", "evaluate", "-P", f"data={drawn}")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    (run,) = (run for run in runs(project) if run.info.run_name == f"evaluate v2 on {drawn.name}")
    assert run.data.tags["mlflow.parentRunId"] == training_run(project).info.run_id
    trained = training_run(project)
    for name in ("accuracy", "log_loss", "auroc"):
        assert run.data.metrics[f"test/{name}"] == pytest.approx(trained.data.metrics[f"test/{name}"], abs=1e-6)
    assert "plots/confusion_matrix.png" in artifacts(project, run, "plots")
    assert (run.data.tags["model.name"], run.data.tags["model.version"]) == (MODEL, "2")
    assert {"model.uri", "bundle.digest", "data.digest"} <= set(run.data.tags)
    (linked,) = project.client().get_run(run.info.run_id).inputs.model_inputs  # a search leaves them out
    assert linked.model_id == trained.outputs.model_outputs[0].model_id
    figures = [m for m in project.client().get_logged_model(linked.model_id).metrics if m.run_id == run.info.run_id]
    assert {(m.dataset_name, m.dataset_digest) for m in figures} == {(f"{drawn.name}/test", run.data.tags["data.digest"])}


@pytest.mark.slow
def test_any_labelled_folder_can_be_evaluated_on(project: Project, drawn: Path, tmp_path: Path):
    shutil.copytree(drawn / "test", tmp_path / "only_test" / "test")
    shutil.copytree(drawn / "test" / "cat", tmp_path / "few" / "cat")
    for data, split, n in (("only_test", "test", 24), ("few", "all", 12)):
        done = project.run("-e", "evaluate", "-P", f"data={tmp_path / data}", "-P", f"split={split}")
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{split} accuracy .* n = {n}\)$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
def test_training_can_leave_the_registry_alone_and_fine_tune(project: Project, drawn: Path, weights: Path):
    done = project.run(
        *("-P", f"data={drawn}", "-P", f"weights={weights}", "-P", "registered_model=none", "-P", "image_size=64"),
        *("-P", "finetune_epochs=2", "-P", "horizontal_flip=true"),
    )
    assert done.returncode == 0, done.stderr
    run_id = re.search(r"runs:/(\w+)/model", done.stdout)[1]  # type: ignore[index]
    assert not project.client().search_model_versions(f"run_id='{run_id}'")
    assert len(project.client().get_metric_history(run_id, "finetune/val_loss")) == 2
    assert "plots/curves_finetune.png" in artifacts(project, project.client().get_run(run_id), "plots")


@pytest.mark.slow
def test_corrupt_and_leaking_images_are_named_and_do_not_stop_the_run(
    project: Project, drawn: Path, weights: Path, tmp_path: Path
):
    photos = tmp_path / "photos"
    shutil.copytree(drawn, photos)
    (photos / "train" / "cat" / "cut.jpg").write_bytes((drawn / "val" / "cat" / "cat-0000.jpg").read_bytes()[:700])
    (photos / "test" / "dog" / "text.png").write_text("no image")
    shutil.copy(drawn / "test" / "cat" / "cat-0000.jpg", photos / "train" / "cat" / "leak.jpg")
    (photos / "train" / "empty").mkdir()
    Image.open(drawn / "test" / "dog" / "dog-0000.jpg").save(photos / "train" / "dog" / "copy.jpg", quality=50)
    done = project.run(
        "-P", f"data={photos}", "-P", f"weights={weights}", "-P", "registered_model=none", "-P", "image_size=96"
    )
    assert done.returncode == 0, done.stderr
    run_id = re.search(r"runs:/(\w+)/model", done.stdout)[1]  # type: ignore[index]
    named = Path(project.client().download_artifacts(run_id, "data/problems.txt", str(tmp_path))).read_text()
    assert all(part in named for part in ("cut.jpg", "text.png", "leak.jpg", "'empty'"))
    # Besides the copy there may be drawn cats that look the same.
    (line,) = re.findall(
        r"^\d+ of 48 images in val and test are near-duplicates of .*: see `catdog audit`$", done.stderr, re.M
    )
    card = Path(project.client().download_artifacts(run_id, "model_card.md", str(tmp_path))).read_text()
    assert f"\n{line.partition(', such as')[0]}.\n" in card
    assert project.client().get_run(run_id).data.metrics["data/near_duplicates"] == int(line.split()[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-P", "finetune_epochs=0"], "finetune_epochs is 0 and weights are 'none' (the default for the sample)"),
        pytest.param(
            *(["-e", "evaluate", "-P", "model_uri=models:/Nobody@production"], "models:/Nobody@production"),
            marks=pytest.mark.slow,
        ),
        pytest.param(["-e", "predict", "-P", "image=/no/such.jpg"], "/no/such.jpg", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_a_message_and_a_failed_run(words: list[str], message: str, project: Project):
    before = {run.info.run_id for run in runs(project)}
    done = project.run(*words)
    assert done.returncode != 0
    assert re.search(rf"^Error: .*{re.escape(message)}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in runs(project) if run.info.run_id not in before] == ["FAILED"]


@pytest.mark.slow
def test_a_run_keeps_the_name_that_its_user_gave(project: Project):
    project.run("--run-name", "resnet-lr-3", "-P", "data=/no/such/folder")
    (run,) = (run for run in runs(project) if run.data.params.get("data") == "/no/such/folder")
    assert run.info.run_name == "resnet-lr-3"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: versions.register("0123456789abcdef0123456789abcdef"), RegistryError, "run '0123456789abcdef"),
        (lambda: promote(Promotion("99"), Thresholds()), RegistryError, "no version '99'"),
        (lambda: promote(Promotion("two"), Thresholds()), RegistryError, "no version 'two'"),
        (lambda: promote(Promotion("1", name="Nobody"), Thresholds()), RegistryError, "'Nobody'"),
        (lambda: promote(Promotion("1", alias="latest"), Thresholds()), InvalidSetting, "alias 'latest' is not allowed"),
    ],
)
def test_unknown_runs_versions_and_models_are_named(
    call: Callable[[], object], error: type[CatDogError], message: str, project: Project
):
    before = {run.info.run_id for run in runs(project)}
    mlflow.set_tracking_uri(project.tracking_uri)
    try:
        with pytest.raises(error, match=message), tracking.run():
            call()
    finally:
        mlflow.set_tracking_uri(None)
    assert [run.info.status for run in runs(project) if run.info.run_id not in before] == ["FAILED"]
    assert str(project.client().get_model_version_by_alias(MODEL, "production").version) == "2"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_run_is_killed_never_running(number: int, to_all: bool, drawn: Path, tmp_path: Path):
    """Ctrl-C reaches every process of the terminal; a SIGTERM only the one it is sent to."""
    project = make_project(tmp_path / "project")
    command = ["python", "-m", "scripts.train", "--data", str(drawn), "--weights", "none", "--finetune-epochs", "500"]
    if to_all:
        command = ["mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "catdog"]
        command += ["-P", f"data={drawn}", "-P", "weights=none", "-P", "finetune_epochs=500", "-P", "image_size=64"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=dict(project.environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "epoch 1/500: val" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        if to_all:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(timeout=60) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (statuses := [run.info.status for run in runs(project)]) != ["KILLED"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert statuses == ["KILLED"], (tmp_path / "log").read_text()[-2000:]
