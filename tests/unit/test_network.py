"""Backbones of every family, cut before their pooling."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.network import build_network


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "mobilenet_v3_small",
        "resnet18",
        "efficientnet_b0",
        "regnet_y_400mf",
        "densenet121",
        "shufflenet_v2_x0_5",
        "convnext_tiny",
        "mnasnet0_5",
        "googlenet",
        "swin_t",
    ],
)
def test_backbones_of_every_family_are_cut_at_their_pooled_features(name: str):
    network = build_network(name, 3)
    with torch.inference_mode():
        logits, embedding, class_maps = network.outputs(torch.randn(2, 3, 224, 224))
    assert logits.shape == (2, 3)
    assert embedding.ndim == 2
    assert class_maps.shape[:2] == (2, 3)
    whole = models.get_model(name, weights=None).state_dict()
    assert {key: value.shape for key, value in network.features.state_dict().items()}.items() <= {
        key: value.shape for key, value in whole.items()
    }.items()


def test_the_features_are_torchvisions_own():
    torch.manual_seed(0)
    whole = models.resnet18().eval()
    network = build_network("resnet18", 2)
    network.features.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("fc.")})
    batch = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.allclose(whole.fc(network.outputs(batch)[1]), whole(batch), atol=1e-5)


def test_a_network_without_pooled_features_is_refused():
    with pytest.raises(InvalidSetting, match=r"vgg11.*does not end in globally pooled features.*mobilenet_v2"):
        build_network("vgg11", 2)


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSetting, match=r"backbone 'resnet19' is not in torchvision.models: give one of .*resnet18"):
        build_network("resnet19", 2)
