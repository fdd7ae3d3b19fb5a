"""Images → predictions, without MLflow."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.cam import heatmap
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import Outputs, open_engine
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Limits, Pixels, preprocess


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    Attributes:
        label: The most probable class; None if the image could not be read.
        confidence: That class's probability, 0..1; None if the image could not be read.
        probabilities: Class name → probability; they sum to 1. Empty if the image could not be read.
        error: What is wrong with the image and what to send instead; None if it was read.
        in_domain: Whether the image resembles the training data; if False, it probably shows none of the classes.
        domain_score: Similarity to the reference embeddings, at most 1; the image is `in_domain` if this reaches the model's
            OOD threshold.
        heatmap: A PNG of the image, overlaid with the evidence for the label; None unless requested, and from networks that
            do not tell where it is: transformers with a class token.
    """

    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    in_domain: bool | None = None
    domain_score: float | None = None
    heatmap: bytes | None = None


class Classifier:
    """A loaded bundle. Safe to call from several threads: concurrent work is capped at what the cores can do.

    Attributes:
        description: Classes, preprocessing, temperature, OOD threshold and provenance.
        digest: SHA-256 (hex) that identifies the stored model.
    """

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", threads: int | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Load a bundle.

        Args:
            bundle: The stored classifier.
            engine: "onnx", "torch", or "auto": PyTorch if it is installed and finds a CUDA device, else ONNX Runtime.
            threads: How many cores to use; None for all that are available.
            limits: Largest file and image.

        Raises:
            InvalidSetting: The engine is unknown.
            InvalidBundle: The network's number of classes differs from the description's.
            MissingDependency: The engine is "torch" and PyTorch is not installed.
        """
        threads = threads or available_cores()
        self.description: Description = bundle.description
        self.digest: str = bundle.digest
        self._engine = open_engine(bundle, engine, threads)
        self._limits = limits
        # One more than cores, since one thread is always waiting for the GIL (8 clients: 205 images/s instead of 176).
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="catdog")
        self._threads = threads
        self._counter_lock = threading.Lock()
        self._callers = 0

    def predict(self, images: Sequence[object], *, explain: bool = False) -> list[Prediction]:
        """Classify images.

        Args:
            images: One image per item: the file's bytes, their base64 or a data URI.
            explain: Whether to add a heat map to each prediction.

        Returns:
            One prediction per image, in the same order. If an image cannot be read, its prediction has an `error`.
        """
        size = self._engine.batch_size
        chunks = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
        with self._call() as concurrent:
            if concurrent <= self._threads and len(chunks) == 1:  # faster without the pool
                return self._predict_chunk(images, chunks[0], explain, exclusive=concurrent == 1)
            results = self._pool.map(lambda rows: self._predict_chunk(images, rows, explain, exclusive=False), chunks)
            return [prediction for predictions in results for prediction in predictions]

    @contextlib.contextmanager
    def _call(self) -> Iterator[int]:
        """Count concurrent calls; yields how many there are, this one included."""
        with self._counter_lock:
            self._callers += 1
            concurrent = self._callers
        try:
            yield concurrent
        finally:
            with self._counter_lock:
                self._callers -= 1

    def _predict_chunk(self, images: Sequence[object], rows: range, explain: bool, *, exclusive: bool) -> list[Prediction]:
        pixels: list[Pixels] = []
        errors: dict[int, str] = {}
        for row in rows:
            try:
                pixels.append(preprocess(decode_payload(images[row]), self.description.preprocess, self._limits))
            except InvalidImage as error:
                errors[row] = f"image {row} {error}"
        outputs = self._engine.run(np.stack(pixels), exclusive=exclusive) if pixels else None
        predictions = iter(self._to_predictions(pixels, outputs, explain) if outputs else ())
        return [Prediction(error=errors[row]) if row in errors else next(predictions) for row in rows]

    def _to_predictions(self, pixels: Sequence[Pixels], outputs: Outputs, explain: bool) -> list[Prediction]:
        predictions = to_predictions(outputs, self.description)
        if not explain or outputs.class_maps[0, 0].size == 1:  # a single location tells nothing
            return predictions
        classes = self.description.classes
        return [
            replace(prediction, heatmap=heatmap(image, class_maps, classes.index(str(prediction.label))))
            for prediction, image, class_maps in zip(predictions, pixels, outputs.class_maps, strict=True)
        ]


def to_predictions(outputs: Outputs, description: Description) -> list[Prediction]:
    """Convert a network's outputs for N images to N predictions, without heat maps."""
    similarity = outputs.similarity.tolist()
    predictions = []
    for row, probabilities in enumerate(softmax(outputs.logits / description.temperature)):
        best = int(probabilities.argmax())
        predictions.append(
            Prediction(
                label=description.classes[best],
                confidence=float(probabilities[best]),
                probabilities=dict(zip(description.classes, probabilities.tolist(), strict=True)),
                in_domain=similarity[row] >= description.ood_threshold,
                domain_score=similarity[row],
            )
        )
    return predictions


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Convert logits (N, C) to probabilities (N, C) without overflow; each row sums to 1."""
    exponentials: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
