"""`make demo`: train, promote, serve and send a request on this machine, with the commands a user would type."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import requests

from catdog_pyfunc.pipeline.processes import free_port

MODEL = "CatDogClassifier"
_MLFLOW_RUN = ("mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "catdog")
_START_TIMEOUT_S = 120


def main() -> None:
    """Train on synthetic images, register, promote, serve, send one request, stop the server."""
    started = time.monotonic()
    _step("1/4", "train, track and register: mlflow run . --env-manager local")
    _run(*_MLFLOW_RUN)
    trained = time.monotonic()

    from catdog_pyfunc.pipeline.data import catalog
    from catdog_pyfunc.pipeline.registry import versions

    version = versions.latest_version(MODEL)
    _step("2/4", f"promote: mlflow run . -e promote -P version={version}")
    _run(*_MLFLOW_RUN, "-e", "promote", "-P", f"version={version}")

    port = free_port()
    _step("3/4", f"serve: mlflow models serve -m models:/{MODEL}@production -p {port} --env-manager local")
    image = catalog.load_dataset(catalog.SAMPLE).splits["test"][0].path
    prediction = _serve_and_predict(port, image)

    _step("4/4", f"the prediction for {image.name}, from POST /invocations")
    click.echo(json.dumps(prediction))
    click.echo(
        f"\ntrained in {trained - started:.0f} s, finished in {time.monotonic() - started:.0f} s. {_next_steps(image)}"
    )


def _next_steps(image: Path) -> str:
    return f"""Next:

  source .venv/bin/activate
  mlflow ui --port 5000                                            # runs, learning curves, plots, models
  catdog predict {image}
  mlflow models serve -m models:/{MODEL}@production -p 5001 --env-manager local
  catdog train --data FOLDER_OF_YOUR_IMAGES                        # one sub-folder per class
"""


def _step(number: str, title: str) -> None:
    click.echo(f"\n== {number}  {title}")


def _run(*command: str) -> None:
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if code:
        click.echo(f"stopped: {' '.join(command)} failed with exit code {code}; its output is above", err=True)
        raise SystemExit(1)


def _serve_and_predict(port: int, image: Path) -> dict[str, Any]:
    options = ["-p", str(port), "-h", "127.0.0.1", "--env-manager", "local"]
    server = subprocess.Popen(
        ["mlflow", "models", "serve", "-m", f"models:/{MODEL}@production", *options], stdout=sys.stderr
    )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/ping")
        body = {"dataframe_records": [{"image": base64.b64encode(image.read_bytes()).decode()}]}
        response = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=30)
        response.raise_for_status()
        prediction: dict[str, Any] = response.json()["predictions"][0]
        return prediction
    finally:
        server.terminate()
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            click.echo(f"stopped: the server ended with exit code {server.returncode}; its log is above", err=True)
            raise SystemExit(1)
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.3)
    click.echo(f"stopped: {url} did not respond within {_START_TIMEOUT_S} s; the server's log is above", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
