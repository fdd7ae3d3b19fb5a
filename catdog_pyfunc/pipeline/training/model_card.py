"""Renders the model card: what a model is, how good it is, what it cannot do, and how to call it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from catdog_pyfunc.bundle import Description
from catdog_pyfunc.pipeline.console import markdown_table
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation
from catdog_pyfunc.pipeline.registry.versions import NAME
from catdog_pyfunc.pipeline.training.calibration import ACCEPTED_FRACTION
from catdog_pyfunc.pipeline.training.near_duplicates import Leaks

FILE_NAME = "model_card.md"
_MAX_PROBLEMS = 20
_USAGE = """## Usage

```python
import mlflow, pandas

model = mlflow.pyfunc.load_model("models:/NAME@production")
model.predict(pandas.DataFrame({"image": [open("photo.jpg", "rb").read()]}))
```

Over HTTP: `mlflow models serve -m models:/NAME@production -p 5001`, then

```sh
(printf '{"dataframe_records":[{"image":"'; base64 < photo.jpg | tr -d '\\n'; printf '"}]}') |
  curl -s -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations
```
"""


def write_card(
    description: Description,
    dataset: Dataset,
    evaluation: Evaluation,
    run_id: str,
    bundle_digest: str,
    params: Mapping[str, Any],
    leaks: Leaks | None = None,
) -> str:
    """Render the model card.

    Args:
        description: Description of the stored classifier.
        dataset: The dataset that it was trained and tested on.
        evaluation: Evaluation on the test split, through the logged model.
        run_id: Id of the training run.
        bundle_digest: SHA-256 of the stored classifier's description, which contains the digests of its files.
        params: Parameters of the training run.
        leaks: Near-duplicates across splits; None if nobody looked for them.

    Returns:
        Markdown.
    """
    spec = description.preprocess
    summary = f"""# {" / ".join(dataset.classes)} classifier

**Test accuracy {evaluation.accuracy}.** {description.backbone} at {spec.size}x{spec.size} pixels with a linear head on
pooled features; initial weights: {params["weights"]}. Run `{run_id}`, bundle `{bundle_digest}`.
"""
    training = markdown_table([["parameter", "value"], *[[key, str(value)] for key, value in params.items()]])
    usage = _USAGE.replace("NAME", params["registered_model"] or NAME)
    sections = [
        _data(dataset, leaks),
        _evaluation(evaluation),
        _limitations(description),
        usage,
        f"## Training\n\n{training}",
    ]
    return "\n".join([summary, *sections])


def _data(dataset: Dataset, leaks: Leaks | None) -> str:
    rows = []
    for split in SPLITS:
        counts = dataset.counts(split)
        per_class = ", ".join(f"{name} {count}" for name, count in counts.items())
        rows.append([split, str(sum(counts.values())), per_class, f"`{dataset.digest(split)}`"])
    table = markdown_table([["split", "images", "classes", "digest"], *rows])
    text = f"## Data\n\n`{dataset.source}`\n\n{table}"
    if leaks is not None:
        text += f"\n{leaks.summary()}.\n"
    if dataset.problems:
        text += "\n### Problems\n\n" + "".join(f"- {problem}\n" for problem in dataset.problems[:_MAX_PROBLEMS])
    return text


def _evaluation(evaluation: Evaluation) -> str:
    rows = [
        [name, f"{estimate.value:.4f}", f"{estimate.low:.4f} – {estimate.high:.4f}", str(estimate.n)]
        for name, estimate in evaluation.estimates.items()
        if not math.isnan(estimate.value)
    ]
    table = markdown_table([["metric", "value", "95 % interval", "n"], *rows])
    text = (
        "Measured on the test split, through the logged model. Log-loss is in nats, the calibration error is the expected "
        "calibration error over 15 bins, `accepted` is the fraction with `in_domain` true. Intervals are Wilson's for "
        "fractions and bootstrapped for balanced accuracy, F1, AUROC, log-loss and calibration error."
    )
    if evaluation.latency_p50_ms is not None:
        text += (
            f" Latency of a single image, without a server, on the machine that trained: {evaluation.latency_p50_ms:.1f} ms "
            f"(median), {evaluation.latency_p99_ms:.1f} ms (99th percentile)."
        )
    return f"## Evaluation\n\n{text}\n\n{table}"


def _limitations(description: Description) -> str:
    return f"""## Limitations

- The model knows {len(description.classes)} classes and always predicts one of them. `in_domain` is false for an image
  that is less similar to the training images than {100 * ACCEPTED_FRACTION:.0f} % of val are:
  it probably shows none of them.
- The metrics hold for images like those of the test split.
- Confidences are calibrated on val, with a temperature of {description.temperature:.2f}.
- A corrupt image yields a row with `error`; the other images of the request are still classified.
"""
