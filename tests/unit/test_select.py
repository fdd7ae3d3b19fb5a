"""Which images are selected for labelling, and what the run has of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.errors import InvalidData, InvalidSetting
from catdog_pyfunc.flavor import opened_bundle
from catdog_pyfunc.pipeline.data.label_studio import LEAVE_OUT, Task, labelling_interface, tasks_json
from catdog_pyfunc.pipeline.labelling.badge import badge
from catdog_pyfunc.pipeline.labelling.select import Selection, SelectionConfig, select
from tests.conftest import restored_environment


def gradients(embeddings: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    residuals = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    return (residuals[:, :, None] * embeddings[:, None, :]).reshape(len(embeddings), -1)


def test_badge_is_k_means_plus_plus_on_gradients():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 6)).astype(np.float32)
    probabilities = rng.dirichlet(np.ones(3), 40)
    points = gradients(embeddings, probabilities)
    expected = [int((points**2).sum(1).argmax())]
    draws = np.random.default_rng(5)
    while len(expected) < 10:
        nearest = ((points[:, None] - points[expected]) ** 2).sum(2).min(1)
        expected.append(int(draws.choice(40, p=nearest / nearest.sum())))
    assert badge(embeddings, probabilities, 10, np.random.default_rng(5)) == expected
    assert sorted(badge(embeddings, probabilities, 40, rng)) == list(range(40))


def test_badge_prefers_the_doubtful_and_takes_one_of_a_kind():
    embeddings = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)  # four kinds of five equal images
    doubtful = np.array([[0.5, 0.5]] * 15 + [[0.999, 0.001]] * 5)
    chosen = badge(embeddings, doubtful, 3, np.random.default_rng(0))
    assert {place // 5 for place in chosen} == {0, 1, 2}
    everything = badge(embeddings, doubtful, 20, np.random.default_rng(0))
    assert sorted(everything) == list(range(20))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    folder = tmp_path_factory.mktemp("store")
    with restored_environment():
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("catdog", artifact_location=(folder / "artifacts").as_uri())
        yield mlflow.MlflowClient()
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def folder(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images at several depths, one of them damaged, one black and one of noise."""
    folder = tmp_path_factory.mktemp("data") / "new photos"
    for number, file in enumerate(sorted((drawn / "test").rglob("*.jpg"))):
        target = folder / ("2026" if number % 2 else ".") / f"{number} & more.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (80, 80)).save(folder / "black.png")
    return folder


@pytest.fixture(scope="module")
def chosen(store: mlflow.MlflowClient, tiny_model: Path, folder: Path) -> tuple[Selection, mlflow.entities.Run]:
    selection = select(SelectionConfig(str(folder), 5, str(tiny_model)))
    (run,) = store.search_runs([store.get_experiment_by_name("catdog").experiment_id], max_results=1)
    return selection, run


def names(results: tuple[object, ...]) -> list[str]:
    return [image.name for image, _ in results]  # type: ignore[misc]


def test_every_image_is_in_one_place(chosen: tuple[Selection, mlflow.entities.Run], folder: Path, tiny_model: Path):
    selection, _ = chosen
    kinds = [selection.selected, selection.strange, selection.unreadable, selection.others]
    assert sorted(name for kind in kinds for name in names(kind)) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".jpg", ".png")
    )
    assert len(set(names(selection.selected))) == 5
    assert names(selection.unreadable) == ["damaged.jpg"]
    scores = [prediction.domain_score for _, prediction in selection.strange]
    assert scores == sorted(scores)
    with opened_bundle(str(tiny_model)) as bundle:
        expected = Classifier(bundle).predict([image.read() for kind in kinds for image, _ in kind])
    for (_, found), prediction in zip((result for kind in kinds for result in kind), expected, strict=True):
        assert (found.label, found.in_domain) == (prediction.label, prediction.in_domain)
        assert found.confidence == pytest.approx(prediction.confidence, abs=1e-4)


def test_the_run_has_galleries_a_table_and_tasks(
    chosen: tuple[Selection, mlflow.entities.Run], folder: Path, store: mlflow.MlflowClient, tmp_path: Path
):
    selection, run = chosen
    assert (run.info.status, run.info.run_name) == ("FINISHED", "select from new photos")
    assert run.data.metrics["select/selected"] == 5
    assert {file.path for file in store.list_artifacts(run.info.run_id, "images")} == {
        "images/selected.png",
        "images/strange.png",
    }
    local = Path(store.download_artifacts(run.info.run_id, "", str(tmp_path)))
    table = pd.read_csv(local / "tables" / "selection.csv")
    assert table["path"][:5].tolist() == names(selection.selected)
    assert set(table["kind"]) <= {"selected", "strange", "unreadable", "others"}
    assert table["suggestion"].isna().all()
    tasks = json.loads((local / "label_studio" / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == names(selection.selected)
    assert LEAVE_OUT in (local / "label_studio" / "interface.xml").read_text()


def test_the_same_seed_selects_the_same_and_fewer_images_are_all_selected(
    chosen: tuple[Selection, mlflow.entities.Run], folder: Path, tiny_model: Path
):
    again = select(SelectionConfig(str(folder), 5, str(tiny_model)))
    assert names(again.selected) == names(chosen[0].selected)
    everything = select(SelectionConfig(str(folder), 10**6, str(tiny_model), seed=1))
    assert everything.others == ()
    assert len(everything.selected) == len(chosen[0].selected) + len(chosen[0].others)


@pytest.mark.parametrize(("count", "message"), [(0, "count is 0; give 1 or more")])
def test_a_count_of_nothing_is_refused(count: int, message: str):
    with pytest.raises(InvalidSetting, match=message):
        SelectionConfig("photos", count)
    with pytest.raises(InvalidSetting, match="seed is -1"):
        SelectionConfig("photos", seed=-1)


def test_a_folder_with_nothing_to_select_is_named(store: mlflow.MlflowClient, tmp_path: Path, tiny_model: Path):
    for data, message in [(tmp_path / "nowhere", "is not a folder"), (tmp_path, "has no images")]:
        with pytest.raises(InvalidData, match=message):
            select(SelectionConfig(str(data), model_uri=str(tiny_model)))
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InvalidData, match=r"none of the 1 images in .* can be read and resembles the training data"):
        select(SelectionConfig(str(tmp_path), model_uri=str(tiny_model)))


def test_a_task_has_the_form_that_label_studio_documents():
    (task,) = json.loads(tasks_json([Task("a b/é&1.jpg", "cat", 0.75)], Path("/data/new photos"), "models:/Pets/3"))
    assert task == {
        "data": {"image": "/data/local-files/?d=new%20photos/a%20b/%C3%A9%261.jpg", "path": "a b/é&1.jpg"},
        "predictions": [
            {
                "model_version": "models:/Pets/3",
                "score": 0.75,
                "result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}],
            }
        ],
    }
    assert '<Choice value="black &amp; white"/>' in labelling_interface(["black & white"])
