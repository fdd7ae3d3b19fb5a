"""The stored model: what is written, what is refused, what it answers."""

from __future__ import annotations

import base64
import io
import json
import pickle
import pickletools
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModelContext
from mlflow.pyfunc.scoring_server import load_model_with_mlflow_config
from PIL import Image

from catdog_pyfunc import bundle, flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.engine import OnnxEngine, open_engine
from catdog_pyfunc.errors import EnginesDisagree, InvalidBundle, InvalidSetting
from catdog_pyfunc.network import Network, build
from catdog_pyfunc.preprocessing import Preprocess, preprocess
from catdog_pyfunc.pyfunc_model import CatDogModel

SPEC = Preprocess(size=64, resize=72)
REFERENCE = np.eye(4, 1280, dtype=np.float32)
DESCRIPTION = Description("mobilenet_v2", ("cat", "dog", "owl"), SPEC)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(1)
    return build("mobilenet_v2", 3)


@pytest.fixture(scope="module")
def saved(network: Network, pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    flavor.save_model(path, network, DESCRIPTION, REFERENCE, pictures=pictures[:16])
    return path


@pytest.fixture(scope="module", params=["onnx", "torch"])
def served(saved: Path, request: pytest.FixtureRequest) -> PyFuncModel:
    """The model as MLflow loads it, with each engine."""
    return mlflow.pyfunc.load_model(str(saved), model_config={"engine": request.param})


@pytest.fixture
def stored(saved: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to damage."""
    return Path(shutil.copytree(saved / "artifacts" / "bundle", tmp_path / "bundle"))


def test_the_artifact_holds_the_serving_files_and_no_pipeline(saved: Path):
    assert sorted(path.name for path in (saved / "artifacts" / "bundle").iterdir()) == [
        "classifier.json",
        "model.onnx",
        "reference.npy",
        "weights.safetensors",
    ]
    assert {path.parent.name for path in saved.glob("code/**/*.py")} == {"catdog_pyfunc"}
    requirements = (saved / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements


def test_rows_are_label_confidence_probabilities_error(served: PyFuncModel, pictures: list[bytes]):
    answers = served.predict(pd.DataFrame({"image": [pictures[0], b"%PDF-1.7 no picture", pictures[-1]]}))
    assert list(answers.columns) == ["label", "confidence", "probabilities", "error", "in_domain", "domain_score"]
    first, broken, last = answers.to_dict("records")
    for row in (first, last):
        assert row["error"] is None
        assert list(row["probabilities"]) == ["cat", "dog", "owl"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-12)
        assert row["confidence"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
    assert broken["label"] is broken["confidence"] is broken["probabilities"] is None
    assert broken["error"].startswith("image 1 is ")
    assert "send" in broken["error"]


def test_cells_may_come_in_any_container(saved: Path, pictures: list[bytes]):
    model = mlflow.pyfunc.load_model(str(saved))
    files = pictures[:2]
    text = [base64.b64encode(file).decode() for file in files]
    expected = model.predict(pd.DataFrame({"image": files})).to_dict("records")
    array = np.array(files, dtype=object)
    named = [
        pd.Series(files, name="image"),
        {"image": files},
        {"image": text},
        {"image": array},
        [{"image": t} for t in text],
    ]
    for given in named:
        assert model.predict(given).to_dict("records") == expected
    # MLflow refuses nameless cells where inputs have names; the model itself takes them.
    for given in (files, text, array, np.array(text), pd.Series(text)):
        assert model.unwrap_python_model().predict(None, given).to_dict("records") == expected


def pickles(content: bytes) -> bool:
    """Whether a file is a pickle, or an archive that holds one."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(pickles(archive.read(name)) for name in archive.namelist())
    try:
        *_, (last, _, _) = pickletools.genops(content)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError):
        return False
    return bool(last.name == "STOP" and content[:1] == b"\x80")


def test_no_file_is_a_pickle_but_torchscripts_own(saved: Path):
    assert pickles(pickle.dumps({"a": 1}))
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 15
    # TorchScript's archive is read by PyTorch's C++ reader, which makes no Python objects.
    assert [path for path in files if pickles(path.read_bytes())] == [saved / "pytorch" / "model.pth"]


def test_the_pytorch_flavor_gives_a_module_with_logits(saved: Path, pictures: list[bytes]):
    module = mlflow.pytorch.load_model(str(saved))
    module.to("cpu")
    module.eval()
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    pixels = torch.from_numpy(preprocess(pictures[0], SPEC).copy()).permute(2, 0, 1) / 255
    normalised = (pixels - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    probabilities = module(normalised[None]).softmax(1)[0].tolist()
    (answer,) = flavor.load_model(str(saved)).predict([pictures[0]])
    assert probabilities == pytest.approx(list(answer.probabilities.values()), abs=1e-4)


def test_the_onnx_flavor_gives_the_graph(saved: Path):
    graph = mlflow.onnx.load_model(str(saved)).graph
    assert [value.name for value in graph.output] == ["logits", "embedding", "class_maps", "likeness"]
    assert graph.input[0].type.tensor_type.elem_type == 2  # uint8


def test_both_engines_give_the_same_answers(saved: Path, pictures: list[bytes]):
    stored = bundle.read(saved / "artifacts" / "bundle")
    cells = [*pictures, b"broken"]
    onnx, torch_ = (Classifier(stored, engine=name).predict(cells) for name in ("onnx", "torch"))
    assert [answer.error for answer in onnx] == [answer.error for answer in torch_]
    for one, other in zip(onnx[:-1], torch_[:-1], strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)


def test_embedding_and_logits_belong_together(saved: Path, network: Network, pictures: list[bytes]):
    pixels = np.stack([preprocess(picture, SPEC) for picture in pictures[:5]])
    outputs = OnnxEngine(saved / "artifacts" / "bundle" / "model.onnx").run(pixels)
    assert outputs.embedding.shape == (5, 1280)
    weight, bias = (tensor.detach().numpy() for tensor in (network.head.weight, network.head.bias))
    assert np.allclose(outputs.embedding @ weight.T + bias, outputs.logits, atol=1e-4)


def test_likeness_is_the_cosine_to_the_nearest_reference(saved: Path, pictures: list[bytes]):
    pixels = np.stack([preprocess(picture, SPEC) for picture in pictures[:5]])
    outputs = OnnxEngine(saved / "artifacts" / "bundle" / "model.onnx").run(pixels)
    unit = outputs.embedding / np.linalg.norm(outputs.embedding, axis=1, keepdims=True)
    assert np.allclose((unit @ REFERENCE.T).max(1), outputs.similarity, atol=1e-5)


def test_a_class_maps_mean_is_the_logit_less_the_bias(saved: Path, network: Network, pictures: list[bytes]):
    pixels = np.stack([preprocess(picture, SPEC) for picture in pictures[:5]])
    outputs = OnnxEngine(saved / "artifacts" / "bundle" / "model.onnx").run(pixels)
    assert np.allclose(outputs.class_maps.mean((2, 3)) + network.head.bias.detach().numpy(), outputs.logits, atol=1e-4)


def test_explain_adds_a_picture_of_where_the_label_is_seen(served: PyFuncModel, pictures: list[bytes]):
    frame = served.predict(pd.DataFrame({"image": [pictures[0], b"broken"]}), params={"explain": True})
    shown = Image.open(io.BytesIO(base64.b64decode(frame["heatmap"][0])))
    assert (shown.format, shown.size) == ("PNG", (64, 64))
    assert frame["heatmap"][1] is None
    assert "heatmap" not in served.predict(pd.DataFrame({"image": pictures[:1]})).columns


def test_saving_refuses_when_the_engines_disagree(
    network: Network, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = build("mobilenet_v2", 3)
    graph = flavor.export_graph(other, DESCRIPTION, REFERENCE)
    monkeypatch.setattr(flavor, "export_graph", lambda *_: graph)
    with pytest.raises(EnginesDisagree, match="nothing was saved"):
        flavor.save_model(tmp_path / "model", network, DESCRIPTION, REFERENCE, pictures=pictures[:16])
    assert list(tmp_path.iterdir()) == []


def test_saving_over_something_is_refused_and_harms_nothing(network: Network, pictures: list[bytes], tmp_path: Path):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match="not empty"):
        flavor.save_model(tmp_path, network, DESCRIPTION, REFERENCE, pictures=pictures[:16])
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "reference.npy"])
def test_a_changed_byte_is_refused(name: str, stored: Path):
    content = bytearray((stored / name).read_bytes())
    content[len(content) // 2] ^= 1
    (stored / name).write_bytes(content)
    with pytest.raises(InvalidBundle, match=f"{name} is not the file that was saved"):
        bundle.read(stored)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "classifier.json"])
def test_a_missing_file_is_refused(name: str, stored: Path):
    (stored / name).unlink()
    with pytest.raises(InvalidBundle, match=f"{name} can't be read"):
        bundle.read(stored)


def test_a_newer_format_is_refused(stored: Path):
    description = json.loads((stored / "classifier.json").read_text())
    description["format"] = 99
    (stored / "classifier.json").write_text(json.dumps(description))
    with pytest.raises(InvalidBundle, match=r"format 99.*install a newer one"):
        bundle.read(stored)


def test_another_number_of_classes_is_refused(stored: Path):
    description = json.loads((stored / "classifier.json").read_text())
    description["classes"].append("bat")
    (stored / "classifier.json").write_text(json.dumps(description))
    for engine in ("onnx", "torch"):
        with pytest.raises(InvalidBundle, match="names 4 classes, its network tells 3 apart"):
            open_engine(bundle.read(stored), engine)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_32_threads_get_what_one_gets(engine: str, saved: Path, pictures: list[bytes]):
    classifier = flavor.load_model(str(saved), engine=engine)
    exclusive = [classifier.predict([picture])[0] for picture in pictures]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda picture: classifier.predict([picture])[0], pictures * 4))
    assert together == exclusive * 4  # to the last bit


def test_unknown_settings_are_refused_by_name(saved: Path):
    context = PythonModelContext({"bundle": str(saved / "artifacts" / "bundle")}, {"treads": 4})
    with pytest.raises(InvalidSetting, match="unknown 'treads'; it may hold engine, threads"):
        CatDogModel().load_context(context)
    with pytest.raises(InvalidSetting, match="threads='many'"):
        mlflow.pyfunc.load_model(str(saved), model_config={"threads": "many"})
    with pytest.raises(InvalidSetting, match="engine 'tpu' is not known"):
        open_engine(bundle.read(saved / "artifacts" / "bundle"), "tpu")


def test_unknown_settings_are_refused_when_serving(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_byte": 1000}')
    with pytest.raises(InvalidSetting, match="unknown 'max_byte'"):
        load_model_with_mlflow_config(str(saved))
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_bytes": 100}')
    model = load_model_with_mlflow_config(str(saved))
    assert "more than 100" in model.predict(pd.DataFrame({"image": [b"\xff\xd8\xff" + bytes(200)]}))["error"][0]


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_limits_come_from_model_config(engine: str, saved: Path, pictures: list[bytes]):
    model = mlflow.pyfunc.load_model(str(saved), model_config={"max_pixels": 1000, "threads": 1, "engine": engine})
    assert "more than 1,000" in model.predict(pd.DataFrame({"image": pictures[:1]}))["error"][0]


def test_the_model_is_a_python_model_and_its_card_rows_survive_json(saved: Path, pictures: list[bytes]):
    assert issubclass(CatDogModel, mlflow.pyfunc.PythonModel)
    model = mlflow.pyfunc.load_model(str(saved))
    frame = model.predict(pd.DataFrame({"image": [base64.b64encode(pictures[0]), b"?"]}))
    good, bad = json.loads(frame.to_json(orient="records"))
    assert good["label"] in DESCRIPTION.classes
    assert bad["label"] is None


def test_a_model_loads_with_pickle_forbidden(saved: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(str(saved))
    assert model.predict(pd.DataFrame({"image": pictures[:1]}))["error"][0] is None
