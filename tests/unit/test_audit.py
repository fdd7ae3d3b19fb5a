"""What an audit suspects, on synthetic images and embeddings, and what it leaves in its run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image as PillowImage
from PIL import ImageFilter
from sklearn.linear_model import Ridge
from torchvision.models import mobilenet_v2

from catdog_pyfunc import pipeline
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.auditing import copies, label_errors
from catdog_pyfunc.pipeline.auditing.copies import near_duplicates, unique_images
from catdog_pyfunc.pipeline.auditing.findings import COLUMNS, Image
from catdog_pyfunc.pipeline.auditing.outliers import outliers
from catdog_pyfunc.pipeline.auditing.quality import judge, measure
from catdog_pyfunc.pipeline.cli.main import catdog
from catdog_pyfunc.pipeline.data.dataset import Example, read_folder
from catdog_pyfunc.pipeline.training import near_duplicates as training_near_duplicates
from catdog_pyfunc.pipeline.training.near_duplicates import Pair
from catdog_pyfunc.preprocessing import Preprocess

SPEC = Preprocess(size=96, resize=99)
CLASSES = ("cat", "dog")


def image(label: int = 0, name: str = "1.jpg", split: str = "train") -> Image:
    return Image(split, Example(Path("/data") / split / CLASSES[label] / name, label, f"{split}{label}{name}"))


# Label errors


def two_clusters(flipped: int) -> tuple[np.ndarray, list[Image]]:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    embeddings = (rng.normal(size=(200, 10)) + 4 * labels[:, None]).astype(np.float32)
    return embeddings, [image(int(1 - label if k < flipped else label), f"{k}.jpg") for k, label in enumerate(labels)]


def test_flipped_labels_are_suspected_with_the_right_class():
    embeddings, images = two_clusters(flipped=6)
    found = label_errors.label_errors(images, embeddings, CLASSES)
    names = {finding.image.example.path.name for finding in found}
    assert len(names) >= 5
    assert names <= {f"{k}.jpg" for k in range(6)}
    assert all(finding.suggestion == CLASSES[1 - finding.image.example.label] for finding in found)
    assert min(finding.score for finding in found) > 0.5


def test_right_labels_are_not_suspected():
    embeddings, images = two_clusters(flipped=0)
    assert label_errors.label_errors(images, embeddings, CLASSES) == []


@pytest.mark.parametrize("classes", [("cat",), ("cat", "dog", "owl")], ids=["one class", "a class of no images"])
def test_too_few_images_say_nothing_about_labels(classes: tuple[str, ...]):
    embeddings, images = two_clusters(flipped=6)
    assert label_errors.label_errors(images, embeddings, classes) == []


def test_left_out_scores_are_those_of_refitting_without_the_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(label_errors, "_PENALTIES", (0.5,))
    embeddings, images = two_clusters(flipped=3)
    targets = np.eye(2, dtype=np.float32)[[one.example.label for one in images]]
    trusted = np.arange(200) != 7
    (scores,) = label_errors._held_out_scores(embeddings, targets, trusted)
    x = np.concatenate([(embeddings - embeddings.mean(0)) / embeddings.std(0), np.ones((200, 1))], 1)
    for k in (0, 7, 100):
        rest = trusted & (np.arange(200) != k)
        ridge = Ridge(0.5 * trusted.sum(), fit_intercept=False).fit(x[rest], targets[rest])
        assert scores[k] == pytest.approx(ridge.predict(x[k : k + 1])[0], abs=1e-5)


# Copies and outliers


def test_of_a_leak_the_training_image_goes_and_in_one_split_the_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = []
    for name, width in {"train/cat/a.png": 90, "train/cat/b.png": 60, "train/dog/c.png": 30, "test/cat/d.png": 40}.items():
        save(PillowImage.effect_mandelbrot((width, 50), (-2, -1, 1, 1), 40), tmp_path / name)
        images.append(Image(name.split("/")[0], Example(tmp_path / name, int("dog" in name), name)))
    pairs = {(0, 1), (0, 2), (1, 2), (1, 3)}
    monkeypatch.setattr(training_near_duplicates, "similarity", lambda first, second: 1.0)
    neighbours = (np.zeros((4, 0), np.float32), np.zeros((4, 0), np.int64))
    cosines = np.array([[float((k, other) in pairs) for other in range(4)] for k in range(4)], np.float32)
    by_embedding = (cosines, np.tile(np.arange(4), (4, 1)))
    found = near_duplicates(images, measure(images, SPEC), by_embedding, neighbours, SPEC, CLASSES, tmp_path)
    assert [(one.image.example.path.name, one.reason) for one in found] == [
        ("b.png", "nearly the same as test/cat/d.png"),
        ("c.png", "nearly the same as train/cat/a.png, labelled cat"),
    ]


def test_the_number_of_pairs_that_are_checked_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(copies, "_MAX_CANDIDATES", 2)
    by_embedding = np.array([[0.99], [0.86], [0.9], [0.5]], np.float32), np.array([[1], [2], [3], [0]])
    by_descriptor = np.array([[0.98]] * 4, np.float32), np.array([[2], [2], [0], [0]])
    assert copies._candidates(by_embedding, by_descriptor) == [Pair(0, 1, pytest.approx(0.99)), Pair(0, 2, 0.0)]
    assert "only the 2 most similar of 5 pairs are checked" in capsys.readouterr().err


def test_exact_copies_are_kept_in_test(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "data")
    leaked = tmp_path / "data" / "test" / "cat" / "cat-0001.jpg"
    shutil.copy(leaked, tmp_path / "data" / "train" / "dog" / "leak.jpg")
    unique, again = unique_images(read_folder(tmp_path / "data"))
    assert [(one.split, one.example.path.name, kept.example.path) for one, kept in again] == [("train", "leak.jpg", leaked)]
    assert len(unique) == 108


def test_an_image_far_from_all_others_is_an_outlier():
    cosines = np.random.default_rng(0).uniform(0.7, 0.8, (100, 10)).astype(np.float32)
    cosines[42] = 0.3
    images = [image(name=f"{k}.jpg") for k in range(100)]
    assert [finding.image.example.path.name for finding in outliers(images, cosines)] == ["42.jpg"]
    assert outliers(images[:40], cosines[:40]) == []


# Quality


def save(drawn: PillowImage.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)


BAD = {
    "dark": lambda original: original.point(lambda value: value // 8),
    "bright": lambda original: original.point(lambda value: 200 + value // 5),
    "blurred": lambda original: original.filter(ImageFilter.GaussianBlur(8)),
    "tiny": lambda original: original.resize((40, 40)),
    "odd_shape": lambda original: original.resize((400, 110)),
}


def judged(drawn: PillowImage.Image, path: Path) -> list[str]:
    save(drawn, path)
    one = Image("train", Example(path, 0, ""))
    return [finding.kind for finding in judge(one, measure([one], SPEC)[0], SPEC)]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_for_what_is_bad(kind: str, drawn: Path, tmp_path: Path):
    original = PillowImage.open(drawn / "train" / "cat" / "cat-0001.jpg").convert("RGB")
    assert judged(original, tmp_path / "good.png") == []
    assert kind in judged(BAD[kind](original), tmp_path / "bad.png")


# The command


@pytest.fixture(scope="module")
def dirty(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leak, a turned copy of a test image in train, a dark and a corrupt image."""
    folder = tmp_path_factory.mktemp("dirty") / "photos"
    shutil.copytree(drawn, folder)
    shutil.copy(folder / "test" / "cat" / "cat-0001.jpg", folder / "train" / "cat" / "leak.jpg")
    first = PillowImage.open(folder / "test" / "dog" / "dog-0001.jpg").convert("RGB")
    save(first.transpose(PillowImage.Transpose.ROTATE_90), folder / "train" / "dog" / "turned.png")
    dark = PillowImage.open(folder / "train" / "cat" / "cat-0002.jpg").convert("RGB")
    save(dark.point(lambda value: value // 9), folder / "train" / "cat" / "dark.png")
    (folder / "val" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    folder = tmp_path_factory.mktemp("store")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to find copies."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(mobilenet_v2().state_dict(), path)
    return path


def run(data: Path, weights: Path, output: Path) -> Result:
    return CliRunner().invoke(catdog, ["audit", "--data", str(data), "--weights", str(weights), "--output", str(output)])


def test_an_audit_leaves_table_galleries_and_counts(
    dirty: Path, random_weights: Path, tmp_path: Path, client: mlflow.MlflowClient
):
    done = run(dirty, random_weights, tmp_path / "audit.csv")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "audit.csv", keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    found = {(row.kind, row.path, row.split, row.label) for row in table.itertuples()}
    assert found >= {
        ("exact_duplicate", "train/cat/leak.jpg", "train", "cat"),
        ("near_duplicate", "train/dog/turned.png", "train", "dog"),
        ("dark", "train/cat/dark.png", "train", "cat"),
        ("corrupt", "val/dog/broken.jpg", "val", "dog"),
    }
    assert "the same file as test/cat/cat-0001.jpg" in set(table.reason)
    assert set(table.suggestion[table.kind != "label_error"]) == {""}
    (logged,) = client.search_runs([client.get_experiment_by_name("catdog").experiment_id])  # type: ignore[union-attr]
    assert logged.info.run_name == "audit photos"
    assert logged.data.metrics["audit/images"] == 112
    assert logged.data.metrics["audit/exact_duplicate"] == 1
    parquet = pd.read_parquet(
        mlflow.artifacts.download_artifacts(run_id=logged.info.run_id, artifact_path="tables/audit.parquet")
    )
    pd.testing.assert_frame_equal(parquet.astype(str), table.astype(str))
    galleries = {Path(file.path).stem for file in client.list_artifacts(logged.info.run_id, "images")}
    assert galleries == set(table.kind) - {"corrupt"}
    assert "112 images, " in done.output
    assert "train/dog/turned.png: nearly the same as test/dog/dog-0001.jpg" in done.output


@pytest.mark.parametrize(("field", "value"), [("weights", "none"), ("output", "audit.parquet"), ("output", "no/audit.csv")])
def test_a_parameter_that_cannot_be_used_is_named(field: str, value: object):
    with pytest.raises(InvalidSetting, match=field):
        pipeline.AuditConfig("photos", **{field: value})  # type: ignore[arg-type]


def test_classes_out_of_balance_are_named(monkeypatch: pytest.MonkeyPatch):
    from catdog_pyfunc.pipeline.cli.audit import _summary

    result = pipeline.AuditResult("1", 33, pd.DataFrame(columns=list(COLUMNS)), {"cat": 30, "dog": 3})
    assert result.imbalance == 10
    assert "cat has 30 training images, dog 3" in _summary(result)
