"""A model asked in a process of its own: with its own code, and without harm to this one."""

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
from catdog_pyfunc.pipeline.evaluation.predictors import to_predictions

_LOADING_TIMEOUT_S, _ANSWER_TIMEOUT_S = 300.0, 300.0
_PROGRAM = Path(__file__).with_name("subprocess_worker.py")


class SubprocessModel:
    """A model in another process; `isolated_model` starts and stops it."""

    def __init__(self, uri: str, process: subprocess.Popen[str], log: Path) -> None:
        """Of a process that has just been started."""
        self.uri = uri
        self._process, self._log = process, log
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._next(_LOADING_TIMEOUT_S, "load")

    def predict(self, images: Sequence[bytes], explain: bool = False) -> list[Prediction]:
        """Let the model answer: an `Ask` of `answers.py`.

        Args:
            images: Files of pictures.
            explain: Whether heat maps are wanted.

        Returns:
            One prediction a picture.

        Raises:
            ModelFailed: It raised an exception, died, or took longer than 5 minutes.
            InvalidData: What it answered has no label and confidence.
        """
        asked = {"images": [base64.b64encode(image).decode() for image in images], "explain": explain}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the answer says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        return to_predictions(self._next(_ANSWER_TIMEOUT_S, "answer")["rows"])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next(self, timeout_s: float, what: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ModelFailed(f"{self.uri} didn't {what} within {timeout_s:.0f} s") from None
        if not line:
            code = self._process.wait()
            tail = self._log.read_text(errors="replace").strip()[-500:]
            raise ModelFailed(f"{self.uri} didn't {what}: its process ended with {code}: {tail}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ModelFailed(f"{self.uri} didn't {what}: {said['error']}")
        return said


@contextlib.contextmanager
def subprocess_model(uri: str, *, pickle: bool = False) -> Iterator[SubprocessModel]:
    """Load a model in a process of its own.

    Args:
        uri: Any that MLflow knows.
        pickle: Whether MLflow may unpickle Python objects of it, which runs whatever code they name.

    Yields:
        The model, loaded; its process ends with the context.

    Raises:
        RegistryError: There is no such model.
        ModelFailed: It can't be loaded.
    """
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": str(pickle).lower()}
    with flavor.downloaded_model(uri) as folder, tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        log = Path(scratch) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), str(folder.resolve())],
                cwd=scratch,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
            )
        try:
            yield SubprocessModel(uri, process, log)
        finally:
            process.kill()
            process.wait()
