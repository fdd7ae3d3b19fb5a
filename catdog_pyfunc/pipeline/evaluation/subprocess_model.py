"""Runs a model in a process of its own, with its own code: it cannot crash, hang or alter this one.

This is no sandbox: the process has the rights of the user who starts it, and can read their files and use the network.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catdog_pyfunc import flavor
from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import ModelFailed
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.pipeline.evaluation.predictors import to_predictions

_TIMEOUT_S = 300.0
_PROGRAM = Path(__file__).with_name("subprocess_worker.py")
# What a model's process gets of this one's environment; credentials (tracking server, cloud, proxies) stay here.
_ENVIRONMENT = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR", "XDG_CACHE_HOME"),
        *("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
        *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
        *("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"),
    }
)


class SubprocessModel:
    """A model in a process of its own; `subprocess_model` starts and ends it."""

    def __init__(self, uri: str, process: subprocess.Popen[str], log: Path, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until a process that has just been started has loaded the model.

        Args:
            uri: Names the model in messages.
            process: A `subprocess_worker`.
            log: File of its standard error.
            timeout_s: Limit for loading, and for each call.

        Raises:
            ModelFailed: The model cannot be loaded, or not in time.
        """
        self.uri = uri
        self._process, self._log, self._timeout_s = process, log, timeout_s
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._response("load")

    def predict(self, images: Sequence[bytes], explain: bool = False) -> list[Prediction]:
        """Call the model: a `Predictor`.

        Args:
            images: Contents of image files.
            explain: Whether to request heat maps.

        Returns:
            One prediction per image.

        Raises:
            ModelFailed: The model raised, died, hung, or returned predictions that cannot be used.
        """
        contents = [base64.b64encode(image).decode() for image in images]
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: reading its response reports that
            self._process.stdin.write(json.dumps({"images": contents, "explain": explain, "column": IMAGE_COLUMN}) + "\n")
            self._process.stdin.flush()
        return to_predictions(self._response("predict")["output"], len(images))

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _response(self, what: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout_s)
        except queue.Empty:
            self._process.kill()  # a late response must not be taken for the next one's
            raise ModelFailed(f"{self.uri} did not {what} within {self._timeout_s:g} s") from None
        if not line:
            self._lines.put("")  # for the next call
            code = self._process.wait()
            tail = self._log.read_text(errors="replace").strip()[-500:]
            raise ModelFailed(f"{self.uri} did not {what}: its process ended with {code}: {tail}")
        response: dict[str, Any] = json.loads(line)
        if "error" in response:
            raise ModelFailed(f"{self.uri} did not {what}: {response['error']}")
        return response


@contextlib.contextmanager
def subprocess_model(uri: str, *, pickle: bool = False, timeout_s: float = _TIMEOUT_S) -> Iterator[SubprocessModel]:
    """Load a model in a process of its own, with a minimal environment.

    Args:
        uri: A model URI that MLflow resolves, or a folder.
        pickle: Whether MLflow may unpickle Python objects of the model, which runs whatever code they name.
        timeout_s: Limit for loading, and for each call.

    Yields:
        The loaded model; its process ends with the context.

    Raises:
        RegistryError: There is no such model.
        ModelFailed: The model cannot be loaded, or not in time.
    """
    with flavor.downloaded_model(uri) as folder, tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        log = Path(scratch) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), str(folder.resolve())],
                cwd=scratch,
                env=_environment(pickle),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
            )
        try:
            yield SubprocessModel(uri, process, log, timeout_s)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # of a request that it did not read
                process.stdin.close()


def _environment(pickle: bool) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return {**inherited, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": str(pickle).lower()}
