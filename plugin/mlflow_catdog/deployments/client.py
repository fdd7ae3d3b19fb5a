"""`mlflow deployments … -t catdog`: a model in a container of the Docker engine, replaced without a lost request.

MLflow loads this module as the target: `target_help`, `run_local` and exactly one client class must be visible in it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse

from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from mlflow_catdog.deployments import build, containers, rest
from mlflow_catdog.deployments.docker_client import connected, ensure_image, host_of
from mlflow_catdog.deployments.errors import DeploymentMissing, InvalidOption
from mlflow_catdog.deployments.local import run_local
from mlflow_catdog.deployments.options import Options, describe

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

__all__ = ["CatDogDeploymentClient", "run_local", "target_help"]
_FLAVOR = "python_function"
_IMAGES = "catdog-deployment"


def target_help() -> str:
    """What `mlflow deployments help -t catdog` prints."""
    return f"""Deploys MLflow models that take a picture a row (any pyfunc) to the Docker engine that DOCKER_HOST or docker's
current context names; the target is just `catdog`. `create` and `update` return when the new container has answered a
picture; until then, and if it never does, what served before serves on. `run-local` runs a process here, until Ctrl-C.

Options (-C name=value), with their defaults:

{describe()}

`update` keeps the options that it isn't given. `predict` and `explain` take a JSON file of records, such as
[{{"image": "<base64 of a photo>"}}]; `explain` returns a heat map with each row, if the model makes them."""


class CatDogDeploymentClient(BaseDeploymentClient):
    """The verbs of `mlflow deployments`; get one by `mlflow.deployments.get_deploy_client("catdog")`."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model; returns when it has answered a picture, and leaves nothing if it doesn't.

        Args:
            name: Letters, digits, - and _; not taken.
            model_uri: Any that MLflow knows.
            flavor: Only "python_function".
            config: Options, see `target_help`.
            endpoint: Not used by this target.

        Returns:
            As `get_deployment`, and `answer`: what it said to the picture.

        Raises:
            DeploymentError: And nothing was deployed.
        """
        _check(name, endpoint)
        options = Options().changed(config, "create")
        with _changing() as engine, build.fetched(model_uri, flavor) as model, contextlib.ExitStack() as undo:
            base = _base_image(engine, model, options)
            door = containers.start_listener(engine, name, options, base)
            undo.callback(_remove, engine, name)
            answer = _replace(engine, name, model, options, base)
            undo.pop_all()
            return _announced(engine, name, door, answer)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Put another model, or the same with other options, behind the same address; no request is lost meanwhile.

        Args:
            name: Of the deployment.
            model_uri: The new model; without it the URI that was given last is looked up again.
            flavor: Only "python_function".
            config: Options that change; see `target_help`.
            endpoint: Not used by this target.

        Returns:
            As `create_deployment`.

        Raises:
            DeploymentError: And what served before serves on.
        """
        _check(name, endpoint)
        with _changing() as engine:
            door = _door(engine, name)
            containers.finish(engine, name)
            labels = (containers.serving(engine, name) or door).labels
            options = Options(**json.loads(labels[containers.OPTIONS])).changed(config, "update")
            uri = model_uri or labels.get(containers.MODEL_URI)
            if not uri:
                raise InvalidOption(f"deployment {name!r} has no model: give one")
            with build.fetched(uri, flavor) as model:
                answer = _replace(engine, name, model, options, _base_image(engine, model, options))
            return _announced(engine, name, door, answer)

    def delete_deployment(self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None) -> None:
        """Remove a deployment's containers, volume and images; no matter if there is none.

        Args:
            name: Of the deployment.
            config: Nothing can be set.
            endpoint: Not used by this target.
        """
        _check(name, endpoint)
        if config:
            raise InvalidOption(f"delete takes no options, and was given {', '.join(config)}")
        with connected() as engine:
            _remove(engine, name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All deployments on this engine, each as `get_deployment` gives it."""
        _check_endpoint(endpoint)
        with connected() as engine:
            doors = engine.containers.list(all=True, filters={"label": f"{containers.ROLE}=door"})
            described = [_describe(engine, door.labels[containers.DEPLOYMENT], door) for door in doors]
        return sorted(described, key=lambda deployment: str(deployment["name"]))

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """What is known of a deployment.

        Args:
            name: Of the deployment.
            endpoint: Not used by this target.

        Returns:
            name, flavor, status (the container's, as "running (healthy)"), address, model_uri (as asked for), model (which
            version that was), since, image and options.

        Raises:
            DeploymentMissing: There is none of that name.
        """
        _check(name, endpoint)
        with connected() as engine:
            return _describe(engine, name, _door(engine, name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Ask a deployment.

        Args:
            deployment_name: Its name.
            inputs: A DataFrame with a picture a row (bytes or base64), or what makes one: records, or column → cells.
            endpoint: Not used by this target.

        Returns:
            What `/invocations` answered, with `predictions`.

        Raises:
            DeploymentError: It can't be reached, or refuses.
        """
        address, timeout_s = self._address(deployment_name, endpoint)
        return PredictionsResponse(rest.predict(address, inputs, timeout_s=timeout_s))

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> pd.DataFrame:
        """Ask a deployment for answers with heat maps.

        Args:
            deployment_name: Its name.
            df: As for `predict`.
            endpoint: Not used by this target.

        Returns:
            A row a picture; `heatmap` is a PNG in base64.

        Raises:
            DeploymentError: It can't be reached, refuses, or makes no heat maps.
        """
        address, timeout_s = self._address(deployment_name, endpoint)
        return rest.explain(address, df, timeout_s=timeout_s)

    def _address(self, name: str | None, endpoint: str | None) -> tuple[str, float]:
        deployment = self.get_deployment(name or "", endpoint)
        return str(deployment["address"]), float(deployment["options"]["request_timeout_s"])


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise InvalidOption("the target catdog has no endpoints: name a deployment")


def _check(name: str, endpoint: str | None) -> None:
    _check_endpoint(endpoint)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
        raise InvalidOption(f"a deployment can't be called {name!r}: give up to 63 letters, digits, - and _")


@contextlib.contextmanager
def _changing() -> Iterator[DockerClient]:
    with sigterm_as_interrupt(), connected() as engine:
        yield engine


def _door(engine: DockerClient, name: str) -> Container:
    if door := containers.find(engine, containers.door_name(name)):
        return door
    raise DeploymentMissing(f"there is no deployment {name!r}: `mlflow deployments list -t catdog` tells which there are")


def _base_image(engine: DockerClient, model: build.FetchedModel, options: Options) -> str:
    base = options.base_image or f"python:{model.python()}-slim"
    ensure_image(engine, base)
    return base


def _replace(engine: DockerClient, name: str, model: build.FetchedModel, options: Options, base: str) -> Any:
    """Build, start and ask a model; only when it has answered does it take the place of what is there."""
    labels = {containers.MODEL_URI: model.uri, containers.MODEL: model.version}
    tag = f"{_IMAGES}:{name}.new"
    with contextlib.ExitStack() as undo:
        undo.callback(containers.untag, engine, tag)
        built = build.build(engine, model, base, tag, {containers.DEPLOYMENT: name})
        log(f"starting {model.version}")
        candidate = containers.start_candidate(engine, name, built, options, labels)
        undo.callback(containers.remove, candidate, timeout_s=5)  # it may be loading still
        answer = containers.await_answer(candidate, options.ready_timeout_s)
        undo.pop_all()
    containers.settle(engine, name, candidate)
    engine.images.get(built).tag(_IMAGES, name)
    containers.untag(engine, tag)
    containers.remove_images(engine, name, dangling=True)
    return answer


def _announced(engine: DockerClient, name: str, door: Container, answer: Any) -> dict[str, Any]:
    deployment = {**_describe(engine, name, door), "answer": answer}
    log(f"{name}: {deployment['model']} answers at {deployment['address']}/invocations: {json.dumps(answer)}")
    return deployment


def _remove(engine: DockerClient, name: str) -> None:
    # The door last: requests that are being answered pass through it.
    for container in (containers.candidate_name(name), containers.model_name(name), containers.door_name(name)):
        if found := containers.find(engine, container):
            containers.remove(found)
    containers.remove_volume(engine, name)
    containers.remove_images(engine, name, dangling=False)


def _describe(engine: DockerClient, name: str, door: Container) -> dict[str, Any]:
    model = containers.serving(engine, name)
    own = json.loads(door.labels[containers.OPTIONS])
    host = host_of(engine) if own["host"] in ("127.0.0.1", "0.0.0.0") else own["host"]  # noqa: S104
    state: dict[str, Any] = model.attrs["State"] if model else {"Status": "no model"}
    health = state.get("Health", {}).get("Status")
    return {
        "name": name,
        "flavor": _FLAVOR,
        "status": f"{state['Status']} ({health})" if health else state["Status"],
        "address": f"http://{host}:{own['port']}",
        "model_uri": model.labels[containers.MODEL_URI] if model else None,
        "model": model.labels[containers.MODEL] if model else None,
        "since": state.get("StartedAt"),
        "image": model.attrs["Image"] if model else None,
        "options": {**json.loads((model or door).labels[containers.OPTIONS]), "host": own["host"], "port": own["port"]},
    }
