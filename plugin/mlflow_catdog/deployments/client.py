"""`mlflow deployments … -t catdog`: a model in a Docker container, replaced without losing a request.

MLflow loads this module as the target: `target_help`, `run_local` and exactly one client class must be visible in it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse

from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from mlflow_catdog.deployments import build, containers, recovery, replacement, rest
from mlflow_catdog.deployments.docker_client import connected, host_of
from mlflow_catdog.deployments.errors import DeploymentMissing, InvalidOption
from mlflow_catdog.deployments.local import run_local
from mlflow_catdog.deployments.options import Options, describe

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

__all__ = ["CatDogDeploymentClient", "run_local", "target_help"]
_FLAVOR = "python_function"


def target_help() -> str:
    """Text of `mlflow deployments help -t catdog`."""
    return f"""Deploys MLflow models that take one image per row (any pyfunc) to the Docker daemon of DOCKER_HOST or of
docker's current context; the target is just `catdog`. `create` and `update` return once the new container has passed a
smoke test with one image; until then, and if it fails, the previous model serves on. `run-local` serves in a process here,
until Ctrl-C.

Options (-C name=value), with their defaults:

{describe()}

`update` keeps the options it is not given. `predict` and `explain` take a JSON file of records, such as
[{{"image": "<base64 of an image>"}}]; `explain` adds a heatmap to each row, if the model makes them."""


class CatDogDeploymentClient(BaseDeploymentClient):
    """The commands of `mlflow deployments`; get one by `mlflow.deployments.get_deploy_client("catdog")`."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model. Returns once it has passed its smoke test; leaves nothing if it fails.

        Args:
            name: Up to 63 letters, digits, - and _; not taken.
            model_uri: Any URI that MLflow reads.
            flavor: Only "python_function".
            config: Options, see `target_help`.
            endpoint: Not supported.

        Returns:
            As `get_deployment`, and `prediction`: the model's response to the smoke test.

        Raises:
            DeploymentError: Nothing was deployed.
        """
        _check(name, endpoint)
        options = Options().updated(config, "create")
        _check_follow(options, model_uri)
        with _changing() as client, build.fetched(model_uri, flavor) as model, contextlib.ExitStack() as undo:
            base = replacement.base_image(client, model, options)
            listener = containers.start_listener(client, name, options, base)
            undo.callback(containers.remove_all, client, name)
            prediction = replacement.build_and_serve(client, name, model, options, base)
            undo.pop_all()
            return _announced(client, name, listener, prediction)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serve another model, or the same with other options, at the same address, without losing a request.

        Args:
            name: Of the deployment.
            model_uri: The new model; if omitted, the last URI is resolved again.
            flavor: Only "python_function".
            config: Options that change, see `target_help`.
            endpoint: Not supported.

        Returns:
            As `create_deployment`.

        Raises:
            DeploymentError: The previous model serves on.
        """
        _check(name, endpoint)
        with _changing() as client:
            listener = _listener(client, name)
            recovery.recover(client, name)
            labels = (recovery.serving(client, name) or listener).labels
            stored, dropped = Options.from_json(labels[containers.OPTIONS])
            for option in dropped:
                log(f"{name} was deployed with option {option!r}, which this version does not have: using the defaults")
            options = stored.updated(config, "update")
            uri = model_uri or labels.get(containers.MODEL_URI)
            if not uri:
                raise InvalidOption(f"deployment {name!r} has no model yet: give one with -m")
            _check_follow(options, uri)
            prediction = replacement.update(client, name, uri, build.exact_version(uri), options, flavor)
            return _announced(client, name, listener, prediction)

    def delete_deployment(self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None) -> None:
        """Remove a deployment's containers, volume and images; no error if there is none. Tags of your own stay.

        Args:
            name: Of the deployment.
            config: No option is accepted.
            endpoint: Not supported.
        """
        _check(name, endpoint)
        if config:
            raise InvalidOption(f"delete takes no options, but got {', '.join(config)}")
        with connected() as client:
            containers.remove_all(client, name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All deployments of this Docker daemon by name, each as `get_deployment` describes it."""
        _check_endpoint(endpoint)
        with connected() as client:
            listeners = client.containers.list(all=True, filters={"label": f"{containers.ROLE}=listener"})
            described = [_describe(client, entry.labels[containers.DEPLOYMENT], entry) for entry in listeners]
        return sorted(described, key=lambda deployment: str(deployment["name"]))

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Describe a deployment.

        Args:
            name: Of the deployment.
            endpoint: Not supported.

        Returns:
            name, flavor, status (of the container, such as "running (healthy)"), address, model_uri (as given), model (the
            version it resolved to), since, image and options.

        Raises:
            DeploymentMissing: There is no deployment of that name.
        """
        _check(name, endpoint)
        with connected() as client:
            return _describe(client, name, _listener(client, name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Get a deployment's predictions.

        Args:
            deployment_name: Its name.
            inputs: A DataFrame with one image per row (bytes or base64), or what makes one: records, or column → cells.
            endpoint: Not supported.

        Returns:
            The response of `/invocations`, with `predictions`.

        Raises:
            DeploymentError: The deployment cannot be reached, or refuses.
        """
        address, options = self._find(deployment_name, endpoint)
        response = rest.predict(address, inputs, timeout_s=options.request_timeout_s, api_key=options.api_key())
        return PredictionsResponse(response)

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> pd.DataFrame:
        """Get a deployment's predictions with heatmaps.

        Args:
            deployment_name: Its name.
            df: As `inputs` of `predict`.
            endpoint: Not supported.

        Returns:
            One row per image; `heatmap` is a PNG in base64.

        Raises:
            DeploymentError: The deployment cannot be reached, refuses, or makes no heatmaps.
        """
        address, options = self._find(deployment_name, endpoint)
        return rest.explain(address, df, timeout_s=options.request_timeout_s, api_key=options.api_key())

    def _find(self, name: str | None, endpoint: str | None) -> tuple[str, Options]:
        deployment = self.get_deployment(name or "", endpoint)
        return str(deployment["address"]), Options(**deployment["options"])


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise InvalidOption(f"the target catdog has no endpoints, but got {endpoint!r}: name a deployment")


def _check(name: str, endpoint: str | None) -> None:
    _check_endpoint(endpoint)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
        raise InvalidOption(f"invalid deployment name {name!r}: use up to 63 letters, digits, - and _")


def _check_follow(options: Options, uri: str) -> None:
    if options.follow and not build.alias_of(uri):
        raise InvalidOption(
            f"follow=true needs a model named by an alias, such as models:/CatDogClassifier@production, but got {uri!r}: "
            "give such a model with -m, or -C follow=false"
        )


@contextlib.contextmanager
def _changing() -> Iterator[DockerClient]:
    with sigterm_as_interrupt(), connected() as client:
        yield client


def _listener(client: DockerClient, name: str) -> Container:
    if listener := containers.find(client, containers.listener_name(name)):
        return listener
    raise DeploymentMissing(f"there is no deployment {name!r}: `mlflow deployments list -t catdog` shows all")


def _announced(client: DockerClient, name: str, listener: Container, prediction: Any) -> dict[str, Any]:
    deployment = {**_describe(client, name, listener), "prediction": prediction}
    log(f"{name}: {deployment['model']} serves at {deployment['address']}; smoke test: {json.dumps(prediction)}")
    return deployment


def _describe(client: DockerClient, name: str, listener: Container) -> dict[str, Any]:
    model = recovery.serving(client, name)
    bound, _ = Options.from_json(listener.labels[containers.OPTIONS])
    options, _ = Options.from_json((model or listener).labels[containers.OPTIONS])
    host = host_of(client) if bound.host in ("127.0.0.1", "0.0.0.0") else bound.host  # noqa: S104
    state: dict[str, Any] = model.attrs["State"] if model else {"Status": "no model"}
    health = state.get("Health", {}).get("Status")
    return {
        "name": name,
        "flavor": _FLAVOR,
        "status": f"{state['Status']} ({health})" if health else state["Status"],
        "address": f"http://{host}:{bound.port}",
        "model_uri": model.labels[containers.MODEL_URI] if model else None,
        "model": model.labels[containers.MODEL] if model else None,
        "since": state.get("StartedAt"),
        "image": model.attrs["Image"] if model else None,
        "options": {**asdict(options), "host": bound.host, "port": bound.port},
    }
