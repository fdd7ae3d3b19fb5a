"""Class activation maps: the evidence for a class, laid over the image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from catdog_pyfunc.preprocessing import Floats, Pixels

_MAX_OPACITY = 0.65  # of the heat, where the evidence is strongest


def heatmap(pixels: Pixels, class_maps: Floats, label: int) -> bytes:
    """Lay the evidence for a class over the image as the network saw it.

    The head is linear on pooled features, so the map is exact: its mean, plus the bias, is the class's logit (Zhou et al.,
    "Learning Deep Features for Discriminative Localization", CVPR 2016). What is drawn is how far the class's map lies
    above the mean over all classes, since softmax depends only on differences between logits.

    Args:
        pixels: (size, size, 3) uint8.
        class_maps: (C, h, w), each class's evidence at each location.
        label: The class's index.

    Returns:
        A PNG of size x size pixels: the image, overlaid in red to yellow where the evidence is.
    """
    evidence = np.maximum(class_maps[label] - class_maps.mean(axis=0), 0)  # (h, w)
    evidence = evidence / max(float(evidence.max()), 1e-12)
    size = pixels.shape[0]
    smooth = Image.fromarray(evidence.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)[..., None]  # (size, size, 1)
    colour = np.concatenate([np.full_like(heat, 255), 220 * heat**2, np.zeros_like(heat)], axis=2)
    blended = pixels * (1 - _MAX_OPACITY * heat) + colour * (_MAX_OPACITY * heat)
    buffer = io.BytesIO()
    Image.fromarray(blended.astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
