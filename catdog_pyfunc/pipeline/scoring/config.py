"""What to score, with which model, where."""

from __future__ import annotations

from dataclasses import dataclass

from catdog_pyfunc.pipeline.spark import LOCAL, check_engine


@dataclass(frozen=True)
class ScoringConfig:
    """The images to score, the model, and where the predictions go.

    Attributes:
        input: Folder of images (any depth), folder or file of parquet with a column of image files' bytes, or text file with
            one path per line.
        output: Folder to create, for the predictions as parquet.
        model_uri: Model that this project logged: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model or a folder.
        engine: local (all cores of this machine), spark (the active session, or Spark on this machine), or the URL of a
            Spark master.
        heatmaps: Whether to add each prediction's heat map, a PNG.
    """

    input: str
    output: str
    model_uri: str = "models:/CatDogClassifier@production"
    engine: str = LOCAL
    heatmaps: bool = False

    def __post_init__(self) -> None:
        check_engine(self.engine)
