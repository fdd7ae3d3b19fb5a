"""Every private or undocumented name in `catdog_pyfunc.internals`, checked against the installed MLflow and torchvision."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.pyfunc import scoring_server
from mlflow.utils import mlflow_tags, name_utils

from catdog_pyfunc import internals

MLFLOW = Path(mlflow.__file__).parent


def test_the_scoring_server_sets_these_variables_in_its_own_process(tmp_path: Path):
    (tmp_path / "model.py").write_text(
        "import json, os, mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def load_context(self, context):\n"
        f"        print(json.dumps([os.environ.get('{internals.SERVED_MODEL}'), context.model_config]))\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input\n"
        "mlflow.models.set_model(Model())\n"
    )
    model = tmp_path / "saved"
    config = {"threads": 0}
    mlflow.pyfunc.save_model(model, python_model=str(tmp_path / "model.py"), model_config=config, pip_requirements=[])
    # uvicorn imports this module, which loads the model; `mlflow models serve` sets the two variables.
    code = f"import os, mlflow.pyfunc.scoring_server.app; print(os.environ.get('{internals.IN_SCORING_SERVER}'))"
    given = {scoring_server._SERVER_MODEL_PATH: str(model), scoring_server.SERVING_MODEL_CONFIG: '{"threads": 3}'}
    environment = {**os.environ, **given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *_, seen_by_model, in_server = done.stdout.splitlines()
    assert json.loads(seen_by_model) == [str(model), {"threads": 3}]
    assert in_server == "true"
    assert scoring_server.SERVING_MODEL_CONFIG == internals.SERVING_MODEL_CONFIG


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("NOTE_TAG", "MLFLOW_RUN_NOTE"),
        ("RUN_NAME_TAG", "MLFLOW_RUN_NAME"),
        ("PARENT_RUN_TAG", "MLFLOW_PARENT_RUN_ID"),
        ("DATASET_CONTEXT_TAG", "MLFLOW_DATASET_CONTEXT"),
        ("USER_TAG", "MLFLOW_USER"),
    ],
)
def test_tags_have_mlflows_names(ours: str, theirs: str):
    assert getattr(internals, ours) == getattr(mlflow_tags, theirs)


def test_the_ui_reads_shared_views_from_this_tag():
    prefix = internals.SHARED_VIEW_TAG.format(name="")
    scripts = (MLFLOW / "server" / "js" / "build" / "static" / "js").rglob("*.js")
    assert any(prefix.encode() in script.read_bytes() for script in scripts)


def test_the_pytorch_flavor_reads_this_file(tmp_path: Path):
    name, module = internals.PICKLE_MODULE_FILE
    assert name == mlflow.pytorch._PICKLE_MODULE_INFO_FILE_NAME
    assert mlflow.pytorch.mlflow_pytorch_pickle_module.__name__ == module


def test_run_names_that_mlflow_generates_are_recognised():
    assert all(internals.is_generated_run_name(name_utils._generate_random_name()) for _ in range(200))
    predicate, noun = name_utils._GENERATOR_PREDICATES[0], name_utils._GENERATOR_NOUNS[0]
    assert internals.is_generated_run_name(f"{predicate}-{noun}-7")
    for name in (
        *("resnet-lr-3", "", "baseline", f"{predicate}-{noun}", f"{predicate}-{noun}-x", f"{predicate}-{noun}-7-1"),
        *(f"{predicate}-{predicate}x-7", f"x{predicate}-{noun}-7", f"{noun}-{predicate}-7"),
    ):
        assert not internals.is_generated_run_name(name), name


def test_aliases_and_versions_resolve_to_name_and_version(tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("Pets")
    for _ in range(2):
        client.create_model_version("Pets", (tmp_path / "model").as_uri())
    client.set_registered_model_alias("Pets", "production", "2")
    assert internals.registered_version(client, "models:/Pets@production") == ("Pets", "2")
    assert internals.registered_version(client, "models:/Pets/1") == ("Pets", "1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[mlflow.MlflowClient]:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def test_models_on_this_machine_are_found_and_others_are_not(store: mlflow.MlflowClient, tmp_path: Path):
    (tmp_path / "model").mkdir()
    store.create_registered_model("Pets")
    store.create_model_version("Pets", (tmp_path / "model").as_uri())
    store.create_model_version("Pets", "s3://bucket/model")
    store.create_model_version("Pets", "https://127.0.0.1:5000/model")
    assert internals.local_model(str(tmp_path / "model")) == tmp_path / "model"
    assert internals.local_model((tmp_path / "model").as_uri()) == tmp_path / "model"
    assert internals.local_model("models:/Pets/1") == tmp_path / "model"
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert internals.local_model(str(tmp_path / "link")) == tmp_path / "link"
    assert internals.local_model("models:/Pets/2") is None
    assert internals.local_model("models:/Pets/3") is None


def test_torchvisions_pets_list_files_and_binary_classes():
    from torchvision.datasets import OxfordIIITPet

    source = inspect.getsource(OxfordIIITPet)
    for name in ("self._images", "self._bin_labels", "self.bin_classes"):
        assert name in source

    class Pets:
        _images, _bin_labels, bin_classes = ["a.jpg", "b.jpg"], [1, 0], ["Cat", "Dog"]

    assert internals.oxford_pets(Pets()) == [(Path("a.jpg"), "dog"), (Path("b.jpg"), "cat")]


def test_what_pytorch_deprecates_is_still_there():
    # export.onnx_graph and export.save_torchscript: public, but to be replaced when PyTorch removes them.
    assert "dynamo" in inspect.signature(torch.onnx.export).parameters
    assert callable(torch.jit.trace)
    assert callable(torch.jit.save)


def test_spark_converts_predictions_with_these_functions():
    # tests/unit/test_pyfunc_model.py drives them: `mlflow.pyfunc.spark_udf` calls the first, then the second on each batch.
    source = inspect.getsource(mlflow.pyfunc.spark_udf)
    assert "_infer_spark_udf_return_type(model_output_schema)" in source
    assert "_convert_struct_values(result, result_type)" in source
