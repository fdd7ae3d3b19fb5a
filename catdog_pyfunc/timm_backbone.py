"""timm's models as backbones, `timm/<name>`: cut so that their pooled features are the mean of a feature map.

Importing this module requires the [torch] extra; building a backbone requires [timm] as well.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn

from catdog_pyfunc.bundle import TIMM
from catdog_pyfunc.errors import InvalidSetting, MissingDependency, first_line


class TimmFeatures(nn.Module):
    """A model of timm's up to its pooled features, which are the mean of the map that it returns.

    - Models that average a feature map or patch tokens return these. A layer norm that follows is applied to the map, with
      the statistics of the mean (ConvNeXt, BEiT), which gives the same mean. Other layers between pooling and classifier
      (MobileNetV3's) are left out, as they are of torchvision's models.
    - Transformers that pool in another way, such as by a class token, return what they pool as a map of a single location:
      it cannot tell where the evidence is.

    Attributes:
        model: timm's model without the modules behind the features. The others keep their names.
        dimension: D, the number of features.
    """

    def __init__(self, model: Any, images: Tensor) -> None:
        """Cut a model.

        Args:
            model: Created with `num_classes=0`; in evaluation mode.
            images: (N, 3, H, W), to see how the model pools.
        """
        super().__init__()
        self.model = model
        model.register_load_state_dict_post_hook(_clear_caches)
        features = model.forward_features(images)
        pooled = model.forward_head(features, pre_logits=True)  # (N, D)
        self._prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        patches = features.shape[1] - self._prefix_tokens
        self._side = math.isqrt(patches)  # of the square of patch tokens
        has_grid = features.ndim == 4 or (features.ndim == 3 and self._side**2 == patches)
        exact = [norm for norm in (None, *_layer_norms(model)) if has_grid and self._means(features, norm, pooled)]
        self._has_map = features.ndim == 4 or bool(exact)
        self._norm = exact[0] if exact else None  # name of the layer norm between mean and classifier
        output = self(images)
        self.dimension = int(output.shape[1])
        _remove_unused(model, output)
        _clear_caches(model)

    def forward(self, images: Tensor) -> Tensor:
        """Compute (N, 3, H, W) → (N, D, h, w)."""
        features = self.model.forward_features(images)
        if self._has_map:
            return self._to_map(features, self._norm)
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        return pooled[:, :, None, None]

    def _means(self, features: Tensor, norm: str | None, pooled: Tensor) -> bool:
        mean = self._to_map(features, norm).mean((2, 3))
        return mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-4)

    def _to_map(self, features: Tensor, norm: str | None) -> Tensor:
        if features.ndim == 3:  # tokens (N, L, D)
            feature_map = features[:, self._prefix_tokens :].transpose(1, 2).unflatten(2, (self._side, self._side))  # type: ignore[no-untyped-call]
        else:
            channels_last = features.shape[3] == self.model.num_features != features.shape[1]
            feature_map = features.permute(0, 3, 1, 2) if channels_last else features
        return feature_map if norm is None else _normalised(feature_map, self.model.get_submodule(norm))


def _layer_norms(model: Any) -> list[str]:
    """Names of the layer norms that may follow the pooling."""
    modules = dict(model.named_modules())
    found = {name: modules[name] for name in ("fc_norm", "head.norm", "norm") if name in modules}
    return [
        name
        for name, norm in found.items()
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (model.num_features,) and norm.bias is not None
    ]


def _clear_caches(model: nn.Module, _: object = None) -> None:
    """Make a model forget what it derived from its weights in evaluation mode, as LeViT does its attention biases."""
    training = model.training
    model.train().train(training)


def _normalised(feature_map: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply a layer norm of the map's mean to (N, D, h, w): linear in the map, once the statistics are known."""
    feature_map = feature_map.float()  # in half precision, the variance of a transformer's features could overflow
    variance = feature_map.mean((2, 3)).var(1, unbiased=False)  # (N,)
    centred = feature_map - feature_map.mean(1, keepdim=True)
    scaled = centred * (variance + norm.eps).rsqrt()[:, None, None, None]
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def _remove_unused(model: nn.Module, output: Tensor) -> None:
    """Remove the modules whose parameters do not contribute to an output: fine-tuning could not train them."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    used = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    owners = {name.rpartition(".")[0] for name in parameters} - {""}
    for owner in sorted(owners, reverse=True):  # inner modules first
        if not any(name.startswith(f"{owner}.") for name in used):
            model.set_submodule(owner, nn.Identity())


def timm_features(backbone: str, image_size: int | None = None) -> TimmFeatures:
    """Create a model of timm's with random weights, up to its pooled features.

    Args:
        backbone: `timm/<name>`.
        image_size: Side of its square images, pixels; None for the size that the model was made for.

    Returns:
        The features, in evaluation mode.

    Raises:
        InvalidSetting: There is no such model, it takes no images of this size, or its features have no form known here.
        MissingDependency: timm is not installed.
    """
    own_size = timm_size(backbone)
    size = image_size or own_size
    try:
        model = create_timm_model(backbone, size, num_classes=0).eval()
        return TimmFeatures(model, torch.randn(1, 3, size, size))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem, remedy = "has no pooled features that can be used", "give another, such as timm/resnet18"
        if size != own_size:
            problem, remedy = f"takes no images of {size}x{size} pixels", f"give image_size={own_size}"
        raise InvalidSetting(f"backbone {backbone!r} {problem} ({first_line(error, 200)}): {remedy}") from None


def create_timm_model(backbone: str, size: int, **options: Any) -> Any:
    """Create a whole model of timm's; raises whatever timm raises.

    Args:
        backbone: `timm/<name>`, which timm knows.
        size: Side of its square images, pixels.
        options: Passed to `timm.create_model`.

    Returns:
        The model.
    """
    import timm

    name = backbone.removeprefix(TIMM)
    if timm.get_pretrained_cfg_value(name, "fixed_input_size") and size != timm_size(backbone):
        options["img_size"] = size
    return timm.create_model(name, **options)


def timm_classes(backbone: str) -> int:
    """The number of classes that a model of timm's has published weights for."""
    import timm

    return int(timm.get_pretrained_cfg_value(backbone.removeprefix(TIMM), "num_classes"))


def timm_size(backbone: str) -> int:
    """The side of the square images that a model of timm's was made for, pixels.

    Raises:
        InvalidSetting: There is no such model.
        MissingDependency: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise MissingDependency(f"backbone {backbone!r} needs timm: pip install 'catdog-pyfunc[timm]'") from None
    name, known = backbone.removeprefix(TIMM), {*timm.list_models(), *timm.list_pretrained()}
    if name not in known:
        nearest = difflib.get_close_matches(name, sorted(known), n=5) or ["resnet18"]
        raise InvalidSetting(
            f"backbone {backbone!r} is not a model of timm's: give one that `timm.list_models()` has, such as "
            f"{', '.join(TIMM + match for match in nearest)}"
        )
    return int(timm.get_pretrained_cfg_value(name, "input_size")[-1])
