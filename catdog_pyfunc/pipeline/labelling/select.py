"""Selects, out of images without labels, those that a model would learn most from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.classifier import Classifier, Prediction, to_predictions
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import Engine, open_engine
from catdog_pyfunc.errors import InvalidData, InvalidImage, InvalidSetting
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import SUFFIXES
from catdog_pyfunc.pipeline.data.label_studio import Task, labelling_interface, tasks_json
from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage, Result
from catdog_pyfunc.pipeline.evaluation.galleries import gallery, small_png
from catdog_pyfunc.pipeline.evaluation.predictors import classifier_predictor
from catdog_pyfunc.pipeline.labelling.badge import badge
from catdog_pyfunc.preprocessing import Floats, preprocess

_Outcome = tuple[Prediction, Floats]  # with the embedding (D,), of length 1; empty if the image cannot be read


@dataclass(frozen=True)
class SelectionConfig:
    """The images to choose from, and the model that is to learn from them.

    Attributes:
        data: Folder of images without labels, at any depth.
        count: How many to select.
        model_uri: Model that this project logged: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model or a folder.
        seed: Seed of the choice.
    """

    data: str
    count: int = 100
    model_uri: str = "models:/CatDogClassifier@production"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidSetting(f"count is {self.count}; give 1 or more")
        if self.seed < 0:
            raise InvalidSetting(f"seed is {self.seed}; give 0 or more")


@dataclass(frozen=True)
class Selection:
    """The images of a folder, sorted by what is to be done with them; they have no labels, and are named by their path.

    Attributes:
        selected: To be labelled, the first chosen first.
        strange: Readable, but not `in_domain`, the least similar first: probably none of the classes.
        unreadable: Their predictions have an `error`.
        others: The rest, which would teach the model less.
    """

    selected: tuple[Result, ...]
    strange: tuple[Result, ...]
    unreadable: tuple[Result, ...]
    others: tuple[Result, ...]


def select(config: SelectionConfig) -> Selection:
    """Select the images that are worth labelling next, in the active MLflow run or in one of its own.

    The run gets galleries, a table, and tasks for Label Studio with the model's predictions.

    Args:
        config: The images and the model.

    Returns:
        The selection.

    Raises:
        InvalidData: There are no images, or none that can be read and is `in_domain`.
        RegistryError: There is no such model.
        InvalidBundle: The model was not logged by this project.
        TrackingError: The tracking store cannot be reached or written.

    Example:
        >>> selection = select(SelectionConfig("unlabelled", count=100))
        >>> image, prediction = selection.selected[0]
        >>> image.name, prediction.label, prediction.confidence
        ('2026-05/0173.jpg', 'dog', 0.5131)
    """
    folder = Path(config.data).expanduser().resolve()
    with tracking.active_or_new_run():
        tracking.log_params(asdict(config))
        tracking.name_run(f"select from {folder.name}")
        files = _files(folder)
        model_uri = flavor.exact_uri(config.model_uri)
        with flavor.opened_bundle(model_uri) as bundle:
            tracking.set_parent_run(bundle.description.provenance.get("run_id"))
            selection = _select(config, bundle, folder, files)
            _log(selection, bundle, folder, model_uri)
    return selection


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidData(f"data {folder} is not a folder: give one with images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InvalidData(f"{folder} has no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _select(config: SelectionConfig, bundle: Bundle, folder: Path, files: Sequence[Path]) -> Selection:
    outcomes = _embed(open_engine(bundle), bundle.description, files)
    results = [
        (LabelledImage(file.relative_to(folder).as_posix(), "", file.read_bytes), prediction)
        for file, (prediction, _) in zip(files, outcomes, strict=True)
    ]
    pool = [place for place, (prediction, _) in enumerate(outcomes) if prediction.in_domain]
    if not pool:
        raise InvalidData(f"none of the {len(files)} images in {folder} can be read and resembles the training data")
    embeddings = np.stack([outcomes[place][1] for place in pool])
    probabilities = np.array([list(outcomes[place][0].probabilities.values()) for place in pool])
    rng = np.random.default_rng(config.seed)
    selected = [pool[place] for place in badge(embeddings, probabilities, min(config.count, len(pool)), rng)]
    strange = [(image, p) for image, p in results if p.in_domain is False]
    return Selection(
        tuple(results[place] for place in selected),
        tuple(sorted(strange, key=lambda result: result[1].domain_score or 0.0)),
        tuple((image, p) for image, p in results if p.error),
        tuple(results[place] for place in sorted(set(pool) - set(selected))),
    )


def _embed(engine: Engine, description: Description, files: Sequence[Path]) -> list[_Outcome]:
    def run(file: Path) -> _Outcome:
        try:
            outputs = engine.run(preprocess(file.read_bytes(), description.preprocess)[None])
        except (InvalidImage, OSError) as error:
            return Prediction(error=str(error)), np.empty(0, np.float32)
        embedding = outputs.embedding[0]
        return to_predictions(outputs, description)[0], embedding / np.linalg.norm(embedding)

    with ThreadPoolExecutor(available_cores() + 1) as pool:  # one thread always waits for the GIL
        try:
            return list(progress(pool.map(run, files), "embedding images", len(files)))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _log(selection: Selection, bundle: Bundle, folder: Path, model_uri: str) -> None:
    kinds = {kind: getattr(selection, kind) for kind in ("selected", "strange", "unreadable", "others")}
    mlflow.set_tags({"model.uri": model_uri, "bundle.digest": bundle.digest})
    mlflow.log_metrics({f"select/{kind}": len(results) for kind, results in kinds.items()})
    mlflow.log_text(_table(kinds).to_csv(index=False, float_format="%.6f", lineterminator="\n"), "tables/selection.csv")
    predict = classifier_predictor(Classifier(bundle))
    for kind in ("selected", "strange"):
        drawn = gallery(kinds[kind], predict, f"{kind.capitalize()} images", f"No {kind} images")
        mlflow.log_image(small_png(drawn), f"images/{kind}.png")
    tasks = [Task(image.name, p.label or "", p.confidence or 0.0) for image, p in selection.selected]
    mlflow.log_text(tasks_json(tasks, folder, model_uri), "label_studio/tasks.json")
    mlflow.log_text(labelling_interface(bundle.description.classes), "label_studio/interface.xml")


def _table(kinds: dict[str, tuple[Result, ...]]) -> pd.DataFrame:
    """One row per image, with an empty column for the label that a person gives it."""
    rows = [
        (image.name, kind, "", p.label, p.confidence, p.domain_score, p.error)
        for kind, results in kinds.items()
        for image, p in results
    ]
    return pd.DataFrame(rows, columns=["path", "kind", "suggestion", "prediction", "confidence", "domain_score", "error"])
