"""The model card: Markdown that says what a model is, how good, how far to trust it, and how to call it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from catdog_pyfunc.bundle import Description
from catdog_pyfunc.pipeline.console import markdown_table
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate
from catdog_pyfunc.pipeline.registry.versions import NAME

CARD = "model_card.md"
_MOST_PROBLEMS = 20
_USE = """## How to call it

```python
import mlflow, pandas

model = mlflow.pyfunc.load_model("models:/NAME@production")
model.predict(pandas.DataFrame({"image": [open("photo.jpg", "rb").read()]}))
```

Or `mlflow models serve -m models:/NAME@production -p 5001`, and then

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
) -> str:
    """Write the model card.

    Args:
        description: Of the stored classifier.
        dataset: What it learned from and was tested on.
        evaluation: On the test split, through the logged artifact.
        run_id: Of the training run.
        bundle_digest: SHA-256 of the stored classifier's description, which holds those of its files.
        params: What the training was called with.

    Returns:
        Markdown.
    """
    spec = description.preprocess
    head = f"""# {" / ".join(dataset.classes)} classifier

**Test accuracy {evaluation.accuracy}.** {description.backbone}, weights before training: {params["weights"]};
{spec.size}x{spec.size} pixels, a linear head on pooled features. Run `{run_id}`, bundle `{bundle_digest}`.
"""
    limits = f"""## Limits

- It knows {len(dataset.classes)} classes and always names one of them. `in_domain` is false where a picture is less like the
  training data than 98 % of val was: then it is probably none of them.
- The figures hold for pictures like those of the test split, and for no others.
- The confidence was calibrated on val, by a temperature of {description.temperature:.2f}.
- A picture that can't be read gets a row with `error`; the others of the request stand.
"""
    making = markdown_table([["parameter", "value"], *[[key, str(value)] for key, value in params.items()]])
    use = _USE.replace("NAME", params["registered_model"] or NAME)
    return "\n".join([head, _data(dataset), _measured(evaluation), limits, use, f"## How it was made\n\n{making}"])


def _data(dataset: Dataset) -> str:
    rows = []
    for split in SPLITS:
        counts = dataset.counts(split)
        of_each = ", ".join(f"{name} {count}" for name, count in counts.items())
        rows.append([split, str(sum(counts.values())), of_each, f"`{dataset.digest(split)}`"])
    table = markdown_table([["split", "pictures", "classes", "digest"], *rows])
    text = f"## Data\n\n`{dataset.source}`\n\n{table}"
    if dataset.problems:
        text += "\n### Left out\n\n" + "".join(f"- {problem}\n" for problem in dataset.problems[:_MOST_PROBLEMS])
    return text


def _measured(evaluation: Evaluation) -> str:
    rows = [_figures(name, estimate) for name, estimate in evaluation.estimates.items() if not math.isnan(estimate.value)]
    table = markdown_table([["", "value", "95 % interval", "n"], *rows])
    text = (
        "Log-loss in nats, expected calibration error over 15 bins, `accepted`: the share that is `in_domain`. Intervals: "
        "Wilson's for shares, a bootstrap's for balanced accuracy, F1, AUROC, log-loss and calibration error."
    )
    if evaluation.latency_p50_ms is not None:
        text += (
            f" A lone picture took {evaluation.latency_p50_ms:.1f} ms (median; 99 % of them at most "
            f"{evaluation.latency_p99_ms:.1f} ms) on the machine that measured, without a server."
        )
    return f"## Measured on the test split, through the logged artifact\n\n{text}\n\n{table}"


def _figures(name: str, estimate: Estimate) -> list[str]:
    return [name, f"{estimate.value:.4f}", f"{estimate.low:.4f} – {estimate.high:.4f}", str(estimate.n)]
