"""Scores on all cores of this machine, in order, with as many images in memory as the cores are busy with."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.pipeline.scoring.inputs import Item
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS

_CHUNK = 32
_IN_FLIGHT = 3  # chunks: the classifier's threads always find work, though a chunk ends with idle ones

Row = dict[str, Any]


def score_chunk(classifier: Classifier, items: Iterable[Item], heatmaps: bool) -> list[Row]:
    """Read and classify some images.

    Args:
        classifier: The model.
        items: The images.
        heatmaps: Whether to add heat maps.

    Returns:
        One row per image, as `output.columns` names its cells. One that cannot be read has an `error` and nothing else.
    """
    items = list(items)
    contents = [item.content if item.content is not None else _read(item.path) for item in items]
    images = [content for content in contents if isinstance(content, bytes)]
    predictions = enumerate(classifier.predict(images, explain=heatmaps))
    return [
        _row(item.path, content, *next(predictions)) if isinstance(content, bytes) else {"path": item.path, "error": content}
        for item, content in zip(items, contents, strict=True)
    ]


def score(classifier: Classifier, items: Iterable[Item], heatmaps: bool) -> Iterator[Row]:
    """Classify images on all cores; see `score_chunk`."""
    items = iter(items)
    pending: deque[Future[list[Row]]] = deque()
    with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="scoring") as pool:
        try:
            while chunk := list(islice(items, _CHUNK)):
                pending.append(pool.submit(score_chunk, classifier, chunk, heatmaps))
                if len(pending) > _IN_FLIGHT:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: str) -> bytes | str:
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > DEFAULT_LIMITS.max_bytes:  # `decode` says the same, but has it in memory by then
            return f"has {size:,} bytes, more than {DEFAULT_LIMITS.max_bytes:,}; send a smaller file"
        return file.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror}): give a file that exists and is readable"


def _row(path: str, content: bytes, index: int, prediction: Prediction) -> Row:
    return {
        "path": path,
        "digest": hashlib.sha256(content).hexdigest(),
        "image_bytes": len(content),
        "label": prediction.label,
        "confidence": prediction.confidence,
        "probabilities": prediction.probabilities or None,
        "in_domain": prediction.in_domain,
        "domain_score": prediction.domain_score,
        "error": prediction.error and prediction.error.removeprefix(f"image {index} "),
        "heatmap": prediction.heatmap,
    }
