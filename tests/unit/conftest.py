"""Small models for unit tests: a network of a few thousand weights, and the model saved from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from catdog_pyfunc.bundle import Description
from catdog_pyfunc.preprocessing import Preprocess

if TYPE_CHECKING:
    from catdog_pyfunc.network import Network

SPEC = Preprocess(size=64, resize=72)
DESCRIPTION = Description("mobilenet_v2", ("cat", "dog", "owl"), SPEC, temperature=2.0, ood_threshold=0.25)
REFERENCE_EMBEDDINGS = np.eye(4, 8, dtype=np.float32)


@pytest.fixture(scope="session")
def images(drawn: Path) -> list[bytes]:
    """A few drawn image files, cats first."""
    return [path.read_bytes() for path in sorted(drawn.glob("val/*/*.jpg"))]


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    """One convolution and a head: saved in a fraction of the time that a real backbone takes."""
    import torch

    from catdog_pyfunc.network import Network

    torch.manual_seed(1)
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
    return Network(features, 8, 3).eval()


@pytest.fixture(scope="session")
def tiny_model(tiny_network: Network, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved model; only the ONNX engine can run it, since its backbone is not torchvision's."""
    from catdog_pyfunc import flavor

    path = tmp_path_factory.mktemp("tiny") / "model"
    flavor.save_model(path, tiny_network, DESCRIPTION, REFERENCE_EMBEDDINGS, images=images[:16])
    return path
