"""Models in a process of their own: what the process is given, and what becomes of one that dies or hangs."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import ModelFailed
from catdog_pyfunc.pipeline.evaluation import subprocess_model as module
from catdog_pyfunc.pipeline.evaluation import subprocess_worker
from catdog_pyfunc.pipeline.evaluation.subprocess_model import SubprocessModel, subprocess_model

Start = Callable[..., AbstractContextManager[SubprocessModel]]
Converse = Callable[..., list[dict[str, Any]]]
PATIENCE_S = 30.0  # far more than any of these processes takes
LOADED = 'print(json.dumps({"loaded": True}), flush=True)'
ECHO = """
for line in sys.stdin:
    request = json.loads(line)
    rows = [{"label": image, "confidence": 1, "error": None} for image in request["images"]]
    print(json.dumps({"output": rows}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a process that runs given lines instead of the worker's."""

    def start(*lines: str, **options: Any) -> AbstractContextManager[SubprocessModel]:
        program = tmp_path / "worker.py"
        program.write_text("\n".join(["import json, os, sys, time", *lines]))
        monkeypatch.setattr(module, "_PROGRAM", program)
        return subprocess_model(str(tmp_path), **{"timeout_s": PATIENCE_S, **options})

    return start


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_images_are_sent_and_predictions_received(worker: Start):
    with worker(LOADED, ECHO) as model:
        assert model.predict([b"a", b"b\xff"]) == [Prediction(encoded(b"a"), 1.0), Prediction(encoded(b"b\xff"), 1.0)]
        assert model.predict([b"c"], True) == [Prediction(encoded(b"c"), 1.0)]


def test_the_request_names_the_column_and_whether_to_explain(
    worker: Start,
):
    repeat = 'for line in sys.stdin: print(json.dumps({"output": [{"label": line, "confidence": 1}]}), flush=True)'
    with worker(LOADED, repeat) as model:
        requests = [json.loads(model.predict([b"a"], *explain)[0].label or "") for explain in ((), (True,))]
    assert [request["explain"] for request in requests] == [False, True]
    assert {request["column"] for request in requests} == {"image"}


def test_a_models_process_sees_no_credentials(worker: Start, monkeypatch: pytest.MonkeyPatch):
    secrets = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN", "HTTPS_PROXY")
    for name in secrets:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tell = 'row = {"label": json.dumps(dict(os.environ)), "confidence": 1}'
    with worker(LOADED, tell, 'sys.stdin.readline(); print(json.dumps({"output": [row]}), flush=True)') as model:
        environment = json.loads(model.predict([b"a"])[0].label or "")
    assert not set(secrets) & set(environment)
    assert "a secret" not in environment.values()
    assert {name: environment[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ} == {
        name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ
    }


@pytest.mark.parametrize(("pickle", "allowed"), [(False, "false"), (True, "true")])
def test_mlflow_may_unpickle_only_if_told_so(
    pickle: bool,
    allowed: str,
    worker: Start,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true" if allowed == "false" else "false")
    tell = 'print(json.dumps({"error": os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]}), flush=True)'
    with pytest.raises(ModelFailed, match=f"did not load: {allowed}$"), worker(tell, pickle=pickle):
        pass


def test_a_model_works_in_a_folder_of_its_own(worker: Start):
    write = 'open("left behind", "w").close(); row = {"label": os.getcwd(), "confidence": 1}'
    with worker(LOADED, write, 'sys.stdin.readline(); print(json.dumps({"output": [row]}), flush=True)') as model:
        folder = Path(model.predict([b"a"])[0].label or "")
        assert (folder / "left behind").exists()
        assert folder != Path.cwd()
    assert not folder.exists()


def test_a_process_that_dies_while_loading_is_the_models_failure(worker: Start, tmp_path: Path):
    last_words = "sys.stderr.write('x' * 1000 + ' segmentation fault\\n'); sys.exit(7)"
    with pytest.raises(ModelFailed) as failed, worker(last_words):
        pass
    start, end = str(failed.value).split("xxx", 1)
    assert start == f"{tmp_path} did not load: its process ended with 7: "
    assert end.endswith("x segmentation fault")
    assert len(end) < 500


def test_a_model_that_cannot_be_loaded_says_why(worker: Start):
    with (
        pytest.raises(ModelFailed, match=r"did not load: KeyError: 'weights'$"),
        worker('print(json.dumps({"error": "KeyError: \'weights\'"}), flush=True)'),
    ):
        pass


def test_a_model_that_hangs_while_loading_is_given_up(worker: Start):
    with pytest.raises(ModelFailed, match=r"did not load within 0.2 s$"), worker("time.sleep(60)", timeout_s=0.2):
        pass


def test_a_model_that_hangs_in_its_first_prediction_is_given_up_and_ended(
    worker: Start,
):
    with worker(LOADED, "sys.stdin.readline()", "time.sleep(60)", timeout_s=5) as model:
        model._timeout_s = 0.2  # the process may take longer to start
        with pytest.raises(ModelFailed, match=r"did not predict within 0.2 s$"):
            model.predict([b"a"])
        model._timeout_s = PATIENCE_S
        with pytest.raises(ModelFailed, match="did not predict: its process ended with -9"):
            model.predict([b"a"])


def test_a_process_that_has_died_fails_each_prediction_at_once(
    worker: Start,
):
    with worker(LOADED, "sys.exit(3)") as model:
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(ModelFailed, match="did not predict: its process ended with 3"):
                model.predict([b"a"])
        assert time.monotonic() - started < PATIENCE_S


def test_a_model_that_raises_fails_one_prediction_and_can_be_called_again(
    worker: Start,
):
    raising = 'sys.stdin.readline(); print(json.dumps({"error": "KeyError: 1"}), flush=True)'
    with worker(LOADED, raising, ECHO) as model:
        with pytest.raises(ModelFailed, match=r"did not predict: KeyError: 1$"):
            model.predict([b"a"])
        assert model.predict([b"a"]) == [Prediction(encoded(b"a"), 1.0)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([{"label": "cat", "confidence": 1}], "returned 1 rows for 2 images"),
        ([{"class": "cat"}, {"class": "dog"}], "returned the columns class"),
        (None, "returned NoneType"),
    ],
)
def test_predictions_that_cannot_be_used_are_the_models_failure(output: object, message: str, worker: Start):
    respond = f"sys.stdin.readline(); print({json.dumps(json.dumps({'output': output}))}, flush=True)"
    with worker(LOADED, respond) as model, pytest.raises(ModelFailed, match=message):
        model.predict([b"a", b"b"])


def test_the_process_ends_with_the_context(worker: Start):
    with worker(LOADED, ECHO) as model:
        process = model._process
        assert process.poll() is None
    assert process.poll() is not None


# The worker's own side, in this process: a model and the two streams are stood in for.


@pytest.fixture
def converse(monkeypatch: pytest.MonkeyPatch) -> Converse:
    """Runs the worker on a model and requests; what it responds."""

    def run(load: Callable[[str], Any], *requests: dict[str, Any]) -> list[dict[str, Any]]:
        responses = io.StringIO()
        monkeypatch.setattr(subprocess_worker.os, "dup", lambda fd: fd)
        monkeypatch.setattr(subprocess_worker.os, "dup2", lambda source, target: None)
        monkeypatch.setattr(subprocess_worker.os, "fdopen", lambda fd, mode, encoding: responses)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
        monkeypatch.setattr("mlflow.pyfunc.load_model", load)
        subprocess_worker.main("folder")
        return [json.loads(line) for line in responses.getvalue().splitlines()]

    return run


def model_of(predict: Callable[..., Any]) -> Any:
    metadata = SimpleNamespace(get_input_schema=lambda: None, get_params_schema=lambda: None)
    return SimpleNamespace(metadata=metadata, predict=predict)


REQUEST = {"images": [encoded(b"a"), encoded(b"b")], "explain": False, "column": "photo"}


def test_the_worker_loads_a_folder_and_calls_the_model(converse: Converse):
    seen: list[Any] = []

    def load(folder: str) -> Any:
        seen.append(folder)
        return model_of(lambda frame: seen.append(frame.to_dict("list")) or [{"label": "cat"}])

    assert converse(load, REQUEST, REQUEST) == [{"loaded": True}, *[{"output": [{"label": "cat"}]}] * 2]
    assert seen == ["folder", *[{"photo": [b"a", b"b"]}] * 2]


def test_the_worker_sends_whatever_a_model_returns(converse: Converse):
    row = {"label": np.str_("cat"), "confidence": np.float32(0.5), "heatmap": b"png", "table": np.eye(2), "other": {1}}
    outputs = iter([pd.DataFrame([row]), [row], "nonsense"])
    _, frame, rows, text = converse(lambda folder: model_of(lambda frame: next(outputs)), *[REQUEST] * 3)
    plain = {"label": "cat", "confidence": 0.5, "heatmap": encoded(b"png"), "table": [[1, 0], [0, 1]], "other": "{1}"}
    assert frame == rows == {"output": [plain]}
    assert text == {"output": "nonsense"}


def test_the_worker_reports_what_a_model_raises(converse: Converse):
    def fail(frame: object) -> None:
        raise RuntimeError("\nno such layer\nand more")

    outputs = iter([fail, lambda frame: [{(1, 2): "a key that JSON has not"}], lambda frame: []])
    _, raised, unsendable, fine = converse(lambda folder: model_of(lambda frame: next(outputs)(frame)), *[REQUEST] * 3)
    assert raised == {"error": "RuntimeError: no such layer"}
    assert unsendable["error"].startswith("TypeError: ")
    assert fine == {"output": []}


def test_the_worker_ends_if_the_model_cannot_be_loaded(converse: Converse):
    def fail(folder: str) -> None:
        raise SystemExit("y" * 1000)

    assert converse(fail, REQUEST) == [{"error": "SystemExit: " + "y" * 488}]
