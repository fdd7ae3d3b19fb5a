"""timm's models as backbones: what they are cut to, how they are saved and served, and what cannot be used."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import _builder

from catdog_pyfunc import bundle, engine, flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.engine import OnnxEngine, open_engine
from catdog_pyfunc.errors import InvalidSetting, InvalidWeights, MissingDependency
from catdog_pyfunc.network import build_network
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.distributed import Ranks
from catdog_pyfunc.pipeline.training.finetuning import FinetuneConfig
from catdog_pyfunc.pipeline.training.fit import checkpoint_path
from catdog_pyfunc.preprocessing import Preprocess, preprocess

# How a family pools, and the side of its map for images of 64 pixels.
FAMILIES = {
    "test_resnet": 2,  # averages a feature map
    "mobilenetv3_small_050": 2,  # has a hidden layer after the average
    "test_convnext": 2,  # has a layer norm after the average
    "test_mambaout": 2,  # has hidden layers after the average of a feature map (N, h, w, D)
    "gmlp_ti16_224": 4,  # averages patch tokens
    "test_vit2": 4,  # the same, with a layer norm afterwards
    "test_vit": 1,  # uses the class token
    "test_maxvit": 2,  # averages a feature map
}
PLAIN_HEAD = [
    *sorted(FAMILIES.keys() - {"mobilenetv3_small_050", "test_mambaout"}),
    "eva02_tiny_patch14_336",  # averages patch tokens, but not its class token
]
SIZE = 64


def untrained(name: str, weights: str = "none", size: int | None = SIZE) -> Backbone:
    return load_backbone(f"timm/{name}", weights, 3, seed=0, image_size=size)


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, str]:
    """A whole model of timm's for images of 64 pixels, and the file of its weights."""
    torch.manual_seed(1)
    options = {"img_size": SIZE} if timm.get_pretrained_cfg_value(request.param, "fixed_input_size") else {}
    model = timm.create_model(request.param, **options).eval()
    for parameter in model.parameters():  # norms start as identities, which hide mistakes
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
    torch.save(model.state_dict(), tmp_path / "w.pth")
    return model, str(tmp_path / "w.pth")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_every_family_is_saved_and_served(name: str, images: list[bytes], tmp_path: Path):
    backbone = untrained(name)
    network, spec, side = backbone.network, backbone.preprocess, FAMILIES[name]
    description = Description(backbone.name, ("cat", "dog", "owl"), spec)
    reference = np.eye(4, network.head.in_features, dtype=np.float32)
    flavor.save_model(tmp_path / "model", network, description, reference, images=images[:4])

    stored = bundle.read(tmp_path / "model" / "artifacts" / "bundle")
    onnx_, torch_ = (Classifier(stored, engine=name).predict(images[:5], explain=True) for name in ("onnx", "torch"))
    for one, other in zip(onnx_, torch_, strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)
        assert one.domain_score == pytest.approx(other.domain_score, abs=1e-3)
        assert (one.heatmap is not None) == (other.heatmap is not None) == (side > 1)
    pixels = np.stack([preprocess(image, spec) for image in images[:3]])
    outputs = OnnxEngine(stored.path / "model.onnx").run(pixels)
    assert outputs.class_maps.shape == (3, 3, side, side)
    assert outputs.class_maps.mean((2, 3)) + network.head.bias.detach().numpy() == pytest.approx(outputs.logits, abs=1e-3)
    module = mlflow.pytorch.load_model(str(tmp_path / "model"))
    normalised = (torch.from_numpy(pixels) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    assert module(normalised.permute(0, 3, 1, 2)).detach().numpy() == pytest.approx(outputs.logits, abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_fine_tuning_reaches_every_weight(name: str):
    network = untrained(name).network.train()
    network(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("whole", PLAIN_HEAD, indirect=True)
def test_the_pretrained_head_on_the_embedding_gives_timms_logits(whole: tuple[torch.nn.Module, str]):
    model, path = whole
    name = model.pretrained_cfg["architecture"]
    network = untrained(name, path).network
    assert network.pretrained_head is not None
    batch = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        _, embedding, class_maps = network.outputs(batch)
        logits = network.pretrained_head(embedding)
        assert logits.numpy() == pytest.approx(model(batch).numpy(), rel=1e-3, abs=1e-3)
    assert class_maps.shape[2] == FAMILIES.get(name, 4)


@pytest.mark.parametrize("whole", ["mobilenetv3_small_050"], indirect=True)
def test_layers_between_pooling_and_classifier_are_left_out(whole: tuple[torch.nn.Module, str]):
    model, path = whole
    backbone = untrained("mobilenetv3_small_050", path)
    batch = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = model.forward_features(batch).mean((2, 3))
        assert torch.allclose(backbone.network.outputs(batch)[1], expected, atol=1e-4)
    assert backbone.network.pretrained_head is None
    assert not any("conv_head" in key or "classifier" in key for key in backbone.network.state_dict())


@pytest.mark.parametrize("whole", ["test_vit"], indirect=True)
def test_weights_for_another_image_size_are_resized_as_timm_does(whole: tuple[torch.nn.Module, str]):
    _, path = whole
    larger = timm.create_model("test_vit", img_size=96)
    with torch.no_grad():
        timm.models.load_checkpoint(larger, path, filter_fn=timm.models.vision_transformer.checkpoint_filter_fn)
    loaded = untrained("test_vit", path, 96).network.features.state_dict()
    assert torch.equal(loaded["model.pos_embed"], larger.state_dict()["pos_embed"])
    with pytest.raises(InvalidWeights, match="belong to another network"):
        untrained("test_vit3", path)


def test_imagenet_means_the_weights_that_timm_publishes(monkeypatch: pytest.MonkeyPatch):
    published = timm.create_model("test_vit")
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: published.state_dict())
    backbone = untrained("test_vit", "imagenet", None)
    assert (backbone.name, backbone.weights, backbone.preprocess.size) == ("timm/test_vit", "imagenet", 160)
    assert torch.equal(backbone.network.features.state_dict()["model.cls_token"], published.cls_token)
    assert backbone.network.pretrained_head is not None

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(InvalidWeights, match=r"weights for timm/test_vit \(no route to host\).*a path to a state_dict"):
        untrained("test_vit", "imagenet")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_images_are_prepared_as_timms_configuration_says(name: str, images: list[bytes]):
    model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    spec = untrained(name, size=None).preprocess
    assert (spec.size, spec.interpolation) == (config["input_size"][1], config["interpolation"])
    transform = timm.data.create_transform(**config)

    def distance(content: bytes, spec: Preprocess) -> float:
        normalised = transform(Image.open(io.BytesIO(content)).convert("RGB")).permute(1, 2, 0).numpy()
        return float(np.abs(preprocess(content, spec) - 255 * (normalised * spec.std + spec.mean)).mean())

    others = [replace(spec, interpolation="bicubic" if spec.interpolation == "bilinear" else "bilinear")]
    others += [replace(spec, resize=spec.resize * 9 // 8), replace(spec, mean=(0.4, 0.4, 0.4))]
    for other in others:
        assert np.mean([distance(content, spec) for content in images]) < np.mean([distance(c, other) for c in images])


def test_another_image_size_scales_the_resizing_too():
    spec = untrained("test_vit", size=96).preprocess
    assert (spec.size, spec.resize) == (96, 101)  # timm's crop is 0.95 of the image


def test_an_image_size_that_a_model_does_not_take_is_refused():
    with pytest.raises(InvalidSetting, match=r"timm/test_coatnet.* takes no images of 50x50 pixels .*image_size=160"):
        untrained("test_coatnet", size=50)


def test_a_model_with_features_of_an_unknown_form_is_refused():
    with pytest.raises(InvalidSetting, match=r"timm/coat_tiny.* has no pooled features that can be used.*timm/resnet18"):
        build_network("timm/coat_tiny", 2)


@pytest.mark.parametrize("name", ["resnet19", "resnet50.tv_in2k"])
def test_an_unknown_model_is_refused_with_the_nearest_names(name: str):
    nearest = {"resnet19": "timm/resnet18", "resnet50.tv_in2k": "timm/resnet50.tv_in1k"}[name]
    with pytest.raises(InvalidSetting, match=rf"'timm/{name}' is not a model of timm's: .*, such as .*{nearest}"):
        build_network(f"timm/{name}", 2)


def test_without_timm_onnx_serves_and_torch_names_the_extra(
    tiny_model: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    stored = bundle.read(tiny_model / "artifacts" / "bundle")
    stored = replace(stored, description=replace(stored.description, backbone="timm/test_vit"))
    monkeypatch.setattr(engine, "_has_cuda", lambda: True)
    monkeypatch.setattr(engine, "TorchEngine", lambda opened: "torch")
    assert open_engine(stored) == "torch"
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert isinstance(open_engine(stored), OnnxEngine)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependency, match=r"backbone 'timm/test_vit' needs timm: pip install 'catdog-pyfunc\[timm\]'"):
        open_engine(stored, "torch")


def test_a_checkpoint_is_one_file_in_the_cache(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = checkpoint_path(FinetuneConfig(1, 1e-3, 8, 0), read_folder(drawn), untrained("test_vit"), horizontal_flip=False)
    assert path.parent == tmp_path / "catdog-pyfunc"
    assert path.name.startswith("finetune-timm-test_vit-")


def test_batch_norm_shared_by_gpus_keeps_its_activation():
    network = untrained("mobilenetv3_small_050").network
    shared = Ranks(0, 2, torch.device("cuda"), 0).with_shared_batch_norm(network)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in shared.modules())
    batch = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.allclose(shared(batch), network(batch), atol=1e-5)


def test_loaded_weights_replace_what_was_derived_from_the_old_ones():
    one, other = (untrained("levit_128s").network for _ in range(2))
    batch = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = one(batch)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if "attention_biases" in key:
                parameter.normal_()
        assert not torch.allclose(other(batch), expected, atol=1e-5)
        other.load_state_dict(one.state_dict())
        assert torch.allclose(other(batch), expected, atol=1e-5)
