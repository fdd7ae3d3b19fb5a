"""Weights, embeddings, head, fine-tuning: what learns."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from catdog_pyfunc.engine import Outputs
from catdog_pyfunc.errors import InvalidSetting, InvalidWeights
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.training import backbones
from catdog_pyfunc.pipeline.training.embeddings import embed
from catdog_pyfunc.pipeline.training.finetuning import FinetuneConfig, finetune
from catdog_pyfunc.pipeline.training.linear_head import fit_head
from catdog_pyfunc.preprocessing import Preprocess, preprocess

SPEC = Preprocess(size=64, resize=72)


class CountingEngine:
    """Embeds a picture as its mean colours, and counts what it was asked."""

    batch_size = 4

    def __init__(self) -> None:
        self.pictures = 0

    def run(self, images: np.ndarray) -> Outputs:
        self.pictures += len(images)
        means = images.mean((1, 2), dtype=np.float32)
        return Outputs(means, means, images.astype(np.float32), means[:, 0])


def test_each_picture_is_embedded_once_and_never_again(drawn: Path, tmp_path: Path):
    engine, examples = CountingEngine(), read_folder(drawn).splits["val"]
    first = embed(lambda: engine, examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    again = embed(lambda: engine, examples[::-1], SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert engine.pictures == len(examples)
    assert (again.values[::-1] == first.values).all()
    embed(lambda: engine, examples, SPEC, cache=tmp_path / "e.sqlite", backbone="another")
    embed(lambda: engine, examples, replace(SPEC, resize=64), cache=tmp_path / "e.sqlite", backbone="b")
    embed(lambda: engine, examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b", flip=True)
    assert engine.pictures == 4 * len(examples)


def test_an_interrupted_embedding_keeps_what_was_done(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = read_folder(drawn).splits["train"]
    last_straw = preprocess(examples[40].path.read_bytes(), SPEC)

    class Interrupted(CountingEngine):
        def run(self, images: np.ndarray) -> Outputs:
            if (images == last_straw).all((1, 2, 3)).any():
                raise KeyboardInterrupt
            return super().run(images)

    monkeypatch.setattr("catdog_pyfunc.pipeline.training.embeddings._COMMIT_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        embed(Interrupted, examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    engine = CountingEngine()
    embed(lambda: engine, examples, SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert engine.pictures == len(examples) - 40


def test_broken_pictures_are_named_and_left_out(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "photos")
    broken = tmp_path / "photos" / "val" / "cat" / "cut.jpg"
    broken.write_bytes((drawn / "val" / "cat" / "cat-0000.jpg").read_bytes()[:900])
    dataset = read_folder(tmp_path / "photos")
    found = embed(CountingEngine, dataset.splits["val"], SPEC, cache=tmp_path / "e.sqlite", backbone="b")
    assert list(found.broken) == [broken]
    rest = dataset.drop(found.broken)
    assert rest.counts("val") == {"cat": 12, "dog": 12}
    assert str(broken) in rest.problems[0]
    assert "broken picture" in rest.problems[0]
    assert find_corrupt(dataset.splits["val"], SPEC) == found.broken


def test_the_head_separates_what_can_be_separated_and_val_chooses():
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(3, 20))
    labels = rng.integers(0, 3, 300)
    x = (centres[labels] + rng.normal(size=(300, 20))).astype(np.float32)
    head = fit_head(x[:200], labels[:200].tolist(), x[200:], labels[200:].tolist(), 3)
    logits = torch.from_numpy(x[200:]) @ head.weight.T + head.bias
    assert (logits.argmax(1).numpy() == labels[200:]).mean() > 0.97
    assert head.candidates[head.weight_decay].val_loss == min(scores.val_loss for scores in head.candidates.values())
    assert head.steps[-1] == head.candidates[head.weight_decay]


def test_weights_from_a_file_are_taken(weights: Path):
    loaded = backbones.load_backbone("mobilenet_v2", str(weights), 2, seed=0)
    state = torch.load(weights, weights_only=True)
    assert torch.equal(loaded.network.features.state_dict()["features.0.0.weight"], state["features.0.0.weight"])
    assert loaded.weights == "mobilenet_v2.pth"
    assert loaded.digest == backbones.load_backbone("mobilenet_v2", str(weights), 5, seed=3).digest


def test_weights_of_another_network_are_refused(weights: Path):
    with pytest.raises(InvalidWeights, match=r"belong to another network.*name the backbone they come from"):
        backbones.load_backbone("resnet18", str(weights), 2, seed=0)


@pytest.mark.parametrize("content", [b"", b"not a state_dict at all", b"\x80\x04K\x01."])
def test_a_file_that_is_no_state_dict_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InvalidWeights, match=r"w\.pth.*weights=none"):
        backbones.load_backbone("mobilenet_v2", str(tmp_path / "w.pth"), 2, seed=0)
    with pytest.raises(InvalidWeights, match="is not a file"):
        backbones.load_backbone("mobilenet_v2", str(tmp_path / "nowhere.pth"), 2, seed=0)


def test_weights_that_cannot_be_downloaded_name_the_choices(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(InvalidWeights, match=r"no route to host.*a path to a state_dict.*weights=none"):
        backbones.load_backbone("mobilenet_v2", "imagenet", 2, seed=0)


def test_an_interrupted_fine_tuning_resumes_to_the_same_weights(drawn: Path, tmp_path: Path):
    dataset = read_folder(drawn)
    splits = dataset.splits["train"], dataset.splits["val"]
    plan = FinetuneConfig(epochs=3, learning_rate=1e-3, batch_size=16, seed=0)

    def start() -> backbones.Backbone:
        return backbones.load_backbone("shufflenet_v2_x0_5", "none", 2, seed=0, image_size=64)

    whole = start()
    losses: list[float] = []
    kept = finetune(
        whole.network,
        *splits,
        whole.preprocess,
        plan,
        checkpoint=tmp_path / "a.pt",
        on_epoch=lambda epoch, scores: losses.append(scores.val_loss),
    )
    assert kept in (0, losses.index(min(losses)) + 1)
    assert not (tmp_path / "a.pt").exists()

    def stop_after_two(epoch: int, scores: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    cut = start()
    with pytest.raises(KeyboardInterrupt):
        finetune(cut.network, *splits, cut.preprocess, plan, checkpoint=tmp_path / "b.pt", on_epoch=stop_after_two)
    resumed, epochs = start(), []
    finetune(
        resumed.network,
        *splits,
        resumed.preprocess,
        plan,
        checkpoint=tmp_path / "b.pt",
        resume=True,
        on_epoch=lambda epoch, scores: epochs.append(epoch),
    )
    assert epochs == [3]
    for name, value in whole.network.state_dict().items():
        assert torch.allclose(value, resumed.network.state_dict()[name], atol=1e-4), name


def test_fine_tuning_that_only_harms_leaves_the_network_as_it_was(drawn: Path, tmp_path: Path):
    dataset = read_folder(drawn)
    net = backbones.load_backbone("shufflenet_v2_x0_5", "none", 2, seed=0, image_size=64)
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    splits = dataset.splits["train"], dataset.splits["val"]
    assert finetune(net.network, *splits, net.preprocess, FinetuneConfig(1, 50.0, 16, 0), checkpoint=tmp_path / "d.pt") == 0
    assert all(torch.equal(value, before[name]) for name, value in net.network.state_dict().items())


def test_a_checkpoint_of_another_plan_is_refused(drawn: Path, tmp_path: Path):
    dataset = read_folder(drawn)
    splits = dataset.splits["train"], dataset.splits["val"]
    net = backbones.load_backbone("shufflenet_v2_x0_5", "none", 2, seed=0, image_size=64)

    def stop(epoch: int, scores: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            net.network, *splits, net.preprocess, FinetuneConfig(2, 1e-3, 16, 0), checkpoint=tmp_path / "c.pt", on_epoch=stop
        )
    with pytest.raises(InvalidSetting, match="another plan"):
        finetune(
            net.network, *splits, net.preprocess, FinetuneConfig(5, 1e-3, 16, 0), checkpoint=tmp_path / "c.pt", resume=True
        )
