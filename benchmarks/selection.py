"""Does choosing which images to label help? Accuracy after rounds of labels that BADGE, the margin or chance chose.

python benchmarks/selection.py --photos path/to/photos --model-uri models:/CatDogClassifier/1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from catdog_pyfunc import flavor
from catdog_pyfunc.engine import open_engine
from catdog_pyfunc.pipeline.console import log, text_table
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.labelling.badge import badge
from catdog_pyfunc.pipeline.training.embeddings import compute_here

ROUNDS, LABELS, SEEDS = 5, 40, 10
REGULARISATION = 10.0  # C of scikit-learn; of 1, 10 and 100 the best for random choice
Choose = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], list[int]]


def at_random(embeddings: np.ndarray, probabilities: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Choose by chance."""
    return rng.choice(len(embeddings), count, replace=False).tolist()


def smallest_margin(embeddings: np.ndarray, probabilities: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Choose those whose two most probable classes are closest."""
    ordered = np.sort(probabilities, axis=1)
    return np.argsort(ordered[:, -1] - ordered[:, -2])[:count].tolist()


STRATEGIES: dict[str, Choose] = {"random": at_random, "margin": smallest_margin, "BADGE": badge}


def embed(photos: Path, model_uri: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of length 1 (N, D), from the model's own engine, and labels (N,)."""
    with flavor.opened_bundle(model_uri) as bundle:
        examples, spec = read_folder(photos).splits[split], bundle.description.preprocess
        pairs = [(e.label, x) for e, x in compute_here(open_engine(bundle), examples, spec, False) if not isinstance(x, str)]
    labels, values = zip(*pairs, strict=True)
    x = np.stack(values)
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.array(labels)


def accuracies(
    choose: Choose, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int
) -> list[float]:
    """Test accuracy after the first labels, which are drawn at random, and after each round."""
    (x, y), rng = train, np.random.default_rng(seed)
    labelled = at_random(x, x, LABELS, rng)
    measured = []
    for number in range(ROUNDS + 1):
        head = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(x[labelled], y[labelled])
        measured.append(float(head.score(*test)))
        if number < ROUNDS:
            pool = np.setdiff1d(np.arange(len(x)), labelled)
            labelled += pool[choose(x[pool], head.predict_proba(x[pool]), LABELS, rng)].tolist()
    return measured


def interval(values: np.ndarray) -> str:
    """Mean over seeds, with its 95 % interval."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.4f} ({values.mean() - half:.4f}–{values.mean() + half:.4f})"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="train and test, with class folders")
    parser.add_argument("--model-uri", required=True, help="whose engine embeds the photos")
    arguments = parser.parse_args()
    train, test = (embed(arguments.photos, arguments.model_uri, split) for split in ("train", "test"))
    found = {}
    for name, choose in STRATEGIES.items():
        log(f"{name}: {SEEDS} seeds")
        found[name] = np.array([accuracies(choose, train, test, seed) for seed in range(SEEDS)])  # (seeds, rounds + 1)
    rows = [["labels", *found, *(f"{name} less random" for name in found if name != "random")]]
    for number in range(ROUNDS + 1):
        column = {name: values[:, number] for name, values in found.items()}
        gains = [interval(values - column["random"]) for name, values in column.items() if name != "random"]
        rows.append([str(LABELS * (number + 1)), *map(interval, column.values()), *gains])
    print(text_table(rows))


if __name__ == "__main__":
    main()
