"""What most people write first: torchvision's transforms, eager PyTorch, softmax."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import models, transforms

CLASSES = ("cat", "dog")
TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def load(weights: str | Path) -> torch.nn.Module:
    """mobilenet_v2 with the weights of a catdog bundle, under torchvision's own names."""
    tensors = load_file(weights)
    features = {name.removeprefix("features."): tensor for name, tensor in tensors.items() if name.startswith("features.")}
    head = {
        f"classifier.1.{name.removeprefix('head.')}": tensor for name, tensor in tensors.items() if name.startswith("head.")
    }
    model = models.mobilenet_v2(num_classes=len(CLASSES))
    model.load_state_dict(features | head)
    return model.eval()


def predict(model: torch.nn.Module, image: Image.Image) -> dict[str, object]:
    """Classify one image: label and confidence."""
    batch = TRANSFORM(image.convert("RGB"))[None]
    with torch.no_grad():
        probabilities = torch.softmax(model(batch), 1)[0]
    best = int(probabilities.argmax())
    return {"label": CLASSES[best], "confidence": float(probabilities[best])}
