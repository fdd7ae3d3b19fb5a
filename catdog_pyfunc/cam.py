"""Where a class is seen: the class activation map, laid over the picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from catdog_pyfunc.preprocessing import Floats, Pixels

_STRONGEST = 0.65  # how much of the picture the heat hides where it is hottest


def heatmap(pixels: Pixels, class_maps: Floats, label: int) -> bytes:
    """Lay the evidence for a class over the picture as the network saw it.

    The head is linear on pooled features, so the map is exact: its mean, plus the bias, is the class's logit (Zhou et al.,
    "Learning Deep Features for Discriminative Localization", CVPR 2016). Shown is what speaks for the class more than for
    the average class, which is all that softmax looks at.

    Args:
        pixels: (size, size, 3) uint8.
        class_maps: (C, h, w), each class's evidence at each place.
        label: The class's index.

    Returns:
        A PNG of size x size pixels: the picture, red to yellow where the class is seen.
    """
    evidence = np.maximum(class_maps[label] - class_maps.mean(axis=0), 0)  # (h, w)
    evidence = evidence / max(float(evidence.max()), 1e-12)
    size = pixels.shape[0]
    smooth = Image.fromarray(evidence.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)[..., None]  # (size, size, 1)
    colour = np.concatenate([np.full_like(heat, 255), 220 * heat**2, np.zeros_like(heat)], axis=2)
    mixed = pixels * (1 - _STRONGEST * heat) + colour * (_STRONGEST * heat)
    buffer = io.BytesIO()
    Image.fromarray(mixed.astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
