"""Parameters, weights, embeddings, head, calibration and fine-tuning, each on its own."""

from __future__ import annotations

import errno
import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchvision import models
from torchvision.transforms import InterpolationMode

from catdog_pyfunc.classifier import softmax
from catdog_pyfunc.engine import Outputs
from catdog_pyfunc.errors import InvalidSetting, InvalidWeights, JobFailed
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import Dataset, Example, read_folder
from catdog_pyfunc.pipeline.training import embeddings
from catdog_pyfunc.pipeline.training.augmentation import augmentation
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.calibration import fit_ood_threshold, fit_temperature
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.embeddings import Compute, compute_here, embed
from catdog_pyfunc.pipeline.training.finetuning import FinetuneConfig, finetune
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics, fit_head
from catdog_pyfunc.preprocessing import Preprocess, preprocess

SPEC = Preprocess(size=64, resize=72)
Splits = tuple[tuple[Example, ...], tuple[Example, ...]]


@pytest.fixture
def dataset(drawn: Path) -> Dataset:
    return read_folder(drawn)


@pytest.fixture
def splits(dataset: Dataset) -> Splits:
    return dataset.splits["train"], dataset.splits["val"]


class CountingEngine:
    """Embeds an image as the mean colours of its left half, and counts the images."""

    batch_size = 4

    def __init__(self) -> None:
        self.images = 0

    def run(self, images: np.ndarray) -> Outputs:
        self.images += len(images)
        means = images[:, :, : images.shape[2] // 2].mean((1, 2), dtype=np.float32)
        return Outputs(means, means, images.astype(np.float32), means[:, 0])


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({}, {"weights": "none", "image_size": 96, "finetune_epochs": 8, "learning_rate": 3e-3}),
        ({"data": "photos"}, {"weights": "imagenet", "image_size": 0, "finetune_epochs": 0, "learning_rate": 1e-4}),
        ({"data": "photos", "weights": "none"}, {"finetune_epochs": 8, "learning_rate": 3e-3}),
        ({"weights": "w.pth"}, {"weights": "w.pth", "image_size": 96, "finetune_epochs": 0}),
        ({"image_size": 64, "finetune_epochs": 2, "learning_rate": 0.5}, {"image_size": 64, "finetune_epochs": 2}),
        ({"registered_model": "none"}, {"registered_model": ""}),
    ],
)
def test_defaults_follow_from_data_and_weights(given: dict[str, object], resolved: dict[str, object]):
    config = TrainingConfig(**given).resolved()  # type: ignore[arg-type]
    assert {name: getattr(config, name) for name in resolved} == resolved
    assert config.resolved() == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"finetune_epochs": 0}, r"finetune_epochs is 0 and weights are 'none' \(the default for the sample\), so nothing"),
        ({"data": "photos", "weights": "none", "finetune_epochs": 0}, "finetune_epochs is 0 and weights are 'none', so"),
        ({"image_size": 7}, r"image_size is 7; give 0 \(the backbone's own\) or at least 32"),
        ({"image_size": -1}, "image_size is -1; give at least 0"),
        ({"batch_size": 1}, "batch_size is 1; give at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"finetune_epochs": -2}, "finetune_epochs is -2; give at least -1"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused_before_anything_starts(given: dict[str, object], message: str):
    with pytest.raises(InvalidSetting, match=message):
        TrainingConfig(**given)  # type: ignore[arg-type]


def test_a_runs_title_starts_with_what_varies_most():
    assert TrainingConfig().title() == "lr 0.003 × 8 · mobilenet_v2 · sample"
    assert TrainingConfig(data="a/pets", seed=3, horizontal_flip=True).title() == (
        "head · mobilenet_v2 · pets · seed 3 · horizontal flip"
    )


@pytest.mark.parametrize(("name", "interpolation"), [("mobilenet_v2", "bilinear"), ("efficientnet_b0", "bicubic")])
def test_images_are_resampled_as_the_backbones_preset_says(name: str, interpolation: str, images: list[bytes]):
    spec = load_backbone(name, "none", 2, seed=0).preprocess
    assert spec.interpolation == interpolation
    crop = augmentation(spec).transforms[1]
    assert crop.interpolation == InterpolationMode(interpolation)
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    wrong = replace(spec, interpolation="bicubic" if interpolation == "bilinear" else "bilinear")

    def distance(content: bytes, spec: Preprocess) -> float:
        normalised = preset(Image.open(io.BytesIO(content))).permute(1, 2, 0).numpy()
        expected = 255 * (normalised * spec.std + spec.mean)
        return float(np.abs(preprocess(content, spec) - expected).mean())

    assert np.mean([distance(content, spec) for content in images]) < np.mean([distance(c, wrong) for c in images])


def computed_by(engine: CountingEngine) -> Compute:
    return lambda examples, spec, flip: compute_here(engine, examples, spec, flip)


def test_each_image_is_embedded_once_and_never_again(dataset: Dataset, tmp_path: Path):
    engine, examples = CountingEngine(), dataset.splits["val"]
    first = embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    again = embed(computed_by(engine), examples[::-1], SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert engine.images == len(examples)
    assert (again.values[::-1] == first.values).all()
    embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="another")
    for spec in (replace(SPEC, resize=64), replace(SPEC, interpolation="bicubic")):
        embed(computed_by(engine), examples, spec, cache=tmp_path / "e.sqlite", backbone="b")
    assert engine.images == 4 * len(examples)


def test_mirrored_images_have_embeddings_of_their_own(dataset: Dataset, tmp_path: Path):
    engine, examples = CountingEngine(), dataset.splits["val"]
    straight = embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    mirrored = embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b", flip=True)
    right_halves = [preprocess(e.path.read_bytes(), SPEC)[:, 32:].mean((0, 1), dtype=np.float32) for e in examples]
    assert mirrored.values == pytest.approx(np.stack(right_halves), abs=1e-3)
    assert not np.allclose(mirrored.values, straight.values)


def test_an_interrupted_embedding_keeps_what_was_done(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = dataset.splits["train"]
    last_straw = preprocess(examples[40].path.read_bytes(), SPEC)

    class Interrupted(CountingEngine):
        def run(self, images: np.ndarray) -> Outputs:
            if (images == last_straw).all((1, 2, 3)).any():
                raise KeyboardInterrupt
            return super().run(images)

    monkeypatch.setattr("catdog_pyfunc.pipeline.training.embeddings._COMMIT_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        embed(computed_by(Interrupted()), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    engine = CountingEngine()
    embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert engine.images == len(examples) - 40


def test_embeddings_are_in_a_file_that_goes_with_them(dataset: Dataset, tmp_path: Path):
    found = embed(computed_by(CountingEngine()), dataset.splits["val"], SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    memory = found.values
    while not isinstance(memory, mmap.mmap):
        memory = memory.base
    assert [file.name for file in tmp_path.iterdir()] == ["e.sqlite"]


def test_a_pass_over_a_file_of_embeddings_has_a_part_of_it_in_memory(tmp_path: Path):
    file, this_process = tmp_path / "embeddings", psutil.Process()
    file.touch()
    os.truncate(file, 30_000 * 1280 * 4)
    values = np.memmap(file, np.float32, "c").reshape(-1, 1280)
    before, passed = this_process.memory_info().rss, 0
    for batch in embeddings.batches(values):
        assert batch.sum() == 0
        assert this_process.memory_info().rss - before < values.nbytes / 2
        passed += len(batch)
    assert passed == len(values)


def test_a_full_disk_is_a_message_and_nothing_is_embedded_twice(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine, examples = CountingEngine(), dataset.splits["val"]

    def full(**_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", full)
        with pytest.raises(JobFailed, match=r"No space left on device\): make room"):
            embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert len(embed(computed_by(engine), examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b").values) == 24
    assert engine.images == 24


def test_corrupt_images_are_named_and_left_out(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "photos")
    corrupt = tmp_path / "photos" / "val" / "cat" / "cut.jpg"
    corrupt.write_bytes((drawn / "val" / "cat" / "cat-0000.jpg").read_bytes()[:900])
    dataset = read_folder(tmp_path / "photos")
    embeddings = embed(computed_by(CountingEngine()), dataset.splits["val"], SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert list(embeddings.corrupt) == [corrupt]
    assert len(embeddings.values) == 24
    rest = dataset.drop(embeddings.corrupt)
    assert rest.counts("val") == {"cat": 12, "dog": 12}
    assert rest.problems == (f"{corrupt}: {embeddings.corrupt[corrupt]}",)
    assert find_corrupt(dataset.splits["val"], SPEC) == embeddings.corrupt


def test_the_head_separates_what_can_be_separated_and_val_selects_its_regularisation():
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(3, 20))
    labels = rng.integers(0, 3, 300)
    x = (centres[labels] + rng.normal(size=(300, 20))).astype(np.float32)
    head = fit_head([x[:120], x[120:200]], labels[:200].tolist(), x[200:], labels[200:].tolist(), 3)
    logits = torch.from_numpy(x[200:]) @ head.weight.T + head.bias
    assert (logits.argmax(1).numpy() == labels[200:]).mean() > 0.97
    assert head.candidates[head.weight_decay].val_loss == min(metrics.val_loss for metrics in head.candidates.values())
    assert head.steps[-1] == head.candidates[head.weight_decay]


def test_the_head_is_the_optimum_however_many_passes_it_takes(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    x = (rng.normal(size=(400, 12)) * np.linspace(0.1, 5, 12) + 0.8 * labels[:, None] + 7).astype(np.float32)
    whole = fit_head([x[:300]], labels[:300].tolist(), x[300:], labels[300:].tolist(), 2)
    monkeypatch.setattr(embeddings, "_BATCH", 64)
    in_passes = fit_head([x[:100], x[100:300]], labels[:300].tolist(), x[300:], labels[300:].tolist(), 2)
    assert in_passes.weight.numpy() == pytest.approx(whole.weight.numpy(), abs=1e-3)
    assert in_passes.weight_decay == whole.weight_decay
    scaler = StandardScaler().fit(x[:300])
    # scikit-learn sums losses and has one weight for two classes, which L2 splits evenly: half of it each.
    peer = LogisticRegression(C=2 / (300 * whole.weight_decay), tol=1e-8, max_iter=1000).fit(
        scaler.transform(x[:300]), labels[:300]
    )
    logits = x[300:] @ in_passes.weight.numpy().T + in_passes.bias.numpy()
    assert logits[:, 1] - logits[:, 0] == pytest.approx(peer.decision_function(scaler.transform(x[300:])), abs=0.02)


def noisy_logits() -> tuple[np.ndarray, np.ndarray]:
    """(400, 3) logits, too confident by a factor of about 1.4, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    return (3 * (rng.normal(size=(400, 3)) + 2 * np.eye(3)[labels])).astype(np.float32), labels


def test_the_temperature_minimises_the_loss_on_val():
    logits, labels = noisy_logits()
    temperature = fit_temperature(logits, labels.tolist())
    assert temperature == pytest.approx(1.39141651, abs=1e-6)  # of golden-section search, before SciPy

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(logits / temperature)[np.arange(400), labels]).mean())

    assert loss(temperature) < min(loss(temperature * 1.01), loss(temperature / 1.01), loss(1.0))


def test_the_temperature_stays_within_its_bounds():
    logits, labels = noisy_logits()
    assert fit_temperature(logits, logits.argmax(1).tolist()) == pytest.approx(0.05, rel=1e-6)  # never wrong
    assert fit_temperature(100 * logits, labels.tolist()) == pytest.approx(20, rel=1e-6)


def test_the_ood_threshold_accepts_98_percent_of_val():
    rng = np.random.default_rng(0)
    train, val = (rng.normal(size=(n, 16)).astype(np.float32) + 2 for n in (2_500, 1_000))
    reference, threshold = fit_ood_threshold(train, val, seed=0)
    assert reference.shape == (2_000, 16)
    assert np.linalg.norm(reference, axis=1) == pytest.approx(1, abs=1e-3)
    similarity = (val / np.linalg.norm(val, axis=1, keepdims=True) @ reference.T).max(1)
    assert (similarity >= threshold).mean() == pytest.approx(0.98, abs=0.001)
    assert (fit_ood_threshold(train, val, seed=0)[0] == reference).all()
    assert (fit_ood_threshold(train, val, seed=1)[0] != reference).any()


def test_weights_from_a_file_are_loaded(weights: Path):
    loaded = load_backbone("mobilenet_v2", str(weights), 2, seed=0)
    state = torch.load(weights, weights_only=True)
    assert torch.equal(loaded.network.features.state_dict()["features.0.0.weight"], state["features.0.0.weight"])
    assert loaded.weights == "mobilenet_v2.pth"
    assert loaded.digest == load_backbone("mobilenet_v2", str(weights), 5, seed=3).digest


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "googlenet"])
def test_the_pretrained_head_gives_the_pretrained_logits(name: str, tmp_path: Path):
    torch.manual_seed(0)
    whole = models.get_model(name, weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(name, str(tmp_path / "w.pth"), 2, seed=0)
    assert backbone.head is not None
    weight, bias = backbone.head
    batch = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert backbone.network.outputs(batch)[1].numpy() @ weight.T + bias == pytest.approx(whole(batch).numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small"])
def test_a_pretrained_head_of_several_layers_is_none(name: str, tmp_path: Path):
    torch.save(models.get_model(name, weights=None).state_dict(), tmp_path / "w.pth")
    assert load_backbone(name, str(tmp_path / "w.pth"), 2, seed=0).head is None


def test_without_pretrained_weights_or_their_classifier_there_is_no_pretrained_head(tmp_path: Path):
    assert untrained().head is None
    features = untrained().network.features.state_dict()
    torch.save(features, tmp_path / "features.pth")
    assert load_backbone("shufflenet_v2_x0_5", str(tmp_path / "features.pth"), 2, seed=0).head is None


def test_weights_of_another_network_are_refused(weights: Path):
    with pytest.raises(InvalidWeights, match=r"belong to another network.*name the backbone they come from"):
        load_backbone("resnet18", str(weights), 2, seed=0)


@pytest.mark.parametrize("content", [b"", b"not a state_dict at all", b"\x80\x04K\x01."])
def test_a_file_that_is_no_state_dict_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InvalidWeights, match=r"w\.pth.*weights=none"):
        load_backbone("mobilenet_v2", str(tmp_path / "w.pth"), 2, seed=0)
    with pytest.raises(InvalidWeights, match="is not a file"):
        load_backbone("mobilenet_v2", str(tmp_path / "nowhere.pth"), 2, seed=0)


def test_weights_that_cannot_be_downloaded_name_the_choices(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(InvalidWeights, match=r"no route to host.*a path to a state_dict.*weights=none"):
        load_backbone("mobilenet_v2", "imagenet", 2, seed=0)


def untrained(seed: int = 0) -> Backbone:
    return load_backbone("shufflenet_v2_x0_5", "none", 2, seed=seed, image_size=64)


def interrupt_after(last: int) -> Callable[[int, EpochMetrics], None]:
    def on_epoch(epoch: int, metrics: EpochMetrics) -> None:
        if epoch == last:
            raise KeyboardInterrupt

    return on_epoch


def test_an_interrupted_fine_tuning_resumes_to_the_same_weights(splits: Splits, tmp_path: Path):
    config = FinetuneConfig(epochs=3, learning_rate=1e-3, batch_size=16, seed=0)
    whole, losses = untrained(), []
    kept = finetune(
        *(whole, *splits, config),
        checkpoint=tmp_path / "a.pt",
        on_epoch=lambda epoch, metrics: losses.append(metrics.val_loss),
    )
    assert kept in (0, losses.index(min(losses)) + 1)

    checkpoint, cut, resumed, epochs = tmp_path / "b.pt", untrained(), untrained(), []
    with pytest.raises(KeyboardInterrupt):
        finetune(cut, *splits, config, checkpoint=checkpoint, on_epoch=interrupt_after(2))
    assert list(tmp_path.iterdir()) == [checkpoint]
    finetune(
        *(resumed, *splits, config),
        checkpoint=checkpoint,
        resume=True,
        on_epoch=lambda epoch, metrics: epochs.append(epoch),
    )
    assert epochs == [3]
    assert not list(tmp_path.iterdir())
    for name, value in whole.network.state_dict().items():
        assert torch.allclose(value, resumed.network.state_dict()[name], atol=1e-4), name


def test_two_fine_tunings_may_write_the_same_checkpoint_at_once(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each writes a temporary file of its own: before one puts it in place, the other has come and gone."""
    checkpoint, config, save = tmp_path / "c.pt", FinetuneConfig(1, 1e-3, 16, 0), torch.save
    first, second = untrained(), untrained()

    def meanwhile(state: object, file: object) -> None:
        monkeypatch.setattr(torch, "save", save)
        save(state, file)
        finetune(second, *splits, config, checkpoint=checkpoint)

    monkeypatch.setattr(torch, "save", meanwhile)
    finetune(first, *splits, config, checkpoint=checkpoint)
    assert not list(tmp_path.iterdir())


def test_resuming_what_was_never_interrupted_says_so_and_starts(
    splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    net, epochs = untrained(), []
    finetune(
        *(net, *splits, FinetuneConfig(1, 1e-3, 16, 0)),
        checkpoint=tmp_path / "d.pt",
        resume=True,
        on_epoch=lambda epoch, metrics: epochs.append(epoch),
    )
    assert epochs == [1]
    assert "nothing to resume" in capsys.readouterr().err


def test_fine_tuning_that_only_harms_leaves_the_network_as_it_was(splits: Splits, tmp_path: Path):
    net = untrained()
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    config = FinetuneConfig(1, 50.0, 16, 0)
    assert finetune(net, *splits, config, checkpoint=tmp_path / "e.pt") == 0
    assert all(torch.equal(value, before[name]) for name, value in net.network.state_dict().items())
