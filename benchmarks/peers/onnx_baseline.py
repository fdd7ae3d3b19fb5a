"""The same ONNX file by hand: Pillow, NumPy, one session, one thread per call (best for 2 workers on 2 cores)."""

from __future__ import annotations

import numpy as np
import onnxruntime
from PIL import Image

CLASSES = ("cat", "dog")


def load(graph: str) -> onnxruntime.InferenceSession:
    """Open the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def predict(session: onnxruntime.InferenceSession, image: Image.Image) -> dict[str, object]:
    """Classify one image: label and confidence."""
    image = image.convert("RGB")
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    logits = session.run(["logits"], {"images": pixels[None]})[0][0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(probabilities.argmax())
    return {"label": CLASSES[best], "confidence": float(probabilities[best])}
