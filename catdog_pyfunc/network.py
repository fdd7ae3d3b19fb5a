"""The PyTorch network: a backbone of torchvision or timm up to its pooled features, and a linear head.

Importing this module requires the [torch] extra; only `TorchEngine`, saving and training do so.
"""

from __future__ import annotations

import warnings

from catdog_pyfunc.bundle import TIMM
from catdog_pyfunc.errors import InvalidSetting, MissingDependency
from catdog_pyfunc.preprocessing import Preprocess

try:
    import torch
    import torchvision
    from torch import fx, nn
    from torch.nn import functional

    from catdog_pyfunc.timm_backbone import timm_features
except ImportError as error:
    raise MissingDependency("this needs PyTorch and torchvision: pip install 'catdog-pyfunc[torch]'") from error


class Network(nn.Module):
    """A convolutional backbone, global average pooling and a linear head.

    The head is linear on pooled features, so class activation maps are exact: a class's logit and its map are the same
    product (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).
    """

    def __init__(self, features: nn.Module, dimension: int, n_classes: int) -> None:
        """Assemble the network.

        Args:
            features: (N, 3, H, W) → (N, D, h, w).
            dimension: D, the number of features.
            n_classes: C, the number of classes.
        """
        super().__init__()
        self.features = features
        self.head = nn.Linear(dimension, n_classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Classify normalised images: (N, 3, H, W) float32 → logits (N, C)."""
        return self.outputs(batch)[0]

    def outputs(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute (N, 3, H, W) float32 → logits (N, C), embeddings (N, D), class maps (N, C, h, w).

        The mean of a class's map, plus the head's bias, is the class's logit.
        """
        feature_map = self.features(batch)  # (N, D, h, w)
        embedding = feature_map.mean((2, 3))  # (N, D)
        class_maps = functional.conv2d(feature_map, self.head.weight[:, :, None, None])  # (N, C, h, w)
        return self.head(embedding), embedding, class_maps


class ServingNetwork(nn.Module):
    """A `Network` with normalisation and OOD similarity: it takes uint8 images, so all arithmetic happens in the graph."""

    mean: torch.Tensor
    scale: torch.Tensor
    reference_embeddings: torch.Tensor

    def __init__(self, network: Network, spec: Preprocess, reference_embeddings: torch.Tensor) -> None:
        """Wrap a network.

        Args:
            network: The trained network.
            spec: Its mean and standard deviation.
            reference_embeddings: (M, D), each of length 1.
        """
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(spec.mean)[:, None, None])  # (3, 1, 1)
        self.register_buffer("scale", 1 / (255 * torch.tensor(spec.std)[:, None, None]))
        self.register_buffer("reference_embeddings", reference_embeddings.half())  # (M, D), half the size in the file

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute (N, H, W, 3) uint8 → logits (N, C), embeddings (N, D), class maps (N, C, h, w), similarity (N,).

        The similarity is the cosine to the nearest reference embedding: the k-nearest-neighbour distance on normalised
        features (Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022) with k = 1.
        """
        # NHWC → NCHW first: ONNX Runtime takes 0.8 ms to broadcast along the last axis, 0.1 ms along a plane.
        batch = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) * self.scale
        logits, embedding, class_maps = self.network.outputs(batch)
        length = embedding.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        similarity = ((embedding / length) @ self.reference_embeddings.float().T).amax(1)
        return logits, embedding, class_maps, similarity


def build_network(backbone: str, n_classes: int, image_size: int | None = None) -> Network:
    """Create the network for a backbone, with random weights.

    Args:
        backbone: A classification model's name in `torchvision.models`, or `timm/<name>` for one of timm's.
        n_classes: The number of classes.
        image_size: Side of the square images, pixels; None for the backbone's own. Most transformers of timm's have weights
            that depend on it.

    Returns:
        The network, in evaluation mode.

    Raises:
        InvalidSetting: There is no such backbone, it does not end in globally pooled features, or not for images of this
            size.
        MissingDependency: The backbone is one of timm's, which is not installed.
    """
    if backbone.startswith(TIMM):
        timm_model = timm_features(backbone, image_size)
        return Network(timm_model, timm_model.dimension, n_classes).eval()
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        raise InvalidSetting(f"backbone {backbone!r} is not in torchvision.models: give one of {', '.join(known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception announce a change of their initialisation
        model = torchvision.models.get_model(backbone, weights=None)
    features = feature_extractor(model.eval(), backbone)
    with torch.inference_mode():
        dimension = features(torch.zeros(1, 3, 224, 224)).shape[1]
    return Network(features, dimension, n_classes).eval()


def feature_extractor(model: nn.Module, name: str) -> fx.GraphModule:
    """Cut a classification model before its last global pooling.

    Parameters keep their names in torchvision's own state_dict.

    Args:
        model: The whole model, in evaluation mode.
        name: Its name, for the error message.

    Returns:
        A module (N, 3, H, W) → (N, D, h, w).

    Raises:
        InvalidSetting: The model has no global pooling (transformers, VGG).
    """
    graph = fx.Tracer().trace(model)
    poolings = [node for node in graph.nodes if _pools_globally(node, model)]
    if not poolings:
        raise InvalidSetting(
            f"backbone {name!r} does not end in globally pooled features: "
            "use one that does, such as mobilenet_v2, resnet18, efficientnet_b0 or convnext_tiny"
        )
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (poolings[-1].args[0],)
    features = fx.GraphModule(model, graph)
    features.graph.eliminate_dead_code()
    features.delete_all_unused_submodules()
    features.recompile()
    return features


def _pools_globally(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    if node.target is functional.adaptive_avg_pool2d:
        return node.args[1] in (1, (1, 1))
    return node.target == "mean" and list(node.args[1:2]) in ([[2, 3]], [(2, 3)])
