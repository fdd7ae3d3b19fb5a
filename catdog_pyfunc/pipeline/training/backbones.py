"""Pretrained backbones: the networks and weights that `backbone=` and `weights=` select."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models

from catdog_pyfunc.errors import InvalidWeights, first_line
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.pipeline.training.config import IMAGENET, NONE
from catdog_pyfunc.preprocessing import Floats, Preprocess

_CHOICES = "give weights=imagenet (downloaded once), a path to a state_dict of this backbone, or weights=none"


@dataclass(frozen=True)
class Backbone:
    """A network that is ready to be trained.

    Attributes:
        name: Model name in `torchvision.models`.
        network: Pretrained features (or random ones) and a randomly initialised head.
        weights: "imagenet", "none" or the name of the weights file.
        digest: 16 hex digits over name and feature weights: equal networks have equal digests.
        preprocess: The preprocessing that the pretrained weights expect.
        head: The pretrained classifier on the same pooled features: weight (K, D) and bias (K,), float32. None without
            pretrained weights, or if it is more than one linear layer.
    """

    name: str
    network: Network
    weights: str
    digest: str
    preprocess: Preprocess
    head: tuple[Floats, Floats] | None = None

    @property
    def pretrained(self) -> bool:
        """Whether the features were trained before, so that a linear head can use them as they are."""
        return self.weights != NONE


def load_backbone(name: str, weights: str, n_classes: int, seed: int, image_size: int | None = None) -> Backbone:
    """Build a network and load its weights.

    Args:
        name: A classification model of `torchvision.models` that ends in globally pooled features.
        weights: "imagenet" (torchvision's, downloaded and cached), a path to a state_dict, or "none".
        n_classes: Number of outputs of the head.
        seed: Seed of the random weights: of the head, and of the whole network if `weights` is "none".
        image_size: Side of the square input in pixels; None for the size of torchvision's preset.

    Returns:
        The backbone.

    Raises:
        InvalidSetting: The backbone is unknown or has no globally pooled features.
        InvalidWeights: The weights cannot be downloaded or read, or belong to another network.
    """
    torch.manual_seed(seed)
    network = build_network(name, n_classes)
    label, head = weights, None
    if weights != NONE:
        state = _download(name) if weights == IMAGENET else _read(Path(weights))
        source, label = (f"torchvision's {name}", weights) if weights == IMAGENET else (weights, Path(weights).name)
        _load_features(network, state, source)
        head = pretrained_head(network, state)
    return Backbone(name, network, label, _digest(name, network), _preprocess(name, image_size), head)


def pretrained_head(network: Network, state: Mapping[str, torch.Tensor]) -> tuple[Floats, Floats] | None:
    """Find the classifier that was trained together with the features.

    Args:
        network: The features that `state` was loaded into.
        state: The state_dict of the whole pretrained model.

    Returns:
        Weight (K, D) and bias (K,), whose product with the embedding gives the pretrained logits; None if anything else
        lies between them, such as a norm or a hidden layer, or if `state` holds no classifier.
    """
    rest = sorted(state.keys() - network.features.state_dict().keys())
    rest = [key for key in rest if not key.lower().startswith("aux")]  # googlenet's and inception's, used in training only
    if [key.split(".")[-1] for key in rest] != ["bias", "weight"]:
        return None
    bias, weight = (state[key].float().numpy() for key in rest)
    return (weight, bias) if weight.shape[1:] == (network.head.in_features,) else None


def _download(name: str) -> Mapping[str, torch.Tensor]:
    try:
        weights = models.get_model_weights(name)["DEFAULT"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, KeyError, RuntimeError) as error:
        raise InvalidWeights(f"cannot download torchvision's weights for {name} ({first_line(error)}): {_CHOICES}") from None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InvalidWeights(f"weights {path} is not a file: {_CHOICES}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InvalidWeights(f"cannot read weights {path} as a state_dict ({first_line(error)}): {_CHOICES}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidWeights(f"weights {path} contains {type(content).__name__}, not a state_dict of tensors: {_CHOICES}")
    return content


def _load_features(network: Network, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the feature weights, all of which must be there in their shapes; the old head's weights are ignored."""
    expected = network.features.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or reshaped:
        examples = ", ".join(
            [*(f"{key} is missing" for key in missing), *(f"{key} has another shape" for key in reshaped)][:3]
        )
        raise InvalidWeights(
            f"weights {source} belong to another network: {len(missing) + len(reshaped)} of {len(expected)} tensors do not "
            f"fit ({examples}, …); name the backbone they come from, or {_CHOICES}"
        )
    network.features.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)


def _digest(name: str, network: Network) -> str:
    content = hashlib.sha256(name.encode())
    for key, tensor in network.features.state_dict().items():
        content.update(key.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _preprocess(name: str, image_size: int | None) -> Preprocess:
    """Read torchvision's inference preset, which needs no download; scale it if another size is wanted."""
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    if image_size:
        size, resize = image_size, round(image_size * resize / size)
    red, green, blue = preset.mean
    red_std, green_std, blue_std = preset.std
    mean, std = (red, green, blue), (red_std, green_std, blue_std)
    return Preprocess(size, max(size, resize), mean, std, str(preset.interpolation.value))
