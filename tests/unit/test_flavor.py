"""Saving, logging, fetching and loading models: what is written, what is refused, and what both engines answer."""

from __future__ import annotations

import importlib.metadata
import io
import pickle
import pickletools
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from packaging.requirements import Requirement

import catdog_pyfunc
from catdog_pyfunc import bundle, engine, export, flavor, internals
from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.engine import OnnxEngine, Outputs, TorchEngine, open_engine
from catdog_pyfunc.errors import EnginesDisagree, InvalidBundle, InvalidSetting, MissingDependency, RegistryError
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.preprocessing import Limits, preprocess
from tests.unit.conftest import DESCRIPTION, REFERENCE_EMBEDDINGS, SPEC


@pytest.fixture(scope="module")
def real_model(images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with a backbone of torchvision's, which both engines can run."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("real") / "model"
    reference_embeddings = np.eye(4, 1280, dtype=np.float32)
    flavor.save_model(
        path,
        build_network("mnasnet0_5", 3),
        replace(DESCRIPTION, backbone="mnasnet0_5"),
        reference_embeddings,
        images=images[:16],
    )
    return path


@pytest.fixture
def stored(tiny_model: Path) -> Bundle:
    return bundle.read(tiny_model / "artifacts" / "bundle")


@pytest.fixture
def pixels(images: list[bytes]) -> np.ndarray:
    return np.stack([preprocess(image, SPEC) for image in images[:5]])


@pytest.fixture
def outputs(stored: Bundle, pixels: np.ndarray) -> Outputs:
    return OnnxEngine(stored.path / "model.onnx").run(pixels)


def test_the_artifact_holds_the_serving_files_and_no_pipeline(tiny_model: Path):
    files = {path.name for path in (tiny_model / "code" / "catdog_pyfunc").iterdir() if path.suffix == ".py"}
    assert files == {path.name for path in Path(catdog_pyfunc.__file__).parent.glob("*.py")}
    assert {path.parent.name for path in tiny_model.glob("code/**/*.py")} == {"catdog_pyfunc"}


def test_the_metadata_names_every_flavor_and_the_bundle(tiny_model: Path, stored: Bundle):
    metadata = mlflow.models.Model.load(tiny_model)
    assert metadata.metadata == {"bundle_digest": stored.digest}
    assert set(metadata.flavors) == {"python_function", "pytorch", "onnx"}
    assert metadata.flavors["pytorch"] == {"pytorch_version": torch.__version__, "model_data": "pytorch"}
    assert metadata.flavors["onnx"] == {
        "onnx_version": onnx.__version__,
        "data": "artifacts/bundle/model.onnx",
        "providers": ["CPUExecutionProvider"],
    }


def test_a_models_requirements_are_the_distributions_in_their_installed_versions(tiny_model: Path):
    lines = (Path(catdog_pyfunc.__file__).parent / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = [Requirement(line) for line in (tiny_model / "requirements.txt").read_text().splitlines()]
    assert {str(pin.specifier) for pin in pinned} == {f"=={importlib.metadata.version(pin.name)}" for pin in pinned}
    assert [(pin.name, pin.marker) for pin in pinned] == [(requirement.name, requirement.marker) for requirement in wanted]
    assert not {"torch", "torchvision", "mlflow"} & {pin.name for pin in pinned}


def test_what_was_given_is_stored(stored: Bundle, tiny_model: Path):
    assert stored.description == DESCRIPTION
    assert stored.reference_embeddings().tolist() == REFERENCE_EMBEDDINGS.tolist()
    model = mlflow.pyfunc.load_model(str(tiny_model))
    assert model.metadata.metadata == {"bundle_digest": stored.digest}
    assert list(model.input_example.columns) == ["image"]
    assert set(model.metadata.flavors) == {"python_function", "pytorch", "onnx"}


def is_pickle(content: bytes) -> bool:
    """Whether a file is a pickle, or an archive that holds one."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(is_pickle(archive.read(name)) for name in archive.namelist())
    try:
        *_, (last, _, _) = pickletools.genops(content)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError):
        return False
    return bool(last.name == "STOP" and content[:1] == b"\x80")


def test_no_file_is_a_pickle_except_torchscripts_own(tiny_model: Path):
    assert is_pickle(pickle.dumps({"a": 1}))
    files = [path for path in tiny_model.rglob("*") if path.is_file()]
    assert len(files) > 15
    # TorchScript's archive is read by PyTorch's C++ reader, which creates no Python objects.
    assert [path for path in files if is_pickle(path.read_bytes())] == [tiny_model / "pytorch" / "model.pth"]


def test_the_pytorch_flavor_gives_a_module_with_logits(tiny_model: Path, images: list[bytes]):
    module = mlflow.pytorch.load_model(str(tiny_model))
    module.to("cpu")
    module.eval()
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    pixels = torch.from_numpy(preprocess(images[0], SPEC).copy()).permute(2, 0, 1) / 255
    normalised = (pixels - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    probabilities = (module(normalised[None]) / DESCRIPTION.temperature).softmax(1)[0].tolist()
    (prediction,) = flavor.load_model(str(tiny_model)).predict([images[0]])
    assert probabilities == pytest.approx(list(prediction.probabilities.values()), abs=1e-4)


def test_the_onnx_flavor_gives_the_graph(tiny_model: Path):
    graph = mlflow.onnx.load_model(str(tiny_model)).graph
    assert [value.name for value in graph.output] == ["logits", "embedding", "class_maps", "similarity"]
    assert [value.name for value in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"


def test_embedding_and_logits_belong_together(outputs: Outputs, tiny_network: Network):
    assert outputs.embedding.shape == (5, 8)
    weight, bias = (tensor.detach().numpy() for tensor in (tiny_network.head.weight, tiny_network.head.bias))
    assert np.allclose(outputs.embedding @ weight.T + bias, outputs.logits, atol=1e-4)


def test_similarity_is_the_cosine_to_the_nearest_reference_embedding(outputs: Outputs):
    unit = outputs.embedding / np.linalg.norm(outputs.embedding, axis=1, keepdims=True)
    assert np.allclose((unit @ REFERENCE_EMBEDDINGS.T).max(1), outputs.similarity, atol=1e-5)


def test_the_mean_of_a_class_map_is_the_logit_less_the_bias(outputs: Outputs, tiny_network: Network):
    assert np.allclose(outputs.class_maps.mean((2, 3)) + tiny_network.head.bias.detach().numpy(), outputs.logits, atol=1e-4)


def test_exclusive_calls_give_the_same_outputs(stored: Bundle, pixels: np.ndarray):
    session = OnnxEngine((stored.path / "model.onnx").read_bytes(), threads=2)
    shared, exclusive = session.run(pixels), session.run(pixels, exclusive=True)
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(shared, exclusive, strict=True))


def test_sessions_have_the_threads_they_are_given(stored: Bundle):
    several = OnnxEngine(stored.path / "model.onnx", threads=3)
    counts = [
        session.get_session_options().intra_op_num_threads
        for session in (several._shared_session, several._exclusive_session)
    ]
    assert counts == [1, 3]
    single = OnnxEngine(stored.path / "model.onnx")
    assert single._exclusive_session is single._shared_session


def test_both_engines_give_the_same_predictions(real_model: Path, images: list[bytes]):
    stored = bundle.read(real_model / "artifacts" / "bundle")
    cells = [*images, b"\xff corrupt"]
    onnx_, torch_ = (Classifier(stored, engine=name).predict(cells) for name in ("onnx", "torch"))
    assert isinstance(open_engine(stored, "torch"), TorchEngine)
    assert [prediction.error for prediction in onnx_] == [prediction.error for prediction in torch_]
    for one, other in zip(onnx_[:-1], torch_[:-1], strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)
        assert one.domain_score == pytest.approx(other.domain_score, abs=1e-3)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_32_threads_get_what_one_gets(name: str, real_model: Path, images: list[bytes]):
    classifier = flavor.load_model(str(real_model), engine=name)
    expected = [classifier.predict([image])[0] for image in images]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda image: classifier.predict([image])[0], images * 4))
    for one, other in zip(together, expected * 4, strict=True):
        assert one.label == other.label
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-5)


def test_the_engine_is_chosen_by_name_and_by_the_presence_of_cuda(stored: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "TorchEngine", lambda opened: ("torch", opened))
    assert open_engine(stored, "torch") == ("torch", stored)
    for cuda in (True, False):
        monkeypatch.setattr(engine, "_has_cuda", lambda cuda=cuda: cuda)
        assert isinstance(open_engine(stored, "onnx"), OnnxEngine)
        assert isinstance(open_engine(stored), OnnxEngine) is not cuda
    with pytest.raises(InvalidSetting) as caught:
        open_engine(stored, "tpu")
    assert str(caught.value) == "engine 'tpu' is unknown: give one of auto, onnx, torch"


def test_without_a_gpu_torch_is_not_imported_to_look_for_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "exists", lambda path: path == Path("/dev/nvidiactl"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine._has_cuda()
    monkeypatch.setitem(sys.modules, "torchvision", None)  # not installed
    assert not engine._has_cuda()
    monkeypatch.setattr(Path, "exists", lambda path: path != Path("/dev/nvidiactl"))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not engine._has_cuda()


def test_the_torch_engine_names_the_extra_if_torch_is_missing(stored: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency) as caught:
        open_engine(stored, "torch")
    assert str(caught.value) == "this needs PyTorch: pip install 'catdog-pyfunc[torch]'"


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_another_number_of_classes_is_refused(name: str, real_model: Path):
    stored = bundle.read(real_model / "artifacts" / "bundle")
    other = replace(stored, description=replace(stored.description, classes=("cat", "dog", "owl", "bat")))
    with pytest.raises(InvalidBundle) as caught:
        open_engine(other, name)
    assert str(caught.value) == f"{stored.path} names 4 classes, but its network has 3: fetch the model again"


def test_saving_is_refused_if_the_engines_disagree(
    tiny_network: Network, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = Network(tiny_network.features, 8, 3).eval()
    graph = export.onnx_graph(other, DESCRIPTION, REFERENCE_EMBEDDINGS)
    monkeypatch.setattr(export, "onnx_graph", lambda *_: graph)
    with pytest.raises(EnginesDisagree) as caught:
        flavor.save_model(tmp_path / "model", tiny_network, DESCRIPTION, REFERENCE_EMBEDDINGS, images=images[:3])
    message = str(caught.value)
    assert message.startswith("PyTorch and ONNX Runtime differ by ")
    assert message.endswith(
        " in the logits of 3 images, more than 0.001: nothing was saved; "
        "try another backbone or another version of onnxruntime"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_nan_is_refused(tiny_network: Network, images: list[bytes], tmp_path: Path):
    broken = Network(tiny_network.features, 8, 3).eval()
    torch.nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(EnginesDisagree, match="differ by nan"):
        flavor.save_model(tmp_path / "model", broken, DESCRIPTION, REFERENCE_EMBEDDINGS, images=images[:3])


def test_a_folder_with_content_is_refused_and_left_alone(tiny_network: Network, images: list[bytes], tmp_path: Path):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(FileExistsError) as caught:
        flavor.save_model(tmp_path, tiny_network, DESCRIPTION, REFERENCE_EMBEDDINGS, images=images[:3])
    assert str(caught.value) == f"{tmp_path} exists and is not empty: give a folder that does not exist"
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_nothing_is_left_if_saving_fails_halfway(
    tiny_network: Network, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "save_torchscript", fail)
    with pytest.raises(OSError, match="No space left"):
        flavor.save_model(tmp_path / "model", tiny_network, DESCRIPTION, REFERENCE_EMBEDDINGS, images=images[:3])
    assert list(tmp_path.iterdir()) == []


def test_options_of_load_model_reach_the_classifier(tiny_model: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch):
    given: list[dict[str, object]] = []
    monkeypatch.setattr(flavor, "Classifier", lambda opened, **options: given.append(options))
    flavor.load_model(str(tiny_model))
    flavor.load_model(str(tiny_model), engine="onnx", threads=1, limits=Limits(1, 2))
    assert given == [
        {"engine": "auto", "threads": None, "limits": Limits()},
        {"engine": "onnx", "threads": 1, "limits": Limits(1, 2)},
    ]


def test_a_model_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(InvalidBundle) as caught:
        flavor.load_model(str(tmp_path))
    assert str(caught.value) == f"{tmp_path} contains no catdog bundle: give a model that this project saved"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_download_is_deleted_when_the_context_ends(
    tiny_model: Path, images: list[bytes], temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(internals, "local_model", lambda uri: None)  # as if it were on a server
    with flavor.downloaded_model(str(tiny_model)) as folder:
        assert folder.is_relative_to(temporary)
        assert (folder / "MLmodel").is_file()
    assert list(temporary.iterdir()) == []
    classifier = flavor.load_model(str(tiny_model))
    assert list(temporary.iterdir()) == []
    assert classifier.predict(images[:1])[0].error is None


def test_a_local_folder_is_used_as_it_is(tiny_model: Path, temporary: Path):
    before = set(tiny_model.rglob("*"))
    for uri in (str(tiny_model), tiny_model.as_uri()):
        with flavor.downloaded_model(uri) as folder:
            assert folder == tiny_model
            assert list(temporary.iterdir()) == []
    assert set(tiny_model.rglob("*")) == before


@pytest.mark.parametrize(
    "uri", ["models:/Nobody/1", "models:/Nobody@production", "runs:/0123456789abcdef/model", "no/folder"]
)
def test_a_missing_model_is_a_registry_error_with_the_remedy(uri: str, tmp_path: Path, temporary: Path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        with pytest.raises(RegistryError) as caught, flavor.downloaded_model(uri):
            pass
    finally:
        mlflow.set_tracking_uri(None)
    assert str(caught.value).startswith(f"cannot load model {uri} from sqlite:///{tmp_path / 'mlflow.db'} (")
    assert str(caught.value).endswith(
        "): give models:/<name>@<alias>, models:/<name>/<version>, runs:/<run id>/model or a folder"
    )
    assert list(temporary.iterdir()) == []


def test_an_error_inside_the_context_is_passed_on_as_it_is(tiny_model: Path):
    with pytest.raises(OSError, match="mine"), flavor.downloaded_model(str(tiny_model)):
        raise OSError("mine")


def test_descriptions_need_only_backbone_classes_and_preprocessing():
    description = Description("resnet18", ("cat", "dog"), SPEC)
    assert (description.temperature, description.ood_threshold, description.provenance) == (1.0, -1.0, {})
