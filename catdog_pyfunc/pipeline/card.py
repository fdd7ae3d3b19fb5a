"""The model card: Markdown that says what a model is, how good, how far to trust it, and how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catdog_pyfunc.bundle import Description
from catdog_pyfunc.pipeline.data import SIDES, Dataset
from catdog_pyfunc.pipeline.evaluation import Evaluation
from catdog_pyfunc.pipeline.registry import NAME

CARD = "model_card.md"
_MOST_PROBLEMS = 20


def summary(evaluation: Evaluation, dataset: Dataset) -> str:
    """One line for the registry: accuracy with its interval, on what."""
    return f"Tells {', '.join(dataset.classes)} apart; test accuracy {evaluation.accuracy}; data {dataset.digest()}."


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
        evaluation: On the test side, through the logged artifact.
        run_id: Of the training run.
        bundle_digest: SHA-256 of the stored classifier's description, which holds those of its files.
        params: What the training was called with.

    Returns:
        Markdown.
    """
    spec, name = description.preprocess, params["register"] or NAME
    rows = "\n".join(
        f"| {side} | {sum(dataset.counts(side).values())} | "
        + ", ".join(f"{name} {count}" for name, count in dataset.counts(side).items())
        + f" | `{dataset.digest(side)}` |"
        for side in SIDES
    )
    recalls = "\n".join(
        f"| recall of {name} | {_percent(recall.value)} | {_percent(recall.low)} – {_percent(recall.high)} | {recall.n} |"
        for name, recall in evaluation.recalls.items()
    )
    accuracy, accepted = evaluation.accuracy, evaluation.accepted
    making = "\n".join(f"| {key} | {value} |" for key, value in params.items())
    problems = "\n".join(f"- {problem}" for problem in dataset.problems[:_MOST_PROBLEMS]) or "- nothing"
    return f"""# {" / ".join(dataset.classes)} classifier

{description.backbone} ({params["weights"]} weights), {spec.size}x{spec.size} pixels, a linear head on pooled features.
Run `{run_id}`, bundle `{bundle_digest}`.

## Data

`{dataset.source}`

| side | pictures | classes | digest |
|---|---|---|---|
{rows}

Left out:

{problems}

## Measured on the test side, through the logged artifact

| | value | 95 % interval (Wilson) | n |
|---|---|---|---|
| accuracy | {_percent(accuracy.value)} | {_percent(accuracy.low)} – {_percent(accuracy.high)} | {accuracy.n} |
{recalls}
| log-loss (nats) | {evaluation.log_loss:.4f} | | {accuracy.n} |
| expected calibration error, 15 bins | {evaluation.calibration.error:.4f} | | {accuracy.n} |
| accepted (`in_domain`) | {_percent(accepted.value)} | {_percent(accepted.low)} – {_percent(accepted.high)} | {accepted.n} |

## Limits

- It knows {len(dataset.classes)} classes and always names one of them. `in_domain` is false where a picture is less like the
  training data than 98 % of val was: then it is probably none of them.
- The figures hold for pictures like those of the test side, and for no others.
- The confidence was calibrated on val, by a temperature of {description.temperature:.2f}.
- A picture that can't be read gets a row with `error`; the others of the request stand.

## How to call it

```python
import mlflow, pandas

model = mlflow.pyfunc.load_model("models:/{name}@production")
model.predict(pandas.DataFrame({{"image": [open("photo.jpg", "rb").read()]}}))
```

Or `mlflow models serve -m models:/{name}@production -p 5001`, and then

```sh
(printf '{{"dataframe_records":[{{"image":"'; base64 < photo.jpg | tr -d '\\n'; printf '"}}]}}') |
  curl -s -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations
```

## How it was made

| parameter | value |
|---|---|
{making}
"""


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
