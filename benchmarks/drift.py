"""How often `catdog drift` is right: seeded resamples of photos that are, or are not, like those of the test split.

    python benchmarks/drift.py --model-uri models:/CatDogClassifier/1 --photos photos --others photos-other

Every image is predicted once, and the rows are resampled. The reference is the test split; photos like it are those of val,
to which the model's OOD threshold was fitted, or the half of the test split that is not in the reference.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow_catdog.runtime import metrics
from PIL import Image, ImageFilter

from catdog_pyfunc import flavor
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.pipeline.console import markdown_table, progress
from catdog_pyfunc.pipeline.monitoring.comparison import compare
from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
from catdog_pyfunc.pipeline.monitoring.sample import Sample, from_rows, into_buckets
from catdog_pyfunc.pipeline.scoring import local
from catdog_pyfunc.pipeline.scoring.inputs import Item

Rows = pd.DataFrame
BUCKETS = {name: np.array([*bounds, np.inf]) for name, bounds in metrics.BUCKETS.items()}


def blurred(image: bytes) -> bytes:
    """The same photo out of focus, as a JPEG of the same size in pixels."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        opened.convert("RGB").filter(ImageFilter.GaussianBlur(2)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def predict(classifier: Classifier, folder: Path, change: Callable[[bytes], bytes] = bytes) -> Rows:
    """The predictions for all images of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    items = (Item(str(file), change(file.read_bytes())) for file in files)
    return pd.DataFrame(progress(local.score(classifier, items, heatmaps=False), f"scoring {folder.name}", len(files)))


def in_buckets(sample: Sample) -> Sample:
    """What Prometheus would know of it."""
    values = {name: into_buckets(sample.values[name], bounds) for name, bounds in BUCKETS.items()}
    return Sample(sample.labels, sample.out_of_domain, sample.errors, values, BUCKETS)


def draw(rng: np.random.Generator, *parts: tuple[Rows, int]) -> Rows:
    """Rows without repetition: so many of each."""
    return pd.concat([rows.iloc[rng.choice(len(rows), count, replace=False)] for rows, count in parts])


def scenarios(
    test: Rows, val: Rows, others: Rows, blur: Rows
) -> Mapping[str, Callable[[np.random.Generator], tuple[Rows, Rows]]]:
    """Name → function that draws a reference and what is compared with it."""

    def halves(rng: np.random.Generator) -> tuple[Rows, Rows]:
        order = rng.permutation(len(test))
        return test.iloc[order[: len(test) // 2]], test.iloc[order[len(test) // 2 :][:200]]

    return {
        "200 of val": lambda rng: (test, draw(rng, (val, 200))),
        "200 of one half of test, the other as reference": halves,
        "20 % others among 200": lambda rng: (test, draw(rng, (val, 160), (others, 40))),
        "10 % others among 300": lambda rng: (test, draw(rng, (val, 270), (others, 30))),
        "200 of val, blurred (radius 2)": lambda rng: (test, draw(rng, (blur, 200))),
    }


def main() -> None:
    """Print a table: the fraction of resamples in which drift is reported, and by which quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-uri", required=True)
    parser.add_argument("--photos", type=Path, required=True, help="has val and test")
    parser.add_argument("--others", type=Path, required=True, help="photos of none of the classes")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ignore", default="", help="as for `catdog drift`")
    options = parser.parse_args()
    config = DriftConfig("1", "", ignore=options.ignore)
    classifier = flavor.load_model(options.model_uri)
    test, val = (predict(classifier, options.photos / split) for split in ("test", "val"))
    others, blur = predict(classifier, options.others), predict(classifier, options.photos / "val", blurred)
    table = [["images", "known as", "drift reported", "by quantity"]]
    for name, resample in scenarios(test, val, others, blur).items():
        for known, observe in {"rows": lambda sample: sample, "Prometheus' buckets": in_buckets}.items():
            rng = np.random.default_rng(options.seed)
            found = []
            for _ in range(options.resamples):
                reference, observed = map(from_rows, resample(rng))
                limits = {"alpha": config.alpha, "min_effect": config.min_effect, "ignored": config.ignored}
                found.append([each.drifted for each in compare(reference, observe(observed), **limits)])
            names = [each.quantity for each in compare(reference, observed, **limits)]
            by = ", ".join(f"{n} {f:.1%}" for n, f in zip(names, np.mean(found, axis=0), strict=True) if f)
            table.append([name, known, f"{np.mean(np.any(found, axis=1)):.1%}", by])
    print(markdown_table(table))


if __name__ == "__main__":
    main()
