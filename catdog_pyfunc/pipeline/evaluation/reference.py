"""The predictions on the test split that travel with a model: what later predictions are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException

from catdog_pyfunc import access
from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import RegistryError, first_line

FILE_NAME = "test_predictions.parquet"
MODEL_DIGEST = "catdog.model_digest"  # key of a parquet file's metadata
_SCHEMA = pa.schema(  # no path and no digest: nothing tells which images they were
    [
        ("image_bytes", pa.int64()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("in_domain", pa.bool_()),
        ("domain_score", pa.float64()),
        ("error", pa.string()),
    ]
)


def write_reference(folder: Path, predictions: Sequence[Prediction], sizes: Sequence[int], model_digest: str) -> None:
    """Write the predictions on the test split, as `FILE_NAME`.

    Args:
        folder: Exists.
        predictions: N predictions of the model.
        sizes: Bytes of the N files.
        model_digest: SHA-256 of the model's bundle.
    """
    rows = [
        {"image_bytes": size, **{name: getattr(prediction, name) for name in _SCHEMA.names[1:]}}
        for prediction, size in zip(predictions, sizes, strict=True)
    ]
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({MODEL_DIGEST: model_digest}))
    pq.write_table(table, folder / FILE_NAME, compression="zstd")


def read_reference(model_uri: str) -> pa.Table:
    """Read the predictions on the test split that are stored with a model.

    Args:
        model_uri: `models:/<name>/<version>` or any other URI of a model in MLflow.

    Returns:
        One row per image: image_bytes, label, confidence, in_domain, domain_score, error; `MODEL_DIGEST` is in the metadata.

    Raises:
        RegistryError: There is no such model, or it has no such predictions.
    """
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        try:
            return pq.read_table(mlflow.artifacts.download_artifacts(f"{model_uri}/{FILE_NAME}", dst_path=scratch))
        except (MlflowException, OSError) as error:
            access.check(error)
            raise RegistryError(
                f"{model_uri} has no {FILE_NAME} ({first_line(error)}): give a version that `catdog train` registered"
            ) from None
