"""So that `mlflow.data.get_source` knows the pictures of this project's runs: registered as `image_folder`."""

from __future__ import annotations

from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource

__all__ = ["ImageFolderSource"]
