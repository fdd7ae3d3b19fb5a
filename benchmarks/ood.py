"""Compares scores that tell photos of none of the classes from photos of them, and what blur, noise and light do to each.

Each is fitted as `catdog train` does: on 1,000 training images, with a threshold that 98 % of val reach. The first two
columns look at train and val alone, so a score may be chosen by them: the AUROC against a class that was left out of train,
and by how much shifts lower the fraction of val accepted. The rest has 95 % intervals over seeds, each of which draws the
training images and resamples val, test and the other photos.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from report import machine
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from catdog_pyfunc import export
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.network import Network, similarity
from catdog_pyfunc.pipeline.console import markdown_table, progress
from catdog_pyfunc.pipeline.data.catalog import load_dataset
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.calibration import ACCEPTED_FRACTION, MAX_REFERENCES
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Floats, decode, preprocess

Score = Callable[[torch.Tensor], torch.Tensor]  # features (N, K) → (N,), higher for what is known
Fit = Callable[[torch.Tensor], Score]  # of training images
Sets = Mapping[tuple[str, str], torch.Tensor]  # split, and shift or "" → embeddings, or features made of them


def noise(image: Image.Image, sigma: float) -> Image.Image:
    """Add Gaussian noise, in levels of 0..255."""
    pixels = np.asarray(image)
    noisy = pixels + np.random.default_rng(pixels.size).normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress and decode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


SHIFTS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "blur, radius 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "noise, σ 10": lambda image: noise(image, 10),
    "noise, σ 25": lambda image: noise(image, 25),
    "JPEG 20": lambda image: jpeg(image, 20),
    "darker (0.6)": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "brighter (1.5)": lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    "centre 70 %": lambda image: image.crop((*(0.15 * s for s in image.size), *(0.85 * s for s in image.size))),
    "grey": lambda image: image.convert("L"),
}


def nearest(k: int) -> Fit:
    """The cosine to the k-th nearest training image (Sun et al., ICML 2022)."""
    return lambda train: lambda x: (normalize(x) @ normalize(train).T).topk(k).values[:, -1]


def mahalanobis(train: torch.Tensor) -> Score:
    """The Mahalanobis distance to the mean of train (Lee et al., NeurIPS 2018, with one mean)."""
    fitted = LedoitWolf().fit(train.numpy())
    mean, precision = (torch.from_numpy(values).float() for values in (fitted.location_, fitted.precision_))
    return lambda x: -((x - mean) @ precision * (x - mean)).sum(1)


def energy(train: torch.Tensor) -> Score:
    """The energy of the pretrained logits (Liu et al., NeurIPS 2020)."""
    return lambda x: x.logsumexp(1)


def scores(network: Network, n_classes: int) -> dict[str, tuple[Score, Fit]]:
    """Name → features of embeddings, and the score that is fitted to them."""
    head = network.pretrained_head
    if head is None:
        raise SystemExit("these weights have no classifier to compare by: give a state_dict of the whole network")

    def served(train: torch.Tensor) -> Score:
        return lambda x: similarity(x, train.half().float(), n_classes)

    def scaled(x: torch.Tensor) -> torch.Tensor:
        logits = head(x)
        return (logits / logits.std(1, correction=0, keepdim=True)).softmax(1)

    return {
        "embeddings, k = 1": (lambda x: x, nearest(1)),
        "embeddings, k = 5": (lambda x: x, nearest(5)),
        "embeddings, Mahalanobis": (lambda x: x, mahalanobis),
        "logits, energy": (head, energy),
        "logits, k = 5": (lambda x: head(x) - head(x).mean(1, keepdim=True), nearest(5)),
        "softmax at T = 4, k = 1": (lambda x: (head(x) / 4).softmax(1), nearest(1)),
        "softmax at T = 4, k = 5": (lambda x: (head(x) / 4).softmax(1), nearest(5)),
        "softmax of logits over their deviation, k = 1": (scaled, nearest(1)),
        "softmax of logits over their deviation, k = 5": (scaled, nearest(5)),
        "as served": (network.ood_features, served),
    }


def left_out(fit: Fit, sets: Sets, labels: Mapping[str, Floats]) -> float:
    """AUROC against a class that was left out of train, mean over classes."""
    areas = []
    for label in np.unique(labels["train"]):
        score = fit(sets["train", ""][labels["train"] != label])
        areas.append(roc_auc_score(labels["val"] != label, score(sets["val", ""])))
    return float(np.mean(areas))


def measure(fit: Fit, sets: Sets, split: str, seed: int) -> list[float]:
    """AUROC; fractions of a split accepted and of the others refused; fall of the first under shifts: mean, each."""
    rng, train = np.random.default_rng(seed), sets["train", ""]
    score = fit(train[rng.permutation(len(train))[:MAX_REFERENCES]])
    val, other = (rng.choice(values, len(values)) for values in (score(sets[name, ""]).numpy() for name in ("val", "other")))
    drawn = rng.integers(0, len(sets[split, ""]), len(sets[split, ""]))
    known, *shifted = (score(sets[split, shift]).numpy()[drawn] for shift in ("", *SHIFTS))
    threshold = np.quantile(val, 1 - ACCEPTED_FRACTION)
    area = roc_auc_score([True] * len(known) + [False] * len(other), np.concatenate([known, other]))
    falls = [(known >= threshold).mean() - (values >= threshold).mean() for values in shifted]
    return [area, (known >= threshold).mean(), (other < threshold).mean(), np.mean(falls), *falls]


def embed(paths: Mapping[str, Sequence[Path]], backbone: Backbone) -> Sets:
    """Embed each split as it is, and val and test with every shift."""
    spec, (n_classes, dimension) = backbone.preprocess, backbone.network.head.weight.shape
    description = Description(backbone.name, tuple(map(str, range(n_classes))), spec)
    engine = OnnxEngine(export.onnx_graph(backbone.network, description, np.zeros((1, dimension), np.float32)))

    def embed_one(job: tuple[Path, str]) -> Floats:
        content, buffer = job[0].read_bytes(), io.BytesIO()
        if job[1]:
            SHIFTS[job[1]](decode(content, DEFAULT_LIMITS)).save(buffer, "BMP")
        return engine.run(preprocess(buffer.getvalue() or content, spec)[None]).embedding[0]

    wanted = [(split, shift) for split in paths for shift in ("", *(SHIFTS if split in ("val", "test") else ()))]
    jobs = [(path, shift) for split, shift in wanted for path in paths[split]]
    with ThreadPoolExecutor(available_cores()) as pool:
        values = progress(pool.map(embed_one, jobs), "embedding images", len(jobs))
        return {key: torch.from_numpy(np.stack(list(islice(values, len(paths[key[0]]))))) for key in wanted}


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos, weights = os.environ.get("CATDOG_PHOTOS"), os.environ.get("CATDOG_WEIGHTS", "imagenet")
    parser.add_argument("--photos", default=photos, required=photos is None, help="as of `catdog train --data`")
    parser.add_argument("--weights", default=weights, help="as of `catdog train`")
    parser.add_argument("--backbone", default="mobilenet_v2", help="as of `catdog train`")
    parser.add_argument("--other", required=True, help="a folder of photos of none of the classes")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    splits = load_dataset(arguments.photos).splits
    backbone = load_backbone(arguments.backbone, arguments.weights, 2, 0)
    paths = {name: [example.path for example in examples] for name, examples in splits.items()}
    labels = {name: np.array([example.label for example in examples]) for name, examples in splits.items()}
    sets = embed(paths | {"other": sorted(Path(arguments.other).iterdir())}, backbone)
    rows = [["", "one class left out", "val falls by", "AUROC", "test accepted", "others refused", "test falls by"]]
    shifted, named = [["test falls by", *SHIFTS]], scores(backbone.network, len(set(labels["train"])))
    with torch.inference_mode():
        for name, (features, fit) in progress(named.items(), "measuring", len(named)):
            made = {key: features(embeddings) for key, embeddings in sets.items()}
            choice = [left_out(fit, made, labels), measure(fit, made, "val", 0)[3]]
            seeds = np.array([measure(fit, made, "test", seed) for seed in range(arguments.seeds)])
            low, high = np.quantile(seeds[:, :4], (0.025, 0.975), axis=0)
            cells = [f"{m:.4f} ({a:.3f}–{b:.3f})" for m, a, b in zip(seeds.mean(axis=0), low, high, strict=False)]
            rows.append([name, *(f"{value:.4f}" for value in choice), *cells])
            shifted.append([name, *(f"{value:.3f}" for value in seeds.mean(axis=0)[4:])])
    counts = ", ".join(f"{len(sets[name, '']):,} {name}" for name in (*paths, "other"))
    print(f"{machine()}; {counts}; {arguments.seeds} seeds\n\n{markdown_table(rows)}\n{markdown_table(shifted)}")


if __name__ == "__main__":
    main()
