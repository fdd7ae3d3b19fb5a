"""Pretrained networks: what `backbone=` and `weights=` name."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models

from catdog_pyfunc.errors import InvalidWeights
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.pipeline.training.config import IMAGENET, NONE
from catdog_pyfunc.preprocessing import Preprocess

_CHOICES = "give weights=imagenet (downloaded once), a path to a state_dict of this backbone, or weights=none"


@dataclass(frozen=True)
class Backbone:
    """A network ready to learn.

    Attributes:
        name: In `torchvision.models`.
        network: With the weights in, and a random head.
        weights: "imagenet", "none" or the file's name.
        digest: Of name and feature weights, 16 hex digits: the same network, the same digest.
        preprocess: How torchvision prepares pictures for it.
    """

    name: str
    network: Network
    weights: str
    digest: str
    preprocess: Preprocess

    @property
    def pretrained(self) -> bool:
        """Whether its features know anything yet."""
        return self.weights != NONE


def load_backbone(name: str, weights: str, n_classes: int, seed: int, image_size: int | None = None) -> Backbone:
    """Make a network and fill it with weights.

    Args:
        name: A classification model of `torchvision.models` that ends in pooled features.
        weights: "imagenet" (torchvision's, downloaded and cached), a path to a state_dict, or "none".
        n_classes: Of the head.
        seed: Of the random weights: the head's, and all if `weights` is "none".
        image_size: Side of the square that the network sees, pixels; None for what torchvision uses with it.

    Returns:
        The backbone.

    Raises:
        InvalidSetting: No such backbone, or no pooled features.
        InvalidWeights: They can't be had, or belong to another network.
    """
    torch.manual_seed(seed)
    network = build_network(name, n_classes)
    label = weights
    if weights == IMAGENET:
        _fill(network, _download(name), f"torchvision's {name}")
    elif weights != NONE:
        _fill(network, _read(Path(weights)), weights)
        label = Path(weights).name
    return Backbone(name, network, label, _digest(name, network), _preprocess(name, image_size))


def _download(name: str) -> Mapping[str, torch.Tensor]:
    try:
        weights = models.get_model_weights(name)["DEFAULT"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, KeyError, RuntimeError) as unavailable:
        raise InvalidWeights(f"torchvision's weights for {name} can't be had ({unavailable}): {_CHOICES}") from None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InvalidWeights(f"weights {path} is not a file: {_CHOICES}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as wrong:
        reason = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise InvalidWeights(f"weights {path} can't be read as a state_dict ({reason}): {_CHOICES}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidWeights(f"weights {path} holds {type(content).__name__}, not a state_dict of tensors: {_CHOICES}")
    return content


def _fill(network: Network, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Every tensor of the features must be there in its shape; what the file holds besides is the old head's."""
    wanted = network.features.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or reshaped:
        wrong = ", ".join([*(f"no {key}" for key in missing), *(f"another shape of {key}" for key in reshaped)][:3])
        raise InvalidWeights(
            f"weights {source} belong to another network: {len(missing) + len(reshaped)} of {len(wanted)} tensors don't fit "
            f"({wrong}, …); name the backbone they come from, or {_CHOICES.removeprefix('give ')}"
        )
    network.features.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def _digest(name: str, network: Network) -> str:
    content = hashlib.sha256(name.encode())
    for key, tensor in network.features.state_dict().items():
        content.update(key.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _preprocess(name: str, image_size: int | None) -> Preprocess:
    """Torchvision's own preset, known without a download; scaled if another size is asked for."""
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    if image_size:
        size, resize = image_size, round(image_size * resize / size)
    red, green, blue = preset.mean
    red_std, green_std, blue_std = preset.std
    return Preprocess(size, max(size, resize), (red, green, blue), (red_std, green_std, blue_std))
