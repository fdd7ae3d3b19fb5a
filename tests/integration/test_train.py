"""`train` as a function: with and without a run of its own, reproducible, resumable, and with errors that leave no model."""

from __future__ import annotations

import doctest
import inspect
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import timm
import torch
from mlflow.entities import Run

from catdog_pyfunc import flavor
from catdog_pyfunc.errors import CatDogError, InvalidData, InvalidSetting, InvalidWeights
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.evaluation.reference import read_reference
from catdog_pyfunc.pipeline.training import config as config_module
from catdog_pyfunc.pipeline.training.backbones import load_backbone
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.fit import FitResult, fit
from catdog_pyfunc.pipeline.training.train import train
from tests.project import MODEL, Project, make_project

SMALL = {"image_size": 64, "batch_size": 16}
SCRATCH = TrainingConfig(weights="none", backbone="shufflenet_v2_x0_5", image_size=32, finetune_epochs=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def client(store: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mlflow.set_tracking_uri(store.tracking_uri)
    yield store.client()
    mlflow.set_tracking_uri(None)


def runs(client: mlflow.MlflowClient) -> dict[str, Run]:
    found = client.search_runs([client.get_experiment_by_name("catdog").experiment_id])
    return {run.info.run_id: run for run in found}


def fit_in_a_run(config: TrainingConfig, data: Path) -> tuple[FitResult, dict[str, torch.Tensor]]:
    dataset = read_folder(data)
    backbone = load_backbone(config.backbone, config.weights, len(dataset.classes), config.seed, config.image_size)
    with mlflow.start_run():
        return fit(config.resolved(), dataset, backbone), backbone.network.state_dict()


def test_the_examples_of_the_documentation_run(
    drawn: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: mlflow.MlflowClient
):
    shutil.copytree(drawn, tmp_path / "photos")
    shutil.copy(weights, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    for documented in (train, config_module.TrainingConfig):
        name, text = documented.__name__, inspect.getdoc(documented)
        example = doctest.DocTestParser().get_doctest(text or "", {**vars(config_module)}, name, None, None)
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0
    (run,) = runs(client).values()  # of its own, as none was active
    assert (run.info.status, run.info.run_name) == ("FINISHED", "head · mobilenet_v2 · photos")
    assert run.data.params["seed"] == "0"
    assert run.data.params["preprocess.interpolation"] == "bilinear"
    version = client.get_model_version(MODEL, "1")
    assert version.run_id == run.info.run_id
    card = Path(client.download_artifacts(run.info.run_id, "model_card.md", str(tmp_path))).read_text()
    assert f"**Test accuracy {run.data.metrics['test/accuracy']:.4f}" in card
    assert all(f"\n## {part}\n" in card for part in ("Data", "Evaluation", "Limitations", "Usage", "Training"))
    description = flavor.load_model(f"models:/{MODEL}/1").description
    assert description.provenance["data_digest"] == run.data.tags["data.digest"]
    reference = read_reference(f"models:/{MODEL}/1")
    files = sorted((tmp_path / "photos" / "test").glob("*/*.jpg"))
    predictions = flavor.load_model(f"models:/{MODEL}/1").predict([file.read_bytes() for file in files])
    assert reference["image_bytes"].to_pylist() == [file.stat().st_size for file in files]
    assert reference["label"].to_pylist() == [prediction.label for prediction in predictions]
    assert reference["domain_score"].to_pylist() == pytest.approx([p.domain_score for p in predictions], abs=1e-4)


def test_in_an_active_run_training_uses_that_run_and_its_name(drawn: Path, weights: Path, client: mlflow.MlflowClient):
    config = TrainingConfig(data=str(drawn), weights=str(weights), registered_model="none", **SMALL)  # type: ignore[arg-type]
    mlflow.set_experiment("catdog")
    with mlflow.start_run(run_name="resnet-lr-3") as active:
        result = train(config)
        assert client.get_run(active.info.run_id).info.status == "RUNNING"
    assert (result.run_id, result.version) == (active.info.run_id, None)
    assert client.get_run(active.info.run_id).info.run_name == "resnet-lr-3"


def test_a_backbone_of_timms_is_trained_and_served(drawn: Path, tmp_path: Path, client: mlflow.MlflowClient):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    config = TrainingConfig(
        data=str(drawn),
        weights=str(tmp_path / "w.pth"),
        backbone="timm/test_vit",
        finetune_epochs=1,
        registered_model="none",
    )
    result = train(replace(config, **SMALL))  # type: ignore[arg-type]
    run = client.get_run(result.run_id)
    assert run.info.run_name == f"lr 0.0001 × 1 · timm/test_vit · {drawn.name}"
    assert (run.data.params["backbone"], run.data.params["preprocess.interpolation"]) == ("timm/test_vit", "bicubic")
    image = next(drawn.glob("test/*/*.jpg")).read_bytes()
    (prediction,) = flavor.load_model(result.model_uri).predict([image], explain=True)
    assert prediction.label in result.evaluation.classes
    assert prediction.heatmap is None  # of a class token


def test_the_same_seed_gives_the_same_model_and_another_seed_another(drawn: Path):
    config = replace(SCRATCH, finetune_epochs=1)
    (one, weights), (again, same), (_, other) = (fit_in_a_run(replace(config, seed=seed), drawn) for seed in (0, 0, 1))
    assert all(torch.allclose(weights[name], same[name], atol=1e-5) for name in weights)
    assert one.temperature == pytest.approx(again.temperature, rel=1e-3)
    assert one.ood_threshold == pytest.approx(again.ood_threshold, rel=1e-3)
    assert not torch.allclose(weights["features.conv1.0.weight"], other["features.conv1.0.weight"], atol=1e-3)


def test_interrupted_trainings_with_different_learning_rates_each_resume_their_own(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
):
    class CutOff(Exception):
        """Unlike a KeyboardInterrupt that comes too often, it fails a test and not all tests."""

    configs = [replace(SCRATCH, learning_rate=rate) for rate in (1e-3, 3e-4)]
    epochs: list[int] = []

    def log_metrics(metrics: dict[str, float], step: int) -> None:
        epochs.append(step)
        if epochs[-2:] == [1, 2]:
            raise CutOff

    monkeypatch.setattr(mlflow, "log_metrics", log_metrics)
    for config in configs:
        with pytest.raises(CutOff):
            fit_in_a_run(config, drawn)
    for config in configs:
        epochs.clear()
        fit_in_a_run(replace(config, resume=True), drawn)
        assert epochs == [3]


def corrupt_everything(root: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("cat", "dog"):
            for number in range(3):
                file = root / split / label / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"\xff\xd8\xff corrupt " + f"{split}{label}{number}".encode())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": "/no/such/folder"}, InvalidData, "data folder /no/such/folder does not exist"),
        ({"data": "{one_class}"}, InvalidData, r"training images of 1 class \(cat\); at least 2"),
        ({"data": "{empty}"}, InvalidData, "has no readable images"),
        ({"data": "{corrupt}"}, InvalidData, "has no readable images"),
        ({"backbone": "resnet19"}, InvalidSetting, "backbone 'resnet19' is not in torchvision.models"),
        ({"backbone": "resnet18"}, InvalidWeights, "belong to another network"),
        ({"weights": "/no/such.pth"}, InvalidWeights, "weights /no/such.pth is not a file"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_half_done(
    given: dict[str, str],
    error: type[CatDogError],
    message: str,
    drawn: Path,
    weights: Path,
    tmp_path: Path,
    client: mlflow.MlflowClient,
):
    folders = {name: tmp_path / name for name in ("one_class", "empty", "corrupt")}
    shutil.copytree(drawn / "train" / "cat", folders["one_class"] / "cat")
    folders["empty"].mkdir()
    corrupt_everything(folders["corrupt"])
    before, versions = runs(client), len(client.search_model_versions())
    parameters = {
        "data": str(drawn),
        "weights": str(weights),
        **{key: text.format(**folders) for key, text in given.items()},
    }
    with pytest.raises(error, match=message):
        train(TrainingConfig(**parameters, **SMALL))  # type: ignore[arg-type]
    (new,) = (run for run_id, run in runs(client).items() if run_id not in before)
    assert new.info.status == "FAILED"
    assert not (new.outputs and new.outputs.model_outputs)
    assert len(client.search_model_versions()) == versions
