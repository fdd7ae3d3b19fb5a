"""Pictures → predictions. No MLflow in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.bundle import Bundle
from catdog_pyfunc.cam import heatmap
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import Engine, Outputs, open_engine
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Limits, Pixels, preprocess


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: The most probable class; None if the picture couldn't be read.
        confidence: That class's probability, 0..1; None likewise.
        probabilities: Class name → probability, adding up to 1; empty likewise.
        error: What was wrong with the picture and what to send instead; None if nothing was.
        in_domain: Whether the picture is like those of the training data; False: probably none of the classes.
        domain_score: How like: cosine to the nearest of them, at most 1; `in_domain` where it reaches the model's threshold.
        heatmap: A PNG of the picture with the evidence for the label over it; only if asked for.
    """

    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    in_domain: bool | None = None
    domain_score: float | None = None
    heatmap: bytes | None = None


class Classifier:
    """A bundle, ready to answer. Safe to call from several threads: work is capped at what the cores can do at a time."""

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", threads: int | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Load a bundle.

        Args:
            bundle: The stored classifier.
            engine: "auto", "onnx" or "torch".
            threads: How many cores to keep busy; None for all there are.
            limits: Largest file and picture.
        """
        threads = threads or available_cores()
        self.bundle = bundle
        self.engine: Engine = open_engine(bundle, engine, threads)
        self._limits = limits
        # One more than there are cores: one always waits for Python's lock (8 clients: 205 photos a second instead of 176).
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="catdog")
        self._counting = threading.Lock()
        self._callers = 0

    def predict(self, images: Sequence[object], *, explain: bool = False) -> list[Prediction]:
        """Classify pictures.

        Args:
            images: One cell a picture: raw bytes, base64 or a data URI.
            explain: Whether each prediction gets its heat map.

        Returns:
            One prediction a picture, in the same order. A picture that can't be read gets one that says why.
        """
        size = self.engine.batch_size
        chunks = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
        with self._calling() as exclusive:
            if exclusive and len(chunks) == 1:  # no detour over the pool
                return self._predict_chunk(images, chunks[0], explain, exclusive)
            answers = self._pool.map(lambda rows: self._predict_chunk(images, rows, explain), chunks)
            return [prediction for chunk in answers for prediction in chunk]

    @contextlib.contextmanager
    def _calling(self) -> Iterator[bool]:
        """Count the callers; True for the only one."""
        with self._counting:
            self._callers += 1
        try:
            yield self._callers == 1
        finally:
            with self._counting:
                self._callers -= 1

    def _predict_chunk(
        self, images: Sequence[object], rows: range, explain: bool, exclusive: bool = False
    ) -> list[Prediction]:
        pixels: list[Pixels] = []
        errors: dict[int, str] = {}
        for row in rows:
            try:
                pixels.append(preprocess(decode_payload(images[row]), self.bundle.description.preprocess, self._limits))
            except InvalidImage as wrong:
                errors[row] = f"image {row} {wrong}"
        outputs = self.engine.run(np.stack(pixels), exclusive=exclusive) if pixels else None
        answers = iter(self._name(pixels, outputs, explain) if outputs else ())
        return [Prediction(error=errors[row]) if row in errors else next(answers) for row in rows]

    def _name(self, pixels: Sequence[Pixels], outputs: Outputs, explain: bool) -> list[Prediction]:
        description = self.bundle.description
        scores = outputs.similarity.tolist()
        predictions = []
        for row, shares in enumerate(softmax(outputs.logits / description.temperature)):
            best = int(shares.argmax())
            probabilities = dict(zip(description.classes, shares.tolist(), strict=True))
            predictions.append(
                Prediction(
                    label=description.classes[best],
                    confidence=float(shares[best]),
                    probabilities=probabilities,
                    in_domain=scores[row] >= description.threshold,
                    domain_score=scores[row],
                    heatmap=heatmap(pixels[row], outputs.class_maps[row], best) if explain else None,
                )
            )
        return predictions


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Logits (N, C) → probabilities (N, C) that add up to 1 a row, without overflow."""
    raised: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
