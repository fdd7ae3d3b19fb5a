"""The stored classifier: what is written, read back and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from catdog_pyfunc import bundle
from catdog_pyfunc.bundle import Bundle
from catdog_pyfunc.errors import InvalidBundle
from tests.unit.conftest import DESCRIPTION

EMBEDDINGS = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
FULL = replace(DESCRIPTION, classes=("cat", "chien égaré"), provenance={"seed": 3, "run_id": "r"})


@pytest.fixture
def stored(tmp_path: Path) -> Bundle:
    return bundle.write(tmp_path / "new" / "bundle", FULL, EMBEDDINGS, weights=b"weights", graph=b"graph")


def edit(stored: Bundle, change: Callable[[dict], object]) -> None:
    path = stored.path / "classifier.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_read_is_what_was_written(stored: Bundle):
    again = bundle.read(stored.path)
    assert again == stored
    assert asdict(again.description) == asdict(FULL)
    assert (stored.path / "weights.safetensors").read_bytes() == b"weights"
    assert (stored.path / "model.onnx").read_bytes() == b"graph"
    assert {path.name for path in stored.path.iterdir()} == {
        *("classifier.json", "model.onnx", "reference_embeddings.npy", "weights.safetensors")
    }


def test_reference_embeddings_are_float32_of_half_precision(stored: Bundle):
    embeddings = stored.reference_embeddings()
    assert embeddings.dtype == np.float32
    assert embeddings.tolist() == EMBEDDINGS.astype(np.float16).astype(np.float32).tolist()
    assert np.load(stored.path / "reference_embeddings.npy").dtype == np.float16


def test_the_description_is_readable_json_with_sizes_and_digests(stored: Bundle):
    text = (stored.path / "classifier.json").read_text()
    assert text.startswith('{\n  "format": 1,\n  "backbone": "mobilenet_v2",\n')
    assert text.endswith("}\n")
    assert "chien égaré" in text
    content = json.loads(text)
    assert (content["temperature"], content["ood_threshold"]) == (2.0, 0.25)
    assert content["files"]["model.onnx"]["bytes"] == 5
    assert set(content["files"]) == {"model.onnx", "reference_embeddings.npy", "weights.safetensors"}


def test_another_users_server_can_read_it(stored: Bundle):
    assert stored.path.stat().st_mode & 0o777 == 0o755


def test_the_digest_identifies_content(stored: Bundle, tmp_path: Path):
    assert len(stored.digest) == 64
    other = bundle.write(tmp_path / "other", FULL, EMBEDDINGS, weights=b"other weights", graph=b"graph")
    assert other.digest != stored.digest
    assert bundle.write(tmp_path / "same", FULL, EMBEDDINGS, weights=b"weights", graph=b"graph").digest == stored.digest


def test_an_existing_folder_is_not_overwritten(tmp_path: Path):
    with pytest.raises(FileExistsError) as caught:
        bundle.write(tmp_path, FULL, EMBEDDINGS, weights=b"", graph=b"")
    assert str(caught.value) == f"{tmp_path} already exists: give a folder that does not"


def test_nothing_is_left_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, data: bytes) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        bundle.write(tmp_path / "bundle", FULL, EMBEDDINGS, weights=b"w", graph=b"g")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "reference_embeddings.npy"])
def test_a_changed_byte_is_refused(name: str, stored: Bundle):
    content = bytearray((stored.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (stored.path / name).write_bytes(content)
    with pytest.raises(InvalidBundle) as caught:
        bundle.read(stored.path)
    expected = f"{stored.path / name} is not the file that was saved (SHA-256 differs): fetch the model again"
    assert str(caught.value) == expected


def test_large_files_are_verified_to_their_end(tmp_path: Path):
    stored = bundle.write(tmp_path / "bundle", FULL, EMBEDDINGS, weights=bytes(3_000_000), graph=b"g")
    assert bundle.read(stored.path) == stored
    (stored.path / "weights.safetensors").write_bytes(bytes(2_999_999) + b"1")
    with pytest.raises(InvalidBundle, match="is not the file that was saved"):
        bundle.read(stored.path)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "classifier.json", "reference_embeddings.npy"])
def test_a_missing_file_is_refused(name: str, stored: Bundle):
    (stored.path / name).unlink()
    with pytest.raises(InvalidBundle) as caught:
        bundle.read(stored.path)
    assert str(caught.value) == f"cannot read {stored.path / name} (No such file or directory): fetch the model again"


def test_a_newer_format_is_refused(stored: Bundle):
    edit(stored, lambda content: content.update(format=2))
    with pytest.raises(InvalidBundle) as caught:
        bundle.read(stored.path)
    path = stored.path / "classifier.json"
    expected = f"{path} has format 2, but this catdog-pyfunc reads up to 1: install a newer catdog-pyfunc"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("temperature"), "KeyError('temperature')"),
        (lambda content: content.pop("ood_threshold"), "KeyError('ood_threshold')"),
        (lambda content: content.update(preprocess=3), "TypeError"),
        (lambda content: content.update(files=[]), "AttributeError"),
        (lambda content: content.update(format="new"), "ValueError"),
    ],
)
def test_a_damaged_description_is_refused(change: Callable[[dict], object], reason: str, stored: Bundle):
    edit(stored, change)
    with pytest.raises(InvalidBundle) as caught:
        bundle.read(stored.path)
    assert str(caught.value).startswith(f"cannot read {stored.path / 'classifier.json'} ({reason}")
    assert str(caught.value).endswith("): save the model again")
