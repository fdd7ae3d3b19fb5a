"""`make demo`: the whole way on this machine, by the commands that a user would type."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import click
import requests

from catdog_pyfunc.pipeline.processes import free_port

MODEL = "CatDogClassifier"
_START_TIMEOUT_S = 120


def main() -> None:
    """Train on drawn photos, register, promote, serve, ask one question, stop the server."""
    started = time.monotonic()
    _title("1/4", "train, track and register: mlflow run . --env-manager local")
    _run("mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "catdog")
    trained = time.monotonic()

    from catdog_pyfunc.pipeline.data import catalog
    from catdog_pyfunc.pipeline.registry import versions

    version = versions.latest_version(MODEL)
    _title("2/4", f"promote: mlflow run . -e promote -P version={version}")
    _run(
        "mlflow",
        "run",
        ".",
        "--env-manager",
        "local",
        "--experiment-name",
        "catdog",
        "-e",
        "promote",
        "-P",
        f"version={version}",
    )

    port = free_port()
    _title("3/4", f"serve: mlflow models serve -m models:/{MODEL}@production -p {port} --env-manager local")
    photo = catalog.load_dataset(catalog.SAMPLE).splits["test"][0].path
    answer = _serve_and_ask(port, photo)

    _title("4/4", f"the answer for {photo.name}, from POST /invocations")
    click.echo(json.dumps(answer["predictions"][0]))
    click.echo(
        f"\ntrained in {trained - started:.0f} s, all done in {time.monotonic() - started:.0f} s. {_next_steps(photo)}"
    )


def _next_steps(photo: Path) -> str:
    return f"""To go on:

  source .venv/bin/activate
  mlflow ui --port 5000                                            # runs, curves, pictures, models
  python -m scripts.predict {photo}
  mlflow models serve -m models:/{MODEL}@production -p 5001 --env-manager local
  mlflow run . --env-manager local -P data=FOLDER_OF_YOUR_PHOTOS   # one sub-folder a class
"""


def _title(step: str, text: str) -> None:
    click.echo(f"\n== {step}  {text}")


def _run(*command: str) -> None:
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if code:
        click.echo(f"stopped: {' '.join(command)} ended with {code}; its messages stand above", err=True)
        raise SystemExit(1)


def _serve_and_ask(port: int, photo: Path) -> dict[str, list[object]]:
    options = ["-p", str(port), "-h", "127.0.0.1", "--env-manager", "local"]
    server = subprocess.Popen(
        ["mlflow", "models", "serve", "-m", f"models:/{MODEL}@production", *options], stdout=sys.stderr
    )
    try:
        _wait_until_up(server, f"http://127.0.0.1:{port}/ping")
        body = {"dataframe_records": [{"image": base64.b64encode(photo.read_bytes()).decode()}]}
        response = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=30)
        response.raise_for_status()
        answer: dict[str, list[object]] = response.json()
        return answer
    finally:
        server.terminate()
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise click.ClickException(f"the server ended with {server.returncode} before it answered; its log stands above")
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.3)
    raise click.ClickException(f"{url} did not answer within {_START_TIMEOUT_S} s; the server's log stands above")


if __name__ == "__main__":
    main()
