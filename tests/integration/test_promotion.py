"""Promotions on a real store: runs, pages and the audit log; models in memory, and a few in processes of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, ModelFailed, PromotionLost, PromotionRefused, RegistryError
from catdog_pyfunc.pipeline.data.catalog import load_dataset
from catdog_pyfunc.pipeline.registry import gate, reconcile, versions
from catdog_pyfunc.pipeline.registry.audit_log import Entry, SequenceConflict, open_audit_log
from catdog_pyfunc.pipeline.registry.gate import GateReport, Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote

PATIENT = Thresholds(latency_allowed_ms=60_000)
NAMES = ["it's", 'it\'s 50% "cats_"']
Answer = Callable[[bytes], Prediction]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    """One SQLite store for all tests here, each of which has a registered model of its own."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    client.create_experiment("catdog", artifact_location=(folder / "artifacts").as_uri())
    yield client
    mlflow.set_tracking_uri(None)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def labels(drawn: Path) -> dict[bytes, str]:
    """Image → class: 12 cats and 12 dogs."""
    return {image.read_bytes(): image.parent.name for image in sorted(drawn.glob("test/*/*.jpg"))}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """URI → what the model there answers; loaded in this process."""
    answers: dict[str, Answer] = {}

    @contextlib.contextmanager
    def load(uri: str, *, pickle: bool = False) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(predict=lambda images, explain: [answers[uri](image) for image in images])

    monkeypatch.setattr(gate, "subprocess_model", load)
    return answers


@pytest.fixture
def register(
    store: mlflow.MlflowClient, name: str, labels: dict[bytes, str], models: dict[str, Answer]
) -> Callable[..., str]:
    """Register a version that mistakes so many cats for dogs."""

    def make(mistakes: int = 0, name: str = name, failure: str = "") -> str:
        mistaken = [image for image, label in labels.items() if label == "cat"][:mistakes]

        def answer(image: bytes) -> Prediction:
            if failure:
                raise ModelFailed(failure)
            if image not in labels:
                return Prediction(error="corrupt")
            label = "dog" if image in mistaken else labels[image]
            return Prediction(label, 0.9, {"cat": 0.1, "dog": 0.1} | {label: 0.9})

        with contextlib.suppress(mlflow.exceptions.MlflowException):
            store.create_registered_model(name)
        run = store.create_run(store.get_experiment_by_name("catdog").experiment_id)
        store.update_run(run.info.run_id, status="FINISHED")
        version = str(store.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id).version)
        models[f"models:/{name}/{version}"] = answer
        return version

    return make


@pytest.fixture
def promoted(drawn: Path, name: str) -> Callable[..., GateReport | None]:
    def call(version: str, thresholds: Thresholds = PATIENT, **options: Any) -> GateReport | None:
        return promote(Promotion(version, **{"name": name, "data": str(drawn), **options}), thresholds)

    return call


def aliases(store: mlflow.MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in store.get_registered_model(name).aliases.items()}


def last_run(store: mlflow.MlflowClient) -> mlflow.entities.Run:
    return store.search_runs([store.get_experiment_by_name("catdog").experiment_id], max_results=1)[0]


def test_a_better_version_gets_the_alias_and_the_one_it_replaces_is_archived(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], drawn: Path, tmp_path: Path
):
    shown: list[list[str]] = []
    for mistakes in (2, 1):
        promotion = Promotion(register(mistakes), name=name, data=str(drawn), reason="better food")
        report = promote(promotion, PATIENT, show=shown.extend)
        assert report is not None
        assert not report.failed
    assert ["accuracy", "0.9583", "", "≥ 0.8000", "ok"] in shown
    assert aliases(store, name) == {"production": "2", "archived": "1"}
    version = store.get_model_version(name, "2")
    assert version.tags["stage"] == "production"
    assert version.tags["stage.reason"] == "better food"
    assert "**production** · promoted to production" in version.description
    assert "accuracy 0.9583 (champion 0.9167)" in version.description
    assert "better food" in store.get_registered_model(name).description
    (first, second) = reconcile.history(name)
    assert (second.action, second.version, second.previous, second.reason) == ("promoted", "2", "1", "better food")
    assert (second.metrics["accuracy"], second.metrics["champion_accuracy"]) == (0.958333, 0.916667)
    assert set(first.metrics) == {"accuracy", "log_loss", "calibration_error"}
    run = last_run(store)
    assert (run.info.run_name, run.info.status, run.info.run_id) == ("v2 → production", "FINISHED", second.run_id)
    assert run.data.tags["mlflow.parentRunId"] == version.run_id
    assert run.data.tags["verdict"] == "promoted"
    assert run.data.tags["data.digest"] == second.data_digest == load_dataset(str(drawn), "test").digest("test")
    assert {key: run.data.tags[f"model.{key}"] for key in ("name", "version", "champion")} == {
        "name": name,
        "version": "2",
        "champion": "1",
    }
    assert run.data.params["alpha"] == "0.05"
    assert run.data.params["reason"] == "better food"
    assert run.data.metrics["challenger/accuracy"] > run.data.metrics["champion/accuracy"]
    assert run.inputs.dataset_inputs[0].dataset.digest == second.data_digest
    table = Path(store.download_artifacts(run.info.run_id, "gate/checks.json", str(tmp_path)))
    assert all(check["passed"] for check in json.loads(table.read_text())["checks"])
    markdown = Path(store.download_artifacts(run.info.run_id, "gate/checks.md", str(tmp_path))).read_text()
    assert "| accuracy | 0.9583 |  | ≥ 0.8000 | ok |" in markdown


@pytest.mark.parametrize("failure", ["", "it returned no label"])
def test_a_refusal_is_recorded_and_leaves_the_alias_alone(
    failure: str, store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    champion = register()
    version = register(6, failure=failure)
    with pytest.raises(PromotionRefused, match=f"version {version} .* does not get .*; 'production' still points to no"):
        promoted(version)
    promoted(champion)
    failed = (
        ["predictions"] if failure else ["accuracy", "accuracy vs champion", "log_loss", "calibration_error", "recall_cat"]
    )
    match = (
        f"does not get 'production': {', '.join(failed)}; models:/{name}@production is still version {champion}. To promote"
    )
    with pytest.raises(PromotionRefused, match=match):
        promoted(version)
    assert aliases(store, name) == {"production": champion}
    entry = reconcile.history(name)[-1]
    assert (entry.action, entry.version, entry.previous, list(entry.failed)) == ("refused", version, champion, failed)
    run = last_run(store)
    assert (run.info.status, run.data.tags["verdict"]) == ("FAILED", "refused")
    assert run.info.run_name == f"v{version} → production, refused"
    assert run.info.run_id == entry.run_id


def test_a_refused_version_can_be_forced_with_a_reason(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    version = register(8)
    report = promoted(version, force=True, reason="it is all we have")
    assert report.failed == ("accuracy",)
    (entry,) = reconcile.history(name)
    assert (entry.action, entry.reason, entry.failed) == ("forced", "it is all we have", ("accuracy",))
    assert aliases(store, name) == {"production": version}
    assert last_run(store).info.run_name == "v1 → production, forced"
    assert promoted(register(), force=True, reason="to be sure").failed == ()
    assert reconcile.history(name)[-1].action == "promoted"


def test_a_champion_that_fails_does_not_keep_its_successor_out(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    promoted(register(failure="it returned no label"), force=True, reason="a mistake")
    report = promoted(register())
    assert [check.champion for check in report.checks if check.name == "champion"] == ["it returned no label"]
    assert aliases(store, name)["production"] == "2"


def test_staging_has_a_champion_of_its_own(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    promoted(register())
    worse = register(4)
    promoted(worse, alias="staging")
    assert aliases(store, name) == {"production": "1", "staging": "2"}
    with pytest.raises(PromotionRefused, match=f"models:/{name}@production is still version 1"):
        promoted(worse)
    assert aliases(store, name) == {"production": "1", "staging": "2"}


def test_a_version_that_holds_the_alias_already_is_not_evaluated_again(
    name: str, register: Callable[..., str], promoted: Callable[..., GateReport | None], models: dict[str, Answer]
):
    version = register()
    promoted(version)
    models.clear()
    assert promoted(version) is None
    assert len(reconcile.history(name)) == 1


def test_what_does_not_exist_or_is_not_available_is_named(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    version = register()
    with pytest.raises(InvalidData, match=f"run of version {version} does not name the images it was tested on: give data"):
        promoted(version, data="auto")
    with pytest.raises(InvalidData, match="/no/such/folder"):
        promoted(version, data="/no/such/folder")
    with pytest.raises(RegistryError, match="has no version '7'"):
        promoted("7")
    assert reconcile.history(name) == []
    assert aliases(store, name) == {}
    assert last_run(store).info.status == "FAILED"


def test_the_images_of_the_training_run_are_taken_unless_others_are_named(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport], drawn: Path
):
    from catdog_pyfunc.pipeline import tracking

    version = register()
    with mlflow.start_run(run_id=store.get_model_version(name, version).run_id):
        tracking.log_dataset(load_dataset(str(drawn), "test"), "test")
    promoted(version, data="auto")
    assert reconcile.history(name)[0].data_digest == load_dataset(str(drawn), "test").digest("test")


def test_an_active_run_is_used_and_stays_active(
    store: mlflow.MlflowClient, name: str, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    version = register()
    mlflow.set_experiment("catdog")
    with mlflow.start_run() as run:
        promoted(version)
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert reconcile.history(name)[0].run_id == run.info.run_id
    assert store.get_run(run.info.run_id).data.tags["verdict"] == "promoted"


def test_a_promotion_that_is_overtaken_says_so_and_moves_nothing(
    store: mlflow.MlflowClient,
    name: str,
    register: Callable[..., str],
    promoted: Callable[..., GateReport],
    models: dict[str, Answer],
):
    promoted(register())
    slow, fast = register(), register()
    real, pending = models[f"models:/{name}/{slow}"], [fast]

    def overtaken(image: bytes) -> Prediction:
        while pending:
            version = pending.pop()
            log = open_audit_log(name)
            reconcile.commit(log, Entry("promoted", "production", version, "1"), reconcile.reconcile(log))
        return real(image)

    models[f"models:/{name}/{slow}"] = overtaken
    with pytest.raises(PromotionLost, match=f"moved production to version {fast} .* was not moved to version {slow}"):
        promoted(slow)
    assert aliases(store, name) == {"production": fast, "archived": "1"}
    assert [entry.version for entry in reconcile.history(name)] == ["1", fast]


@pytest.mark.parametrize("model", NAMES)
def test_a_model_may_have_any_name_that_mlflow_allows(
    model: str, store: mlflow.MlflowClient, register: Callable[..., str], promoted: Callable[..., GateReport]
):
    for similar in ('it\'s 50X "catsY"', "IT'S"):
        register(name=similar)
    for _ in range(2):
        promoted(register(name=model), name=model)
    assert versions.latest_version(model) == "2"
    assert reconcile.roll_back(model).version == "1"
    assert aliases(store, model)["production"] == "1"
    assert [entry.action for entry in reconcile.history(model)] == ["promoted", "promoted", "rolled back"]
    assert aliases(store, "IT'S") == {}


def test_of_two_that_write_the_same_entry_one_is_told(name: str, register: Callable[..., str]):
    register()
    logs = [open_audit_log(name) for _ in range(2)]
    logs[0].append(Entry("refused", "production", "1"), 0)
    with pytest.raises(SequenceConflict):
        logs[1].append(Entry("refused", "production", "1"), 0)
    assert len(reconcile.history(name)) == 1


def test_a_run_is_registered_once_with_metrics_tags_and_links(store: mlflow.MlflowClient, name: str):
    mlflow.set_experiment("catdog")
    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(
            name="model", python_model=str(Path(__file__).with_name("scripted_model.py")), pip_requirements=[]
        )
        mlflow.log_metrics({"test/accuracy": 0.98765, "test/accuracy_low": 0.97, "test/accuracy_high": 0.99})
        mlflow.log_metrics({"test/log_loss": 0.04321, "test/accepted": 0.9})
        mlflow.log_param("data.classes", "cat, dog")
        mlflow.set_tags({"data.digest": "d1ge57", "author": "ann"})
    version = versions.register(run.info.run_id, name)
    again = [versions.register(run.info.run_id, model) for model in (name, f"{name} other")]
    assert [str(found.version) for found in (version, *again)] == ["1"] * 3
    assert store.get_registered_model(name).description == "Classifies images as one of: cat, dog."
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert version.description == (
        "test accuracy **0.9877** (0.9700–0.9900), log loss 0.0432, accepted 0.9000\n\n"
        f"[training]({page}) · [model card]({page}/artifacts/model_card.md)"
    )
    expected = {"data.digest": "d1ge57", "author": "ann", "test/accuracy": "0.9877", "test/log_loss": "0.0432"}
    assert expected.items() <= version.tags.items()


# In processes of their own, with the code of their artifacts:


def pickled() -> mlflow.pyfunc.PythonModel:
    """A model that labels every image as a cat; of a local class, so that the pickle holds its code."""

    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
            return pd.DataFrame([{"label": "cat", "confidence": 0.9} for _ in model_input["image"]])

    return Pickled()


@pytest.fixture
def log_version(store: mlflow.MlflowClient, name: str, labels: dict[bytes, str]) -> Callable[..., str]:
    """Log and register a model that answers as `config` says."""

    def make(python_model: Any = None, **config: Any) -> str:
        digests = {hashlib.sha256(image).hexdigest(): label for image, label in labels.items()}
        scripted = {
            "python_model": str(Path(__file__).with_name("scripted_model.py")),
            "model_config": {"labels": digests, **config},
        }
        mlflow.set_experiment("catdog")
        with mlflow.start_run():
            options = {"python_model": python_model} if python_model else scripted
            info = mlflow.pyfunc.log_model(name="model", pip_requirements=[], **options)
        return str(mlflow.register_model(info.model_uri, name).version)

    return make


def test_a_model_is_judged_by_its_artifact(
    store: mlflow.MlflowClient, name: str, log_version: Callable[..., str], promoted: Callable[..., GateReport]
):
    assert promoted(log_version()).failed == ()
    assert aliases(store, name) == {"production": "1"}


@pytest.mark.parametrize(
    "config",
    [
        {"rows": "no label"},
        *(pytest.param(c, marks=pytest.mark.slow) for c in ({"rows": "too few"}, {"confidence": "high"})),
    ],
)
def test_predictions_that_cannot_be_used_are_a_refusal(
    config: dict[str, str], name: str, log_version: Callable[..., str], promoted: Callable[..., GateReport]
):
    version = log_version(**config)
    with pytest.raises(PromotionRefused, match="does not get 'production': predictions; "):
        promoted(version)
    assert [entry.action for entry in reconcile.history(name)] == ["refused"]


@pytest.mark.slow
def test_a_model_that_needs_pickle_is_refused_and_can_be_forced(
    store: mlflow.MlflowClient, name: str, log_version: Callable[..., str], promoted: Callable[..., GateReport]
):
    version = log_version(pickled())
    with pytest.raises(PromotionRefused, match="loads without pickle"):
        promoted(version)
    report = promoted(version, force=True, reason="it is all we have")
    assert "loads without pickle" in report.failed
    assert report.challenger.accuracy.value == 0.5
    assert aliases(store, name) == {"production": version}
