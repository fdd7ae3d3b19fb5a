"""deploy/ray: one configuration of Ray Serve for `serve deploy` and KubeRay, in pods that Kubernetes' schemas accept."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.project import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "ray"
# Of KubeRay's API reference, version 1.7.1: what the manifest may use of each object.
FIELDS = {
    "spec": {"serveConfigV2", "rayClusterConfig"},
    "rayClusterConfig": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def configuration() -> Any:
    return yaml.safe_load((FOLDER / "serve.yaml").read_text())


def service() -> Any:
    return yaml.safe_load((FOLDER / "rayservice.yaml").read_text())


def groups() -> list[dict[str, Any]]:
    cluster = service()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_kuberay_gets_the_configuration_that_serve_deploy_gets():
    assert yaml.safe_load(service()["spec"]["serveConfigV2"]) == configuration()


def test_the_ray_service_has_only_fields_that_kuberay_knows():
    spec = service()["spec"]
    assert (service()["apiVersion"], service()["kind"]) == ("ray.io/v1", "RayService")
    assert set(spec) <= FIELDS["spec"]
    assert set(spec["rayClusterConfig"]) <= FIELDS["rayClusterConfig"]
    head, *workers = groups()
    assert set(head) <= FIELDS["headGroupSpec"]
    assert all(set(worker) <= FIELDS["workerGroupSpecs"] for worker in workers)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("group", groups(), ids=["head", "worker"])
def test_every_pod_is_valid(group: dict[str, Any], version: str):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
    kubernetes_validate.validate(pod, version, strict=True)


def test_the_pods_have_the_version_of_ray_that_was_tested():
    tested = (REPOSITORY / "constraints.txt").read_text().split("ray==")[1].split()[0]
    cluster = service()["spec"]["rayClusterConfig"]
    images = {container["image"] for group in groups() for container in group["template"]["spec"]["containers"]}
    assert (cluster["rayVersion"], images) == (tested, {f"registry.example.com/catdog-ray:{tested}"})


def test_the_largest_number_of_replicas_fits_on_the_largest_number_of_workers():
    """An update starts a fifth more."""
    (application,) = configuration()["applications"]
    (deployment,) = application["deployments"]
    (workers,) = service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    cores = workers["maxReplicas"] * int(container["resources"]["limits"]["cpu"])
    assert deployment["autoscaling_config"]["max_replicas"] * 1.2 * deployment["ray_actor_options"]["num_cpus"] <= cores
