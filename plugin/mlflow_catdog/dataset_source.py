"""Registers `image_folder` with MLflow, so that `mlflow.data.get_source` resolves the images of this project's runs."""

from __future__ import annotations

from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource

__all__ = ["ImageFolderSource"]
