"""The PyTorch network: a backbone of torchvision or timm up to its pooled features, and a linear head.

Importing this module requires the [torch] extra; only `TorchEngine`, saving and training do so.
"""

from __future__ import annotations

import operator
import warnings

from catdog_pyfunc.bundle import TIMM
from catdog_pyfunc.errors import InvalidSetting, MissingDependency
from catdog_pyfunc.preprocessing import Preprocess

try:
    import torch
    import torchvision
    from torch import fx, nn
    from torch.nn import functional

    from catdog_pyfunc.timm_backbone import timm_classes, timm_features
except ImportError as error:
    raise MissingDependency("this needs PyTorch and torchvision: pip install 'catdog-pyfunc[torch]'") from error


_REFERENCES_PER_NEIGHBOUR = 100  # of one class: chosen on val and on classes left out of train (benchmarks/ood.py)


class Network(nn.Module):
    """A convolutional backbone, global average pooling and a linear head.

    The head is linear on pooled features, so class activation maps are exact: a class's logit and its map are the same
    product (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).
    """

    def __init__(
        self, features: nn.Module, dimension: int, n_classes: int, pretrained_head: nn.Module | None = None
    ) -> None:
        """Assemble the network.

        Args:
            features: (N, 3, H, W) → (N, D, h, w).
            dimension: D, the number of features.
            n_classes: C, the number of classes.
            pretrained_head: The classifier that the features were trained with, (N, D) → logits (N, K); None if it is not
                known. It is not trained any further.
        """
        super().__init__()
        self.features = features
        self.head = nn.Linear(dimension, n_classes)
        self.pretrained_head = pretrained_head and pretrained_head.requires_grad_(False)

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

    def ood_features(self, embedding: torch.Tensor) -> torch.Tensor:
        """Compute what images are compared by to tell whether they are out of distribution.

        With a pretrained classifier, that is what it says of them: the softmax of its logits, whose scale differs between
        backbones and is taken out. Noise, blur and light change that less than they change the embedding, which is compared
        without one (benchmarks/ood.py).

        Args:
            embedding: (N, D).

        Returns:
            (N, K) or (N, D), each row of length 1.
        """
        if self.pretrained_head is None:
            return functional.normalize(embedding)
        logits = self.pretrained_head(embedding)
        return functional.normalize((logits / logits.std(1, keepdim=True).clamp_min(1e-12)).softmax(1))


class ServingNetwork(nn.Module):
    """A `Network` with normalisation and OOD similarity: it takes uint8 images, so all arithmetic happens in the graph."""

    mean: torch.Tensor
    scale: torch.Tensor
    reference_features: torch.Tensor

    def __init__(self, network: Network, spec: Preprocess, reference_embeddings: torch.Tensor) -> None:
        """Wrap a network.

        Args:
            network: The trained network.
            spec: Its mean and standard deviation.
            reference_embeddings: (M, D), of training images.
        """
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(spec.mean)[:, None, None])  # (3, 1, 1)
        self.register_buffer("scale", 1 / (255 * torch.tensor(spec.std)[:, None, None]))
        features = network.ood_features(reference_embeddings)
        self.register_buffer("reference_features", features.detach().half())  # half the size in the file

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute (N, H, W, 3) uint8 → logits (N, C), embeddings (N, D), class maps (N, C, h, w), similarity (N,)."""
        # NHWC → NCHW first: ONNX Runtime takes 0.8 ms to broadcast along the last axis, 0.1 ms along a plane.
        batch = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) * self.scale
        logits, embedding, class_maps = self.network.outputs(batch)
        features = self.network.ood_features(embedding)
        reference, n_classes = self.reference_features.float(), self.network.head.out_features
        return logits, embedding, class_maps, similarity(features, reference, n_classes)


def similarity(features: torch.Tensor, reference: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Compute how similar images are to the reference: the cosine to the k-th nearest, where k is 1 % of a class's images.

    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. As there, the best k grows with the
    reference: the fifth of 50 images is far from what is known, too.

    Args:
        features: (N, K), each of length 1.
        reference: (M, K), each of length 1.
        n_classes: The number of classes that the reference shows.

    Returns:
        (N,), at most 1.
    """
    k = max(1, len(reference) // (_REFERENCES_PER_NEIGHBOUR * n_classes))
    return (features @ reference.T).topk(k).values[:, -1].clamp_max(1)  # rounding may carry it past 1


def build_network(backbone: str, n_classes: int, image_size: int | None = None, *, pretrained_head: bool = False) -> Network:
    """Create the network for a backbone, with random weights.

    Args:
        backbone: A classification model's name in `torchvision.models`, or `timm/<name>` for one of timm's.
        n_classes: The number of classes.
        image_size: Side of the square images, pixels; None for the backbone's own. Most transformers of timm's have weights
            that depend on it.
        pretrained_head: Whether to keep the layers of the backbone's own classifier, for weights that are loaded into them.

    Returns:
        The network, in evaluation mode.

    Raises:
        InvalidSetting: There is no such backbone, it does not end in globally pooled features, or not for images of this
            size.
        MissingDependency: The backbone is one of timm's, which is not installed.
    """
    if backbone.startswith(TIMM):
        timm_model = timm_features(backbone, image_size)
        linear = nn.Linear(timm_model.dimension, timm_classes(backbone)) if pretrained_head else None
        return Network(timm_model, timm_model.dimension, n_classes, linear).eval()
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        raise InvalidSetting(f"backbone {backbone!r} is not in torchvision.models: give one of {', '.join(known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception announce a change of their initialisation
        model = torchvision.models.get_model(backbone, weights=None)
    features, head = split(model.eval(), backbone)
    with torch.inference_mode():
        dimension = features(torch.zeros(1, 3, 224, 224)).shape[1]
    return Network(features, dimension, n_classes, head if pretrained_head else None).eval()


def split(model: nn.Module, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a classification model at its last global pooling.

    Parameters keep their names in torchvision's own state_dict.

    Args:
        model: The whole model, in evaluation mode.
        name: Its name, for the error message.

    Returns:
        What lies before the pooling, (N, 3, H, W) → (N, D, h, w), and what lies after it, (N, D) → logits (N, K).

    Raises:
        InvalidSetting: The model has no global pooling (transformers, VGG).
    """
    graph, pooling = _trace(model, name)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (pooling.args[0],)
    features = _without_unused(model, graph)

    graph, pooling = _trace(model, name)
    with graph.inserting_before(pooling):
        embedding = pooled = graph.placeholder("embedding")
        if pooling.target != "mean":  # the other poolings keep the dimensions that they reduce
            pooled = graph.call_function(operator.getitem, (embedding, (slice(None), slice(None), None, None)))
    pooling.replace_all_uses_with(pooled)
    head = _without_unused(model, graph)
    graph.erase_node(next(node for node in graph.nodes if node.op == "placeholder" and node is not embedding))
    head.recompile()
    return features, head


def _trace(model: nn.Module, name: str) -> tuple[fx.Graph, fx.Node]:
    """The graph of a model, and its last global pooling."""
    graph = fx.Tracer().trace(model)
    poolings = [node for node in graph.nodes if _pools_globally(node, model)]
    if not poolings:
        raise InvalidSetting(
            f"backbone {name!r} does not end in globally pooled features: "
            "use one that does, such as mobilenet_v2, resnet18, efficientnet_b0 or convnext_tiny"
        )
    return graph, poolings[-1]


def _without_unused(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _pools_globally(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    if node.target is functional.adaptive_avg_pool2d:
        return node.args[1] in (1, (1, 1))
    return node.target == "mean" and list(node.args[1:2]) in ([[2, 3]], [(2, 3)])
